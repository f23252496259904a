# core
"""The leak audit: a log is run twice, with another future the second time. Everything before must be equal to the bit.

::

    run of the log      ─► Witness: of each row a hash of its features, its score; of each sample its label
    run of the altered  ─► Witness that compares, for what could be known at the time T:

    feature      cat and num of exposures up to T, as they are scored and as they are learnt, whenever that is
    prediction   scores of these exposures. Where altered rows are scored in one call with them, there may be fewer of
                 these, and the last bits of a sum depend on how many rows are summed: rounding is allowed there
    label        samples that are known before T: which row, when, with which label and outcomes. Others may differ

Exposures at T are compared too, with their fields as they were and their labels altered
(:mod:`millrace.commands.proofs.altered`), which finds an exposure that sees its own label. Where features differ, both
logs are run again without a model, to name the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.commands.proofs.altered import altered
from millrace.commands.replay.logsamples import KnownSamples, ReplayModel, ReplayObserver
from millrace.commands.replay.outcomefigures import OutcomeScores
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.logs import TS, LogTable
from millrace.reports.lines import Tick

Run = Callable[[LogTable, ReplayModel, ReplayObserver], object]
"""Runs a log through a model, and tells an observer."""

CUTS = 3
LABEL, PREDICTION = "label", "prediction"
ROUNDING = 1e-4
"""Rounding allowed of a score: some 800 roundings of float32. One step of learning moves scores by more."""
NAMED_ROWS = 256


@dataclass(frozen=True, slots=True)
class Leak:
    """The differences of one feature, of ``label`` or of ``prediction``, with the first example."""

    name: str
    count: int
    row: int
    ts_ms: int
    cut_ms: int
    value: Any
    altered: Any


@dataclass(slots=True)
class Audit:
    rows: int
    cuts: list[dict[str, int]] = field(default_factory=list)
    leaks: list[Leak] = field(default_factory=list)


class Witness:
    """Records a run: each row's features and score, and all samples. Arrays are (n,) by row."""

    def __init__(self, n: int, width: int, seed: int, outcomes: OutcomeScores | None = None) -> None:
        self.outcomes = outcomes
        rng = np.random.default_rng(seed)
        self._factors = rng.integers(0, 1 << 62, width).astype(np.uint64) * np.uint64(2) + np.uint64(1)
        self.features = np.zeros(n, np.uint64)
        self.learnt_features = np.zeros(n, np.uint64)
        self.p = np.full(n, np.nan, np.float32)
        self.call = np.zeros(n, np.intp)  # which call of the model scored it, from 1; 0: none
        self._calls = 0
        self._samples: list[tuple[NDArray[Any], ...]] = []

    def scored(
        self, rows: NDArray[np.intp], cat: NDArray[np.int64], num: NDArray[np.float32], p: NDArray[np.float32]
    ) -> None:
        self.features[rows] = self._hashed(cat, num)
        self.p[rows] = p
        self._calls += 1
        self.call[rows] = self._calls

    def learnt(self, samples: KnownSamples, part: slice, batch: SampleBatch) -> None:
        row = samples.row[part].copy()
        self.learnt_features[row] = self._hashed(batch.cat, batch.num)
        told = np.nan_to_num(samples.outcomes[part], nan=-1).astype(np.int64)
        self._samples.append((row, samples.known_ms[part].copy(), samples.kind[part].copy(), *told.T))

    @property
    def samples(self) -> NDArray[np.int64]:
        """Columns (3 + K, S) of row, known_ms, kind and outcomes (-1: not told) of all samples, in the order in which
        they were learnt."""
        return np.stack([np.concatenate(column) for column in zip(*self._samples, strict=True)]).astype(np.int64)

    @property
    def predictions(self) -> list[NDArray[np.float32]]:
        """Of the click, and of each outcome. (n,) each"""
        return [self.p] if self.outcomes is None else [self.p, *np.ascontiguousarray(self.outcomes.q.T)]

    def alone(self, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Which of some rows were scored in calls of such rows only, (r,)."""
        calls = np.bincount(self.call)
        mine: NDArray[np.bool_] = (
            np.bincount(self.call[rows], minlength=len(calls))[self.call[rows]] == calls[self.call[rows]]
        )
        return mine

    def _hashed(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.uint64]:
        """A hash of each row's bits: a sum of words by odd factors, so one word that differs is always seen."""
        words = np.concatenate(
            [cat.view(np.uint64), np.ascontiguousarray(num).view(np.uint32).astype(np.uint64)], axis=1
        )
        hashed: NDArray[np.uint64] = (words * self._factors).sum(axis=1, dtype=np.uint64)
        return hashed


class Values:
    def __init__(self, rows: NDArray[np.intp]) -> None:
        self._rows = rows
        self.scored_as: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}
        self.learnt_as: dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]] = {}

    def scored(
        self, rows: NDArray[np.intp], cat: NDArray[np.int64], num: NDArray[np.float32], p: NDArray[np.float32]
    ) -> None:
        self._keep(self.scored_as, rows, cat, num)

    def learnt(self, samples: KnownSamples, part: slice, batch: SampleBatch) -> None:
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
    model: Callable[[], ReplayModel],
    run: Run,
    *,
    seed: int = 0,
    another: Callable[[int, int], AbstractContextManager[LogTable]] | None = None,
    tick: Tick = lambda what, done, of: None,
) -> Audit:
    """Runs the log, then again for each of some random times with another future.

    Args:
        model: makes an untrained model; every run gets its own.
        seed: of the times and of the alterations.
        another: the log with side tables that are altered after a time (time, seed); None: no side table has a time of
            validity.
    """
    ts = log.table[TS].to_numpy()
    n, layout = len(ts), schema.layout
    rng = np.random.default_rng(seed)
    found = Audit(n)

    def witness(of: ReplayModel) -> Witness:
        return Witness(n, layout.F + layout.N, seed, OutcomeScores.of(schema, of, n))

    one = model()
    first = witness(one)
    run(log, one, first)
    leaks: dict[str, Leak] = {}
    times = np.unique(ts)
    first_ms = min(max(1, len(times) // 10), len(times) - 1)  # something is before it, if the log has two times
    inner = times[first_ms : max(first_ms + 1, len(times) * 9 // 10)]
    differences: list[tuple[int, NDArray[np.intp], Values]] = []  # time, rows that differ, their altered values
    cuts = np.sort(rng.choice(inner, min(CUTS, len(inner)), replace=False)).tolist()
    for number, cut_ms in enumerate(cuts):
        tick("replays", number + 1, len(cuts) + 1)
        with nullcontext(log) if another is None else another(cut_ms, seed + number) as base:
            other, same = altered(base, schema, cut_ms, np.random.default_rng([seed, number]))
        rows = same[: np.searchsorted(ts[same], cut_ms, side="right")]
        one = model()
        second = witness(one)
        run(other, one, second)
        figures, differing = _compared(first, second, rows, ts, cut_ms, leaks)
        found.cuts.append(figures)
        if len(differing):
            differences.append((cut_ms, differing[:NAMED_ROWS], Values(differing[:NAMED_ROWS])))
            run(other, _Nobody(), differences[-1][2])
    if differences:
        values = Values(np.concatenate([rows for _, rows, _ in differences]))
        run(log, _Nobody(), values)
        for cut_ms, rows, altered_values in differences:
            _name(values, altered_values, rows, schema, ts, cut_ms, leaks)
    # A prediction follows from the rest, so it comes last.
    found.leaks = sorted(leaks.values(), key=lambda leak: (leak.name == PREDICTION, -leak.count, leak.name))
    return found


def _compared(
    first: Witness, second: Witness, rows: NDArray[np.intp], ts: NDArray[np.int64], cut_ms: int, leaks: dict[str, Leak]
) -> tuple[dict[str, int], NDArray[np.intp]]:
    """(how much was compared; rows whose features differ). Notes labels and predictions that differ. ``rows`` (r,):
    those up to the time whose fields are unchanged."""
    labels, others = (each[:, each[1] < cut_ms] for each in (first.samples, second.samples))
    unlike = (first.features[rows] != second.features[rows]) | (
        first.learnt_features[rows] != second.learnt_features[rows]
    )
    differing = rows[unlike]
    alone = first.alone(rows) & second.alone(rows)
    for p, q in zip(first.predictions, second.predictions, strict=True):
        near = np.isclose(p[rows], q[rows], rtol=ROUNDING, atol=1e-8, equal_nan=True)
        moved = rows[np.where(alone, p[rows].view(np.uint32) != q[rows].view(np.uint32), ~near)]
        if len(moved):
            i = int(moved[0])
            _note(leaks, PREDICTION, len(moved), i, ts, cut_ms, float(p[i]), float(q[i]))
    wrong = unlike_rows(labels, others)
    if len(wrong):
        i = int(wrong[0])
        values = [
            sorted({(k, t, *o) for _, t, k, *o in named[:, named[0] == i].T.tolist()}) for named in (labels, others)
        ]
        _note(leaks, LABEL, len(wrong), i, ts, cut_ms, *values)
    figures = {
        "cut_ms": cut_ms,
        "exposures": len(rows),
        "predictions": int(np.count_nonzero(alone)),
        "predictions_but_for_rounding": int(np.count_nonzero(~alone)),
        "labels": labels.shape[1],
    }
    return figures, differing


def unlike_rows(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the samples that only one run has, ascending. Samples are columns (3 + K, s), row first, in any order."""
    if np.array_equal(one, other):  # runs of one log learn in one order
        return np.empty(0, np.int64)
    samples, which = np.unique(np.concatenate([one, other], axis=1), axis=1, return_inverse=True)
    there = np.zeros((2, samples.shape[1]), np.bool_)
    for side, mine in enumerate(np.split(which.reshape(-1), [one.shape[1]])):
        there[side, mine] = True
    return np.unique(samples[0, there[0] != there[1]])


def _name(
    first: Values,
    second: Values,
    rows: NDArray[np.intp],
    schema: Schema,
    ts: NDArray[np.int64],
    cut_ms: int,
    leaks: dict[str, Leak],
) -> None:
    """Notes which columns of some rows differ, as scored or as learnt. Counts are of these rows."""
    names = [*schema.layout.cat_names, *schema.layout.num_names]
    noted: set[tuple[int, int]] = set()  # row, column
    for mine, theirs in ((first.scored_as, second.scored_as), (first.learnt_as, second.learnt_as)):
        for i in rows.tolist():
            if i not in mine or i not in theirs:
                continue
            bits, other_bits = (
                [v for array in one for v in array.view(f"u{array.itemsize}")] for one in (mine[i], theirs[i])
            )
            values, others = ([v for array in one for v in array.tolist()] for one in (mine[i], theirs[i]))
            for c in [c for c in range(len(names)) if bits[c] != other_bits[c] and (i, c) not in noted]:
                noted.add((i, c))
                _note(leaks, names[c], 1, i, ts, cut_ms, values[c], others[c])


def _note(
    leaks: dict[str, Leak], name: str, count: int, row: int, ts: NDArray[np.int64], cut_ms: int, value: Any, other: Any
) -> None:
    known = leaks.get(name)
    if known is None:
        leaks[name] = Leak(name, count, row, int(ts[row]), cut_ms, value, other)
    else:
        leaks[name] = Leak(name, known.count + count, known.row, known.ts_ms, known.cut_ms, known.value, known.altered)
