# core
"""The way of a page's log out of the process: ring, spool, Kafka."""
