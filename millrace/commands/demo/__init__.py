# core
"""The whole loop on one machine: starts the roles, watches them, accounts for every exposure, shows a live page."""
