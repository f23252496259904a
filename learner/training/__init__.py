# core
"""Batches in, versions out: the trainer, the writer of snapshots and deltas, the claim to be the one learner."""
