# core
"""Parts of benchmarks that stand for themselves."""
