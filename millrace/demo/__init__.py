"""The whole loop on one machine: it starts the roles, watches them, audits their books and shows a live page."""
