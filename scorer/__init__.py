# core
"""Recall, ranking and hot reload behind HTTP."""
