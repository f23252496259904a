# core
"""The feeder process: it follows Kafka and keeps shared memory up to date for the workers."""
