# core
"""Windows over time and what is read off them: tiles, features, affinity. Shared by stream, scorer and replay."""
