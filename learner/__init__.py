# core
"""Sparse tables, models, the learner that predicts, scores itself, then trains, and its progressive metrics."""
