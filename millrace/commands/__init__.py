# core
"""The command line and what stands behind each command. Nothing imports it but benchmarks, experiments and tests."""
