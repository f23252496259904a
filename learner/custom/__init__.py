# core
"""Models that a user brings."""
