# core
"""The compiled loops of :mod:`millrace.contracts.pagepack`.

Callers guarantee the shapes. These loops check a message's content, byte by byte. Symbols: n rows on R pages, C columns
of ids, N numbers, among them K blocks of S spans with A counts, A - 1 rates and M means.

A message takes microseconds, so these loops keep the GIL.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from millrace.basics.compiled import compiled
from millrace.basics.number_kernels import shrunk_rate

Array = NDArray[Any]
BAD = -1  # result for an invalid message
_INTEGERS = np.float32(1 << 24)  # below it a float32 holds every whole number


class Recipe(NamedTuple):
    """The derivation of rates from counts; :class:`millrace.contracts.pagepack.Rates` makes it."""

    actions: int  # A
    weight: np.float32  # s
    prior: Array  # (A - 1,) float32
    blocks: Array  # (K S, 2) int64: first column of a block, and of its parent's or -1; parents first
    rate: Array  # (N,) bool: the column is a rate
    behind: Array  # (N,) int64: the column of the same number over the span before, or -1


@njit(inline="always")
def _bit(mask: Any, c: Any) -> Any:
    return (mask[c >> 3] >> (c & 7)) & 1


@njit(inline="always")
def _fill_rates(row: Any, blocks: Any, recipe: Any) -> None:
    """Computes the rates of some blocks of a row (N,) float32 from its counts."""
    weight, actions = recipe.weight, recipe.actions
    for b in range(len(blocks)):
        at, up = blocks[b, 0], blocks[b, 1]
        exposed = row[at] + weight
        for j in range(actions - 1):
            towards = recipe.prior[j] if up < 0 else row[up + actions + j]
            row[at + actions + j] = shrunk_rate(row[at + 1 + j], exposed, weight, towards)


@compiled(nogil=False, error_model="numpy")
def _kinds(num: Any, bits: Any, recipe: Any, whole: Any, derived: Any) -> bool:
    """Marks the columns of whole numbers only, ``whole`` (N,), and those of the rates, ``derived`` (N,). If a rate does
    not follow from its counts, it returns False and marks no rate."""
    n, width = num.shape
    for c in range(width):
        whole[c] = True
    for i in range(n):
        for c in range(width):
            v = num[i, c]
            if not (v >= 0 and v < _INTEGERS and v == np.floor(v)) or bits[i, c] == np.uint32(0x80000000):
                whole[c] = False
    if len(recipe.blocks) == 0:
        return False
    row = np.empty(width, np.float32)
    seen = row.view(np.uint32)
    for i in range(n):
        row[:] = num[i]
        _fill_rates(row, recipe.blocks, recipe)
        for c in range(width):
            if seen[c] != bits[i, c]:
                return False
    derived[:] = recipe.rate
    return True


@njit(inline="always")
def _put(out: Any, at: Any, value: Any, whole: Any) -> Any:
    if whole:
        while value > 127:
            out[at] = (value & 127) | 128
            value >>= np.uint32(7)
            at += 1
        out[at] = value
        return at + 1
    for k in range(4):
        out[at + k] = (value >> np.uint32(8 * k)) & 255
    return at + 4


@compiled(nogil=False, error_model="numpy")
def encode_numbers(
    num: Array, bits: Array, first: Array, page: Array, recipe: Any, once: Array, ints: Array, out: Array
) -> Any:
    """Writes the numbers to ``out`` and sets two bit masks, each (ceil(N / 8),) uint8: ``once`` for columns that are
    equal within each page, ``ints`` for columns of whole numbers.

    Args:
        num, bits: (n, N) float32, and the same as uint32.
        first: (R,) a row of each page.
        page: (n,) index into ``first``.

    Returns:
        bytes written, and whether the rates were left out since they follow from the counts.
    """
    n, width = num.shape
    whole, derived = np.empty(width, np.bool_), np.zeros(width, np.bool_)
    follow = _kinds(num, bits, recipe, whole, derived)
    coded = np.empty((n, width), np.uint32)
    for c in range(width):
        if not whole[c]:
            coded[:, c] = bits[:, c]
            continue
        ints[c >> 3] |= np.uint8(1 << (c & 7))
        before = recipe.behind[c]
        if before >= 0 and not whole[before]:
            before = -1
        for i in range(n):
            step = np.int32(num[i, c])
            if before >= 0:
                step -= np.int32(num[i, before])
            coded[i, c] = np.uint32((step << 1) ^ (step >> 31)) & np.uint32(0xFFFFFFFF)
    at = 0
    for c in range(width):
        same = not derived[c]
        i = 0
        while same and i < n:
            same = coded[i, c] == coded[first[page[i]], c]
            i += 1
        if same:
            once[c >> 3] |= np.uint8(1 << (c & 7))
    for r in range(len(first)):
        for c in range(width):
            if _bit(once, c):
                at = _put(out, at, coded[first[r], c], whole[c])
    for i in range(n):
        for c in range(width):
            if not derived[c] and not _bit(once, c):
                at = _put(out, at, coded[i, c], whole[c])
    return at, follow


@compiled(nogil=False, error_model="numpy")
def decode_numbers(
    raw: Array, page: Array, recipe: Any, follow: bool, once: Array, ints: Array, out: Array, bits: Array
) -> Any:
    """The inverse of :func:`encode_numbers`: fills the last n rows of ``out`` (R + n, N) float32; ``bits`` are the same
    as uint32. Returns 0, or BAD when ``raw`` does not match the masks to the byte.

    Values common to a page, rates included, are computed for the page and copied to its rows. Other columns are stored
    in each row. Some of them are counts stored as a distance from another column.
    """
    pages, width = len(out) - len(page), out.shape[1]
    blocks = recipe.blocks
    whole, read, own = np.empty(width, np.bool_), np.empty(width, np.bool_), np.empty(width, np.bool_)
    before = np.empty(width, np.int64)
    columns, sizes = np.empty((2, width), np.int64), np.zeros(2, np.int64)  # of pages, of rows
    for c in range(width):
        whole[c] = _bit(ints, c) == 1
        behind = recipe.behind[c]
        before[c] = behind if whole[c] and behind >= 0 and whole[behind] else -1
        same = _bit(once, c) == 1
        if follow and recipe.rate[c]:
            read[c], own[c] = False, False
            continue
        if same:
            columns[0, sizes[0]] = c
            sizes[0] += 1
        read[c] = not same
        own[c] = not same or (before[c] >= 0 and own[before[c]])
        if own[c]:
            columns[1, sizes[1]] = c
            sizes[1] += 1
    apart, n_apart = np.empty((len(blocks), 2), np.int64), 0  # blocks whose rates differ from row to row
    for b in range(len(blocks) if follow else 0):
        varies = blocks[b, 1] >= 0 and recipe.actions > 1 and own[blocks[b, 1] + recipe.actions]
        for k in range(recipe.actions):
            varies = varies or own[blocks[b, 0] + k]
        if varies:
            apart[n_apart] = blocks[b]
            n_apart += 1
            if recipe.actions > 1:
                own[blocks[b, 0] + recipe.actions] = True  # so its children's differ too
    values = np.empty((pages, width), np.uint32)
    at, size = 0, len(raw)
    for i in range(len(out)):
        turn, p = 0, i
        if i >= pages:
            turn, p = 1, page[i - pages]
            for c in range(width):
                out[i, c] = out[p, c]
        for k in range(sizes[turn]):
            c = columns[turn, k]
            value = np.uint32(0)
            if turn == 1 and not read[c]:
                value = values[p, c]
            elif whole[c]:
                shift = np.uint32(0)
                while True:
                    if at >= size or shift > 28:
                        return BAD
                    byte = np.uint32(raw[at])
                    at += 1
                    value |= (byte & np.uint32(127)) << shift
                    if byte < 128:
                        break
                    shift += np.uint32(7)
            else:
                if at + 4 > size:
                    return BAD
                for k4 in range(4):
                    value |= np.uint32(raw[at + k4]) << np.uint32(8 * k4)
                at += 4
            if turn == 0:
                values[i, c] = value
                if own[c]:
                    continue
            if not whole[c]:
                bits[i, c] = value
                continue
            step = np.int64(value >> np.uint32(1)) ^ -np.int64(value & np.uint32(1))
            if before[c] >= 0:
                step += np.int64(out[i, before[c]])
            if step < 0 or step >= 1 << 24:
                return BAD
            out[i, c] = np.float32(step)
        if follow:
            _fill_rates(out[i], apart[:n_apart] if turn == 1 else blocks, recipe)
    return 0 if at == size else BAD


@compiled(nogil=False, error_model="numpy")
def encode_ids(ids: Array, first: Array, page: Array, once: Array, out: Array) -> Any:
    """Writes ids (n, C) uint64 to ``out`` (uint64) and returns their number: columns that are equal within each page, a
    value a page, then the others, row by row. ``once`` (ceil(C / 8),) uint8 marks the former."""
    n, width = ids.shape
    for c in range(width):
        same, i = True, 0
        while same and i < n:
            same = ids[i, c] == ids[first[page[i]], c]
            i += 1
        if same:
            once[c >> 3] |= np.uint8(1 << (c & 7))
    at = 0
    for r in range(len(first)):
        for c in range(width):
            if _bit(once, c):
                out[at] = ids[first[r], c]
                at += 1
    for i in range(n):
        for c in range(width):
            if not _bit(once, c):
                out[at] = ids[i, c]
                at += 1
    return at


@compiled(nogil=False, error_model="numpy")
def decode_ids(raw: Array, pages: int, page: Array, once: Array, out: Array) -> Any:
    """The inverse of :func:`encode_ids`: fills ``out`` (n, C) uint64 from bytes. Returns 0, or BAD when the length of
    ``raw`` does not match the mask."""
    n, width = out.shape
    shared = 0
    for c in range(width):
        shared += _bit(once, c)
    if len(raw) != 8 * (pages * shared + n * (width - shared)):
        return BAD
    at = 8 * pages * shared
    for i in range(n):
        base = 8 * page[i] * shared
        for c in range(width):
            value = np.uint64(0)
            if _bit(once, c):
                for k in range(8):
                    value |= np.uint64(raw[base + k]) << np.uint64(8 * k)
                base += 8
            else:
                for k in range(8):
                    value |= np.uint64(raw[at + k]) << np.uint64(8 * k)
                at += 8
            out[i, c] = value
    return 0


@compiled(nogil=False, error_model="numpy")
def decode_page(raw: Array, page: Array, k: int, f: int, width: int, recipe: Any, follow: bool, out: Array) -> Any:
    """Fills ``out`` (bytes) with the arrays of one page: keys (n, K) uint64, ids (n, F) uint64, then 1 + n rows of N
    numbers, of which the first is only a work area. ``raw`` has the four masks (equal on the page: keys, ids, numbers;
    whole: numbers), then the three bodies. Returns 0, or BAD when ``raw`` is not valid."""
    n = len(page)
    k_mask, f_mask, n_mask = (k + 7) // 8, (f + 7) // 8, (width + 7) // 8
    at = k_mask + f_mask + 2 * n_mask
    if len(raw) < at:
        return BAD
    begin = 0
    for turn in range(2):
        columns = k if turn == 0 else f
        mask = raw[:k_mask] if turn == 0 else raw[k_mask : k_mask + f_mask]
        shared = 0
        for c in range(columns):
            shared += _bit(mask, c)
        size = 8 * (shared + n * (columns - shared))
        if at + size > len(raw):
            return BAD
        end = begin + 8 * n * columns
        into = out[begin:end].view(np.uint64).reshape(n, columns)
        if decode_ids(raw[at : at + size], 1, page, mask, into):
            return BAD
        at, begin = at + size, end
    rows = out[begin:].view(np.float32).reshape(n + 1, width)
    bits = out[begin:].view(np.uint32).reshape(n + 1, width)
    left = k_mask + f_mask
    once, whole = raw[left : left + n_mask], raw[left + n_mask : left + 2 * n_mask]
    return decode_numbers(raw[at:], page, recipe, follow, once, whole, rows, bits)
