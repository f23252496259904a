# core
"""Comparisons that take hours: seeds, days and worlds. They run from a checkout."""
