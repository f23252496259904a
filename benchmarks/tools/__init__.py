# core
"""What benchmarks share: figures, traffic, load over HTTP, roles in processes of their own."""
