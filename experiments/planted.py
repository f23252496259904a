# core
"""Changes of the world planted into a log from one row on, and the run of a model through a log that has one.

Up to the row both logs are the same, and so is everything that a model learns from them. So a run through the changed
log takes up the model of the unchanged log's run where the change begins::

    rows          0 ................... first ................... first + horizon
    Recorder      learns ─────────────────┬──────────────────────►   the log as it is
                                          └ snapshot
    Fork                 (does nothing)   └ resumes, learns ─────►   the changed log
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learner.ranker.model import OnlineModel
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.logs import TS, LogTable

NOTHING = "nothing"
FLIPPED = "labels flipped"
MORE = "clicks x1.5"
FEWER = "clicks x0.5"
BLANK = "windows of the item read 0"
PERMUTED = "item ids permuted"
CHANGES = (NOTHING, FLIPPED, MORE, FEWER, BLANK, PERMUTED)
"""What can be planted. "nothing" is the control: how often an alarm comes within the horizon of a change without one.
"""


def change(
    log: LogTable, schema: Schema, kind: str, first: int, p: NDArray[np.float32], rng: np.random.Generator
) -> LogTable:
    """The log with a change from row ``first`` on. Copies only the columns that change.

    "clicks x1.5" adds clicks where they are likely, with ``p / 2 (1 - p)``, so that every probability is half as great
    again; "clicks x0.5" leaves each click out with probability 1/2. A click that is added comes after a delay of
    another click; what followed a click that is left out is left out too.

    Args:
        p: (n,) click probabilities of the rows, for "clicks x1.5".
    """
    new = np.arange(log.table.num_rows) >= first
    label = log.table[log.label].to_numpy()
    chance = rng.random(len(label))
    if kind == PERMUTED:
        return _with_items(log, new, rng)
    if kind == FLIPPED:
        return _with_labels(log, schema, np.where(new, 1 - label, label), rng)
    if kind == MORE:
        q = np.clip(p.astype(np.float64), 0.0, 1 - 1e-6)
        return _with_labels(log, schema, np.where(new & (chance < q / (2 * (1 - q))), 1, label), rng)
    if kind == FEWER:
        return _with_labels(log, schema, np.where(new & (chance < 0.5), 0, label), rng)
    return log  # nothing, or a change of the features alone


def blank_columns(schema: Schema) -> NDArray[np.intp]:
    """The columns of ``num`` that :data:`BLANK` sets to 0: all windows of keys with the item."""
    item = schema.log.item if schema.log is not None else "item_id"
    names = tuple(f"{key.name}." for key in schema.windows.keys if item in key.columns)
    return np.array([i for i, name in enumerate(schema.layout.num_names) if name.startswith(names)], np.intp)


def _with_labels(log: LogTable, schema: Schema, label: NDArray[np.int8], rng: np.random.Generator) -> LogTable:
    assert schema.log is not None
    table, before = log.table, log.table[log.label].to_numpy()
    times = schema.log.action_times
    shown = table[TS].to_numpy()
    for action, name in times.items():
        never = np.iinfo(np.int64).max
        at = table[name].fill_null(never).to_numpy()
        happened = at < never
        if action == schema.windows.labelling and happened.any():
            added = np.flatnonzero((label == 1) & ~happened & (before == 0))
            delays = (at - shown)[happened]
            at = at.copy()
            at[added] = shown[added] + rng.choice(delays, len(added))
        gone = (label == 0) & (before == 1)
        none = (at == never) | gone
        table = table.set_column(table.column_names.index(name), name, pa.array(at, mask=none))
    column = pa.array(label.astype(np.int8))
    return replace(log, table=table.set_column(table.column_names.index(log.label), log.label, column))


def _with_items(log: LogTable, new: NDArray[np.bool_], rng: np.random.Generator) -> LogTable:
    coded = log.table[log.item].combine_chunks().dictionary_encode()
    codes = coded.indices.to_numpy()
    other = rng.permutation(len(coded.dictionary))
    items = coded.dictionary.take(pa.array(np.where(new, other[codes], codes)))
    return replace(log, table=log.table.set_column(log.table.column_names.index(log.item), log.item, items))


@dataclass(frozen=True, slots=True)
class Start:
    """Where a change begins."""

    row: int  # the first that was not yet scored
    state: Any  # snapshot of the model


class Recorder:
    """Stands in for a model in :func:`~commands.replay.run.run_log`: the model, and a snapshot on the way.

    Args:
        row: the snapshot is made as soon as this many rows have been scored.
    """

    def __init__(self, model: OnlineModel, row: int) -> None:
        self._model, self._row = model, row
        self.start: Start | None = None
        """None: the log ended sooner."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._model.score(cat, num)

    def learn(self, batch: SampleBatch) -> None:
        self._model.learn(batch)

    def tick(self, scored: int) -> None:
        """So many rows have been scored, and what was known by then was learnt from."""
        if self.start is None and scored >= self._row:
            self.start = Start(scored, self._model.snapshot())


class Fork:
    """Stands in for a model in :func:`~commands.replay.run.run_log` through a log that is changed from
    ``start.row`` on. Scores of earlier rows are 0 and mean nothing.

    Args:
        fresh: a model with the schema and spec of the snapshot's.
        first_ms: the time of the row ``start.row``.
        blank: columns of ``num`` that read 0 from there on.
    """

    def __init__(self, fresh: OnlineModel, start: Start, first_ms: int, blank: NDArray[np.intp]) -> None:
        fresh.resume(*copy.deepcopy(start.state))
        self._model, self._row, self._first_ms, self._blank = fresh, start.row, first_ms, blank
        self._begun = False

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self._begun:
            return np.zeros(len(cat), np.float32)
        num = num.copy()
        num[:, self._blank] = 0
        return self._model.score(cat, num)

    def learn(self, batch: SampleBatch) -> None:
        if self._begun:
            num = batch.num.copy()
            num[np.ix_(batch.ts_ms >= self._first_ms, self._blank)] = 0
            self._model.learn(replace(batch, num=num))

    def tick(self, scored: int) -> None:
        """As :meth:`Recorder.tick`."""
        self._begun = self._begun or scored >= self._row
