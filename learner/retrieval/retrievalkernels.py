# core
"""The compiled loops of the retrieval head and its tower. Plain Python semantics, no allocation, the GIL released.

Symbols: B clicks of a micro-batch, n items, C categorical columns and P numbers of an item, S = C + 2 P features of an
item, U distinct ids of a table's block, D width of the factors, H clicks of a history, R items of the item table
(recent items), A items of a micro-batch, the first M of them clicked or drawn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from millrace.basics.compiled import GOLDEN, compiled, split_mix
from millrace.basics.probing import EMPTY, home_slot, put, seek, take_out

Array = NDArray[Any]

_STEP = 0.5  # distance of knots, in units of log(1 + |x|)


# -- features of an item ----------------------------------------------------------------------------------------------


@njit(inline="always")
def _fields(cat: Any, n: Any, starts: Any, share: Any, ids: Any, weights: Any) -> None:
    """The features of row n of ``cat``: the ids of field f share a weight of ``share[f]``."""
    for f in range(len(starts) - 1):
        first, last = starts[f], starts[f + 1]
        present = 0
        for c in range(first, last):
            if cat[n, c] != 0:
                present += 1
        weight = share[f] / np.float32(max(present, 1))
        for c in range(first, last):
            there = weight > 0 and cat[n, c] != 0
            ids[n, c] = cat[n, c] if there else 0
            weights[n, c] = weight if there else np.float32(0)


@compiled
def user_features(cat: Array, starts: Array, share: Array, ids: Array, weights: Array) -> None:
    """Ids and weights (n, C) of users' columns ``cat`` (n, C). Field f has the columns from ``starts[f]`` on, and the
    weight ``share[f]``; starts (F + 1,), share (F,)."""
    for n in range(len(cat)):
        _fields(cat, n, starts, share, ids, weights)


@compiled
def item_features(
    cat: Array, plain: Array, starts: Array, share: Array, knots: Array, ids: Array, weights: Array
) -> None:
    """Ids and weights (n, S) of items' columns ``cat`` (n, C) and numbers ``plain`` (n, P). A number is two features,
    the knots (P, K) on both sides of ``t = sign(x) log(1 + |x|)``, weighed by nearness. So the model learns a piecewise
    linear curve of it. A number that is not finite has none."""
    columns, count = cat.shape[1], knots.shape[1]
    middle = count // 2
    for n in range(len(cat)):
        _fields(cat, n, starts, share, ids, weights)
        for p in range(plain.shape[1]):
            x, at = plain[n, p], columns + 2 * p
            if not np.isfinite(x):
                ids[n, at] = ids[n, at + 1] = 0
                weights[n, at] = weights[n, at + 1] = np.float32(0)
                continue
            t = np.log1p(np.abs(np.float64(x))) / _STEP
            t = min(max((t if x >= 0 else -t) + middle, 0.0), count - 1.0)
            k = min(np.int64(t), count - 2)
            part = np.float32(t - k)
            ids[n, at], ids[n, at + 1] = knots[p, k], knots[p, k + 1]
            weights[n, at], weights[n, at + 1] = np.float32(1) - part, part


@compiled
def pool(values: Array, inverse: Array, weights: Array, out: Array) -> None:
    """``out[n] = sum_s weights[n, s] values[inverse[n, s]]``; values (U, D), inverse and weights (n, S), out (n, D)."""
    width = values.shape[1]
    for n in range(len(inverse)):
        for d in range(width):
            out[n, d] = np.float32(0)
        for s in range(inverse.shape[1]):
            u = inverse[n, s]
            if u != EMPTY:
                w = weights[n, s]
                for d in range(width):
                    out[n, d] += w * values[u, d]


@compiled
def pool_wide(values: Array, inverse: Array, weights: Array, out: Array) -> None:
    """As :func:`pool`, of values (U,) into out (n,)."""
    for n in range(len(inverse)):
        total = np.float32(0)
        for s in range(inverse.shape[1]):
            u = inverse[n, s]
            if u != EMPTY:
                total += weights[n, s] * values[u]
        out[n] = total


@compiled
def spread(grad: Array, inverse: Array, weights: Array, out: Array) -> None:
    """The transpose of :func:`pool`: ``out[inverse[n, s]] += weights[n, s] grad[n]``."""
    width = grad.shape[1]
    for n in range(len(inverse)):
        for s in range(inverse.shape[1]):
            u = inverse[n, s]
            if u != EMPTY:
                w = weights[n, s]
                for d in range(width):
                    out[u, d] += w * grad[n, d]


@compiled
def spread_wide(grad: Array, inverse: Array, weights: Array, out: Array) -> None:
    """The transpose of :func:`pool_wide`."""
    for n in range(len(inverse)):
        for s in range(inverse.shape[1]):
            u = inverse[n, s]
            if u != EMPTY:
                out[u] += weights[n, s] * grad[n]


# -- the table of items -----------------------------------------------------------------------------------------------


class ItemArrays(NamedTuple):
    """The arrays of a :class:`~learner.retrieval.click_history.RecentItems` of R items."""

    slots: Array  # hash of the keys
    ids: Array  # (R, 1) keys
    cat: Array  # (R, C)
    plain: Array  # (R, P)
    shown: Array  # (R,)
    clicks: Array  # (R,) of the ring
    ring: Array
    counts: Array


class UserArrays(NamedTuple):
    users: Array
    newest: Array
    past: Array  # (users, H) keys of items, newest first by arrival
    past_ms: Array  # (users, H) times of their exposures


class ClickArrays(NamedTuple):
    user: Array
    entry: Array
    weight: Array
    cat: Array
    past: Array
    known: Array


class SampleRows(NamedTuple):
    """Samples (n,), with features cat (n, F) and num (n, N)."""

    clicked: Array
    user: Array
    item: Array
    ts_ms: Array
    weight: Array
    cat: Array
    num: Array


class SideColumns(NamedTuple):
    """The columns of cat and num of an item, those of cat of a user, and the user's own id among these, or -1."""

    item: Array
    plain: Array
    user: Array
    own: int


