# core
"""Events and labelled page logs as Parquet that ``millrace log replay`` reads: the role `archive`."""
