# core
"""How good the served pages were: figures of their scores against settled labels.

A row belongs to who made its page: ``model``, ``control`` (a random page), ``logged`` (a page from elsewhere, only
scored) or ``other`` (another rule, as an arm of popular items). An arm's figures are over its newest settled rows *in
the order of exposure* (time, then page, then position), in whatever order labels came. So they are the same under every
label policy, when all labels are known.

A click, whenever it comes, makes a row's label 1. A row settles when event time has passed its exposure by attribution
and disorder, by the watermark of :mod:`learner.samples.eventtime`, which waits for the slowest partition that is not
silent. A late row is inserted at its place, if the newest rows of its arm still reach back to it. A click after that
corrects the row while it is held.

Rows of users beyond their training limit (:mod:`learner.gate.quota`) count in no figure, nor do those of theirs that
are held as they come: a bot clicked on its way there, too.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from learner.evaluation.drift import Drift
from learner.evaluation.progressive import baseline_column
from learner.evaluation.traffic_segments import SegmentMetrics, Segments
from learner.ranker.interfaces import Learning
from learner.ranker.repeats import exposure_ids, page_hashes
from learner.samples.eventtime import EventTime
from learner.tables.row_index import Index
from millrace.basics.probing import EMPTY
from millrace.basics.ranking_metrics import ORDER, ROLLING_ROWS, figures_of, is_probability
from millrace.contracts.events import ARMS, LOGGED, MODEL, UNRANKED
from millrace.contracts.samples import CORRECTION, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.labels import Waits

WAITING_ROWS = 500_000
"""The most rows that wait for their label: 20 minutes of 400 exposures a second."""

_WAITING, _SETTLED = 1, 2
_UNRANKED = [ARMS.index(arm) for arm in UNRANKED]
_MOST_HALVINGS = 16
_FREE_BITS = np.uint64(40)  # of a page's hash, so that what is kept does not depend on its place in the index

Rows = NDArray[np.intp]


ServedFigures = dict[str, float]
"""Figures of the newest settled rows of one arm: :data:`~millrace.basics.ranking_metrics.FIGURES`, those of the order
again as ``baseline_*`` by the item's own smoothed click rate (where the schema has none: NaN), ``click_rate``, and
``rows``. NaN where there is none: no rows, one class, no page with both."""


_COLUMNS = ("u1", "i8", "u8", "u8", "i4", "u1", "f4", "f4", "?", "u8")


def _reserved(window_rows: int, waiting_rows: int) -> int:
    return waiting_rows + len(ARMS) * window_rows


class ServedExposures:
    """Exposures from their first sample until they are too old to count.

    At most ``waiting_rows`` rows wait, and ``window_rows`` of each arm are held, 63 bytes each and their ids. When more
    would wait, every second page is left out from then on, chosen by its hash; if that is not enough, three of four
    pages; and so on. Whole pages keep the figures fair; ``dropped`` counts the rows.

    Snapshots do not keep the figures; they restart with a process (:meth:`begin_after`).

    Args:
        schema: names the baseline that the figures are compared with.
        segments: which segments get figures of their own.
        waits: event times of the label policies.
        window_rows: how many of the newest rows of an arm count.
        waiting_rows: how many rows may wait for their label.
    """

    def __init__(
        self, schema: Schema, segments: Segments, waits: Waits, window_rows: int, waiting_rows: int = WAITING_ROWS
    ) -> None:
        self.segments, self.window_rows, self.waiting_rows = segments, window_rows, waiting_rows
        self.time, self.drift = EventTime(waits), Drift()
        self.not_finite = 0  # scores of pages that a model made
        self.dropped = 0  # rows left out because too many waited
        self.over_limit = 0  # rows left out because their user is beyond the limit
        self._settled_ms = waits.settled_ms
        self._baseline = baseline_column(schema)
        self._after_ms = 0
        self._halvings = 0
        self._queue: list[tuple[SampleBatch, NDArray[np.bool_]]] = []
        self._beyond: set[int] = set()  # users whose rows are to be left out
        self._windows: list[Rows] = [np.empty(0, np.intp) for _ in ARMS]  # in the order of exposure
        self._waiting = 0
        size = _reserved(window_rows, waiting_rows)  # the system gives memory as rows come
        self._index = Index({}, size)
        columns = (np.zeros(size, kind) for kind in _COLUMNS)
        self._state, self._ts_ms, self._page, self._user, self._position, self._arm, *rest = columns
        self._score, self._base, self._clicked, self._masks = rest

    @classmethod
    def of(cls, settings: Settings, schema: Schema) -> ServedExposures:
        return cls(schema, Segments(schema, settings.segments), Waits.of(settings), ROLLING_ROWS)

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Of the rows that have been in use, with their ids."""
        return self._index.nbytes + self._index.used * sum(np.dtype(kind).itemsize for kind in _COLUMNS)

    @staticmethod
    def most_bytes(window_rows: int, waiting_rows: int = WAITING_ROWS) -> int:
        """What :attr:`nbytes` is at most."""
        size = _reserved(window_rows, waiting_rows)
        return Index.most_bytes({}, size) + size * sum(np.dtype(kind).itemsize for kind in _COLUMNS)

    @property
    def waiting(self) -> int:
        return self._waiting

    def begin_after(self, ts_ms: int) -> None:
        """Judges no exposure at or before ``ts_ms``. A process that resumes calls it with the snapshot's newest
        exposure: the process before may have had the other rows of such a page, and the clicks among them."""
        self._after_ms = max(self._after_ms, ts_ms)

    def take(self, batch: SampleBatch, over: NDArray[np.bool_] | None = None) -> None:
        """Queues new samples, without repeats, in the order of ``samples``. ``over``: which are of users beyond their
        limit, (B,)."""
        self._queue.append((batch, np.zeros(len(batch), np.bool_) if over is None else over))

    def enter(self, model: Learning) -> None:
        """Enters what was queued. Call it before ``model`` learns from it: learning makes users and items known."""
        if not self._queue:
            return
        whole = SampleBatch.concat([batch for batch, _ in self._queue])
        self.time.hear(whole)
        over = np.concatenate([of for _, of in self._queue])  # (B,)
        self._queue = []
        pages = page_hashes(whole)  # (B,)
        ids = exposure_ids(whole, pages).view(np.int64)  # (B,)
        first = whole.kind < CORRECTION
        first &= (whole.ts_ms > self._after_ms) & (ids != 0)
        finite = is_probability(whole.score)
        first &= finite | (whole.version >= 0)  # an unscored page has no figure
        if self._halvings:
            kept = self._kept(pages)
            self.dropped += int((first & ~kept).sum())
            first &= kept
        self.over_limit += int((first & over).sum())
        self._beyond.update(whole.user[over].tolist())
        first &= ~over
        self.not_finite += int((first & ~finite).sum())
        self._add(whole, pages, ids, np.flatnonzero(first), model)
        clicked = self._index.find(ids[(whole.kind == POSITIVE) | (whole.kind == CORRECTION)])
        self._clicked[clicked[clicked != EMPTY]] = True

    def settle(self) -> None:
        """Settles what event time has passed. It visits all waiting rows: not for each batch."""
        settled_ms = self.time.advance() - self._settled_ms
        if self._beyond:
            self._leave_out(self._beyond)
            self._beyond = set()
        live = self._index.live()
        due = live[(self._state[live] == _WAITING) & (self._ts_ms[live] <= settled_ms)].astype(np.intp)
        if not len(due):
            return
        due = self._ordered(due)
        self._state[due] = _SETTLED
        self._waiting -= len(due)
        arm = self._arm[due]
        headline = due[~np.isin(arm, _UNRANKED)]
        self.drift.update(self._score[headline], self._clicked[headline], self._page[headline])
        for code in np.unique(arm).tolist():
            window, new = self._windows[code], due[arm == code]
            late = len(window) and self._ts_ms[new[0]] <= self._ts_ms[window[-1]]
            window = np.concatenate([window, new])
            if late:
                window = self._ordered(window)
            self._windows[code] = window[-self.window_rows :]
            self._remove(window[: -self.window_rows])

    def figures(self, arm: str) -> ServedFigures:
        """The figures of one of ``ARMS`` over what :meth:`settle` has settled."""
        rows = self._windows[ARMS.index(arm)]
        y, base = self._clicked[rows], None if self._baseline is None else (self._base[rows],) * 2
        return {
            **{f"baseline_{key}": float("nan") for key in ORDER},
            **figures_of(self._score[rows], y, self._page[rows], base=base),
            "click_rate": float(y.mean()) if len(y) else float("nan"),
            "rows": len(rows),
        }

    @property
    def headline(self) -> str:
        """The arm for a single figure: pages of the model, or logged ones where it made none."""
        return LOGGED if self._held(LOGGED) and not self._held(MODEL) else MODEL

    def by_segment(self) -> dict[str, SegmentMetrics]:
        """Figures by segment of the newest settled rows, of pages that the model ordered."""
        rows = np.concatenate([w for w, arm in zip(self._windows, ARMS, strict=True) if arm not in UNRANKED])
        rows = self._ordered(rows)[-self.window_rows :]
        return self.segments.metrics(self._score[rows], self._clicked[rows], self._masks[rows])

    # -- within ------------------------------------------------------------------------------------------------

    def _add(
        self, batch: SampleBatch, pages: NDArray[np.uint64], ids: NDArray[np.int64], at: Rows, model: Learning
    ) -> None:
        """Takes the rows ``at`` of a batch, those of exposures not held yet."""
        _, one = np.unique(ids[at], return_index=True)
        at = at[np.sort(one)]
        at = at[self._index.find(ids[at]) == EMPTY]
        if self._waiting + len(at) > self.waiting_rows:
            at = self._make_room(at, pages)
        if not len(at):
            return
        rows = self._index.add(ids[at])
        fresh = batch.take(at)
        self._state[rows], self._clicked[rows] = _WAITING, False
        self._ts_ms[rows], self._page[rows], self._position[rows] = fresh.ts_ms, pages[at], fresh.position
        self._user[rows] = fresh.user
        self._arm[rows] = np.where(fresh.version < 0, ARMS.index(LOGGED), fresh.arm)
        self._score[rows] = fresh.score
        self._masks[rows] = self.segments.members(fresh, model)
        if self._baseline is not None:
            self._base[rows] = np.nan_to_num(fresh.num[:, self._baseline])
        self._waiting += len(rows)

    def _make_room(self, coming: Rows, pages: NDArray[np.uint64]) -> Rows:
        """The rows of ``coming`` that find room. Settles rows first, and drops half of the pages if need be."""
        self.settle()
        while self._waiting + len(coming) > self.waiting_rows and self._halvings < _MOST_HALVINGS:
            self._halvings += 1
            live = self._index.live().astype(np.intp)
            gone = live[(self._state[live] == _WAITING) & ~self._kept(self._page[live])]
            self._remove(gone)
            self._waiting -= len(gone)
            kept = self._kept(pages[coming])
            self.dropped += len(gone) + int((~kept).sum())
            coming = coming[kept]
        room = max(0, self.waiting_rows - self._waiting)
        self.dropped += max(0, len(coming) - room)
        return coming[:room]

    def _kept(self, pages: NDArray[np.uint64]) -> NDArray[np.bool_]:
        bits = np.uint64((1 << self._halvings) - 1)
        kept: NDArray[np.bool_] = (pages >> _FREE_BITS & bits) == 0
        return kept

    def _leave_out(self, users: Collection[int]) -> None:
        live = self._index.live().astype(np.intp)
        gone = live[np.isin(self._user[live], np.array([*users], np.uint64))]
        self._windows = [window[~np.isin(window, gone)] for window in self._windows]
        self._waiting -= int((self._state[gone] == _WAITING).sum())
        self.over_limit += len(gone)
        self._remove(gone)

    def _held(self, arm: str) -> int:
        return len(self._windows[ARMS.index(arm)])

    def _remove(self, rows: Rows) -> None:
        if len(rows):
            self._index.remove(self._index.ids_of(rows.astype(np.int32)))
            self._state[rows] = 0

    def _ordered(self, rows: Rows) -> Rows:
        order = np.lexsort((self._position[rows], self._page[rows], self._ts_ms[rows]))
        ordered: Rows = rows[order]
        return ordered
