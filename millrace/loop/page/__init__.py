# shell
"""The live page: one HTML file, its style and script, and the small server that hands them out on loopback."""

from millrace.loop.page.server import PageServer

__all__ = ["PageServer"]
