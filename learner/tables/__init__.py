# core
"""Sparse tables: which ids have a row, and the rows themselves."""
