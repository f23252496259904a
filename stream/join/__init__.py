# core
"""The label join: pages, exposures and actions become labelled samples."""
