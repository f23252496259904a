# core
"""A thousand candidates of all items: by vectors, by co-clicks, by popularity."""
