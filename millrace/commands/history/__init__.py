# core
"""Start from history: what a live loop goes on from, made of a log (``millrace log bootstrap``)."""
