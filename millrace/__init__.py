# core
"""What crosses a boundary between Millrace's packages, and the command line."""

__version__ = "0.2.0"
