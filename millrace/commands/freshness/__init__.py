# core
"""The worth of freshness on a log: compares models and features that are updated more or less often."""
