# core
"""Events and labelled impressions as Parquet that ``millrace log replay`` reads: the role `archive`."""
