# core
"""How Kafka, Redis and the learner are reached: addresses, users, passwords and certificates, and what a refusal means."""
