# core
"""The leak audit: a log is run twice, with another future the second time. Nothing before may differ, to the bit.

::

    run of the log      ─► Witness: of each row a hash of its features, its score; of each sample its label
    run of the altered  ─► Witness that compares, for what could be known before the time T:

    feature      cat and num of exposures before T, as they are scored and as they are learnt
    prediction   scores of exposures before T. Rows that are scored together with rows from T on are left out: there
                 are other and fewer of these, and the last bits of a sum may depend on how many rows are summed
    label        samples that are known before T: which row, when, with which label. Labels known later may differ

A third run, only where something differs, notes the values of both and names the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.logs import TS, LogTable
from millrace.proofs.altered import altered
from millrace.replay.known import Model, Observer, Samples

Run = Callable[[LogTable, Model, Observer], object]
"""Runs a log through a model, and tells an observer."""

CUTS = 3
NAMED_ROWS = 256
"""Rows with differing features whose values are looked at, to name the columns."""


@dataclass(frozen=True, slots=True)
class Leak:
    """What differs, of one name: a feature's, ``label`` or ``prediction``. The example is the first by time."""

    name: str
    count: int
    row: int
    ts_ms: int
    cut_ms: int
    value: Any
    altered: Any


@dataclass(slots=True)
class Audit:
    """What an audit compared and found."""

    rows: int
    cuts: list[dict[str, int]] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)


class Witness:
    """Notes a run: what each row's features were, its score, and all samples. Arrays are (n,) by row."""

    def __init__(self, n: int, width: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._factors = rng.integers(0, 1 << 62, width).astype(np.uint64) * np.uint64(2) + np.uint64(1)
        self.features = np.zeros(n, np.uint64)
        self.learnt_features = np.zeros(n, np.uint64)
        self.p = np.full(n, np.nan, np.float32)
        self.together = np.zeros(n, np.intp)  # the last row that was scored in one call with this one
        self._samples: list[tuple[NDArray[Any], ...]] = []

    def scored(
        self, rows: NDArray[np.intp], cat: NDArray[np.int64], num: NDArray[np.float32], p: NDArray[np.float32]
    ) -> None:
        self.features[rows] = self._hashed(cat, num)
        self.p[rows] = p
        self.together[rows] = rows.max()

    def learnt(self, samples: Samples, part: slice, batch: SampleBatch) -> None:
        row = samples.row[part].copy()
        self.learnt_features[row] = self._hashed(batch.cat, batch.num)
        self._samples.append((row, samples.known_ms[part].copy(), samples.kind[part].copy()))

    @property
    def samples(self) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.uint8]]:
        """(row, known_ms, kind) of all samples, in the order in which they were learnt."""
        row, known_ms, kind = (np.concatenate(column) for column in zip(*self._samples, strict=True))
        return row, known_ms, kind

    def _hashed(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.uint64]:
        """A hash of each row's bits: a sum of words by odd factors, so one word that differs is always seen."""
        words = np.concatenate(
            [cat.view(np.uint64), np.ascontiguousarray(num).view(np.uint32).astype(np.uint64)], axis=1
        )
        hashed: NDArray[np.uint64] = (words * self._factors).sum(axis=1, dtype=np.uint64)
        return hashed


class Values:
    """Keeps the features of some rows, as they are scored or learnt."""

    def __init__(self, rows: NDArray[np.intp]) -> None:
        self._rows = rows
        self.scored_as: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
        self.learnt_as: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}

    def scored(
        self, rows: NDArray[np.intp], cat: NDArray[np.int64], num: NDArray[np.float32], p: NDArray[np.float32]
    ) -> None:
        self._keep(self.scored_as, rows, cat, num)

    def learnt(self, samples: Samples, part: slice, batch: SampleBatch) -> None:
        self._keep(self.learnt_as, samples.row[part], batch.cat, batch.num)

    def _keep(self, into: dict[int, Any], rows: NDArray[np.intp], cat: Any, num: Any) -> None:
        for i in np.flatnonzero(np.isin(rows, self._rows)).tolist():
            into[int(rows[i])] = cat[i].copy(), num[i].copy()


