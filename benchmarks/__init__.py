# core
"""What `millrace bench` runs, and the plain reference implementations that the fast ones are held against."""
