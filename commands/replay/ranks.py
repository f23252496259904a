# core
"""AUC, grouped AUC and log loss of long logs: those of :mod:`millrace.basics.ranking_metrics`, to the bit, in less
memory.

Rank sums are sums of whole and half numbers, exact in float64 up to 2^53. So it does not matter in which order or in
how many parts they are taken: parts of the rows need a few bytes each where the whole would need a hundred.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from millrace.basics import ranking_metrics
from millrace.basics.clustered import Parts
from millrace.basics.ranking_metrics import Numbers

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


def grouped_auc(p: Numbers, y: Numbers, group: Numbers, at_once: int = _AT_ONCE) -> float:
    """:func:`millrace.basics.ranking_metrics.grouped_auc` of (n,), ``at_once`` rows or the one group that is larger."""
    each, weight, _ = _groups(p, y, group, at_once)
    return float(each @ weight / weight.sum()) if len(each) else float("nan")


def grouped_parts(p: Numbers, y: Numbers, group: Numbers) -> Parts:
    """The grouped AUC, and what each row has in it: a group's part stands at its first row. (n,)"""
    each, weight, first = _groups(p, y, group, _AT_ONCE)
    parts = np.zeros(len(p))
    if not len(each):
        return float("nan"), parts
    value = float(each @ weight / weight.sum())
    parts[first] = weight * (each - value) / weight.sum()
    return value, parts


def _groups(
    p: Numbers, y: Numbers, group: Numbers, at_once: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
    """Of the groups that have both classes, their AUCs, rows and first rows. (G,) each"""
    p, y, group = np.asarray(p), np.asarray(y), np.asarray(group)
    if not len(p):
        return np.empty(0), np.empty(0), np.empty(0, np.intp)
    order = None if (group[1:] >= group[:-1]).all() else np.argsort(group, kind="stable")
    ordered = group if order is None else group[order]
    own, rows, first = [], [], []
    start = 0
    while start < len(p):
        stop = min(start + at_once, len(p))
        stop = int(np.searchsorted(ordered, ordered[stop - 1], side="right"))
        which = slice(start, stop) if order is None else order[start:stop]
        found = ranking_metrics.group_aucs(p[which], y[which], ordered[start:stop])
        own.append(found[0])
        rows.append(found[1])
        begins = np.flatnonzero(np.r_[True, ordered[start + 1 : stop] != ordered[start : stop - 1]])
        clicked, size = np.add.reduceat(y[which] > 0.5, begins, dtype=np.intp), np.diff(np.r_[begins, stop - start])
        begins = begins[(clicked > 0) & (clicked < size)] + start
        first.append(begins if order is None else order[begins])
        start = stop
    return np.concatenate(own), np.concatenate(rows), np.concatenate(first)


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
