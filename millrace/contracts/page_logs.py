# core
"""The message of an :class:`~millrace.contracts.events.PageLog`: what a page was made from, packed.

::

    form 1   a map: the fields of PageLog, arrays as they are
    form 2   [2, request_id, ..., items, scores, (K, F, N), rates, follow, block, served_ms, offset, ...]

    block    masks │ ids of keys, cat: once, then row by row │ numbers: once, then row by row

:mod:`millrace.contracts.pagepack` says what stands in a block. The first byte tells a map from an array. Form 1 is
written where form 2 would save less than a tenth.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from msgspec import UNSET, Struct

from millrace.basics import pagepack_kernels as kernels
from millrace.contracts.events import (
    BadEventError,
    Id,
    Int64,
    Lacking,
    PageLog,
    Position,
    TimeMs,
    read_msgpack,
    to_msgpack,
)
from millrace.contracts.pagepack import Rates, fits, pack_ids, pack_numbers, recipe_of

_FIRST = np.zeros(1, np.int64)
_PAGE = np.zeros(1024, np.int64)  # all rows are on the one page
_WORTH = 0.9  # of the size of form 1


class PageView(Struct, frozen=True):
    """A page log whose arrays are views: of the message, or of what was read from it."""

    request_id: str
    ts_ms: TimeMs
    user_id: Id
    arm: str
    model_version: Int64
    schema_id: str
    items: list[Id]
    scores: memoryview
    keys: memoryview
    cat: memoryview
    num: memoryview
    served_ms: int = 0
    offset: Position = 0
    sources: bytes = b""
    user_missing: Lacking = 0
    among: bytes = b""
    odds: bytes = b""
    arm_name: str = ""
    ranked: bytes = b""


class Logged(Struct, frozen=True, array_like=True):
    """A page log of form 2 as it travels."""

    form: Literal[2]
    request_id: str
    ts_ms: TimeMs
    user_id: Id
    arm: str
    model_version: Int64
    schema_id: str
    items: list[Id]
    scores: memoryview  # (n,) float32
    widths: tuple[int, int, int]  # K, F, N
    rates: bytes  # the recipe, see millrace.contracts.pagepack.Rates
    follow: bool  # rates are left out
    block: memoryview
    served_ms: int = 0
    offset: Position = 0
    sources: bytes = b""  # (n,) uint8, or none
    user_missing: Lacking = 0
    among: bytes = b""
    odds: bytes = b""
    arm_name: str = ""
    ranked: bytes = b""  # not written where there is none


_logged = msgspec.msgpack.Decoder(Logged).decode
_served = msgspec.msgpack.Decoder(PageView).decode


def page_log_bytes(page_log: PageLog | PageView, rates: Rates | None = None) -> bytes:
    """The message of a page log. ``rates``: of its schema (:meth:`Rates.of`); None: rates are written as numbers."""
    i, n = page_log, len(page_log.items)
    k, f, width = (len(a) // (n * size) if n else 0 for a, size in ((i.keys, 8), (i.cat, 8), (i.num, 4)))
    sizes = len(i.keys), len(i.cat), len(i.num)
    if sizes != (8 * n * k, 8 * n * f, 4 * n * width) or not fits(n + 1, max(k, f, width), 8):
        return to_msgpack(i)  # no arrays of n rows, or more than a reader takes
    page = _rows(n)
    keys = pack_ids(np.frombuffer(i.keys, "<u8").reshape(n, k), _FIRST, page)
    cat = pack_ids(np.frombuffer(i.cat, "<u8").reshape(n, f), _FIRST, page)
    num = pack_numbers(np.frombuffer(i.num, "<f4").reshape(n, width), _FIRST, page, rates)
    masks = [
        m or bytes((w + 7) // 8) for m, w in ((keys.once, k), (cat.once, f), (num.once, width), (num.whole, width))
    ]
    block = b"".join([*masks, keys.body, cat.body, num.body])
    if len(block) > _WORTH * sum(sizes):
        return to_msgpack(i)
    arrays = memoryview(i.scores), (k, f, width), num.rates, num.follow, memoryview(block)
    ranked = (i.ranked,) if i.ranked else ()
    return msgspec.msgpack.encode((2, *_heading(i), i.items, *arrays, *_rest(i), i.arm_name, *ranked))


def decode_served(raw: bytes | None) -> PageView:
    """A page log of any form, without copies where possible.

    Raises:
        BadEventError: with the reason ``malformed`` or ``wrong-type``.
    """
    if not _is_array(raw):
        return read_msgpack(_served, raw)
    found = read_msgpack(_logged, raw)
    n, (k, f, width) = len(found.items), found.widths
    if min(k, f) < 0 or not fits(n + 1, max(k, f, width), 8):
        raise BadEventError(
            "malformed", f"{n} items with {k} keys, {f} ids and {width} numbers are more than are taken"
        )
    try:
        recipe = recipe_of(found.rates, width)
    except ValueError as error:
        raise BadEventError("malformed", str(error)) from None
    ids, numbers = 8 * n * k, 8 * n * (k + f)
    out = np.empty(numbers + 4 * (n + 1) * width, np.uint8)
    block = np.frombuffer(found.block, np.uint8)
    if kernels.decode_page(block, _rows(n), k, f, width, recipe, found.follow, out):
        raise BadEventError(
            "malformed", f"{len(block)} bytes do not hold {n} items with {k} + {f} ids, {width} numbers"
        )
    view = out.data.toreadonly()
    keys, cat, num = view[:ids], view[ids:numbers], view[numbers + 4 * width :]
    return PageView(
        *_heading(found), found.items, found.scores, keys, cat, num, *_rest(found), found.arm_name, found.ranked
    )


def decode_page_log(raw: bytes | None) -> PageLog:
    """The same with arrays of its own. Raises BadEventError as :func:`decode_served` does."""
    i = decode_served(raw)
    scores, keys, cat, num = (bytes(array) for array in (i.scores, i.keys, i.cat, i.num))
    return PageLog(*_heading(i), i.items, scores, keys, cat, num, *_rest(i), i.arm_name, i.ranked or UNSET)


def _is_array(raw: bytes | None) -> bool:
    first = raw[0] if raw else 0
    return first & 0xF0 == 0x90 or first in (0xDC, 0xDD)


def _heading(i: PageLog | PageView | Logged) -> tuple[str, int, Id, str, int, str]:
    return i.request_id, i.ts_ms, i.user_id, i.arm, i.model_version, i.schema_id


def _rest(i: PageLog | PageView | Logged) -> tuple[int, int, bytes, int, bytes, bytes]:
    return i.served_ms, i.offset, i.sources, i.user_missing, i.among, i.odds


def _rows(n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return _PAGE[:n] if n <= len(_PAGE) else np.zeros(n, np.int64)
