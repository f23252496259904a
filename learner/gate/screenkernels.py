# core
"""The compiled loops of :mod:`learner.gate.screen`: sums of a micro-batch, and the bounds that its windows must keep.

Symbols: B rows of a batch; F and N columns of ``cat`` and ``num``; V kinds of visits, each with other rows that tell
of it; W windows; K sums of each, in this order::

    rows met; of those whose label tells: rows, clicks, predicted, variance, corrections; off, auc off; ms
    V counts of visits, SIGNS sums of signs of the items on the rows that count of them (see :func:`spread`)
    G1 counts of numbers that are not 0, G2 counts of ids that are there: of one row of each visit
    BINS counts of other rows by logit, BINS counts of clicks by logit, of those whose label tells
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.basics.compiled import compiled

Array = NDArray[Any]
Sums = NDArray[np.float64]
"""(K,), or (W, K)."""

MET, ROWS, CLICKS, PREDICTED, VARIANCE, CORRECTIONS, OFF, AUC_OFF, MS, VISITS = range(10)
KINDS = 6
"""V. A visit of kind 0 is told of by any row; of kinds 1 and 2 by one that does not lack that bit of the user; of kind
:data:`KNOWN` by its first one, if the item is known; of kind :data:`LABELLED` by one whose label tells, of kind
:data:`CLICKED` by such a click."""
KNOWN, LABELLED, CLICKED = 3, 4, 5
ITEMS = VISITS + KINDS
SIGNS = 32
HEAD = ITEMS + SIGNS
BINS = 80
_LOW, _PER_BIN = -9.0, 6.0  # of logits, from -9 to 4.3

DEVIATIONS = 4.5
"""Standard errors that a figure must be off the clean past at least."""
NARROW_LOW, NARROW_HIGH, WIDE_LOW, WIDE_HIGH = 0.55, 1.6, 0.3, 3.0
"""Bounds of labels over predictions, as multiples of the clean past's."""
LONG_MS, LONG_ROWS = 30_000, 65_536
"""Of a window, time of the stream or rows until too few clicks, or too many where they rank as ever, are a fault."""
_STEP_MS, _BACK_MS = 5000, 15_000  # counted of it between two pages, at most; so far back, the clock has gone back
_AUC_KEPT, _AUC_HOLDS, _AUC_DOUBT = 0.4, 0.75, 1.5  # parts of AUC - .5; standard errors of the latter
_SHARE_KEPT = 0.6  # of the clean past's share
_SHARE_NATS = 13.0  # a share as far off is chance once in half a million times
_LEAST_CLICKED = 16  # visits of a window with a click, for AUC
_APART, _APART_NATS = 3.0, 7.0  # standard errors, and a chance of one in a thousand
_SILENT_CLICKS, _SILENT_VISITS = 60.0, 24  # expected in a window without any

_MOST_NUMBER, _MOST_WEIGHT = np.float32(1e30), 1e6

FINE, SHARE, LABELS, AUC, DOUBT = range(5)
"""What :func:`judge` found. DOUBT: labels that may be out of step, and no fault."""

_CORRECTION, _FOLLOW_UP = 2, 3  # as millrace.contracts.samples has them


class ValueVisits(NamedTuple):
    """Rows of a batch."""

    user: Array  # (B,) whose page it was
    item: Array  # (B,)
    ts_ms: Array  # (B,)
    kind: Array  # (B,)
    label: Array  # (B,)
    lacks: Array  # (B,) bits of what the page was made without


class Memory(NamedTuple):
    """Who was counted, and what was met. Written in place."""

    clock: Array
    """Rows met; rows, and ms, that must both have passed until a visitor counts again; the newest time met. (4,)"""
    visitors: Array
    """Who was counted, and when by each kind: rows met, and ms, (S, 1 + 2 V). A visitor has one slot; a later one may
    take it from him."""
    items: Array
    """Bits of the items that are known since the day before, or this day, that were met in the period before, and in
    this one, (4, I): two of each item, by its hash (Bloom 1970)."""


class Groups(NamedTuple):
    """G1 groups of columns of ``num``, then G2 of ``cat``."""

    starts: Array  # (G1 + 1,) first column of each group of ``num``
    cat_of: Array  # (G2, F) which columns of ``cat`` count for each of its groups
    divisor: Array  # (G,) how many columns each has
    needs: Array  # (G,) the kind of visits that each is counted of
    of_items: Array  # (G,) whether it tells of items alone