USED, HAND, RING_USED, RING_AT = 0, 1, 2, 3  # places in the item table's counts


@compiled
def enter(slots: Array, shift: int, ids: Array, entries: Array) -> None:
    """Fills the slots of these entries, whose keys are there."""
    for entry in entries:
        put(slots, home_slot(ids[entry, 0], shift), np.int32(entry))


@compiled
def entries_of(slots: Array, shift: int, ids: Array, wanted: Array, out: Array) -> None:
    """``out[i]``: entry of the key ``wanted[i]``, EMPTY where it is 0 or not there."""
    keys = ids[:, 0]
    for i in range(len(wanted)):
        out[i] = EMPTY if wanted[i] == 0 else seek(slots, home_slot(wanted[i], shift), keys, wanted[i])


@njit(inline="always")
def _entry(slots: Any, shift: Any, ids: Any, shown: Any, clicks: Any, counts: Any, key: Any) -> Any:
    """The entry of a shown item, a new one if it has none. When all R entries are taken, one makes room that was not
    shown since the hand last passed, and is not in the ring of clicks (the clock algorithm: Corbato 1968). There is
    always one: the ring is shorter than the table."""
    entry = np.int64(seek(slots, home_slot(key, shift), ids[:, 0], key))
    if entry == EMPTY:
        if counts[USED] < len(ids):
            entry = counts[USED]
            counts[USED] += 1
        else:
            hand = counts[HAND]
            while shown[hand] or clicks[hand] > 0:
                shown[hand] = False
                hand = hand + 1 if hand + 1 < len(ids) else 0
            entry = hand
            counts[HAND] = hand + 1 if hand + 1 < len(ids) else 0
            take_out(slots, home_slot(ids[entry, 0], shift), shift, ids[:, 0], ids[entry, 0])
        ids[entry, 0] = key
        put(slots, home_slot(key, shift), np.int32(entry))
    shown[entry] = True
    return entry


@njit(inline="always")
def _click(ring: Any, clicks: Any, counts: Any, entry: Any) -> None:
    at = counts[RING_AT]
    if counts[RING_USED] == len(ring):
        clicks[ring[at]] -= 1
    else:
        counts[RING_USED] += 1
    ring[at] = entry
    clicks[entry] += 1
    counts[RING_AT] = at + 1 if at + 1 < len(ring) else 0


