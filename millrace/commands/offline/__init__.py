# core
"""Programs that need no broker: replay, experiments, and the reports that they write."""
