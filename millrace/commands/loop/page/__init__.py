# shell
"""The live page: one HTML file, its style and script, and the small server that serves them on loopback."""

from millrace.commands.loop.page.page_server import PageServer, Send, unsent

__all__ = ["PageServer", "Send", "unsent"]
