# core
"""What stands out in some samples, against the usual ones.

Shoppers come in visits, so any stretch has users and items that others have not, and standard errors of single rows do
not show that. Usual values therefore come from stretches of the same length: something stands out that is clear by its
standard error and beyond all values of the usual stretches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.commands.repair.without import shown
from millrace.contracts.events import ARMS
from millrace.contracts.samples import CORRECTION, SampleBatch

CLEAR = 6.0
"""Standard errors from which something stands out: of a hundred thousand ids none does by chance."""
FAR = 1.5
"""A share stands out at this multiple of the highest usual one, or below the lowest by as much."""
_FEW = 20  # rows of an id before it is looked at
_RATE = 0.1  # clicks a row by which an id differs at least
_COLUMN = 0.05  # of rows, by which a column is more or less often there than in any usual stretch


class Standout(NamedTuple):
    """An unusual ``value`` against the ``usual`` one, ``z`` standard errors apart. ``against`` names the source of
    ``usual``."""

    what: str
    figure: str
    value: float
    usual: float
    z: float
    against: str = "usually"

    def __str__(self) -> str:
        """
        >>> str(Standout("user #00000000000000ff", "share of rows", 0.125, 0.001, 50.0))
        'user #00000000000000ff: share of rows 0.125, usually 0.001'
        """
        return f"{self.what}: {self.figure} {self.value:.3g}, {self.against} {self.usual:.3g}"


class Tally:
    """Counts of samples: rows and clicks by user, item and arm; and how often each column is present."""

    def __init__(self) -> None:
        self.rows = self.clicks = 0
        self._ids: dict[str, list[NDArray[np.uint64]]] = {"user": [], "item": [], "arm": []}
        self._clicked: list[NDArray[np.bool_]] = []
        self._present: NDArray[np.int64] | int = 0
        self._numbers: NDArray[np.int64] | int = 0

    def add(self, batch: SampleBatch) -> None:
        """Corrections are clicks of rows that were counted before. An exposure that is sent again is not counted."""
        batch = batch.labelled
        self._present = self._present + (batch.cat != 0).sum(axis=0)
        with np.errstate(invalid="ignore"):
            self._numbers = self._numbers + (np.isfinite(batch.num) & (batch.num != 0)).sum(axis=0)
        clicked = (batch.label > 0.5) | (batch.kind == CORRECTION)
        self.rows += len(batch)
        self.clicks += int(clicked.sum())
        self._clicked.append(clicked)
        for name, column in (("user", batch.user), ("item", batch.item), ("arm", batch.arm)):
            self._ids[name].append(column.astype(np.uint64))

    def of(self, name: str) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
        """Ids, and rows and clicks of each. (n,), (n,), (n,)"""
        if not self.rows:
            return np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
        ids, where = np.unique(np.concatenate(self._ids[name]), return_inverse=True)
        clicked = np.concatenate(self._clicked)
        return ids, np.bincount(where, minlength=len(ids)), np.bincount(where[clicked], minlength=len(ids))

    @property
    def present(self) -> NDArray[np.int64]:
        """Rows in which each column of ``cat`` has an id. (F,)"""
        return np.atleast_1d(np.asarray(self._present, np.int64))

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Rows in which each column of ``num`` is finite and not 0. (N,)"""
        return np.atleast_1d(np.asarray(self._numbers, np.int64))


def standouts(
    there: Tally, usual: Sequence[Tally], cat_names: Sequence[str], num_names: Sequence[str]
) -> list[Standout]:
    """Unusual things in ``there``, the clearest first; at most three of a kind. ``usual``: stretches of about as many
    rows."""
    usual = [tally for tally in usual if tally.rows]
    if not there.rows or not usual:
        return []
    rows = sum(tally.rows for tally in usual)
    rate, rates = there.clicks / there.rows, [tally.clicks / tally.rows for tally in usual]
    before = sum(tally.clicks for tally in usual) / rows
    found = []
    if _beyond(rate, rates):
        found.append(Standout("all samples", "clicks a row", rate, before, _z(rate, there.rows, before, rows)))
    for name in ("user", "item", "arm"):
        found += _of_ids(name, there, usual)
    return sorted(_clear(found) + _of_columns(there, usual, [*cat_names, *num_names]), key=lambda s: -abs(s.z))


