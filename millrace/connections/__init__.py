# core
"""How Kafka, Redis and the learner are reached: addresses, users, passwords, certificates, and what a refusal means."""
