# core
"""Users: read from Redis, and cached."""
