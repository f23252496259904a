"""Candidate lists made of given counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from millrace.basics.hashing import column_hash
from scorer.catalog.item_index import Heat
from scorer.recall.candidate_lists import CandidateLists, make_lists
from tests.scenes.scorer_shop import BUILDER


def heat_of(clicks: Any, exposures: Any = None, seen: Any = None) -> Heat:
    many = np.full(len(clicks), 1e6) if exposures is None else exposures  # so that the rate is that of the clicks
    shown = np.zeros(len(clicks)) if seen is None else seen
    return Heat(*(np.asarray(a, np.float32) for a in (clicks, many, shown)))


def lists_of(n: int, heat: Heat, alive: np.ndarray | None = None, categories: int = 10, **more: Any) -> CandidateLists:
    columns = {"category": column_hash([f"c{i % categories}" for i in range(n)])}
    living = np.ones(n, np.bool_) if alive is None else alive
    return make_lists(BUILDER, columns, living, np.arange(1, n + 1), heat, **more)
