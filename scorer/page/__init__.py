# core
"""One page: candidates, filters, ranking, reasons."""
