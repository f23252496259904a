# core
"""The model that recalls: item vectors, the user's tower, their step."""
