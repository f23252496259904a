# core
"""What feeder and workers tell each other."""
