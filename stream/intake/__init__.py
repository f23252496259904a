# core
"""The HTTP server for events, users and items: the role ``intake``. What it answers with `kept`, Kafka has."""
