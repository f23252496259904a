# core
"""What every process needs, whatever it does: Kafka clients, metrics, patience, signals, children, services."""
