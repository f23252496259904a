# core
"""Windows over time and what is read off them: tiles, features, likings. Shared by stream, scorer and replay."""