@njit(inline="always")
def _draw(state: Any, below: Any) -> Any:
    """A number in [0, below), uniform, by SplitMix64 on a counter (Steele, Lea, Flood 2014)."""
    state[0] += GOLDEN
    return np.int64(((split_mix(state[0]) >> np.uint64(32)) * np.uint64(below)) >> np.uint64(32))


# -- the clicks of users ----------------------------------------------------------------------------------------------

_WAYS = 4
_ALL = 1 << 16


@njit(inline="always")
def _place(users: Any, newest: Any, user: Any) -> Any:
    """Place of a user; for a new one, of its few possible places the one with the oldest last click."""
    first = np.int64((np.uint64(user) * GOLDEN) % np.uint64(len(users) // _WAYS)) * _WAYS
    best: Any = first
    for at in range(first, first + _WAYS):
        if users[at] == user:
            return at
        if users[best] != 0 and (users[at] == 0 or newest[at] < newest[best]):
            best = at
    return best


@compiled
def take(
    start: int, rows: SampleRows, columns: SideColumns, items: ItemArrays, shift: int, history: UserArrays,
    waiting: ClickArrays, pending: int, state: Array, strangers: int,
) -> Any:  # fmt: skip
    """Takes rows from ``start`` on: each item into the item table, with its columns, and each click into the ring, the
    history of its user and the ``pending`` clicks. Returns the row to go on from, which is before the end when the
    pending clicks are full, and how many wait.

    A row's click is taken before the next row's item: from then on the ring protects its entry. A pending click gets
    its user's history as it stood: all of it, to be masked, and a flag (``known``) for exposures before its own time,
    which the page could have used. Of ``_ALL`` clicks ``strangers`` are drawn, which get neither history nor id: so
    attributes learn to predict alone.
    """
    clicked, user, item, ts_ms, weight, cat, num = rows
    item_columns, plain_columns, user_columns, own = columns
    slots, ids, cats, plains, shown, clicks, ring, counts = items
    users, newest, past, past_ms = history
    p_user, p_entry, p_weight, p_cat, p_past, p_known = waiting
    length = past.shape[1]
    for i in range(start, len(item)):
        if pending == len(p_user):
            return i, pending
        if item[i] == 0:
            continue
        entry = _entry(slots, shift, ids, shown, clicks, counts, item[i])
        for c in range(len(item_columns)):
            cats[entry, c] = cat[i, item_columns[c]]
        for p in range(len(plain_columns)):
            plains[entry, p] = num[i, plain_columns[p]]
        if not clicked[i]:
            continue
        _click(ring, clicks, counts, entry)
        p_user[pending], p_entry[pending], p_weight[pending] = user[i], entry, weight[i]
        for c in range(len(user_columns)):
            p_cat[pending, c] = cat[i, user_columns[c]]
        stranger = _draw(state, _ALL) < strangers
        if stranger and own >= 0:
            p_cat[pending, own] = 0
        for h in range(length):
            p_past[pending, h], p_known[pending, h] = 0, False
        if user[i] != 0:
            place = _place(users, newest, user[i])
            if users[place] != user[i]:
                users[place], newest[place] = user[i], 0
                for h in range(length):
                    past[place, h], past_ms[place, h] = 0, 0
            for h in range(length):
                p_past[pending, h] = past[place, h]
                p_known[pending, h] = past[place, h] != 0 and past_ms[place, h] < ts_ms[i] and not stranger
            for h in range(length - 1, 0, -1):
                past[place, h], past_ms[place, h] = past[place, h - 1], past_ms[place, h - 1]
            past[place, 0], past_ms[place, 0] = item[i], ts_ms[i]
            newest[place] = max(newest[place], ts_ms[i])
        pending += 1
    return len(item), pending


# -- a micro-batch ----------------------------------------------------------------------------------------------------


@compiled
def candidates(
    clicked: Array, items: ItemArrays, state: Array, from_ring: int, from_all: int, places: Array, entries: Array,
    times: Array, expected: Array,
) -> int:  # fmt: skip
    """The distinct items of a micro-batch: those clicked (B,), then draws from the ring and from the whole item table.

    Returns how many, M. ``entries`` (M,); ``times`` (M,) how often each occurs; ``expected`` (M,) how often it occurs
    on average: ``Q``, but for a factor::

        E_j = (B + from_ring) clicks_j / |ring| + from_all / |table|

    ``places`` (R,) EMPTY before; afterwards the column of each of these entries.
    """
    ring, counts = items.ring, items.counts
    found = 0
    for i in range(len(clicked) + from_ring + from_all):
        if i < len(clicked):
            entry = np.int64(clicked[i])
        elif i < len(clicked) + from_ring:
            entry = np.int64(ring[_draw(state, counts[RING_USED])])
        else:
            entry = _draw(state, counts[USED])
        column = places[entry]
        if column == EMPTY:
            column = found
            places[entry], entries[found], times[found] = column, entry, 0
            found += 1
        times[column] += 1
    shared = np.float64(len(clicked) + from_ring) / counts[RING_USED]
    single = np.float64(from_all) / counts[USED]
    for m in range(found):
        expected[m] = shared * items.clicks[entries[m]] + single
    return found


@compiled
def more(wanted: Array, places: Array, entries: Array, found: int, out: Array) -> int:
    """Appends the entries of histories, ``wanted`` (B, H), to the first ``found`` of ``entries``; ``out`` (B, H) gets
    their columns, EMPTY where there is none. Returns the new number of entries."""
    for b in range(wanted.shape[0]):
        for h in range(wanted.shape[1]):
            entry = wanted[b, h]
            if entry == EMPTY:
                out[b, h] = EMPTY
                continue
            if places[entry] == EMPTY:
                places[entry], entries[found] = found, entry
                found += 1
            out[b, h] = places[entry]
    return found


@compiled
def means(values: Array, past: Array, known: Array, out: Array, number: Array) -> None:
    """``out[b]`` (B, D): the mean of ``values[past[b, h]]`` over the places that are known; ``number[b]`` of them."""
    for b in range(len(past)):
        n = 0
        for d in range(out.shape[1]):
            out[b, d] = np.float32(0)
        for h in range(past.shape[1]):
            if known[b, h] and past[b, h] != EMPTY:
                n += 1
                for d in range(out.shape[1]):
                    out[b, d] += values[past[b, h], d]
        number[b] = n
        for d in range(out.shape[1]):
            out[b, d] /= np.float32(max(n, 1))


@compiled
def means_back(grad: Array, past: Array, known: Array, number: Array, out: Array) -> None:
    """The transpose of :func:`means`: adds to ``out`` (A, D)."""
    for b in range(len(past)):
        share = np.float32(1) / np.float32(max(number[b], 1))
        for h in range(past.shape[1]):
            if known[b, h] and past[b, h] != EMPTY:
                for d in range(grad.shape[1]):
                    out[past[b, h], d] += share * grad[b, d]


@compiled
def logits(products: Array, target: Array, user: Array, past: Array, shift: Array, own: Array, bias: Array) -> None:
    """From products (B, M) to logits: ``+ bias_j + shift_j``; a click's own item, ``target`` (B,), has ``own`` (B,) in
    place of the shift. Items that the user has clicked, before or here, get -inf."""
    size, count = products.shape
    for b in range(size):
        first = products[b, target[b]] + bias[target[b]] + own[b]
        for j in range(count):
            products[b, j] += bias[j] + shift[j]
        for h in range(past.shape[1]):
            if EMPTY < past[b, h] < count:
                products[b, past[b, h]] = -np.inf
        if user[b] != 0:
            for other in range(size):
                if user[other] == user[b]:
                    products[b, target[other]] = -np.inf
        products[b, target[b]] = first


@compiled
def below_top(logits: Array, target: Array, out: Array) -> None:
    """Subtracts from each row of (B, M) its greatest logit; ``out`` (B,) is minus the rest of the click's own."""
    for b in range(len(logits)):
        top = logits[b, 0]
        for j in range(1, logits.shape[1]):
            top = max(top, logits[b, j])
        for j in range(logits.shape[1]):
            logits[b, j] -= top
        out[b] = -logits[b, target[b]]


@compiled
def slopes(weights: Array, target: Array, total: Array, weight: Array) -> None:
    """From ``exp`` of logits (B, M), which add up to ``total`` (B,), to ``weight_b (p_bj - [j is the target])``."""
    for b in range(len(weights)):
        factor = weight[b] / total[b]
        for j in range(weights.shape[1]):
            weights[b, j] *= factor
        weights[b, target[b]] -= weight[b]
