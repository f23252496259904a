# core
"""Which arm of a loop earns more, and whether that is sure, however often one looks: ``millrace judge``."""
