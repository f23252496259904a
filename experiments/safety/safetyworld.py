# core
"""Worlds to try the gate in, and their traffic as a learner and a scorer meet it.

::

    world     days 1, 2, ... of one simulated shop (simulator/daylog.py), written as day logs
    change    from noon of the last day on: nothing; a sale (clicks twice as likely, until midnight);
              a new taste (half of the shoppers take over the lasting taste of others);
              newcomers (for two hours as many pages again, of people who were never here: those of the day before)
    moment    rows that pages showed, to be scored by what serves  │  the micro-batch that is known by then

Pages, visits and draws do not depend on what changes, so a world with a change and its twin without one have the same
exposures, and equal clicks up to noon.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from commands.replay.known import LabelSettings
from commands.replay.logfeatures import Labels, LogRows
from commands.replay.steps import steps
from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.logs import LogTable
from simulator.daylog import day_table, parse_day
from simulator.dice import generator
from simulator.params import DEFAULT
from simulator.world import World, start_of

FIRST_DAY = "2026-03-02"
"""A Monday."""

BATCH_ROWS = 512

Change = Literal["nothing", "sale", "taste", "newcomers"]

_NEWCOMERS_HOURS, _NEW_ID = 2, 1 << 40


@dataclass(frozen=True, slots=True)
class Shop:
    """Which world, how long, and what happens at noon of its last day."""

    seed: int
    days: int
    users: int = 4000
    click_rate: float = DEFAULT.click_rate
    change: Change = "nothing"

    @property
    def last_ms(self) -> int:
        """When the last day begins."""
        return start_of(parse_day(FIRST_DAY) + self.days - 1)

    @property
    def noon_ms(self) -> int:
        """When what changes, changes."""
        return self.last_ms + 12 * HOUR_MS


def write_shop(shop: Shop, folder: Path) -> Path:
    """Writes the day logs of a shop into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(shop.seed, shop.users, replace(DEFAULT, click_rate=shop.click_rate))
    first = parse_day(FIRST_DAY)
    for number in range(first, first + shop.days):
        last = number == first + shop.days - 1
        table = _changed_at_noon(world, shop, number) if last and shop.change != "nothing" else day_table(world, number)
        pq.write_table(table, folder / f"{number}.parquet", compression="zstd")
    return folder


def _with_newcomers(world: World, shop: Shop, number: int) -> pa.Table:
    day, before = day_table(world, number), day_table(world, number - 1)
    for name in before.column_names:
        if name == "ts_ms" or (name.endswith("_ms") and name != "born_ms"):
            at = before.column_names.index(name)
            before = before.set_column(at, before.schema.field(at), pc.add(before[name], DAY_MS))
    at = before.column_names.index("user_id")
    before = before.set_column(at, before.schema.field(at), pc.add(before["user_id"], _NEW_ID))
    at = before.column_names.index("request_id")
    new = pc.binary_join_element_wise("new", before["request_id"], "-")
    before = before.set_column(at, before.schema.field(at), new)
    ts_ms = before["ts_ms"].to_numpy()
    inside = (ts_ms >= shop.noon_ms) & (ts_ms < shop.noon_ms + _NEWCOMERS_HOURS * HOUR_MS)
    both = pa.concat_tables([day, before.filter(pa.array(inside))])
    return both.sort_by([("ts_ms", "ascending"), ("request_id", "ascending"), ("position", "ascending")])


def _changed_at_noon(world: World, shop: Shop, number: int) -> pa.Table:
    if shop.change == "newcomers":
        return _with_newcomers(world, shop, number)
    visits = world.visits(number)
    other = _other(world, shop)
    morning = visits.start_ms < shop.noon_ms
    before = day_table(world, number, np.flatnonzero(morning))
    after = day_table(other, number, np.flatnonzero(~morning))
    return pa.concat_tables([before, after])


def _other(world: World, shop: Shop) -> World:
    """The world after noon: the same shoppers on the same pages."""
    if shop.change == "sale":
        return World(shop.seed, shop.users, replace(DEFAULT, click_rate=2 * shop.click_rate))
    other = World(shop.seed, shop.users, world.params)
    people = other.shoppers
    rng = generator(shop.seed, "safety.taste")
    moved = np.flatnonzero(rng.random(people.n) < 0.5)
    settled = people.settled.copy()
    settled[moved] = settled[rng.permutation(moved)]
    other.shoppers = replace(people, settled=settled)  # its errands, and so its pages, stay as they were
    return other


@dataclass(frozen=True, slots=True)
class Moment:
    """What happens until a micro-batch of samples is known. b rows are shown, with what came of them."""

    cat: NDArray[np.int64]  # (b, F) as a scorer has them: what only a made page tells is hidden
    num: NDArray[np.float32]  # (b, N)
    clicked: NDArray[np.bool_]  # (b,) within the attribution window: the clean truth
    shown_ms: NDArray[np.int64]  # (b,)
    batch: SampleBatch | None  # to be learnt next


def traffic(log: LogTable, schema: Schema, batch_rows: int = BATCH_ROWS) -> Iterator[Moment]:
    """A log as it comes live: features in event time, labels when the label policy of the settings knows them."""
    rows = LogRows(log, schema)
    labels = Labels(log, schema, rows)
    clicked = labels.clicked & ~labels.late
    layout = schema.layout
    for step in steps(log, schema, batch_rows, LabelSettings.of(Settings())):
        own = [shown.rows for shown in step.shown]
        at = np.concatenate(own) if own else np.empty(0, np.intp)
        yield Moment(
            np.concatenate([shown.cat for shown in step.shown]) if own else np.empty((0, layout.F), np.int64),
            np.concatenate([shown.num for shown in step.shown]) if own else np.empty((0, layout.N), np.float32),
            clicked[at],
            rows.ts_ms[at],
            step.batch,
        )
