# core
"""AUC, order within pages and log loss of long logs: as :mod:`millrace.basics.ranking_metrics` has them, to the bit,
in less memory.

Rank sums are sums of whole and half numbers, exact in float64 up to 2^53. So it does not matter in which order or in
how many parts they are taken: parts of the rows need a few bytes each where the whole would need a hundred.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from millrace.basics import ranking_metrics
from millrace.basics.clustered import Parts
from millrace.basics.ranking_metrics import GroupRanks, Numbers

_AT_ONCE = 1 << 18


def auc(p: Numbers, y: Numbers) -> float:
    """:func:`millrace.basics.ranking_metrics.auc` of (n,): for each positive the negatives below it, half of its
    equals."""
    p, positive = np.asarray(p), np.asarray(y) > 0.5
    high, low = p[positive], p[~positive]
    if not len(high) or not len(low) or np.isnan(p).any():
        return float("nan")
    low.sort()
    twice = sum(int(np.searchsorted(low, part, side).sum()) for part in _parts(high) for side in ("left", "right"))
    return twice / 2.0 / (len(high) * len(low))


def within(p: Numbers, y: Numbers, group: Numbers, at_once: int = _AT_ONCE) -> dict[str, float]:
    """:func:`millrace.basics.ranking_metrics.within` of (n,), ``at_once`` rows or the one group that is larger."""
    return _groups(p, y, group, at_once)[0].means()


def within_parts(p: Numbers, y: Numbers, group: Numbers) -> dict[str, Parts]:
    """:func:`within`, and what each row has in each figure: a group's part stands at its first row. (n,)"""
    ranks, first = _groups(p, y, group, _AT_ONCE)
    found = {}
    for key, value in ranks.means().items():
        own, weight = ranks.weighted()[key]
        parts = np.zeros(len(p))
        parts[first] = weight * (own - value) / weight.sum() if len(own) else 0.0
        found[key] = value, parts
    return found


def _groups(p: Numbers, y: Numbers, group: Numbers, at_once: int) -> tuple[GroupRanks, NDArray[np.intp]]:
    """(the ranks of the groups that have both classes, their first rows (G,))"""
    p, y, group = np.asarray(p), np.asarray(y), np.asarray(group)
    order = None if (group[1:] >= group[:-1]).all() else np.argsort(group, kind="stable")
    ordered = group if order is None else group[order]
    found, first = [ranking_metrics.group_ranks(p[:0], y[:0], group[:0])], [np.empty(0, np.intp)]
    start = 0
    while start < len(p):
        stop = min(start + at_once, len(p))
        stop = int(np.searchsorted(ordered, ordered[stop - 1], side="right"))
        which = slice(start, stop) if order is None else order[start:stop]
        found.append(ranking_metrics.group_ranks(p[which], y[which], ordered[start:stop]))
        begins = np.flatnonzero(np.r_[True, ordered[start + 1 : stop] != ordered[start : stop - 1]])
        clicked, size = np.add.reduceat(y[which] > 0.5, begins, dtype=np.intp), np.diff(np.r_[begins, stop - start])
        begins = begins[(clicked > 0) & (clicked < size)] + start
        first.append(begins if order is None else order[begins])
        start = stop
    return GroupRanks(*map(np.concatenate, zip(*found, strict=True))), np.concatenate(first)


def log_loss(p: Numbers, y: Numbers, at_once: int = _AT_ONCE) -> float:
    """:func:`millrace.basics.ranking_metrics.log_loss` of (n,)."""
    if not len(p):
        return float("nan")
    losses = np.empty(len(p))
    for at in range(0, len(p), at_once):
        part = slice(at, at + at_once)
        losses[part] = ranking_metrics.log_losses(p[part], y[part])
    return float(losses.mean())


def _parts(values: Numbers) -> list[Numbers]:
    return [values[at : at + _AT_ONCE] for at in range(0, len(values), _AT_ONCE)]
