# core
"""The shop and its shoppers: a seeded world that emits exposures and what follows them."""
