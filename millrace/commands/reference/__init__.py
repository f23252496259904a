# core
"""Pages that are made from the types and the settings, so that they say what the code does."""
