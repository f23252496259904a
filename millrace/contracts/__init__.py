# core
"""The contracts of Millrace: what crosses a boundary between its rooms. They know none of the rooms above them."""
