# core
"""What is known of users: read from Redis, kept for a while."""
