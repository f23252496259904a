# core
"""Samples since a snapshot are learnt again without those that are named; see docs/how-to/when-a-check-fails.md."""
