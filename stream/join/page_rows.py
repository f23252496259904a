# core
"""Rows of pages, copied from their messages. Samples and window counts are made from them.

A page's arrays are blocks of bytes, one row a position, as views of the message where possible. No row is copied
before it is labelled or counted. Sets of positions are bit masks: bit p is position p.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import value_hash
from millrace.contracts.events import ARMS, CLICK
from millrace.contracts.page_logs import PageView
from millrace.contracts.samples import NEGATIVE, PAGE, SampleBatch

Array = NDArray[Any]
Runs = tuple[tuple[int, int], ...]
"""Positions, ascending, as half-open stretches."""

_ARM_CODES = {name: code for code, name in enumerate(ARMS)}


class LoggedPage:
    """The log of a served page: arrays of n rows each, as bytes.

    ``user`` is the user's value hash; ``item`` has the value hashes of the items.
    """

    __slots__ = (
        "arm",
        "arm_name",
        "cat",
        "item",
        "items",
        "keys",
        "n",
        "num",
        "odds",
        "offset",
        "raw",
        "scores",
        "ts_ms",
        "user",
        "user_id",
        "user_missing",
        "version",
    )

    def __init__(self, served: PageView, raw: bytes, user: int, item: bytes, shape: tuple[int, int, int]) -> None:
        """``shape`` is (F, N, K). Raises ValueError when an array does not have it."""
        f, n_num, k = shape
        n = len(served.items)
        found = len(served.scores), len(served.keys), len(served.cat), len(served.num)
        if found != (4 * n, 8 * n * k, 8 * n * f, 4 * n * n_num):
            raise ValueError(f"arrays of {found} bytes for {n} rows of {f} + {n_num} features and {k} keys")
        self.raw, self.items, self.n = raw, served.items, n
        self.ts_ms, self.user_id, self.user, self.item = served.ts_ms, served.user_id, user, item
        self.version, self.arm = served.model_version, _ARM_CODES.get(served.arm, 0)
        self.arm_name = value_hash(served.arm_name) if served.arm_name else 0
        self.odds = served.odds if len(served.odds) == 4 * n else bytes(4 * n)
        self.offset, self.user_missing = served.offset, served.user_missing
        self.scores, self.keys, self.cat, self.num = served.scores, served.keys, served.cat, served.num


class Sampled(NamedTuple):
    """Rows of one page that became samples of one kind."""

    request: str
    page_log: LoggedPage
    ts_ms: int
    runs: Runs
    n: int
    kind: int
    actions: int  # bit mask
    origin_ms: int
    policy: int  # code, see millrace.contracts.samples.POLICIES


class Counted(NamedTuple):
    """Rows of one page to be counted in the windows."""

    page_log: LoggedPage
    runs: Runs
    n: int
    ts_ms: int
    action: int


@lru_cache(maxsize=1 << 14)  # most pages lack at most two of their positions, so the same masks come again
def runs_of(mask: int) -> tuple[Runs, int]:
    """The positions of a mask and how many there are."""
    runs, at, n = [], 0, mask.bit_count()
    while mask:
        skip = (mask & -mask).bit_length() - 1
        mask >>= skip
        length = (~mask & (mask + 1)).bit_length() - 1
        mask >>= length
        runs.append((at + skip, at + skip + length))
        at += skip + length
    return tuple(runs), n


def rows_of(pieces: Sequence[bytes | memoryview], dtype: str) -> Array:
    """The values in the pieces, one after another, (B,) of ``dtype``."""
    return np.frombuffer(bytearray().join(pieces), dtype)


def table_of(pieces: Sequence[bytes | memoryview], rows: int, width: int, dtype: str) -> Array:
    """The rows in the pieces, one after another, (rows, width) of ``dtype``. The width may be 0: a schema without
    numbers or window keys."""
    return rows_of(pieces, dtype).reshape(rows, width)


def keys_of(counted: Sequence[Counted], width: int) -> NDArray[np.uint64]:
    """Window keys of the counted rows, (B, width)."""
    row, rows = 8 * width, sum(b - a for c in counted for a, b in c.runs)
    return table_of([c.page_log.keys[a * row : b * row] for c in counted for a, b in c.runs], rows, width, "<u8")


def numbers_of(counted: Sequence[Counted], width: int) -> NDArray[np.float32]:
    """Numbers of the counted rows, (B, width)."""
    row, rows = 4 * width, sum(b - a for c in counted for a, b in c.runs)
    return table_of([c.page_log.num[a * row : b * row] for c in counted for a, b in c.runs], rows, width, "<f4")


def batch_of(sampled: Sequence[Sampled], shape: tuple[int, int, int]) -> SampleBatch:
    """The sampled rows, in their order, as one batch. ``shape`` is (F, N, K)."""
    request: dict[str, int] = {}
    page = [request.setdefault(s.request, len(request)) for s in sampled]
    sizes = np.array([s.n for s in sampled])
    runs = [(s.page_log, a, b) for s in sampled for a, b in s.runs]

    ids, numbers = 8 * shape[0], 4 * shape[1]  # bytes of a row

    def each(values: Iterable[Any], dtype: Any) -> Array:
        return np.repeat(np.fromiter(values, dtype, len(sampled)), sizes)

    kind = each((s.kind for s in sampled), np.uint8)
    actions = each((s.actions for s in sampled), np.uint8)
    return SampleBatch(
        request=tuple(request),
        page=each(page, np.int32),
        position=_positions([(a, b) for _, a, b in runs]),
        user=each((s.page_log.user for s in sampled), np.uint64),
        item=rows_of([i.item[a * 8 : b * 8] for i, a, b in runs], "<u8"),
        ts_ms=each((s.ts_ms for s in sampled), np.int64),
        kind=kind,
        label=np.where(kind >= PAGE, actions >> CLICK & 1, kind != NEGATIVE).astype(np.float32),
        weight=np.ones(len(kind), np.float32),
        actions=actions,
        cat=table_of([i.cat[a * ids : b * ids] for i, a, b in runs], len(kind), shape[0], "<i8"),
        num=table_of([i.num[a * numbers : b * numbers] for i, a, b in runs], len(kind), shape[1], "<f4"),
        score=rows_of([i.scores[a * 4 : b * 4] for i, a, b in runs], "<f4"),
        version=each((s.page_log.version for s in sampled), np.int64),
        arm=each((s.page_log.arm for s in sampled), np.uint8),
        origin_ms=each((s.origin_ms for s in sampled), np.int64),
        policy=each((s.policy for s in sampled), np.uint8),
        user_missing=each((s.page_log.user_missing for s in sampled), np.uint8),
        partition=np.zeros(len(kind), np.uint16),
        arm_name=each((s.page_log.arm_name for s in sampled), np.uint64),
        odds=rows_of([i.odds[a * 4 : b * 4] for i, a, b in runs], "<f4"),
        outcomes=np.empty((len(kind), 0), np.float32),
        telling=np.zeros(len(kind), np.uint8),
    )


def _positions(runs: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """The page positions of all rows, (B,)."""
    bounds = np.array(runs, np.int64)
    sizes = bounds[:, 1] - bounds[:, 0]
    ends = np.cumsum(sizes)
    out: NDArray[np.int32] = (np.arange(ends[-1]) + np.repeat(bounds[:, 0] - (ends - sizes), sizes)).astype(np.int32)
    return out
