# core
"""A log's features and samples, stretch by stretch in the order of time. Memory does not grow with the log.

::

    rows       ── stretch ──┬── stretch ──┬── ...          cut where time moves on, and at the cuts
    features   cat, num of the stretch's rows              windows have counted what happened before each
    events     ░░░░ kept: actions of these rows that are due later, with their window keys
    samples    as millrace.commands.replay.logsamples makes them of the stretch; row numbers are the log's

Tests hold this against arrays of the whole log (tests/commands/replay/plain_replay.py), to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64
from millrace.commands.replay.logfeatures import CHUNK_ROWS, Labels, LogRows, ValueHashes
from millrace.commands.replay.logsamples import KnownSamples, LabelSettings
from millrace.commands.replay.sent_again import clicked_in_time, with_pages_again
from millrace.contracts.schema import Schema
from millrace.labels import Traffic
from millrace.logs import TS, LogTable
from millrace.versions.image import below
from millrace.windows.features import FeatureBuilder
from millrace.windows.lastactions import Acted, LastActions
from millrace.windows.tiles import TileStore

Rows = NDArray[np.intp]

_EXPOSURE_COLUMN = 0  # the exposure is the first of a schema's window actions
AT_ONCE = LabelSettings(None, 0)
"""Each label at its exposure, for features alone."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive rows, from ``start`` on. b rows."""

    start: int
    rows: LogRows  # of these rows alone
    cat: NDArray[np.int64]  # (b, F)
    num: NDArray[np.float32]  # (b, N)
    samples: KnownSamples  # ``row`` is the log's
    clicked: NDArray[np.bool_]  # (b,) within the attribution window


class _Events(NamedTuple):
    """Events with the values that windows count. e events, K keys, M means, and where a field asks for a user's last
    actions P = 2, else 0."""

    row: Rows  # (e,) of the log
    ms: NDArray[np.int64]  # (e,)
    action: NDArray[np.uint8]  # (e,)
    keys: U64  # (e, K)
    sums: NDArray[np.uint32]  # (e, M)
    pair: U64  # (e, P) value hashes of user and item

    def only(self, which: Any) -> _Events:
        return _Events(*(column[which] for column in self))

    def joined(self, others: _Events) -> _Events:
        """Both, in the order in which windows count: by time, then action, then row."""
        pairs: Iterator[tuple[NDArray[Any], NDArray[Any]]] = zip(self, others, strict=True)
        both = _Events(*(np.concatenate(pair) for pair in pairs))
        return both.only(np.lexsort((both.row, both.action, both.ms)))