class _Nobody:
    """A model for runs of which only the features matter."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.zeros(len(cat), np.float32)

    def learn(self, batch: SampleBatch) -> object:
        return None


def audit(
    log: LogTable,
    schema: Schema,
    model: Callable[[], Model],
    run: Run,
    *,
    seed: int = 0,
    cuts: int = CUTS,
    read_altered: Callable[[int, int], LogTable] | None = None,
    tick: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Runs the log, then once for each of some random times with another future.

    Args:
        model: makes an untrained model; every run gets its own.
        seed: of the times and of the alterations.
        read_altered: reads the log anew with side tables that are altered from a time on (time, seed); None: no side
            table has a time of validity.
        tick: is told what is done now.
    """
    ts = log.table[TS].to_numpy()
    n, layout = len(ts), schema.layout
    rng = np.random.default_rng(seed)
    found = Audit(n)
    tick("the log as it is")
    first = Witness(n, layout.F + layout.N, seed)
    run(log, model(), first)
    leaks: dict[str, Leak] = {}
    times = np.unique(ts)
    inner = times[len(times) // 10 : max(len(times) // 10 + 1, len(times) * 9 // 10)]
    for number, cut_ms in enumerate(np.sort(rng.choice(inner, min(cuts, len(inner)), replace=False)).tolist()):
        tick(f"another future, {number + 1} of {cuts}")
        base = log if read_altered is None else read_altered(cut_ms, seed + number)
        other = altered(base, schema, cut_ms, np.random.default_rng([seed, number]))
        second = Witness(max(n, other.table.num_rows), layout.F + layout.N, seed)
        run(other, model(), second)
        figures, differing = _compared(first, second, log, ts, cut_ms, leaks)
        found.cuts.append(figures)
        if len(differing):
            tick("naming what differs")
            seen = [Values(differing[:NAMED_ROWS]) for _ in range(2)]
            for table, values in zip((log, other), seen, strict=True):
                run(table, _Nobody(), values)
            _name(seen[0], seen[1], differing, schema, ts, cut_ms, leaks)
    found.leaks = sorted(leaks.values(), key=lambda leak: (-leak.count, leak.name))
    return found


def _compared(
    first: Witness, second: Witness, log: LogTable, ts: NDArray[np.int64], cut_ms: int, leaks: dict[str, Leak]
) -> tuple[dict[str, int], NDArray[np.intp]]:
    """(how much was compared; rows whose features differ), and notes labels and predictions that differ."""
    before = int(np.searchsorted(ts, cut_ms, side="left"))
    rows = slice(0, before)
    (row, known_ms, kind), (row2, known2_ms, kind2) = first.samples, second.samples
    mine, theirs = known_ms < cut_ms, known2_ms < cut_ms
    both = first.learnt_features[row[mine]] != second.learnt_features[row[mine]]
    differing = np.union1d(np.flatnonzero(first.features[rows] != second.features[rows]), row[mine][both])
    whole = (first.together[rows] < before) & (second.together[rows] < before)
    told = np.flatnonzero(whole & (first.p[rows].view(np.uint32) != second.p[rows].view(np.uint32)))
    if len(told):
        i = int(told[0])
        _note(leaks, "prediction", len(told), i, ts, cut_ms, float(first.p[i]), float(second.p[i]))
    labels = _labels(row[mine], known_ms[mine], kind[mine])
    others = _labels(row2[theirs], known2_ms[theirs], kind2[theirs])
    wrong = sorted({r for r, *_ in labels ^ others})
    if wrong:
        i = wrong[0]
        values = [sorted((k, t) for r, t, k in named if r == i) for named in (labels, others)]
        _note(leaks, "label", len(wrong), i, ts, cut_ms, *values)
    figures = {
        "cut_ms": cut_ms,
        "exposures": before,
        "predictions": int(np.count_nonzero(whole)),
        "labels": int(np.count_nonzero(mine)),
    }
    return figures, differing.astype(np.intp)


def _labels(row: NDArray[np.intp], known_ms: NDArray[np.int64], kind: NDArray[np.uint8]) -> set[tuple[int, int, int]]:
    return set(zip(row.tolist(), known_ms.tolist(), kind.tolist(), strict=True))


def _name(
    first: Values,
    second: Values,
    differing: NDArray[np.intp],
    schema: Schema,
    ts: NDArray[np.int64],
    cut_ms: int,
    leaks: dict[str, Leak],
) -> None:
    """Notes which columns differ. Counts are of the rows that were looked at."""
    names = [*schema.layout.cat_names, *schema.layout.num_names]
    for mine, theirs in ((first.scored_as, second.scored_as), (first.learnt_as, second.learnt_as)):
        for i in differing[:NAMED_ROWS].tolist():
            if i not in mine or i not in theirs:
                continue
            bits, other_bits = (
                [v for array in one for v in array.view(f"u{array.itemsize}")] for one in (mine[i], theirs[i])
            )
            values, others = ([v for array in one for v in array.tolist()] for one in (mine[i], theirs[i]))
            for c in [c for c in range(len(names)) if bits[c] != other_bits[c]]:
                _note(leaks, names[c], 1, i, ts, cut_ms, values[c], others[c])
        if leaks.keys() & set(names):
            return


def _note(
    leaks: dict[str, Leak], name: str, count: int, row: int, ts: NDArray[np.int64], cut_ms: int, value: Any, other: Any
) -> None:
    known = leaks.get(name)
    if known is None:
        leaks[name] = Leak(name, count, row, int(ts[row]), cut_ms, value, other)
    else:
        leaks[name] = Leak(name, known.count + count, known.row, known.ts_ms, known.cut_ms, known.value, known.altered)
