# core
"""Worlds to try the gate in, and their traffic as a learner and a scorer meet it.

::

    world     days 1, 2, ... of one simulated shop (simulator/daylog.py), written as day logs
    change    on one day, or from then on: see :data:`Change`
    moment    rows that pages showed, to be scored by what serves  │  the micro-batch that is known by then

Pages, visits and draws do not depend on what changes, so a world with a change and its twin without one have the same
exposures, and equal clicks up to noon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from experiments.safety.poisons import users_drawn, without_user
from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.commands.replay.logsamples import LabelSettings
from millrace.commands.replay.steps import steps
from millrace.contracts.events import NOT_READ, PROFILE_MISSING, WINDOWS_MISSING
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

Change = Literal["nothing", "sale", "taste", "newcomers", "catalogue", "no users", "all"]
"""What happens at noon of the last day: a sale (clicks twice as likely, until midnight); a new taste (half of the
shoppers take over the lasting taste of others); newcomers (for two hours as many pages again, of people who were never
here: those of the day before). All goods are others from 11:00 on. For an hour from 13:00 on no page's user is read.
"all": each of them but the taste on a day of its own, and at any time 3% of guests and clients 59 minutes ahead."""

_NEWCOMERS_HOURS, _NEW_ID = 2, 1 << 40
_DAYS = {"sale": 0.35, "catalogue": 0.5, "newcomers": 0.65, "no users": 0.8}  # of "all": when, as parts of a world
_GUESTS, _AHEAD = 0.03, 0.005  # shares of users


@dataclass(frozen=True, slots=True)
class Shop:
    """Which world, how long, and what happens on its last day. ``hours``: of each day, from the first up to the
    second."""

    seed: int
    days: int
    users: int = 4000
    change: Change = "nothing"
    hours: tuple[int, int] = (0, 24)

    def day_ms(self, day: int) -> int:
        """When a day begins, from 0 on."""
        return start_of(parse_day(FIRST_DAY) + day)

    def day_of(self, change: Change) -> int | None:
        """On which day, from 0 on, something changes; None: it does not."""
        if self.change == "all":
            return int(_DAYS[change] * self.days) if change in _DAYS else None
        return self.days - 1 if self.change == change else None


def write_shop(shop: Shop, folder: Path) -> Path:
    """Writes the logs of a shop into ``folder``, a file an hour."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(shop.seed, shop.users, DEFAULT)
    other = _other(world, shop)
    for day in range(shop.days):
        changes = day in (shop.day_of("sale"), shop.day_of("taste"))
        for hour in range(*shop.hours):
            table = _hour(other if changes and hour >= 12 else world, shop, day, hour)
            pq.write_table(table, folder / f"{day:03}-{hour:02}.parquet", compression="zstd")
    return folder


def _hour(world: World, shop: Shop, day: int, hour: int) -> pa.Table:
    """Pages of visits that begin in an hour."""
    number, from_ms = parse_day(FIRST_DAY) + day, shop.day_ms(day) + hour * HOUR_MS
    table = _visits(world, number, from_ms)
    if day == shop.day_of("newcomers") and 12 <= hour < 12 + _NEWCOMERS_HOURS:
        table = pa.concat_tables([table, _newcomers(world, number, from_ms)])
        table = table.sort_by([("ts_ms", "ascending"), ("request_id", "ascending"), ("position", "ascending")])
    new = shop.day_of("catalogue")
    return table if new is None or day < new else _renewed(table, shop.day_ms(new) + 11 * HOUR_MS)


def _visits(world: World, day: int, from_ms: int) -> pa.Table:
    start_ms = world.visits(day).start_ms
    return day_table(world, day, np.flatnonzero((start_ms >= from_ms) & (start_ms < from_ms + HOUR_MS)))


def _newcomers(world: World, number: int, from_ms: int) -> pa.Table:
    """The pages of the day before at the same time, of people who were never here."""
    table = _visits(world, number - 1, from_ms - DAY_MS)
    for name in table.column_names:
        if name == "ts_ms" or (name.endswith("_ms") and name != "born_ms"):
            table = _with(table, name, pc.add(table[name], DAY_MS))
    table = _with(table, "user_id", pc.add(table["user_id"], _NEW_ID))
    return _with(table, "request_id", pc.binary_join_element_wise("new", table["request_id"], "-"))


def _renewed(table: pa.Table, from_ms: int) -> pa.Table:
    """The goods of pages from then on were never here, and are as old as that."""
    new = pc.greater_equal(table["ts_ms"], from_ms)
    age_days = pc.cast(pc.divide(pc.cast(pc.subtract(table["ts_ms"], from_ms), pa.float64()), DAY_MS), pa.float32())
    table = _with(table, "item_id", pc.if_else(new, pc.add(table["item_id"], _NEW_ID), table["item_id"]))
    table = _with(table, "born_ms", pc.if_else(new, from_ms, table["born_ms"]))
    return _with(table, "age_days", pc.if_else(new, age_days, table["age_days"]))


def _with(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, table.schema.field(at), column)


def _other(world: World, shop: Shop) -> World:
    """The world after noon: the same shoppers on the same pages."""
    if shop.change != "taste":
        return World(shop.seed, shop.users, replace(DEFAULT, click_rate=2 * DEFAULT.click_rate))
    other = World(shop.seed, shop.users, world.params)
    people = other.shoppers
    rng = generator(shop.seed, "safety.taste")
    moved = np.flatnonzero(rng.random(people.n) < 0.5)
    settled = people.settled.copy()
    settled[moved] = settled[rng.permutation(moved)]
    other.shoppers = replace(people, settled=settled)  # its errands, and so its pages, stay as they were
    return other


def clients(shop: Shop, schema: Schema) -> Callable[[SampleBatch], SampleBatch]:
    """What clients and stores make of samples in a world, where nothing is wrong."""
    day = shop.day_of("no users")
    from_ms = 0 if day is None else shop.day_ms(day) + 13 * HOUR_MS

    def sent(batch: SampleBatch) -> SampleBatch:
        draw = users_drawn(batch)
        guests = draw < _GUESTS if shop.change == "all" else np.zeros(len(batch), np.bool_)
        unread = (batch.ts_ms >= from_ms) & (batch.ts_ms < from_ms + HOUR_MS)
        missing = np.where(guests, PROFILE_MISSING | WINDOWS_MISSING, 0)
        missing = np.where(unread, PROFILE_MISSING | WINDOWS_MISSING | NOT_READ, missing).astype(np.uint8)
        ahead_ms = 59 * HOUR_MS // 60 * ((draw > 1 - _AHEAD) & (shop.change == "all"))
        return without_user(replace(batch, ts_ms=batch.ts_ms + ahead_ms, user_missing=missing), missing > 0, schema)

    return sent


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
