# core
"""The stream role: Faust, Kafka and Redis around the partitions of a process."""
