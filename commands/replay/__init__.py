# core
"""A log run through windows, labels and a model, as if it happened live; ``millrace replay`` and what it is made of."""
