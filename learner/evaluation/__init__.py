# core
"""Figures of a model while it learns: progressive scores, segments, drift."""
