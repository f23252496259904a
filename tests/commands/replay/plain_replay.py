"""The plain way through a log: one thread, arrays of the whole log. The engine's reference, which is product code no
more: features by :class:`LogFeatures`, chunk by chunk, and scores by :func:`run_plain`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.ranker.within_page import taught_by_page
from millrace.commands.replay.grouped import GroupedRows, Score
from millrace.commands.replay.logfeatures import CHUNK_ROWS, Labels, LogRows
from millrace.commands.replay.logsamples import KnownSamples, LabelSettings, ReplayModel, ReplayObserver
from millrace.commands.replay.sent_again import with_pages_again
from millrace.contracts.samples import NEGATIVE, PAGE, SampleBatch
from millrace.contracts.schema import Schema
from millrace.logs import LogTable
from millrace.windows.tiles import TileStore

_EXPOSURE_COLUMN = 0


class LogFeatures:
    """``cat`` and ``num`` of the log's rows.

    Args:
        cuts: rows at which :meth:`frozen` will read the windows, ascending, each the first of its time.
    """

    def __init__(
        self, rows: LogRows, labels: Labels, schema: Schema, cuts: Sequence[int] | NDArray[np.intp] = ()
    ) -> None:
        self._rows, self._labels, self._schema = rows, labels, schema
        self._windows = TileStore.of(schema.windows)
        self._means = self._rows.steps()
        self._keys = np.zeros((rows.n, schema.layout.K), np.uint64)
        # Rows with equal times stay in one chunk, since they must not see each other.
        ends = [
            int(np.searchsorted(rows.ts_ms, rows.ts_ms[i], side="right"))
            for i in range(CHUNK_ROWS - 1, rows.n, CHUNK_ROWS)
        ]
        self._starts = np.unique(np.array([0, *ends, *cuts, rows.n], np.intp))
        self._made: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
        self._next = 0
        self._next_event = 0

    def of(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(cat (b, F), num (b, N)) of any rows that have not been forgotten; copies."""
        cat = np.empty((len(rows), self._schema.layout.F), np.int64)
        num = np.empty((len(rows), self._schema.layout.N), np.float32)
        chunks = np.searchsorted(self._starts, rows, side="right") - 1
        for c in np.unique(chunks).tolist():
            while self._next <= c:
                self._make()
            mine = np.flatnonzero(chunks == c)
            local = rows[mine] - self._starts[c]
            cat[mine], num[mine] = self._made[c][0][local], self._made[c][1][local]
        return cat, num

    def frozen(
        self, cut: int, rows: NDArray[np.intp], at_ms: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(cat (b, F), num (b, N)) of any rows, their windows holding only what happened before the row ``cut``, and
        read at that row's time.

        Args:
            at_ms: an earlier time to read them at, later than the row before the cut.

        Raises:
            ValueError: ``cut`` is not one of the cuts, or a row from it on was requested before: the windows hold more.
        """
        c = int(np.searchsorted(self._starts, cut))
        while self._next < c:
            self._make()
        if self._next > c or self._starts[c] != cut:
            raise ValueError(f"windows before row {cut} are asked for at row {self._starts[self._next]}; cut there")
        n, store, at_ms = len(rows), self._windows, int(self._rows.ts_ms[cut]) if at_ms is None else at_ms
        if self._schema.layout.K:
            self._count(int(np.searchsorted(self._labels.event_ms, at_ms, side="left")))
        columns, plain = self._rows.columns(rows)
        keys = self._rows.builder.keys(columns, n)
        counts = store.counts(keys.reshape(-1), at_ms).reshape(n, keys.shape[1], store.spans, store.columns)
        return self._rows.builder.cat(columns, n), self._rows.builder.num(plain, counts, n, at_ms)

    def forget(self, row: int) -> None:
        """The rows before ``row`` will not be requested again."""
        for c in [c for c in self._made if self._starts[c + 1] <= row]:
            del self._made[c]

    def _make(self) -> None:
        part = slice(int(self._starts[self._next]), int(self._starts[self._next + 1]))
        n = part.stop - part.start
        builder, store = self._rows.builder, self._windows
        columns, plain = self._rows.columns(part)
        counts = np.zeros((n, self._schema.layout.K, store.spans, store.columns), store.dtype)
        if self._schema.layout.K:
            self._keys[part] = builder.keys(columns, n)
            last = self._rows.ts_ms[part.stop - 1]
            row, seen = self._count(int(np.searchsorted(self._labels.event_ms, last, side="right")))
            counts[row - part.start] = seen
        self._made[self._next] = builder.cat(columns, n), builder.num(plain, counts, n, self._rows.ts_ms[part])
        self._next += 1

    def _count(self, stop: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
        """Counts the events up to, not including, number ``stop``. (rows whose exposures are among them, (e,); what
        their windows held just before, (e, K, W + H, A))"""
        windows, labels = self._schema.windows, self._labels
        events = slice(self._next_event, max(stop, self._next_event))
        row, action = labels.event_row[events], labels.event_action[events]
        sums = self._means[row]
        sums[action[:, None] != [windows.actions.index(m.action) for m in windows.means]] = 0
        seen = self._windows.run(self._keys[row], labels.event_ms[events], action, sums)
        self._next_event = events.stop
        shown = action == _EXPOSURE_COLUMN
        return row[shown], seen[shown]


def run_plain(
    log: LogTable,
    schema: Schema,
    model: ReplayModel,
    batch_rows: int,
    tick: Callable[[int], None],
    groups: GroupedRows | None,
    how: LabelSettings,
    observer: ReplayObserver | None = None,
) -> NDArray[np.float32]:
    """As :func:`millrace.commands.replay.replayrun.run_log`, to the bit."""
    rows = LogRows(log, schema)
    labels = Labels(log, schema, rows)
    features = LogFeatures(rows, labels, schema, () if groups is None else groups.cuts)
    samples = KnownSamples.of(rows.ts_ms, labels, how.named, how.observation_ms)
    if how.by_page and how.named is not None and not how.named.final:
        samples = with_pages_again(samples, rows, labels)
    oldest, bias = _oldest(samples), schema.layout.bias_columns
    p = np.empty(rows.n, np.float32)
    scored = 0
    stop = 0
    while stop < len(samples.row):
        part = slice(stop, min(stop + batch_rows, len(samples.row)))
        while how.by_page and part.stop < len(samples.row) and _one_page(samples, rows, part.stop):
            part = slice(part.start, part.stop + 1)
        stop = part.stop
        # Exposures up to the time at which the batch was complete are scored without it.
        end = int(np.searchsorted(rows.ts_ms, samples.known_ms[part.stop - 1], side="right"))
        if groups is not None and end > scored:
            _before(groups, slice(scored, end), features, model.score, bias)
        for first in range(scored, end, batch_rows):
            shown = np.arange(first, min(first + batch_rows, end))
            cat, num = features.of(shown)
            cat[:, bias] = 0
            p[shown] = model.score(cat, num)
            if observer is not None:
                observer.scored(shown, cat, num, p[shown])
        scored = max(scored, end)
        batch = _batch(samples, part, rows, labels, features)
        model.learn(batch)
        if observer is not None:
            observer.learnt(samples, part, batch)
        features.forget(int(oldest[part.stop]))
        tick(scored)
    return p


def _one_page(samples: KnownSamples, rows: LogRows, at: int) -> bool:
    """Whether a sample and the one before it are taught together."""
    before, after = (
        (int(rows.page[samples.row[i]]), int(samples.known_ms[i]), taught_by_page(samples.kind, samples.policy)[i])
        for i in (at - 1, at)
    )
    return before == after and bool(after[-1])


def _batch(samples: KnownSamples, part: slice, rows: LogRows, labels: Labels, features: LogFeatures) -> SampleBatch:
    """The samples of a part; those that are sent again with the label that was known then."""
    row, again = samples.row[part], samples.kind[part] >= PAGE
    clicked = labels.clicked[row] & ((labels.acted_ms[row] < rows.ts_ms[row] + labels.wait_ms) | (labels.wait_ms == 0))
    as_labelled = replace(samples, kind=np.where(samples.kind >= PAGE, NEGATIVE, samples.kind).astype(np.uint8))
    batch = as_labelled.batch(part, rows, *features.of(row))
    return replace(
        batch,
        kind=samples.kind[part],
        label=np.where(again, clicked, batch.label).astype(np.float32),
        actions=np.where(again, 1 + 2 * clicked, batch.actions).astype(np.uint8),
    )


def _before(groups: GroupedRows, rows: slice, features: LogFeatures, score: Score, hidden: Sequence[int]) -> None:
    """The frozen scores of the days that begin in some rows, before these are scored."""
    for first, own in groups.starting(rows):
        cat, num = features.frozen(first, own)
        cat[:, hidden] = 0
        groups.put(own, num, score(cat, num))


def _oldest(samples: KnownSamples) -> NDArray[np.intp]:
    """The smallest row among the samples from each one on; after the last, more than any row. (S + 1,)"""
    beyond = np.append(samples.row, np.iinfo(np.intp).max)
    return np.minimum.accumulate(beyond[::-1])[::-1]
