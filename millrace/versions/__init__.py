# core
"""How a model travels: versions in order, as messages and as files, proved bit for bit."""
