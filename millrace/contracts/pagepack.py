# core
"""Page packing: the wire form of arrays whose columns are often equal for all rows of a page.

The user's side, the hour and the context are equal for all items of a page, and a rate follows from its counts::

    num (n, N)        user's counts   rates │ category's   rates │ item's counts  rates │ price
    each row the same      once         -   │  in each row   -   │  in each row     -   │  in each row
                                        └ worked out again when it is read, to the same bits

    ids (n, C)         -> Ids      columns that are equal on a page once a page, then the others row by row
    numbers (n, N)     -> Numbers  the same, without the rates that follow from what is left

A whole number is written as its distance from the same count over the next shorter span, in seven bits a byte
(LEB128; 0, -1, 1, -2 ... become 0, 1, 2, 3). Any other number is written as its four bytes. An array that would not
shrink is written as it is. Packing is lossless to the bit, NaN and -0 too: the writer tries the recipe on each row
and omits no rate that would differ in one bit.

A reader needs no schema. It takes at most :data:`MOST_BYTES` of memory for an array, whatever a message says.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from millrace.basics import pagepack_kernels as kernels
from millrace.contracts.schema import Schema

Array = NDArray[Any]

MOST_BYTES = 8 << 20
"""Of one array that was made smaller. A page of 1,000 items with 2,000 numbers each."""
MOST_COLUMNS = 1 << 16
_HEAD = struct.Struct("<HBBBBf")


class Ids(Struct, frozen=True, array_like=True):
    """(n, C) ids of 64 bits as they travel. Without a mask ``body`` is the array itself."""

    columns: int  # C
    body: memoryview
    once: memoryview | None = None  # bit mask of the columns that stand once a page


class Numbers(Struct, frozen=True, array_like=True):
    """(n, N) float32 as they travel. Without masks ``body`` is the array itself."""

    columns: int  # N
    body: memoryview
    once: memoryview | None = None  # bit mask of the columns that stand once a page
    whole: memoryview | None = None  # bit mask of the columns that hold whole numbers alone
    rates: bytes = b""  # the recipe; empty: none
    follow: bool = False  # rates are left out


@dataclass(frozen=True, slots=True)
class Rates:
    """How the rates among the numbers follow from the counts (:meth:`millrace.windows.features.FeatureBuilder.num`).

    ``raw`` is the wire form: first column, K keys, S spans, A actions, M means, prior weight; A - 1 prior rates; for
    each key, parents first, its number and its parent's plus one.
    """

    raw: bytes
    columns: int  # N
    recipe: kernels.Recipe

    @classmethod
    def of(cls, schema: Schema) -> Rates | None:
        """The recipe of a schema's windows. None: it has no window keys, or too many to name in a byte."""
        w, start = schema.windows, schema.layout.window_start
        sizes = (len(w.keys), len(w.spans), len(w.actions), len(w.means))
        if not w.keys or max(sizes) > 254 or schema.layout.N > MOST_COLUMNS:
            return None
        order = [number for k, parent in w.order for number in (k, 0 if parent is None else parent + 1)]
        raw = _HEAD.pack(start, *sizes, w.prior_weight) + np.array(w.priors, "<f4").tobytes() + bytes(order)
        return read_rates(raw, schema.layout.N)


@lru_cache(maxsize=64)
def read_rates(raw: bytes, width: int) -> Rates:
    """The recipe from its wire form, for rows of ``width`` numbers. Raises ValueError when it is none for them."""
    if len(raw) < _HEAD.size:
        raise ValueError(f"a recipe of {len(raw)} bytes")
    start, keys, spans, actions, means, weight = _HEAD.unpack_from(raw)
    order = np.frombuffer(raw, np.uint8, offset=len(raw) - 2 * keys) if len(raw) > 2 * keys else np.zeros(0, np.uint8)
    if len(raw) != _HEAD.size + 4 * (actions - 1) + 2 * keys or not (keys and spans and actions):
        raise ValueError(f"a recipe of {len(raw)} bytes for {keys} keys and {actions} actions")
    block = 2 * actions - 1 + means
    end = start + keys * spans * block  # what comes behind stands for itself
    if not end <= width <= MOST_COLUMNS:
        raise ValueError(f"a recipe for {end} numbers where a row has {width}")
    place = {-1: -1}
    blocks = []
    for k, parent in zip(order[::2].tolist(), (order[1::2].astype(int) - 1).tolist(), strict=True):
        if k in place or k >= keys or parent not in place:
            raise ValueError(f"a recipe in which key {k} has the parent {parent}")
        place[k] = start + k * spans * block
        blocks += [(place[k] + s * block, -1 if parent < 0 else place[parent] + s * block) for s in range(spans)]
    rate, behind = np.zeros(width, np.bool_), np.full(width, -1, np.int64)
    rate[start:end].reshape(keys, spans, block)[:, :, actions : 2 * actions - 1] = True
    columns = np.arange(start, end).reshape(keys, spans, block)
    behind[start:end].reshape(keys, spans, block)[:, 1:] = columns[:, :-1]
    prior = np.frombuffer(raw, "<f4", actions - 1, _HEAD.size).astype(np.float32)
    made = kernels.Recipe(actions, np.float32(weight), prior, np.array(blocks, np.int64), rate, behind)
    return Rates(raw, width, made)


@lru_cache(maxsize=64)
def _no_rates(width: int) -> kernels.Recipe:
    none = np.zeros((0, 2), np.int64)
    return kernels.Recipe(
        1, np.float32(0), np.zeros(0, np.float32), none, np.zeros(width, np.bool_), np.full(width, -1, np.int64)
    )


