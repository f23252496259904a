# core
"""How late a log's labels come, and what waiting for them costs: ``millrace log delays``."""
