# core
"""Predictions that wait for their label, where each exposure comes as a negative at once.

If each sample were judged as it comes, a click would count as a negative first. So a prediction is kept until its click
comes (label 1) or until the attribution window ends (label 0). A join that waits would give the same labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Hashes = NDArray[np.uint64]


class Unsettled:
    """Predictions by exposure, kept for ``wait_ms`` of event time, at most ``max_rows``. The oldest are dropped first.

    V values of each prediction are kept; the trainer defines them. Snapshots do not keep them: predictions that wait
    when a process ends are not judged.
    """

    def __init__(self, wait_ms: int, max_rows: int = 200_000) -> None:
        self.wait_ms, self.max_rows = wait_ms, max_rows
        self.lost = 0
        self._newest_ms = 0
        self._waiting: dict[int, tuple[int, int, Values]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, ids: Hashes, ts_ms: NDArray[np.int64], users: Hashes, values: Values) -> None:
        """Keeps ``values`` (B, V) of exposures with these ids, times and users (B,)."""
        for id_, ts, user, row in zip(ids.tolist(), ts_ms.tolist(), users.tolist(), values, strict=True):
            self._waiting[id_] = (ts, user, row)
            self._newest_ms = max(self._newest_ms, ts)
        while len(self._waiting) > self.max_rows:
            del self._waiting[next(iter(self._waiting))]
            self.lost += 1

    def settle(self, clicked: Hashes) -> tuple[Hashes, Values, NDArray[np.float64]]:
        """Users (n,), values (n, V) and labels (n,) of the predictions that are settled now: first those ``clicked``,
        then those that have waited long enough."""
        rows = [self._waiting.pop(id_) for id_ in clicked.tolist() if id_ in self._waiting]
        clicks = len(rows)
        while self._waiting:
            id_, (ts, _, _) = next(iter(self._waiting.items()))
            if ts > self._newest_ms - self.wait_ms:
                break  # predictions are in the order of arrival, which is nearly that of time
            rows.append(self._waiting.pop(id_))
        label = np.zeros(len(rows))
        label[:clicks] = 1
        users = np.array([user for _, user, _ in rows], np.uint64)
        return users, np.array([values for _, _, values in rows]), label
