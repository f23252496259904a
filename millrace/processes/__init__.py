# core
"""What every process needs: Kafka clients, metrics, patience (back-off), signals, child processes, services."""
