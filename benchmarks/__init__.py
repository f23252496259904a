"""Benchmarks: `millrace bench NAME --out DIR`. Figures are ratios within one run."""
