# core
"""How Kafka and Redis are reached: addresses, users, passwords and certificates, and what a refusal means."""
