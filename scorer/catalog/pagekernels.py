# core
"""Compiled loops of a page: window keys, counts, rates and scaled numbers of n candidates in one pass.

::

    rows (n,) ─► key of each row ─► counts ─► a block a distinct key: raw (E,) as logged, fed (E,) as the model sees it
                                                   │ where (K, n): the block of row i in key k
    own (n, V) of the model   [ embeddings .. | plain | block of key 1 | ... ]   ◄── copied from fed
    same (S,), one a page     [ embeddings .. | plain | block of key 0 | ... ]   ◄── the same for all n
    num (m, N) of the page    [ plain | block of key 0 | block of key 1 | ... ]  ◄── copied from raw

Numbers among candidates (:mod:`millrace.windows.among_kernels`) stand behind the last block, in ``num`` and in ``own``.

Rows share most keys of a page (one user, some dozens of categories), so each block is computed once. Hashes are those
of :mod:`millrace.basics.hashing`.

Symbols: n candidates, K window keys, J of them of the item alone, S spans (W windows, then half-lives), A actions, C
columns of counts (actions, then the sums of M means), E = S (2 A - 1 + M) numbers of one key, N numbers in all, G that
are compared among candidates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from millrace.basics.compiled import GOLDEN, compiled, split_mix
from millrace.basics.number_kernels import BlockForm, fill_block, whole_steps
from millrace.basics.probing import FREE, home_of, seek, slot_of

Array = NDArray[Any]

MISSING, OWN, MADE, LOOSE = 0, 1, 2, 3
"""Sources of a window key and its counts. MISSING: none during ranking. OWN: the item's slot. MADE: from columns, with
the user's counts. LOOSE: from columns, with the counts of the key's slot."""
LOOK, EACH, ONCE = 0, 1, 2
"""Blocks of a key. LOOK: rows share some, so search for it. EACH: one a row. ONCE: one for the page."""

_NONE, _ONE = np.uint64(0), np.uint64(1)
_DAY_MS = 86_400_000.0


class Keyed(NamedTuple):
    """Counts by key. Entry 0 is "missing", with zero counts."""

    keys: Array  # (entries,) uint64
    counts: Array  # (entries, S, C)
    table: Array  # (size,) int32, a power of two: entry by the key's hash, 0 = none


class ItemColumns(NamedTuple):
    """Items by row; see :mod:`scorer.catalog.itemtable`."""

    cat: Array  # (rows, columns) int64
    values: Array  # (rows, V) uint64
    plain: Array  # (rows, P) float32
    own: Array  # (rows, J) int32
    born_ms: Array  # (rows,) int64
    alive: Array  # (rows,) bool


class Form(NamedTuple):
    order: Array  # (K,) int64, parents first
    parent: Array  # (K,) int64, -1 = the prior
    kind: Array  # (K,) int64
    own: Array  # (K,) int64: which of the J
    mode: Array  # (K,) int64
    salts: Array  # (K,) uint64
    parts: Array  # (K,) int64: columns that the key is made of
    values: Array  # (K, most parts) int64: column of `values`; -1 - h: entry h of what all rows share
    block: BlockForm
    cat: Array  # (columns,) int64: where the item's feature ids stand in `cat`; -1: they are missing while ranking
    cat_shared: Array  # (F,) int64: which entry of what all rows share stands there; -1: none
    cat_salts: Array  # (F,) uint64
    plain: Array  # (P,) int64: where the item's numbers stand in `num`
    age: int  # column of `num` that is the item's age in days, or -1
    exposed: int  # column of `num` that is the age since its first exposure, or -1
    first: int  # which of the J tells the first exposure: the last row of its counts
    unit_ms: int  # unit of that row
    age_steps: np.float32  # parts of a day in which ages are


class SharedInputs(NamedTuple):
    hashes: Array  # uint64: value hashes of the columns that are not the item's
    plain: Array  # (window_start,) float64; the item's numbers are overwritten
    fade: Array  # (H,) float64: what takes decayed counts to the page's time
    ts_ms: int


class InputScale(NamedTuple):
    """How the model sees numbers: ``clip((squash(v) - mean) factor, -bound, bound)``. (N,) each"""

    log: Array  # bool
    mean: Array  # float32
    factor: Array  # float32
    bound: np.float32
    place: Array  # int32: p >= 0 column of the model's rows; -1 - p: place among what is the same in all


class Room(NamedTuple):
    """Memory for at least n rows, reused from page to page."""

    raw: Array  # (1 + K n, E) float32; block 0 has the prior's rates
    fed: Array  # (1 + K n, E) float32
    keys: Array  # (1 + K n,) uint64: of each block
    above: Array  # (1 + K n,) int32: the parent's block
    where: Array  # (K, n) int32
    first: Array  # (2 K + 1,) int64: first block of each key; then behind its last; and a number without a use
    plain: Array  # (n, window_start) float32
    among: Array  # (n, C) float32: numbers among candidates
    table: Array  # (2 n or more,) int32, a power of two


@njit(inline="always")
def folded(out: Any, hashed: Any) -> Any:
    """Adds one column to a window key, as :func:`millrace.basics.hashing.combine`."""
    return split_mix(out * GOLDEN + hashed)


@njit(inline="always")
def _entry(keys: Array, table: Array, key: Any) -> Any:
    if key == _NONE:
        return 0
    return max(np.int64(seek(table, home_of(key, len(table)), keys, key)), 0)


@compiled(error_model="numpy")
def enter(keys: Array, table: Array, entries: Array) -> None:
    """Puts ``entries`` of ``keys`` into ``table``, without key 0 and those already there."""
    for entry in entries:
        key = keys[entry]
        if key != _NONE:
            at = slot_of(table, home_of(key, len(table)), keys, key)
            if table[at] == FREE:
                table[at] = ~entry


@njit(inline="always")
def _value(shared: Array, items: Array, row: Any, place: Any) -> Any:
    return items[row, place] if place >= 0 else shared[-1 - place]


@njit(inline="always")
def _key(salt: Any, shared: Array, values: Array, k: Any, parts: Any, items: Array, row: Any) -> Any:
    """:func:`millrace.basics.hashing.combine` of the parts ``values[k]`` of one row."""
    part = _value(shared, items, row, values[k, 0])
    missing = part == _NONE
    out = folded(part, salt)
    for p in range(1, parts):
        part = _value(shared, items, row, values[k, p])
        missing |= part == _NONE
        out = folded(out, part)
    if missing:
        return _NONE
    return out if out != _NONE else _ONE


@compiled(error_model="numpy")
def affinities(
    salt: Any, shared: Array, values: Array, groups: Array, held: Keyed, affinity: Array, out: Array
) -> None:
    """``out[g]``: the affinity (``affinity``) of the entry under the key that ``groups[g]`` makes, or of entry 0 where
    there is none. ``values``: (1, parts) as in :class:`Form`, of columns of ``groups`` (G, columns)."""
    for g in range(len(groups)):
        out[g] = affinity[_entry(held.keys, held.table, _key(salt, shared, values, 0, values.shape[1], groups, g))]


@compiled(error_model="numpy")
def _fetched(items: ItemColumns, slots: Keyed, rows: Array) -> Any:
    """Prefetch: touches scattered memory of many rows at once, so cache misses overlap. The compiler would drop the
    reads without the returned number, which has no other use."""
    total = np.int64(0)
    for i in range(len(rows)):
        row = rows[i]
        for j in range(items.own.shape[1]):
            total += items.own[row, j]
        if items.cat.shape[1]:
            total += items.cat[row, 0]
        if items.values.shape[1]:
            total += np.int64(items.values[row, 0])
        if items.plain.shape[1]:
            total += np.int64(items.plain[row, 0] > 0)
        total += items.born_ms[row]
    last, spans = slots.counts.shape[2] - 1, slots.counts.shape[1]
    for i in range(len(rows)):
        for j in range(items.own.shape[1]):
            slot = items.own[rows[i], j]
            total += np.int64(slots.keys[slot])
            for s in range(0, spans, 3):
                total += np.int64(slots.counts[slot, s, 0])
            total += np.int64(slots.counts[slot, spans - 1, last])
    return total


@compiled(error_model="numpy")
def make(
    form: Form,
    shared: SharedInputs,
    items: ItemColumns,
    slots: Keyed,
    user: Keyed,
    exact: Array,
    rows: Array,
    room: Room,
    cat: Array,
    keys: Array,
) -> None:
    """Feature ids and window keys of ``rows`` (n,) into ``cat`` (n, F) and ``keys`` (n, K), the rest into ``room``.
    ``exact``: (n J, S, C) counts of the items' own keys, in place of the table's; (0, S, C): none."""
    table, raw, where = room.table, room.raw, room.where
    mask, own_keys = len(table) - 1, items.own.shape[1]
    raw[0] = form.block.prior
    used = 1
    room.first[-1] = _fetched(items, slots, rows)
    for k in form.order:
        above, kind, mode, own = form.parent[k], form.kind[k], form.mode[k], form.own[k]
        salt, parts = form.salts[k], form.parts[k]
        room.first[k] = used
        if mode == LOOK:
            table[:] = 0
        for i in range(len(rows)):
            if mode == ONCE and i > 0:
                keys[i, k], where[k, i] = keys[0, k], where[k, 0]
                continue
            slot, key = np.int64(0), _NONE
            if kind == OWN:
                slot = np.int64(items.own[rows[i], own])
                key = slots.keys[slot]
            elif kind != MISSING:
                key = _key(salt, shared.hashes, form.values, k, parts, items.values, rows[i])
            keys[i, k] = key
            parent = np.int64(where[above, i]) if above >= 0 else np.int64(0)
            block = used
            if mode == LOOK:
                at = home_of(key, len(table))  # as millrace.basics.probing, of a key in two parts
                while table[at] != 0:
                    block = int(table[at])
                    if room.keys[block] == key and room.above[block] == parent:
                        break
                    at = (at + 1) & mask
                    block = used
                table[at] = block
            where[k, i] = block
            if block == used:
                used += 1
                room.keys[block], room.above[block] = key, parent
                if kind == OWN and len(exact):
                    counts = exact[i * own_keys + own]
                elif kind == OWN:
                    counts = slots.counts[slot]
                elif kind == LOOSE:
                    counts = slots.counts[_entry(slots.keys, slots.table, key)]
                else:
                    counts = user.counts[_entry(user.keys, user.table, key)]
                fill_block(form.block, counts, shared.fade, raw[parent], raw[block])
        room.first[len(form.kind) + k] = used
    _ids(form, shared, items, rows, cat)
    _plain(form, shared, items, slots, exact, rows, room.plain)


@compiled(error_model="numpy")
def _ids(form: Form, shared: SharedInputs, items: ItemColumns, rows: Array, cat: Array) -> None:
    once = np.zeros(cat.shape[1], np.int64)
    for c in range(len(once)):
        place = form.cat_shared[c]
        if place >= 0 and shared.hashes[place] != _NONE:
            mixed = folded(shared.hashes[place], form.cat_salts[c])
            once[c] = np.int64(mixed if mixed != _NONE else _ONE)
    for i in range(len(rows)):
        for c in range(len(once)):
            cat[i, c] = once[c]
        for c in range(len(form.cat)):
            if form.cat[c] >= 0:
                cat[i, form.cat[c]] = items.cat[rows[i], c]


@njit(inline="always")
def _finite(value: Any) -> Any:
    """As float32; NaN and values out of range become 0."""
    number = np.float32(value)
    return number if np.isfinite(number) else np.float32(0)


@njit(inline="always")
def _age(form: Form, ts_ms: Any, since_ms: Any) -> Any:
    """As :meth:`millrace.windows.features.FeatureBuilder.age_days`."""
    age = np.float32(max((ts_ms - since_ms) / _DAY_MS, 0.0)) if since_ms > 0 else np.float32(0)
    return whole_steps(age, form.age_steps)


@compiled(error_model="numpy")
def _plain(
    form: Form, shared: SharedInputs, items: ItemColumns, slots: Keyed, exact: Array, rows: Array, plain: Array
) -> None:
    for i in range(len(rows)):
        for p in range(plain.shape[1]):
            plain[i, p] = _finite(shared.plain[p])
        for p in range(len(form.plain)):
            plain[i, form.plain[p]] = items.plain[rows[i], p]
        if form.age >= 0:
            plain[i, form.age] = _age(form, shared.ts_ms, items.born_ms[rows[i]])
        if form.exposed >= 0:
            if len(exact):
                first = np.int64(exact[i * items.own.shape[1] + form.first, -1, 0])
            else:
                first = np.int64(slots.counts[items.own[rows[i], form.first], -1, 0])
            plain[i, form.exposed] = _age(form, shared.ts_ms, first * form.unit_ms)


@njit(inline="always")
def _log1p(v: Any) -> Any:
    """``log(1 + v)`` of a float32 v >= 0, within two units in the last place, in steps that the compiler runs for many
    values at a time: 1 + v = 2^e m with m in [sqrt(1/2), sqrt(2)), log m by the polynomial of Cephes' logf, and what
    1 + v lost of v by its derivative."""
    u = np.float32(np.float32(1) + v)
    bits = np.float32(u).view(np.int32)
    e = (bits - np.int32(0x3F3504F3)) >> np.int32(23)
    f = np.int32(bits - (e << np.int32(23))).view(np.float32) - np.float32(1)
    y = np.float32(7.0376836292e-2)
    y = y * f + np.float32(-1.1514610310e-1)
    y = y * f + np.float32(1.1676998740e-1)
    y = y * f + np.float32(-1.2420140846e-1)
    y = y * f + np.float32(1.4249322787e-1)
    y = y * f + np.float32(-1.6668057665e-1)
    y = y * f + np.float32(2.0000714765e-1)
    y = y * f + np.float32(-2.4999993993e-1)
    y = y * f + np.float32(3.3333331174e-1)
    z, exponent = f * f, np.float32(e)
    y = y * f * z + np.float32(-2.12194440e-4) * exponent - np.float32(0.5) * z + (v - (u - np.float32(1))) / u
    return f + y + np.float32(0.693359375) * exponent


@compiled(error_model="numpy")
def _see(plan: InputScale, values: Array, column: Any, out: Array, logs: bool = True) -> None:
    """Writes the model's inputs for ``values``, the numbers from ``column`` on, into ``out``. ``logs``: whether some
    are fed as logarithms."""
    for e in range(len(values)):
        value = values[e]
        if logs:
            log = np.copysign(_log1p(abs(value)), value)
            value = log if plan.log[column + e] else value
        value = (value - plan.mean[column + e]) * plan.factor[column + e]
        value = plan.bound if value > plan.bound else value
        out[e] = -plan.bound if value < -plan.bound else value


@compiled(error_model="numpy")
def _feed_each(plan: InputScale, values: Array, column: int, n: int, own: Array, same: Array) -> None:
    """Model inputs for the first n rows of ``values``, the numbers from ``column`` on."""
    width = values.shape[1]
    seen, logs = np.empty(width, np.float32), bool(plan.log[column : column + width].any())
    for i in range(n):
        _see(plan, values[i], column, seen, logs)
        for v in range(width):
            at = plan.place[column + v]
            if at >= 0:
                own[i, at] = seen[v]
            elif i == 0:
                same[-1 - at] = seen[v]


@compiled(error_model="numpy")
def feed(form: Form, plan: InputScale, room: Room, n: int, own: Array, same: Array) -> None:
    """Model inputs for the n rows of the last :func:`make`: ``own`` (>= n, V) and, for all of them, ``same`` (S,)."""
    keys, size, plains = len(form.kind), room.raw.shape[1], room.plain.shape[1]
    _feed_each(plan, room.plain, 0, n, own, same)
    _feed_each(plan, room.among, plains + keys * size, n, own, same)
    for k in range(keys if n > 0 else 0):
        first = plains + k * size
        at = plan.place[first]
        if at < 0:
            _see(plan, room.raw[room.where[k, 0]], first, same[-1 - at : -1 - at + size])
        elif form.mode[k] == EACH:
            for i in range(n):
                _see(plan, room.raw[room.where[k, i]], first, own[i, at : at + size])
        else:
            for block in range(room.first[k], room.first[keys + k]):
                _see(plan, room.raw[block], first, room.fed[block])
            for i in range(n):
                block = room.where[k, i]
                for e in range(size):
                    own[i, at + e] = room.fed[block, e]


@compiled(error_model="numpy")
def numbers(room: Room, some: Array, out: Array) -> None:
    """Logged numbers of ``some`` (m,) rows of the last :func:`make`: ``out`` (m, N)."""
    size, plains = room.raw.shape[1], room.plain.shape[1]
    among = plains + len(room.where) * size
    for m in range(len(some)):
        i = some[m]
        out[m, :plains] = room.plain[i]
        for k in range(len(room.where)):
            block = room.where[k, i]
            for e in range(size):
                out[m, plains + k * size + e] = room.raw[block, e]
        out[m, among:] = room.among[i]


@compiled(error_model="numpy")
def picked(room: Room, columns: Array, n: int) -> Array:
    """The numbers ``columns`` (G,) of the n rows of the last :func:`make`, (n, G) float32."""
    size, plains = room.raw.shape[1], room.plain.shape[1]
    out = np.empty((n, len(columns)), np.float32)
    for g in range(len(columns)):
        k, e = divmod(columns[g] - plains, size) if columns[g] >= plains else (0, 0)
        for i in range(n):
            out[i, g] = room.plain[i, columns[g]] if columns[g] < plains else room.raw[room.where[k, i], e]
    return out
