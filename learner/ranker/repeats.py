# core
"""Which samples were already learnt from: a memory of their ids, bounded in event time and in size.

The joiner may emit a sample again after a crash, with the same id. A sample's id is (request, position, kind): so a
negative and its later correction are two samples. That of an outcome has the outcomes that it tells, and its telling.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.tables.row_index import Index
from millrace.basics.durations import HOUR_MS
from millrace.basics.hashing import column_hash, combine, salt
from millrace.basics.probing import EMPTY
from millrace.contracts.samples import OUTCOME, SampleBatch
from millrace.contracts.settings import Settings

_SALT = salt("sample")


_OUTAGE_MS = 300_000
"""The least wall time for which repeated samples are recognised, however fast event time runs."""


def keep_ms_of(settings: Settings) -> int:
    """Event time to recognise samples for: the longest wait for a click and an hour, or as long as an outage may
    last."""
    keep_ms = round((settings.attribution_minutes + settings.lateness_minutes) * 60_000) + HOUR_MS
    return max(keep_ms, round(_OUTAGE_MS * settings.event_clock().speed))


def page_hashes(batch: SampleBatch) -> NDArray[np.uint64]:
    """The hash of each row's page. (B,)"""
    if len(batch.request) <= len(batch):
        return _hashes(batch.request)[batch.page]
    used, page = np.unique(batch.page, return_inverse=True)  # few rows of many pages: requests stay whole in a take
    return _hashes(tuple(batch.request[i] for i in used.tolist()))[page]


@lru_cache(maxsize=4)
def _hashes(request: tuple[str, ...]) -> NDArray[np.uint64]:
    """(R,), read-only. The cache serves several callers of one message."""
    return column_hash(np.array(request, object))


def exposure_ids(batch: SampleBatch, pages: NDArray[np.uint64] | None = None) -> NDArray[np.uint64]:
    """One id for each row's (request, position), whatever its kind. ``pages``: :func:`page_hashes`, if known. (B,)"""
    hashed = page_hashes(batch) if pages is None else pages
    return combine(_SALT, hashed, batch.position.astype(np.uint64) + np.uint64(1))


MOST_IDS = 2_000_000
_COLUMNS = {"second": 1}


class Repeats:
    """Remembers at most ``max_ids`` ids for ``keep_ms`` of event time, in whole seconds; the oldest go first."""

    def __init__(self, keep_ms: int, max_ids: int = MOST_IDS) -> None:
        self.keep_ms = keep_ms
        self._index = Index(_COLUMNS, max_ids)
        self._newest_ms = 0
        self._swept_ms = 0

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nbytes(self) -> int:
        return self._index.nbytes

    @staticmethod
    def most_bytes(max_ids: int = MOST_IDS) -> int:
        """What :attr:`nbytes` is at most."""
        return Index.most_bytes(_COLUMNS, max_ids)

    @property
    def newest_ms(self) -> int:
        return self._newest_ms

    def first_time(self, batch: SampleBatch) -> NDArray[np.bool_]:
        """Which rows of ``batch`` were not seen before (nor earlier in it); remembers them. (B,)"""
        if not len(batch):
            return np.zeros(0, np.bool_)
        requests = page_hashes(batch)
        position = batch.position.astype(np.uint64) + np.uint64(1)
        kind = batch.kind.astype(np.uint64) + np.uint64(1)
        telling = batch.telling.astype(np.uint64) << np.uint64(16)
        kind += np.where(batch.kind == OUTCOME, batch.told << np.uint64(8) | telling, np.uint64(0))
        ids = combine(_SALT, requests, position, kind).view(np.int64)
        _, first = np.unique(ids, return_index=True)
        fresh = np.zeros(len(ids), np.bool_)
        fresh[first] = True
        fresh &= self._index.find(ids) == EMPTY
        new, ts = ids[fresh], batch.ts_ms[fresh]
        if len(new):
            self._newest_ms = max(self._newest_ms, int(ts.max()))
            # An outcome may be of a page of a month ago; it comes again, if at all, soon after it came.
            ts = np.where(batch.kind[fresh] == OUTCOME, self._newest_ms, ts)
            self._forget(len(new))
            self._enter(new, ts)
        return fresh

    def snapshot(self, ordered: bool = True) -> dict[str, NDArray[Any]]:
        """The whole memory: ``ids`` (n,), ``second`` (n,) of each; ``clock``: newest event and last sweep, in ms.
        ``ordered``: by id, so that equal memories give equal arrays. Two million ids take .4 s in order, else .02 s."""
        rows = self._index.rows() if ordered else self._index.live()
        clock = np.array([self._newest_ms, self._swept_ms], np.int64)
        return {"ids": self._index.ids_of(rows), "second": self._seconds(rows), "clock": clock}

    def resume(self, state: dict[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`snapshot`, on an empty memory. Raises KeyError where an array is missing."""
        if len(state["ids"]):
            self._enter(state["ids"], state["second"].astype(np.int64) * 1000)
        self._newest_ms, self._swept_ms = (int(v) for v in state["clock"])

    def _enter(self, ids: NDArray[np.int64], ts_ms: NDArray[np.int64]) -> None:
        rows = self._index.add(ids)
        self._index.marks[rows, self._index.at["second"]] = (
            (ts_ms[: len(rows)] // 1000).astype(np.uint32).view(np.int32)
        )

    def _seconds(self, rows: NDArray[np.int32]) -> NDArray[np.uint32]:
        seconds: NDArray[np.uint32] = self._index.marks[rows, self._index.at["second"]].view(np.uint32)
        return seconds

    def _forget(self, coming: int) -> None:
        full = len(self._index) + coming > self._index.max_rows
        if not full and self._newest_ms < self._swept_ms + self.keep_ms // 4:
            return
        self._swept_ms = self._newest_ms
        rows = self._index.rows()
        ts = self._seconds(rows).astype(np.int64) * 1000
        gone = ts < self._newest_ms - self.keep_ms
        if len(rows) - int(gone.sum()) + coming > self._index.max_rows:
            surplus = max(coming, self._index.max_rows // 8)
            gone[np.argsort(ts, kind="stable")[:surplus]] = True
        self._index.remove(self._index.ids_of(rows[gone]))
