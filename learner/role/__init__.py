# core
"""The learner role, and named ones beside it."""
