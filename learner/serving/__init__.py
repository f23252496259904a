# core
"""The model as a scorer holds it: frames, deltas laid over them."""
