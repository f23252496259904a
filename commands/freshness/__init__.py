# core
"""What is freshness worth on a log: models and features that are kept up to date more or less often, compared."""
