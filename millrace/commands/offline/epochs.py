# core
"""Runs a model over a prepared log's rows: learn in micro-batches, or score."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.ranker.interfaces import Learning
from millrace.commands.offline.dataset import Dataset

Scores = NDArray[np.float32]

BATCH_ROWS = 512
_SCORED_AT_ONCE = 4096


def learn(model: Learning, data: Dataset, rows: slice, num: NDArray[np.float32]) -> list[float]:
    """Learns the rows in time order. Returns each batch's mean loss before it was learnt."""
    return [model.learn(batch).loss for batch in data.batches(rows, BATCH_ROWS, num)]


def learn_shuffled(
    model: Learning, data: Dataset, rows: slice, num: NDArray[np.float32], rng: np.random.Generator
) -> None:
    """Learns the rows in an order drawn from ``rng``, as a batch job over stored data does."""
    order = rng.permutation(np.arange(rows.start, rows.stop))
    for at in range(0, len(order), BATCH_ROWS):
        model.learn(data.batch(np.sort(order[at : at + BATCH_ROWS]), num))


def score(model: Learning, data: Dataset, rows: slice, num: NDArray[np.float32], step: int = 1) -> Scores:
    """Click probabilities of every ``step``-th row. Learns nothing."""
    parts = [
        slice(at, min(at + _SCORED_AT_ONCE * step, rows.stop), step)
        for at in range(rows.start, rows.stop, _SCORED_AT_ONCE * step)
    ]
    return np.concatenate([model.score(np.array(data.cat[p]), np.array(num[p])) for p in parts])
