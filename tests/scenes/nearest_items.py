"""Retrieval vectors, and the nearest of them found without an index."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from scorer.recall.nearest import Finder, Retrieval, new_tiles
from scorer.recall.nearestkernels import lay

W = 8


class Mean:
    """A user tower that hands on what it is given: the mean of the last clicks and the number of ids."""

    def query(self, ids: Any, recent: Any, age_ms: Any) -> Any:
        assert len(recent) == len(age_ms)
        out = recent.mean(axis=0) if len(recent) else np.zeros(W, np.float32)
        out[-1] = len(ids) + 1000 * age_ms.sum()
        return out.astype(np.float32)


def rounded(vectors: Any) -> Any:
    """To bfloat16 and back, by torch."""
    return torch.from_numpy(np.asarray(vectors, np.float32)).bfloat16().float().numpy()


def retrieval(vectors: Any, rows: Any = None, room: int = 0, finder: Finder | None = None) -> Retrieval:
    """A version with these vectors at these index rows."""
    n, width = vectors.shape
    rows = np.arange(n) if rows is None else np.asarray(rows)
    tiles = new_tiles(n, width)
    lay(np.ascontiguousarray(vectors, np.float32), np.arange(n), tiles)
    at = np.full(max(room, int(rows.max(initial=-1)) + 1), -1, np.int32)
    at[rows] = np.arange(n)
    return Retrieval((1, 7), 100, rows.astype(np.int32), tiles, at, Mean(), finder)


def plain_best(scores: Any, k: int) -> Any:
    """All that count, sorted; the first k."""
    counted = np.flatnonzero(scores > -np.inf)
    return counted[np.argsort(-scores[counted], kind="stable")][:k]