class Usual(NamedTuple):
    """What the clean past says, G groups of columns."""

    others: Sums  # (BINS,) exposures that were not clicked, by logit
    share: Sums  # (G,) of what is counted of them
    visits: Sums  # (V,) that this is of
    items: float  # independent visits that tell as much of items
    auc: float
    factor: float  # labels over predictions
    dispersion: float  # variance of clicks over that of independent ones
    auc_dispersion: float  # variance of AUC over that of independent visits
    factor_error: float  # variance of the factor's logarithm
    auc_error: float  # variance of AUC, were visits independent


@compiled
def absurd(label: Array, weight: Array, kind: Array, ts_ms: Array, num: Array, latest_ms: int) -> Array:
    """Rows that cannot be. (B,) See :meth:`learner.gate.screen.Screen.absurd`."""
    found = np.zeros(len(label), np.bool_)
    for b in range(len(label)):
        sound = label[b] >= 0 and label[b] <= 1 and weight[b] > 0 and weight[b] <= _MOST_WEIGHT  # NaN is not
        large = False
        for c in range(num.shape[1]):
            size = abs(num[b, c])
            large |= (size > _MOST_NUMBER) & (size < np.inf)
        found[b] = large or ts_ms[b] > latest_ms or not (sound or kind[b] == _FOLLOW_UP)
    return found


@compiled
def knows(items: Array, item: Array) -> Array:
    """Whether each item is known, (B,), by ``items`` as :class:`Memory` has them."""
    bits = np.uint64(8 * items.shape[1])
    known = np.ones(len(item), np.bool_)
    for b in range(len(item)):
        if item[b] == 0:  # as where nobody gives ids
            continue
        for half in (item[b], item[b] >> np.uint64(32)):
            at = np.int64(half % bits)
            known[b] &= ((items[0, at >> 3] | items[1, at >> 3]) >> np.uint8(at & 7)) & 1 != 0
    return known


@compiled
def meet(rows: ValueVisits, memory: Memory, all_tell: bool) -> tuple[Array, Array]:
    """Which rows count of their visit, (B, V): the first of a visitor since he was counted ``memory.clock`` ago. And
    whose label tells, (B,): of known items; of all where ``all_tell``. The items of these rows are met."""
    user, item, ts_ms, kind, label, lacks = rows
    clock, visitors, items = memory
    tells, known = np.zeros((len(user), KINDS), np.bool_), knows(items, item)
    labelled = known | all_tell
    bits = np.uint64(8 * items.shape[1])
    slots = np.uint64(len(visitors))
    for b in range(len(user)):
        clock[0] += 1
        if kind[b] >= _FOLLOW_UP:
            continue
        own = visitors[np.int64((user[b] ^ (user[b] >> np.uint64(32))) % slots)]
        if own[0] != np.int64(user[b]):
            own[:] = 0
            own[0] = np.int64(user[b])
        for half in (item[b], item[b] >> np.uint64(32)):
            at = np.int64(half % bits)
            items[3, at >> 3] |= np.uint8(1 << (at & 7))
        for v in range(KINDS):
            if v >= LABELLED:
                if not labelled[b] or (v == CLICKED and label[b] <= 0.5):
                    continue
            elif v and v != KNOWN and lacks[b] >> (v - 1) & 1:
                continue
            since, ms = clock[0] - own[1 + v], ts_ms[b] - own[1 + KINDS + v]
            if own[1 + v] and (since < clock[1] or ms < clock[2]):
                continue
            own[1 + v], own[1 + KINDS + v] = clock[0], ts_ms[b]
            tells[b, v] = v != KNOWN or known[b]
    return tells, labelled


