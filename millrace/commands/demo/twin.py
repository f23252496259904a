# core
"""A twin of the learner that gets every label at the exposure: it measures what the delay of labels costs a run.

The twin has the schema, spec and seed of the learner, and meets the same exposures in the same order with the features
of the page logs. A block is what the learner takes into one micro-batch: all exposures of ``BATCH_MS``, at most
``BATCH_ROWS`` of them. The twin scores a block, then learns it with its final labels. No server could know these
labels, so the twin is a bound and no rival.

The run's own model made the pages. The twin does not show which pages a better model would have made.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.commands.demo.servedrows import LabelledExposures
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema
from millrace.labels import WITH_EXPOSURE


class LoggedPages:
    """Features of pages by request id, from their page logs. Feed it with :meth:`message`."""

    def __init__(self, schema: Schema) -> None:
        self._layout, self._schema_id = schema.layout, schema.id
        self._of: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}  # cat (n, F), num (n, N)
        self.unread = 0

    def __len__(self) -> int:
        return len(self._of)

    def message(self, record: Any) -> None:
        """Takes a record of ``page_logs``. The first of a page counts; the stream joins with that too."""
        try:
            page = decode_page_log(record.value)
            n = len(page.items)
            cat = np.frombuffer(page.cat, "<i8").reshape(n, self._layout.F)
            num = np.frombuffer(page.num, "<f4").reshape(n, self._layout.N)
        except ValueError:  # a BadEventError is one too
            self.unread += 1
            return
        if page.schema_id != self._schema_id:
            self.unread += 1
            return
        self._of.setdefault(page.request_id, (cat, num))

    def features(self, rows: LabelledExposures) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float32]]:
        """Which ``rows`` (n,) have a page log, and the features of these: cat (m, F), num (m, N)."""
        slots = list(zip(rows.page.tolist(), rows.position.tolist(), strict=True))
        there = np.array([p in self._of and i < len(self._of[p][0]) for p, i in slots], np.bool_)  # (n,)
        cat, num = np.empty((len(slots), self._layout.F), np.int64), np.empty((len(slots), self._layout.N), np.float32)
        for row in np.flatnonzero(there).tolist():
            page, position = slots[row]
            cat[row], num[row] = self._of[page][0][position], self._of[page][1][position]
        return there, cat[there], num[there]


def twin_scores(
    rows: LabelledExposures,
    pages: LoggedPages,
    schema: Schema,
    spec: Mapping[str, Any],
    seed: int,
    block_ms: float,
    block_rows: int,
) -> NDArray[np.float32]:
    """The twin's predictions for ``rows``, which are settled and in the order of exposure.

    Args:
        block_ms, block_rows: the learner's micro-batch, in event time and rows.

    Returns:
        Click probabilities (n,); NaN for a row whose page has no page log.

    Raises:
        SettingError: the spec has an unknown name or value.
    """
    from learner.network.dense import threads  # PyTorch, seconds of imports
    from learner.role.model_factory import model_of

    there, cat, num = pages.features(rows)
    known = rows.where(there)  # (m,)
    p = np.empty(len(known), np.float32)
    with threads(1):
        model = model_of(schema, spec, seed, live=True)
        for block in blocks(known.ts_ms, block_ms, block_rows):
            p[block] = model.score(cat[block], num[block])
            model.learn(_samples(known.where(block), cat[block], num[block]))
    scores = np.full(len(rows), np.nan, np.float32)
    scores[there] = p
    return scores


def blocks(ts_ms: NDArray[np.int64], block_ms: float, block_rows: int) -> list[slice]:
    """Cuts rows in order of time, (n,), into blocks of one ``block_ms`` of time and at most ``block_rows`` rows."""
    if not len(ts_ms):
        return []
    tick = ((ts_ms - ts_ms[0]) / block_ms).astype(np.int64)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(tick)) + 1, [len(ts_ms)]]).tolist()
    return [
        slice(at, min(at + block_rows, end)) for start, end in pairwise(starts) for at in range(start, end, block_rows)
    ]


def _samples(rows: LabelledExposures, cat: NDArray[np.int64], num: NDArray[np.float32]) -> SampleBatch:
    requests, page = np.unique(rows.page.astype(np.str_), return_inverse=True)
    kind = np.where(rows.label > 0, POSITIVE, NEGATIVE).astype(np.uint8)
    columns = {"page": page.astype(np.int32), "position": rows.position.astype(np.int32)}
    policy = np.full(len(kind), WITH_EXPOSURE, np.uint8)
    return SampleBatch.of_rows(kind, rows.ts_ms, cat, num, tuple(requests.tolist()), **columns, policy=policy)
