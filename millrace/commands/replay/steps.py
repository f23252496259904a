# core
"""What a model is given while it runs through a log, in order: rows to score, then the micro-batch to learn.

::

    step     frozen rows (only at a day's start) │ shown rows, scored before │ a micro-batch of samples
    state    all of one step is scored by the model as the step before left it; then it learns

Exposures up to the time at which a micro-batch was complete are scored without it. Rows wait in blocks, a stretch's
each, while samples of them are due later; a block shrinks to the rows that samples need, and is then dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from millrace.commands.replay.grouped import GroupedRows, page_codes
from millrace.commands.replay.logfeatures import CHUNK_ROWS
from millrace.commands.replay.logsamples import KnownSamples, LabelSettings, batch_of
from millrace.commands.replay.stretches import Stretch, Stretches
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.logs import LogTable

Rows = NDArray[np.intp]

_SPARSE = 8  # a block is shrunk when fewer than one of so many rows are needed


class ShownRows(NamedTuple):
    """b rows to be scored together, bias columns hidden."""

    rows: Rows  # (b,) of the log
    cat: NDArray[np.int64]  # (b, F)
    num: NDArray[np.float32]  # (b, N)


@dataclass(frozen=True, slots=True)
class Step:
    """One state of the model: what it scores, and the samples it learns next."""

    scored: int  # rows of the log that are scored after this step
    shown: tuple[ShownRows, ...]
    samples: KnownSamples | None = None  # None: nothing is learnt yet
    batch: SampleBatch | None = None
    frozen: bool = False  # whether ``shown`` are scored for the groups and not for themselves

    @property
    def size(self) -> int:
        return sum(len(s.rows) for s in self.shown) + (0 if self.batch is None else len(self.batch))


def steps(
    log: LogTable,
    schema: Schema,
    batch_rows: int,
    how: LabelSettings,
    groups: GroupedRows | None = None,
    rows_at_once: int = CHUNK_ROWS,
    made: Stretches | None = None,
) -> Iterator[Step]:
    """The steps of a run. Rows, batches and features equal those of the plain path, to the bit. ``rows_at_once``: about
    how many rows features are made of together; the result does not depend on it. ``made``: makes them."""
    made = made or Stretches(log, schema, how, () if groups is None else groups.cuts, rows_at_once)
    page = page_codes(log, schema) if groups is None else groups.page
    waiting, bias = WaitingBlocks(len(schema.outcome)), schema.layout.bias_columns
    scored = 0

    def step(size: int) -> Step:
        """Rows up to the time at which the next ``size`` samples are known, and these samples."""
        nonlocal scored
        size = waiting.page_end(size) if how.by_page else size
        # Rows that are not made yet are later than every sample that is taken.
        end = int(np.searchsorted(made.ts_ms, waiting.queue.known_ms[size - 1], side="right"))
        shown = []
        for first in range(scored, end, batch_rows):
            stop = min(first + batch_rows, end)
            cat, num = waiting.features(first, stop)
            cat[:, bias] = 0
            shown.append(ShownRows(np.arange(first, stop), cat, num))
        scored = max(scored, end)
        return Step(scored, tuple(shown), *waiting.pop(size))

    for number, start in enumerate(made.bounds[:-1].tolist()):
        while waiting.known(int(made.ts_ms[start])) >= batch_rows:
            yield step(batch_rows)
        waiting.release(scored)
        if groups is not None:  # the samples that are left make no micro-batch without rows from here on
            for first, own in groups.starting(slice(start, start + 1)):
                cat, num = made.frozen(first, own)
                cat[:, bias] = 0
                yield Step(scored, (ShownRows(own, cat, num),), frozen=True)
        stretch = made.make(number)
        codes = None if page is None else page[start : start + stretch.rows.n].astype(np.intp)
        waiting.add(WaitingRows.of(stretch, codes), stretch.samples)
    while len(waiting.queue.row):
        yield step(min(batch_rows, len(waiting.queue.row)))


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

    def only(self, which: NDArray[np.intp]) -> WaitingRows:
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
                kept.append(block.only(np.searchsorted(block.row, rows)) if sparse else block)
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