@compiled
def tally(
    rows: ValueVisits,
    cat: Array,
    num: Array,
    p: Array,
    memory: Memory,
    all_tell: bool,
    now_ms: int,
    groups: Groups,
    out: Array,
) -> int:
    """Adds the sums of a batch to ``out`` (K,); what is sent again is passed over. Predictions that are not finite; if
    there are any, nothing is met. ``now_ms``: that the gate's clock says: no row is of later."""
    user, item, ts_ms, kind, label, _ = rows
    clock, starts, needs, cat_of = memory.clock, groups.starts, groups.needs, groups.cat_of
    wrong = 0
    for b in range(len(p)):
        wrong += not np.isfinite(p[b])
    if wrong:
        return wrong
    tells, labelled = meet(rows, memory, all_tell)
    if now_ms < clock[3] - _BACK_MS:
        clock[3] = now_ms
    of_num = len(starts) - 1
    first = len(out) - 2 * BINS
    for b in range(len(label)):
        if kind[b] >= _FOLLOW_UP:
            continue
        out[MET] += 1
        shown_ms = min(ts_ms[b], now_ms)
        if shown_ms > clock[3]:
            out[MS] += min(shown_ms - clock[3], _STEP_MS)
            clock[3] = shown_ms
        if labelled[b]:
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
        if tells[b, 0]:
            signs = (item[b] if item[b] else user[b]) * np.uint64(0x9E3779B97F4A7C15)
            signs = (signs ^ (signs >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            signs >>= np.uint64(32)
            for s in range(SIGNS):
                out[ITEMS + s] += 1 if (signs >> np.uint64(s)) & np.uint64(1) else -1
        for v in range(KINDS):
            out[VISITS + v] += tells[b, v]
        for g in range(of_num):
            if not tells[b, needs[g]]:
                continue
            n = 0
            for c in range(starts[g], starts[g + 1]):
                n += num[b, c] * num[b, c] > 0  # NaN is not
            out[HEAD + g] += n
        for g in range(of_num, len(needs)):
            if tells[b, needs[g]]:
                for c in range(cat.shape[1]):
                    out[HEAD + g] += cat_of[g - of_num, c] * (cat[b, c] != 0)
    return 0


@compiled
def with_tails(sums: Array, block: Array, tails: Array) -> Array:
    """Sums of a batch (K,), with those of the open block too, and with each of what is behind it (T, K). (2 + T, K)"""
    windows = np.empty((2 + len(tails), len(sums)))
    windows[0] = sums
    windows[1] = sums + block
    for t in range(len(tails)):
        windows[2 + t] = windows[1] + tails[t]
    return windows


@compiled
def spread(sums: Array) -> float:
    """How many independent visits tell as much of items: n^2 / sum_i n_i^2, where n_i of n visits are told of by a row
    of item i (Kish 1965). All rows of an item are alike, and a few items may be on the first place of most pages.

    The sum of squares is the mean square of sums of random signs, one of each item (Alon, Matias and Szegedy 1996): it
    can be added up over batches."""
    n, squares = sums[VISITS], 0.0
    for s in range(SIGNS):
        squares += sums[ITEMS + s] ** 2 / SIGNS
    return float(n * n / max(squares, n, 1e-9))


@compiled
def unlikely(value: float, n: float, usual: float, m: float) -> float:
    """How unlikely a mean of n is, or a smaller one, where that of m was ``usual``: the logarithm of a bound of the
    chance, in nats. It holds for independent numbers from 0 to 1, however few they are (Hoeffding 1963, theorem 1)::

        n m / (n + m) KL(value || usual)
    """
    told = n * m / (n + m)
    q = min(max(usual, 0.01), 0.95)
    x = min(max(value, 0.0), q)
    nats = (1 - x) * np.log((1 - x) / (1 - q))
    if x > 0:
        nats += x * np.log(x / q)
    return float(told * nats)


@compiled
def ranks(clicks: Array, others: Array) -> float:
    """AUC of clicks and others by logit, (BINS,) each: rows in one bin are ties (Mann and Whitney 1947). NaN where one
    class is not there."""
    below, pairs = 0.0, 0.0
    for k in range(BINS):
        pairs += clicks[k] * (below + others[k] / 2)
        below += others[k]
    n = below * clicks.sum()
    return float(pairs / n) if n else np.nan


@compiled
def auc(sums: Array) -> tuple[float, float]:
    """(AUC of rows by logit, its standard error where nothing predicts clicks). NaN and infinity with one class only.

    The error is of as many independent rows as there are visits: the rows of one are alike, and a page of clicks beside
    another one's skips may order them in any way."""
    first = len(sums) - BINS
    value = ranks(sums[first:], sums[first - BINS : first])
    visits, clicked = sums[VISITS + LABELLED], sums[VISITS + CLICKED]
    error = np.sqrt((1 / visits + 1 / clicked) / 12) if visits and clicked and np.isfinite(value) else np.inf
    return value, error


@compiled
def judge(windows: Array, groups: Groups, least: Array, fresh: float, usual: Usual) -> tuple[int, int, float, float]:
    """The first bound that a window (W, K) breaks: (what, of SHARE the group, value, bound). FINE and DOUBT: none.

    Args:
        least: share of the clean past from which on each group is judged, (G,).
        fresh: rows met since a pause that has just ended: their late clicks are still to come.
    """
    others, share, visits, items, usual_auc, factor, dispersion, auc_dispersion, factor_error, auc_error = usual
    divisor, needs, of_items = groups.divisor, groups.needs, groups.of_items
    found = FINE
    for w in range(len(windows)):
        sums = windows[w]
        for g in range(len(share)):
            n, bound = sums[VISITS + needs[g]], _SHARE_KEPT * share[g]
            if share[g] < least[g] or not n:
                continue
            value = sums[HEAD + g] / (divisor[g] * n)
            if value >= bound:
                continue
            told, usual_told = (min(spread(sums), n), items) if of_items[g] else (n, visits[needs[g]])
            if unlikely(value, told, share[g], usual_told) > _SHARE_NATS:
                return SHARE, g, value, bound

        if 2 * sums[ROWS] < sums[MET]:
            continue  # late clicks come when nothing known is shown any more
        value, deviation = auc(sums)
        deviation = np.sqrt(auc_dispersion * (deviation * deviation + auc_error))
        usually, clicked = 0.5 + _AUC_HOLDS * (usual_auc - 0.5), sums[VISITS + CLICKED]
        doubt = np.sqrt(auc_dispersion * (1 / max(12 * clicked, 1e-9) + auc_error))
        holds = value >= usually - _AUC_DOUBT * deviation  # NaN does not
        holds = holds or ranks(sums[len(sums) - BINS :], others) >= usually - _AUC_DOUBT * doubt
        low, high = (WIDE_LOW, WIDE_HIGH) if holds else (NARROW_LOW, NARROW_HIGH)
        expected = max(factor * sums[PREDICTED], 1e-9)
        # The root of a count has half the deviation of the count over the root of its mean.
        # Clicks of a visit may all come before what was passed over, or behind it: it may be off by all it expects.
        variance = max(dispersion * factor * sums[VARIANCE], expected**2 / max(sums[VISITS + LABELLED], 1e-9))
        variance += expected**2 * factor_error
        below = DEVIATIONS / 2 * np.sqrt(variance / expected)
        above = DEVIATIONS / 2 * np.sqrt((variance + sums[CORRECTIONS]) / expected)  # when these come is chance, too
        fewest = min(low * expected, max(np.sqrt(expected) - below - 1, 0.0) ** 2)
        most = max(high * expected, (np.sqrt(expected) + above) ** 2)
        few, many = sums[CLICKS] < fewest and 2 * fresh < sums[MET], sums[CLICKS] > most
        if (few or (many and holds)) and sums[MS] < LONG_MS and sums[MET] < LONG_ROWS:
            found = DOUBT  # clicks come before the rows beside them; and AUC is of different times
            continue
        if few or many:
            return LABELS, 0, sums[CLICKS] / expected, (fewest if few else most) / expected
        lowest = min(0.5 + _AUC_KEPT * (usual_auc - 0.5), usual_auc - DEVIATIONS * deviation)
        if clicked >= _LEAST_CLICKED and value < lowest:
            return AUC, 0, value, lowest
    return found, 0, 0.0, 0.0


@compiled
def silent(windows: Array, factor: float) -> bool:
    """Whether one of the windows (W, K) has no click at all where many would be: a tracker is broken. A quiet hour has
    fewer rows, and so fewer that are expected. ``factor``: labels over predictions, as far as is known."""
    for w in range(len(windows)):
        sums = windows[w]
        if (
            sums[CLICKS] <= 0
            and factor * sums[PREDICTED] >= _SILENT_CLICKS
            and sums[VISITS + LABELLED] >= _SILENT_VISITS
        ):
            return True
    return False


@compiled
def apart(sums: Array, refused: Array, what: int, group: int, groups: Groups, usual: Usual) -> bool:
    """Whether rows (K,) are unlike those that were refused before them (K,), by the figure ``what`` that these broke:
    off by three standard errors, towards what is usual or not."""
    divisor, needs, of_items = groups.divisor, groups.needs, groups.of_items
    if what == SHARE:
        n, before = sums[VISITS + needs[group]], refused[VISITS + needs[group]]
        if not n or not before:
            return False
        value, was = sums[HEAD + group] / (divisor[group] * n), refused[HEAD + group] / (divisor[group] * before)
        told = min(spread(sums), n) if of_items[group] else n
        # of what is not there: the share of it fell
        return bool(value > was and unlikely(1 - value, told, 1 - was, before) > _APART_NATS)
    if what == LABELS:
        part = sums[PREDICTED] / max(refused[PREDICTED], 1e-9)
        as_before = (refused[CLICKS] + 1) * part  # one more: of those that had none, too, some may have been ahead
        variance = (1 + part) * usual.dispersion * as_before + as_before**2 / max(sums[VISITS + LABELLED], 1.0)
        return bool(abs(sums[CLICKS] - as_before) > _APART * np.sqrt(variance) + 1)
    value, deviation = auc(sums)
    was, deviation_before = auc(refused)
    error = np.sqrt(usual.auc_dispersion * (deviation**2 + deviation_before**2))
    return bool(sums[VISITS + CLICKED] >= 2 and value - was > _APART * error)
