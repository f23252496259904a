# core
"""Worlds and poisons to try the gate with, and a learner and a scorer that live through them."""
