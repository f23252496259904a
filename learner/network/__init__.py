# core
"""The dense network: forward and backward passes in numpy, and their reference in torch."""
