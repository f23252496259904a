# core
"""The model that ranks: inputs, one step of learning, scoring."""
