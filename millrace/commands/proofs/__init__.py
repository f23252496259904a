# core
"""Proofs on logs: that replay sees no future (`replay --audit`), that it sees what the live loop saw (`--parity`)."""
