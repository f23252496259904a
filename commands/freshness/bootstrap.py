# core
"""Figures under many draws of users: the paired cluster bootstrap.

Exposures of one user are alike, so to count each of them as one observation makes intervals too narrow. Here whole
users are drawn, with replacement, as many as there are (Davison and Hinkley 1997, section 3.8; for the AUC of clustered
data Obuchowski 1997). Each draw is a weight of each user: how often the user was drawn. All models, features and slices
share the draws. So the spread of a difference between two models is that of the difference, not of two independent
figures.

Rows are sorted by score once. One pass over them then gives the AUC of all draws::

    AUC_r = sum over positives i of w_ri (negatives below i + half of those at i, weighted by r) / (W+_r W-_r)

Counts are whole numbers below 2^53, so sums in float64 are exact and do not depend on their order.

Symbols: n rows, U users, R draws, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from millrace.basics.compiled import compiled
from millrace.basics.merit import log_losses

Floats = NDArray[np.float64]
Weights = NDArray[np.uint16]

DRAWS = 1000
MOST_ENTRIES = 1 << 27
"""Weights that lie in memory at a time, two bytes each."""


def drawn(users: int, draws: int, seed: int, entries: int = MOST_ENTRIES) -> Iterator[Weights]:
    """How often each user is drawn in each draw, users with replacement: blocks of draws, (U, r) each, r's sum R. What
    is drawn does not depend on the blocks' size, ``entries``."""
    rng = np.random.default_rng(seed)
    size = max(8, entries // max(users, 1))
    for start in range(0, draws, size):
        out = np.zeros((users, min(size, draws - start)), np.uint16)
        for r in range(out.shape[1]):
            out[:, r] = np.bincount(rng.integers(0, users, users), minlength=users)
        yield out


def auc_draws(p: NDArray[np.float32], y: NDArray[np.float32], user: NDArray[np.intp], weights: Weights) -> Floats:
    """The AUC under each draw; NaN where a draw has one class only. (R,)

    Args:
        p: scores of any rows, (n,).
        y: their labels, (n,).
        user: the place of each row's user in ``weights``, (n,).
    """
    order = np.argsort(p, kind="stable")
    draws: Floats = _auc_draws(p[order], y[order] > 0.5, user[order], weights)
    return draws


@compiled
def _auc_draws(p: NDArray[np.float32], positive: NDArray[np.bool_], user: NDArray[np.intp], weights: Weights) -> Floats:
    """As :func:`auc_draws`, of rows sorted by p."""
    n, draws = len(p), weights.shape[1]
    below, wins, clicks = np.zeros(draws), np.zeros(draws), np.zeros(draws)
    tied_pos, tied_neg = np.zeros(draws), np.zeros(draws)
    i = 0
    while i < n:
        end = i + 1
        while end < n and p[end] == p[i]:
            end += 1
        if end == i + 1:
            w = weights[user[i]]
            if positive[i]:
                for r in range(draws):
                    wins[r] += w[r] * (2.0 * below[r])
                    clicks[r] += w[r]
            else:
                for r in range(draws):
                    below[r] += w[r]
        else:
            tied_pos[:] = 0.0
            tied_neg[:] = 0.0
            for j in range(i, end):
                w = weights[user[j]]
                if positive[j]:
                    for r in range(draws):
                        tied_pos[r] += w[r]
                else:
                    for r in range(draws):
                        tied_neg[r] += w[r]
            for r in range(draws):
                wins[r] += tied_pos[r] * (2.0 * below[r] + tied_neg[r])
                clicks[r] += tied_pos[r]
                below[r] += tied_neg[r]
        i = end
    out = np.full(draws, np.nan)
    for r in range(draws):
        if clicks[r] > 0 and below[r] > 0:
            out[r] = wins[r] / (2.0 * clicks[r] * below[r])
    return out


def ratio_draws(
    top: NDArray[np.float64], bottom: NDArray[np.float64], user: NDArray[np.intp], weights: Weights
) -> Floats:
    """``sum of top / sum of bottom`` under each draw, of values by row (n,) or by group (G,). NaN where it has no
    bottom. (R,)"""
    users = weights.shape[0]
    over = _sums(np.bincount(user, weights=top, minlength=users).astype(np.float64), weights)
    under = _sums(np.bincount(user, weights=bottom, minlength=users).astype(np.float64), weights)
    out = np.full(len(over), np.nan)
    np.divide(over, under, out=out, where=under > 0)
    return out


@compiled
def _sums(value: Floats, weights: Weights) -> Floats:
    """``sum over u of w_ur value_u``, in the order of the users. (R,)"""
    out = np.zeros(weights.shape[1])
    for u in range(len(value)):
        if value[u] != 0.0:
            for r in range(len(out)):
                out[r] += weights[u, r] * value[u]
    return out


def log_loss_draws(p: NDArray[np.float32], y: NDArray[np.float32], user: NDArray[np.intp], weights: Weights) -> Floats:
    """The log loss under each draw. (R,)"""
    return ratio_draws(log_losses(p, y), np.ones(len(p)), user, weights)


def calibration_draws(
    p: NDArray[np.float32], y: NDArray[np.float32], user: NDArray[np.intp], weights: Weights
) -> Floats:
    """Clicks predicted over clicks observed, under each draw. (R,)"""
    return ratio_draws(p.astype(np.float64), y.astype(np.float64), user, weights)


def group_aucs(
    p: NDArray[np.float32], y: NDArray[np.float32], group: NDArray[np.intp]
) -> tuple[NDArray[np.intp], Floats, Floats]:
    """(first row of each group that has both classes (G,), its AUC (G,), its rows (G,)); see
    :func:`millrace.basics.merit.grouped_auc`, which is the mean of the AUCs weighted by rows."""
    order = np.lexsort((p, group))
    first, value, rows = _group_aucs(p[order], y[order] > 0.5, group[order])
    return order[first], value, rows


@compiled
def _group_aucs(
    p: NDArray[np.float32], positive: NDArray[np.bool_], group: NDArray[np.intp]
) -> tuple[NDArray[np.intp], Floats, Floats]:
    """Of rows sorted by group, then by p."""
    n = len(p)
    firsts, values, sizes = np.empty(n, np.intp), np.empty(n), np.empty(n)
    found, start = 0, 0
    while start < n:
        end, below, clicks, wins = start, 0.0, 0.0, 0.0
        while end < n and group[end] == group[start]:
            tie, pos, neg = end, 0.0, 0.0
            while tie < n and group[tie] == group[start] and p[tie] == p[end]:
                if positive[tie]:
                    pos += 1
                else:
                    neg += 1
                tie += 1
            wins += pos * (2.0 * below + neg)
            clicks += pos
            below += neg
            end = tie
        if clicks > 0 and below > 0:
            firsts[found], values[found], sizes[found] = start, wins / (2.0 * clicks * below), end - start
            found += 1
        start = end
    return firsts[:found], values[:found], sizes[:found]


def grouped_auc_draws(
    p: NDArray[np.float32],
    y: NDArray[np.float32],
    group: NDArray[np.intp],
    user: NDArray[np.intp],
    weights: Weights,
) -> Floats:
    """AUC within groups under each draw; a group belongs to the user of one of its rows. (R,)"""
    first, value, rows = group_aucs(p, y, group)
    return ratio_draws(value * rows, rows, user[first], weights)


def standard_error(draws: Floats) -> float:
    """The spread of a figure over the draws that have one; NaN where fewer than half have."""
    known = draws[np.isfinite(draws)]
    return float(known.std(ddof=1)) if len(known) * 2 > len(draws) and len(known) > 1 else float("nan")
