# core
"""What a model is given while it runs through a log, in order: rows to score, then the micro-batch to learn.

::

    step     frozen rows (only at a day's start) │ shown rows, scored before │ a micro-batch of samples
    state    all of one step is scored by the model as the step before left it; then it learns

Exposures up to the time at which a micro-batch was complete are scored without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from commands.replay.grouped import GroupedRows, page_codes
from commands.replay.known import KnownSamples, LabelSettings
from commands.replay.logfeatures import CHUNK_ROWS
from commands.replay.samplequeue import WaitingBlocks, WaitingRows
from commands.replay.stretches import Stretches
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.logs import LogTable

Rows = NDArray[np.intp]


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
) -> Iterator[Step]:
    """The steps of a run. Rows, batches and features equal those of the plain path, to the bit. ``rows_at_once``: about
    how many rows features are made of together; the result does not depend on it."""
    made = Stretches(log, schema, how, () if groups is None else groups.cuts, rows_at_once)
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
