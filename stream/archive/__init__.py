# core
"""Events and labelled impressions as Parquet that ``millrace replay`` reads: the role `archive`."""
