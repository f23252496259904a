"""Sources of recall that answer what they are told to."""

from __future__ import annotations

from typing import Any

import numpy as np

from scorer.catalog.itemtable import ItemRows
from scorer.recall.nearest import Retrieval
from scorer.recall.neighbours import Neighbours


class Near(Retrieval):
    """A retrieval version that has the rows from 100 on nearest, and notes what it was asked."""

    def __init__(self, clicks: int = 5000, version: tuple[int, int] = (2, 41)) -> None:
        self.clicks, self.version = clicks, version
        self.asked: list[Any] = []

    def query(self, user_ids: Any, recent_rows: ItemRows, age_ms: Any) -> Any:
        self.asked.append((user_ids.tolist(), recent_rows.tolist(), age_ms.tolist()))
        return np.ones(4, np.float32)

    def nearest(self, query: Any, k: int, allowed: Any = None) -> ItemRows:
        return np.arange(100, 200)[:k]


class Along(Neighbours):
    """Has the eight rows behind each as clicked along with it."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def of(self, rows: ItemRows, most: int) -> ItemRows:
        self.asked.append(rows.tolist())
        return np.array(list(dict.fromkeys(row + k for row in rows.tolist() for k in range(1, 9))))[:most]
