# core
"""The items as a scorer holds them."""
