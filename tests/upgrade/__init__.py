"""What an earlier version wrote and what this one makes of it."""
