# core
"""Rows whose samples are due later, and the samples, in the order in which they become known.

A block has a stretch's rows with their features; it shrinks to the rows that samples need, and is then dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from commands.replay.known import KnownSamples, batch_of
from commands.replay.stretches import Stretch
from millrace.contracts.samples import SampleBatch

Rows = NDArray[np.intp]

_SPARSE = 8  # a block is shrunk when fewer than one of so many rows are needed


@dataclass(frozen=True, slots=True)
class WaitingRows:
    """Columns of the rows ``row``, ascending, from which samples are made. b rows."""

    row: Rows  # (b,) of the log
    columns: dict[str, NDArray[Any]]  # ts_ms, page, name, slot, user, item, clicked, cat, num: (b, ...)

    @classmethod
    def of(cls, stretch: Stretch, page: NDArray[Any] | None) -> Self:
        """Of a stretch; ``page`` (b,) numbers the pages as they first appear in the log, None where there are none."""
        rows, row = stretch.rows, np.arange(stretch.start, stretch.start + stretch.rows.n)
        user, item = (rows.hashes(name, slice(None)) for name in (rows.builder.user_column, rows.builder.item_column))
        columns = {
            "ts_ms": rows.ts_ms,
            "page": row if page is None else page,
            "name": row if page is None else rows.names(),
            "slot": rows.slots(np.arange(rows.n)),
            "user": user,
            "item": item,
            "clicked": stretch.clicked,
            "cat": stretch.cat,
            "num": stretch.num,
        }
        return cls(row, columns)

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: NDArray[Any]) -> WaitingRows:
        return WaitingRows(self.row[which], {name: column[which] for name, column in self.columns.items()})


class WaitingBlocks:
    """Blocks, and the queue of samples. Rows are added in order."""

    def __init__(self, outcomes: int = 0) -> None:
        self.blocks: list[WaitingRows] = []
        self.queue = KnownSamples.none(outcomes)

    @property
    def held(self) -> int:
        return sum(len(block) for block in self.blocks)

    def add(self, block: WaitingRows, samples: KnownSamples) -> None:
        self.blocks.append(block)
        self.queue = self.queue.joined(samples)

    def known(self, before_ms: int) -> int:
        return int(np.searchsorted(self.queue.known_ms, before_ms, side="left"))

    def page_end(self, size: int) -> int:
        """How many samples to take so that at least ``size`` are, and no page that is taught as one is cut."""
        return self.queue.page_end(size, lambda row: self._columns(row, ("page",))["page"])

    def pop(self, size: int) -> tuple[KnownSamples, SampleBatch]:
        mine, self.queue = self.queue.take(slice(size)), self.queue.take(slice(size, None))
        found = self._columns(mine.row, ("ts_ms", "page", "name", "slot", "user", "item", "clicked", "cat", "num"))
        _, first, page = np.unique(found["page"], return_index=True, return_inverse=True)
        names = tuple(str(name) for name in found["name"][first].tolist())
        return mine, batch_of(mine, names, page, found)

    def features(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(cat (b, F), num (b, N)) of consecutive rows that were added and not yet released; copies."""
        found = self._columns(np.arange(start, stop), ("cat", "num"))
        return found["cat"], found["num"]

    def release(self, scored: int) -> None:
        """Notes that only samples of the queue will ask for rows before ``scored``."""
        needed, kept = np.sort(self.queue.row), []
        for block in self.blocks:
            if block.row[-1] < scored:
                low, high = np.searchsorted(needed, block.row[0]), np.searchsorted(needed, block.row[-1], side="right")
                rows = np.unique(needed[low:high])
                if not len(rows):
                    continue
                sparse = len(rows) * _SPARSE < len(block)
                kept.append(block.take(np.searchsorted(block.row, rows)) if sparse else block)
            else:
                kept.append(block)
        self.blocks = kept

    def _columns(self, row: Rows, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Columns of rows, in any order. (b, ...) each"""
        number = np.searchsorted([block.row[0] for block in self.blocks], row, side="right") - 1
        low, high = int(number.min()), int(number.max())
        if low == high:
            block = self.blocks[low]
            at = np.searchsorted(block.row, row)
            return {name: block.columns[name].take(at, axis=0) for name in names}
        out: dict[str, NDArray[Any]] = {}
        for k in range(low, high + 1):
            mine = np.flatnonzero(number == k)
            if not len(mine):
                continue
            block = self.blocks[k]
            at = np.searchsorted(block.row, row[mine])
            for name in names:
                column = block.columns[name]
                if name not in out:
                    out[name] = np.empty((len(row), *column.shape[1:]), column.dtype)
                out[name][mine] = column.take(at, axis=0)
        return out
