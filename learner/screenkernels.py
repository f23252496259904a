# core
"""The compiled loops of :mod:`learner.screen`: sums of a micro-batch, and the bounds that its windows must keep.

Symbols: B rows of a batch; F and N columns of ``cat`` and ``num``; W windows; K sums of each, in this order::

    rows, clicks, predicted, variance, corrections, off, auc off, looked
    G1 counts of numbers that are not 0, G2 counts of ids that are there
    BINS counts of other rows by logit, BINS counts of clicks by logit

All are in one file because numba's on-disk cache does not notice a change in a callee, or a constant, of another one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.compiled import compiled

Array = NDArray[Any]

ROWS, CLICKS, PREDICTED, VARIANCE, CORRECTIONS, OFF, AUC_OFF, LOOKED = range(8)
HEAD = 8
BINS = 80
_LOW, _PER_BIN = -9.0, 6.0  # of logits, from -9 to 4.3

DEVIATIONS = 4.5
"""Standard errors that a figure must be off the clean past at least."""
NARROW_LOW, NARROW_HIGH, WIDE_LOW, WIDE_HIGH = 0.55, 1.6, 0.3, 3.0
"""Bounds of labels over predictions, as multiples of the clean past's."""
_AUC_KEPT, _AUC_HOLDS, _AUC_DOUBT = 0.4, 0.75, 1.5  # parts of AUC - .5; standard errors of the latter
_SHARE_KEPT = 0.6  # of the clean past's share
_LEAST_ROWS = 64  # of a window, for shares
_ALIKE_ROWS = 10  # rows of a page that tell of its user no more than one
_LEAST_CLICKS = 16  # of a window, and as many others, for AUC
_LOOKED_AT = 32  # rows of a batch whose numbers and ids are counted, evenly spread

FINE, SHARE, LABELS, AUC = range(4)
"""What :func:`judge` found."""

_CORRECTION, _FOLLOW_UP = 2, 3  # as millrace.contracts.samples has them


@compiled
def count(cat: Array, num: Array, starts: Array, label: Array, kind: Array, p: Array, there: Array, out: Array) -> None:
    """Adds the sums of a batch to ``out`` (K,), but for those of ids; how often each column of ``cat`` has one to
    ``there`` (F,). ``starts`` (G1 + 1,): first column of each group of ``num``. Follow-ups are passed over."""
    groups = len(starts) - 1
    first = len(out) - 2 * BINS
    step = max(1, len(label) // _LOOKED_AT)
    for b in range(len(label)):
        if kind[b] == _FOLLOW_UP:
            continue
        q = min(max(np.float64(p[b]), 1e-7), 1 - 1e-7)
        out[ROWS] += 1
        out[CLICKS] += label[b]
        if kind[b] == _CORRECTION:
            out[CORRECTIONS] += 1  # its exposure was predicted before
        else:
            out[PREDICTED] += q
            out[VARIANCE] += q * (1 - q)
        k = min(max(int((np.log(q / (1 - q)) - _LOW) * _PER_BIN), 0), BINS - 1)
        out[first + k + (BINS if label[b] > 0.5 else 0)] += 1
        if b % step:
            continue
        out[LOOKED] += 1
        for c in range(cat.shape[1]):
            there[c] += cat[b, c] != 0
        for g in range(groups):
            n = 0
            for c in range(starts[g], starts[g + 1]):
                n += num[b, c] * num[b, c] > 0  # NaN is not
            out[HEAD + g] += n


@compiled
def auc(sums: Array) -> tuple[float, float]:
    """(AUC of rows by logit, its standard error where nothing predicts clicks). NaN and infinity with one class only.

    (Mann and Whitney 1947; rows in one bin are ties.)"""
    first = len(sums) - 2 * BINS
    others, clicks, pairs = 0.0, 0.0, 0.0
    for k in range(BINS):
        n, m = sums[first + k], sums[first + BINS + k]
        pairs += m * (others + n / 2)
        others += n
        clicks += m
    if others == 0 or clicks == 0:
        return np.nan, np.inf
    return pairs / (others * clicks), np.sqrt((1 / others + 1 / clicks) / 12)


@compiled
def judge(
    windows: Array,
    divisor: Array,
    least: Array,
    share: Array,
    usual_auc: float,
    factor: float,
    dispersion: float,
    auc_dispersion: float,
) -> tuple[int, int, float, float]:
    """The first bound that one of the windows (W, K) breaks: (what, of SHARE the group, value, bound). FINE: none.

    Args:
        divisor: columns of each group, (G,).
        least: share of the clean past from which on each is judged, (G,).
        share, usual_auc, factor, dispersion, auc_dispersion: the clean past's, see :class:`learner.screen.Usual`.
    """
    for w in range(len(windows)):
        sums = windows[w]
        rows, looked = sums[ROWS], sums[LOOKED]
        if rows >= _LEAST_ROWS:
            told = min(rows / _ALIKE_ROWS, looked)
            for g in range(len(share)):
                usual = share[g]
                if usual < least[g]:
                    continue
                spread = min(max(usual, 0.05), 0.95)
                error = np.sqrt(spread * (1 - spread) / told)
                bound = min(_SHARE_KEPT * usual, usual - DEVIATIONS * error)
                value = sums[HEAD + g] / (divisor[g] * looked)
                if value < bound:
                    return SHARE, g, value, bound

        value, deviation = auc(sums)
        deviation *= np.sqrt(auc_dispersion)
        holds = value >= 0.5 + _AUC_HOLDS * (usual_auc - 0.5) - _AUC_DOUBT * deviation  # NaN does not
        low, high = (WIDE_LOW, WIDE_HIGH) if holds else (NARROW_LOW, NARROW_HIGH)
        expected = max(factor * sums[PREDICTED], 1e-9)
        # The root of a count has half the deviation of the count over the root of its mean.
        variance = dispersion * factor * sums[VARIANCE]
        below = DEVIATIONS / 2 * np.sqrt(variance / expected)
        above = DEVIATIONS / 2 * np.sqrt((variance + sums[CORRECTIONS]) / expected)  # when these come is chance, too
        fewest = min(low * expected, max(np.sqrt(expected) - below - 1, 0.0) ** 2)
        most = max(high * expected, (np.sqrt(expected) + above) ** 2)
        if sums[CLICKS] < fewest:
            return LABELS, 0, sums[CLICKS] / expected, fewest / expected
        if sums[CLICKS] > most:
            return LABELS, 0, sums[CLICKS] / expected, most / expected
        lowest = min(0.5 + _AUC_KEPT * (usual_auc - 0.5), usual_auc - DEVIATIONS * deviation)
        both = min(sums[CLICKS], rows - sums[CLICKS]) >= _LEAST_CLICKS
        if both and value < lowest:
            return AUC, 0, value, lowest
    return FINE, 0, 0.0, 0.0
