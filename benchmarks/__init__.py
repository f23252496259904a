# core
"""What `millrace dev bench` runs."""