class Stretches:
    """Makes the stretches of a log, one after another.

    Args:
        cuts: rows at which :meth:`frozen` will be asked, each the first of its time.
        rows_at_once: about how long a stretch is. The result does not depend on it.
        after: the stretches of earlier rows, all made, which these go on from. Their windows are taken over.
    """

    def __init__(
        self,
        log: LogTable,
        schema: Schema,
        how: LabelSettings = AT_ONCE,
        cuts: Sequence[int] | Rows = (),
        rows_at_once: int = CHUNK_ROWS,
        after: Stretches | None = None,
    ) -> None:
        self.n: int = log.table.num_rows
        self.ts_ms: NDArray[np.int64] = log.table[TS].to_numpy()
        self.bounds = bounds(self.ts_ms, cuts, rows_at_once)
        """(B + 1,) where stretches begin, and the end."""
        self._log, self.schema, self._how = log, schema, how
        self._policy = how.named
        self._hashes: ValueHashes = ValueHashes(FeatureBuilder(schema)) if after is None else after._hashes
        self._traffic: Traffic = Traffic() if after is None else after._traffic
        self._windows: TileStore = TileStore.of(schema.windows) if after is None else after._windows
        self._means = [schema.windows.actions.index(m.action) for m in schema.windows.means]
        self._last = LastActions(schema)
        self._acted = [(name, schema.windows.actions.index(action), Acted()) for name, action, _ in self._last.fields]
        builder = self._hashes.builder
        self._first = builder.exposed is not None
        self._pair = (builder.user_column, builder.item_column) if self._acted else ()
        empty, pairs = np.empty(0, np.intp), np.empty((0, len(self._pair)), np.uint64)
        keys, sums = np.empty((0, schema.layout.K), np.uint64), np.empty((0, len(self._means)), np.uint32)
        self._waiting = _Events(empty, np.empty(0, np.int64), np.empty(0, np.uint8), keys, sums, pairs)
        self._made = 0
        self._base = 0  # rows of earlier stretches
        if after is not None:
            self._acted, self._waiting, self._base = after._acted, after._waiting, after._base + after.n

    @property
    def nbytes(self) -> int:
        """Memory of the windows, in bytes."""
        return self._windows.nbytes

    @property
    def waiting(self) -> int:
        """Events that are due later, of rows that were made."""
        return len(self._waiting.row)

    def make(self, number: int, open_end: bool = False) -> Stretch:
        """The stretch ``number``. Call it in order, for each number one time. ``open_end``: rows of its last time may
        come later; it has this one time."""
        start, stop = int(self.bounds[number]), int(self.bounds[number + 1])
        if start != self._made:
            raise ValueError(f"the stretch from row {start} is asked for at row {self._made}; ask in order")
        rows, log = self._read(start, stop)
        self._made, start = stop, start + self._base
        labels = Labels(log, self.schema, rows, int(self.ts_ms[-1]))
        builder, store, n = rows.builder, self._windows, rows.n
        columns, plain = rows.columns(slice(None))
        spans = store.spans + self._first
        counts = np.zeros((n, self.schema.layout.K, spans, store.columns), store.dtype)
        if self.schema.layout.K or self._acted:
            of, sums = labels.event_row, rows.steps()[labels.event_row]
            sums[labels.event_action[:, None] != self._means] = 0
            keys, pairs = builder.keys(columns, n)[of], np.empty((len(of), len(self._pair)), np.uint64)
            for p, column in enumerate(self._pair):
                pairs[:, p] = rows.hashes(column, of)
            own = _Events(of + start, labels.event_ms, labels.event_action, keys, sums, pairs)
            self._waiting = self._waiting.joined(own)
            if open_end:  # nothing of this time is counted yet
                counts = self._counts(builder.keys(columns, n), rows.ts_ms)
            else:
                last = int(np.searchsorted(self._waiting.ms, rows.ts_ms[-1], side="right"))
                counted, seen = self._count(last)
                shown = (counted.action == _EXPOSURE_COLUMN) & (counted.row >= start)
                counts[counted.row[shown] - start] = seen[shown]
        columns |= self._last_columns(rows, slice(None), rows.ts_ms)
        cat, num = builder.cat(columns, n), builder.num(plain, counts, n, rows.ts_ms)
        builder.compare(num, rows.page, rows.ts_ms)  # a stretch ends with a time, and so no set is cut in two
        samples = KnownSamples.of(rows.ts_ms, labels, self._policy, self._how.observation_ms, self._traffic)
        if self._how.by_page and self._policy is not None and labels.wait_ms and not self._policy.final:
            samples = with_pages_again(samples, rows, labels)
        samples = replace(samples, row=samples.row + start)
        return Stretch(start, rows, cat, num, samples, clicked_in_time(rows.ts_ms, labels))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What stretches after these go on from."""
        found = {f"windows/{name}": array for name, array in self._windows.snapshot().arrays().items()}
        found |= {f"waiting/{name}": array for name, array in self._waiting._asdict().items()}
        for n, (_, _, acted) in enumerate(self._acted):
            found |= {f"acted{n}/{name}": array for name, array in acted.arrays().items()}
        return found | {"rows": np.array([self._base + self.n])}

    def go_on(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Takes over the :meth:`arrays` of earlier stretches. Call it before any is made."""
        self._windows.resume(below("windows/", arrays))
        self._waiting = _Events(**below("waiting/", arrays))
        for n, (_, _, acted) in enumerate(self._acted):
            acted.go_on(below(f"acted{n}/", arrays))
        self._base = int(arrays["rows"][0])

    def of(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(cat (b, F), num (b, N)) of some rows, ascending, of which nothing was made yet. Makes all stretches."""
        cat = np.empty((len(rows), self.schema.layout.F), np.int64)
        num = np.empty((len(rows), self.schema.layout.N), np.float32)
        for number, (start, stop) in enumerate(pairwise(self.bounds.tolist())):
            first, last = np.searchsorted(rows, [start, stop])
            stretch, own = self.make(number), rows[first:last] - start
            cat[first:last], num[first:last] = stretch.cat[own], stretch.num[own]
        return cat, num

    def frozen(
        self, cut: int, rows: Rows, at_ms: int | NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(cat (b, F), num (b, N)) of any rows, with windows of what happened before the row ``cut``, read at its
        time.

        Args:
            rows: with all rows of a page and time, where numbers are compared among candidates.
            at_ms: an earlier time to read them at, later than the row before the cut; or one for each row, (b,), none
                earlier than that of the cut.

        Raises:
            ValueError: ``cut`` is not where the next stretch begins: the windows hold less, or more.
        """
        if cut != self._made:
            raise ValueError(f"windows before row {cut} are asked for at row {self._made}; cut there")
        first, n = int(rows.min()), len(rows)
        at_ms = int(self.ts_ms[cut]) if at_ms is None else at_ms
        times = np.full(n, at_ms)
        around, _ = self._read(first, int(rows.max()) + 1)
        columns, plain = around.columns(rows - first)
        counts = self._counts(around.builder.keys(columns, n), times)
        columns |= self._last_columns(around, rows - first, times)
        num = around.builder.num(plain, counts, n, at_ms)
        around.builder.compare(num, around.page[rows - first], around.ts_ms[rows - first])
        return around.builder.cat(columns, n), num

    def _read(self, start: int, stop: int) -> tuple[LogRows, LogTable]:
        part = replace(self._log, table=self._log.table.slice(start, stop - start))
        return LogRows(part, self.schema, self._hashes), part

    def _last_columns(self, rows: LogRows, which: Rows | slice, ts_ms: NDArray[np.int64]) -> dict[str, U64]:
        """What the users of some rows did last before ``ts_ms`` (b,). The windows have counted all of it."""
        found: dict[str, U64] = {}
        for name, _, acted in self._acted:
            user = rows.hashes(rows.builder.user_column, which)
            found |= self._last.columns(name, *acted.before(user, ts_ms), ts_ms)
        return found

    def _counts(self, keys: U64, ts_ms: NDArray[np.int64]) -> NDArray[Any]:
        """What windows hold of keys (n, K) at times (n,), when all before the first is counted. (n, K, W + H, A + M)"""
        if self.schema.layout.K or self._acted:
            self._count(int(np.searchsorted(self._waiting.ms, ts_ms.min(), side="left")))
        counts = self._windows.counts(keys.reshape(-1), np.repeat(ts_ms, keys.shape[1]), self._first)
        return counts.reshape(*keys.shape, *counts.shape[1:])

    def _count(self, stop: int) -> tuple[_Events, NDArray[Any]]:
        """Counts the first waiting events, up to number ``stop``. (the events; their windows' contents just before,
        (e, K, W + H, A + M))"""
        now, self._waiting = self._waiting.only(slice(stop)), self._waiting.only(slice(stop, None))
        for _, action, acted in self._acted:
            mine = now.action == action
            acted.add(now.pair[mine, 0], now.pair[mine, 1], now.ms[mine])
        return now, self._windows.run(now.keys, now.ms, now.action, now.sums, self._first)


def write_features(made: Stretches, folder: Path, before: Callable[[int], None] = lambda row: None) -> None:
    """Writes the features of all rows to ``cat.npy`` (n, F) and ``num.npy`` (n, N) in ``folder``.

    Args:
        made: of which nothing was made yet.
        before: takes the first row of each stretch, before it is made.
    """
    layout = made.schema.layout
    cat = np.lib.format.open_memmap(folder / "cat.npy", "w+", np.int64, (made.n, layout.F))
    num = np.lib.format.open_memmap(folder / "num.npy", "w+", np.float32, (made.n, layout.N))
    for number, (start, stop) in enumerate(pairwise(made.bounds.tolist())):
        before(start)
        stretch = made.make(number)
        cat[start:stop], num[start:stop] = stretch.cat, stretch.num
    cat.flush()
    num.flush()


def bounds(ts_ms: NDArray[np.int64], cuts: Sequence[int] | Rows, rows_at_once: int) -> Rows:
    """Where stretches begin, and the end. Rows of one time stay in one stretch: they must not see each other."""
    n = len(ts_ms)
    ends = [int(np.searchsorted(ts_ms, ts_ms[i], side="right")) for i in range(rows_at_once - 1, n, rows_at_once)]
    return np.unique(np.array([0, *ends, *cuts, n], np.intp))
