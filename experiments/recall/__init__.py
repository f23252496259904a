# core
"""A shop in one process, as a scorer that recalls holds it, and a day in it."""
