# core
"""The worker process: it answers HTTP requests for pages."""
