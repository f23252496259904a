# core
"""The learner role, and the shadow beside it."""