def pack_ids(ids: Array, first: Array, page: Array) -> Ids:
    """The wire form of ids.

    Args:
        ids: (n, C) of 64 bits each.
        first: (R,) int64, a row of each page.
        page: (n,) int64, index into ``first``.
    """
    ids = np.ascontiguousarray(ids)
    n, width = ids.shape
    if fits(n, width, 8):
        once = np.zeros((width + 7) // 8, np.uint8)
        out = np.empty((n + len(first)) * width, np.uint64)
        size = kernels.encode_ids(ids.view(np.uint64), first, page, once, out)
        if 8 * size + len(once) < ids.nbytes:
            return Ids(width, out[:size].data, once.data)
    return Ids(width, memoryview(ids.tobytes()))


def unpack_ids(ids: Ids, pages: int, page: Array) -> Array:
    """The inverse of :func:`pack_ids`: (n, C) uint64, read-only.

    Raises:
        ValueError: the parts do not fit together, or are larger than a reader takes.
    """
    n, width = len(page), ids.columns
    if ids.once is None:
        return _as_it_is(ids.body, n, width, "<u8")
    _check(n, width, 8, ids.once)
    raw, out = np.frombuffer(ids.body, np.uint8), np.empty((n, width), np.uint64)
    if kernels.decode_ids(raw, pages, page, np.frombuffer(ids.once, np.uint8), out):
        raise ValueError(f"{len(raw)} bytes of ids for {n} rows of {width} on {pages} pages")
    out.flags.writeable = False
    return out


def pack_numbers(num: Array, first: Array, page: Array, rates: Rates | None) -> Numbers:
    """The wire form of numbers (n, N) float32; the other arguments as in :func:`pack_ids`. ``rates``: None: unknown."""
    num = np.ascontiguousarray(num, np.float32)
    n, width = num.shape
    if fits(n + len(first), width, 4):
        known = rates if rates is not None and rates.columns == width else None
        once, whole = np.zeros((width + 7) // 8, np.uint8), np.zeros((width + 7) // 8, np.uint8)
        out = np.empty(5 * (n + len(first)) * width, np.uint8)
        recipe = known.recipe if known else _no_rates(width)
        size, follow = kernels.encode_numbers(num, num.view(np.uint32), first, page, recipe, once, whole, out)
        raw = known.raw if known else b""
        if size + 2 * len(once) + len(raw) < num.nbytes:
            return Numbers(width, out[:size].data, once.data, whole.data, raw, follow)
    return Numbers(width, memoryview(num.tobytes()))


def unpack_numbers(numbers: Numbers, pages: int, page: Array) -> Array:
    """The inverse of :func:`pack_numbers`: (n, N) float32, read-only. Raises ValueError as :func:`unpack_ids` does."""
    n, width = len(page), numbers.columns
    if numbers.once is None or numbers.whole is None:
        return _as_it_is(numbers.body, n, width, "<f4")
    _check(n + pages, width, 4, numbers.once)
    _check(n + pages, width, 4, numbers.whole)
    recipe = recipe_of(numbers.rates, width)
    out = np.empty((pages + n, width), np.float32)
    bad = kernels.decode_numbers(
        np.frombuffer(numbers.body, np.uint8),
        page,
        recipe,
        numbers.follow,
        np.frombuffer(numbers.once, np.uint8),
        np.frombuffer(numbers.whole, np.uint8),
        out,
        out.view(np.uint32),
    )
    if bad:
        raise ValueError(f"{len(numbers.body)} bytes do not hold {n} rows of {width} numbers")
    out.flags.writeable = False
    return out[pages:]


def recipe_of(rates: bytes, width: int) -> kernels.Recipe:
    """The recipe beside N = ``width`` numbers; one without rates for no bytes. Raises ValueError when
    it does not fit."""
    if not rates:
        return _no_rates(width)
    return read_rates(rates, width).recipe


def fits(rows: int, width: int, size: int) -> bool:
    """Whether a reader takes so many rows of columns of ``size`` bytes that were made smaller."""
    return 0 <= width <= MOST_COLUMNS and rows * width * size <= MOST_BYTES


def _as_it_is(body: memoryview, n: int, width: int, dtype: str) -> Array:
    array = np.frombuffer(body, dtype)
    if width < 0 or len(array) != n * width:
        raise ValueError(f"{len(body)} bytes for {n} rows of {width} columns")
    return array.reshape(n, width)


def _check(rows: int, width: int, size: int, mask: memoryview) -> None:
    if not fits(rows, width, size):
        raise ValueError(f"{rows} rows of {width} columns, more than {MOST_BYTES} bytes")
    if len(mask) != (width + 7) // 8:
        raise ValueError(f"a mask of {len(mask)} bytes for {width} columns")


def warm_up() -> None:
    """Compiles the kernels for writable and for read-only arrays; those that read, for messages."""
    page, first = np.zeros(4, np.int64), np.zeros(1, np.int64)
    for writable in (True, False):
        ids, num = np.zeros((4, 64), np.uint64), np.zeros((4, 64), np.float32)
        ids.flags.writeable = num.flags.writeable = writable
        packed = msgspec.msgpack.encode((pack_ids(ids, first, page), pack_numbers(num, first, page, None)))
        read = msgspec.msgpack.decode(packed, type=tuple[Ids, Numbers])
        unpack_ids(read[0], 1, page)
        unpack_numbers(read[1], 1, page)
