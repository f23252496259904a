# core
"""A log run through windows, labels and a model, as if it happened live: ``millrace log replay``."""
