# core
"""A learner as a fold of its decisions: what is promoted, gone back to, released and done again."""