def _of_ids(name: str, there: Tally, usual: Sequence[Tally]) -> list[Standout]:
    """Ids with far more rows than usual, and those that are clicked far more or less than they usually are."""
    ids, rows, clicks = there.of(name)
    pieces = [tally.of(name) for tally in usual]
    before = np.sum([_found(ids, p[0], p[1]) for p in pieces], axis=0)
    clicks_before = np.sum([_found(ids, p[0], p[2]) for p in pieces], axis=0)
    most = np.max([_found(ids, p[0], p[1]) / tally.rows for p, tally in zip(pieces, usual, strict=True)], axis=0)
    highest = max(float(p[1].max()) / tally.rows for p, tally in zip(pieces, usual, strict=True))
    all_rows, all_clicks = sum(tally.rows for tally in usual), sum(tally.clicks for tally in usual)
    shares, clicked = [], []
    for k in np.flatnonzero(rows >= _FEW).tolist():
        n, what = int(rows[k]), f"{name} {ARMS[ids[k]] if name == 'arm' else shown(int(ids[k]))}"
        share, own = n / there.rows, (before[k] + 1) / (all_rows + 1)
        bound = highest if name == "user" else most[k]  # any user may come at any time, with a visit of his own
        if share > FAR * bound:
            shares.append(Standout(what, "share of rows", share, own, _z(share, there.rows, own, all_rows)))
        known = before[k] >= _FEW
        of = int(before[k]) if known else all_rows
        rate, usually = clicks[k] / n, (clicks_before[k] / of) if known else all_clicks / all_rows
        if abs(rate - usually) > _RATE and not 1 / FAR <= (rate + 0.01) / (usually + 0.01) <= FAR:
            against = "usually" if known else "others"
            clicked.append(Standout(what, "clicks a row", rate, usually, _z(rate, n, usually, of), against))
    return _clear(shares)[:3] + _clear(clicked)[:3]


def _of_columns(there: Tally, usual: Sequence[Tally], names: Sequence[str]) -> list[Standout]:
    """Columns that are far more often, or far less often, empty or 0 than usual."""
    rows = sum(tally.rows for tally in usual)
    shares = np.concatenate([there.present, there.numbers]) / there.rows
    each = np.array([np.concatenate([t.present, t.numbers]) / t.rows for t in usual])  # (pieces, F + N)
    before = np.array([t.rows for t in usual]) @ each / rows
    out = (shares < each.min(axis=0) - _COLUMN) | (shares > each.max(axis=0) + _COLUMN)
    found = [
        Standout(
            f"column {names[k]}",
            "share that is there",
            shares[k],
            before[k],
            _z(shares[k], there.rows, before[k], rows),
        )
        for k in np.flatnonzero(out).tolist()
    ]
    lost = _clear(found)
    if len(lost) <= 3:
        return lost
    value, usually = (float(np.mean([getattr(s, what) for s in lost])) for what in ("value", "usual"))
    name = f"{len(lost)} columns, as {lost[0].what.removeprefix('column ')}"
    return [Standout(name, "share that is there", value, usually, lost[0].z)]


def _found(ids: NDArray[np.uint64], known: NDArray[np.uint64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The counts of ``ids``, 0 for one that is not known. (n,)"""
    at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[at] == ids, counts[at], 0)


def _beyond(value: float, usual: Sequence[float]) -> bool:
    """Whether a share is beyond all usual ones by half."""
    return not min(usual) / FAR <= value <= FAR * max(usual)


def _clear(found: list[Standout]) -> list[Standout]:
    return sorted((s for s in found if abs(s.z) >= CLEAR), key=lambda s: -abs(s.z))


def _z(value: float, rows: int, usual: float, of: int) -> float:
    p = min(max(usual, 1 / (of + 2)), 1 - 1 / (of + 2))
    return float((value - p) / np.sqrt(p * (1 - p) * (1 / rows + 1 / max(of, 1))))
