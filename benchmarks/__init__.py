# core
"""What `millrace dev bench` runs, and the plain reference implementations that the fast ones are held against."""
