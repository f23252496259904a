# core
"""What becomes of samples before they are learnt."""
