# core
"""Day logs: the world in open loop as Parquet, one row an exposure, for ``[log]`` in ``shop.toml``.

Pages are the previous recommender's; shoppers react as they do live. A file holds one local day, a function of the
seed and that day: days may be written in any order, or alone. Further columns are ``born_ms`` and the true click
probability ``p_true``; in a world with orders ``purchase_ms`` is that of an order that was kept, ``p_purchase`` the
chance of one, given a click, and ``order_ms`` and ``refund_ms`` are what happened. No schema names the chances, so no
model learns from them; reports compute the oracle's AUC.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from millrace.basics.atomic_files import write_whole
from millrace.basics.durations import DAY_MS
from millrace.basics.errors import LogError
from millrace.reports.lines import Tick
from simulator.catalogue import price_band
from simulator.dice import uniform
from simulator.late_orders import Orders, draw_orders
from simulator.params import DEFAULT, WORLDS, Params
from simulator.reaction import react
from simulator.shoppers import AGES, GENDERS, HOUSEHOLDS
from simulator.visits import CONSUMER, WEEKEND, WORKDAY, Visits, weekday
from simulator.world import PagePolicy, World, start_of

I64 = NDArray[np.int64]
EPOCH = date(1970, 1, 1)
MOST_RATE = 1000
"""Exposures a second of :func:`write_traffic`: more would need more shoppers than fit into memory."""
_DAY_S, _HALF_DAY_S = 86_400, 43_200


def parse_day(text: str) -> int:
    """A local day (counted from 1970) from ``YYYY-MM-DD``. Raises LogError: it is no date, or lies before 1971."""
    try:
        day = (date.fromisoformat(text) - EPOCH).days
    except ValueError:
        raise LogError(f"start '{text}' is no date", "write it as YYYY-MM-DD") from None
    if day < 365:
        raise LogError(f"start '{text}' is before 1971", "choose a later day")
    return day


def day_table(world: World, number: int, views: I64 | None = None) -> pa.Table:
    """The log of one local day, by time. ``views``: indices of the day's page views, ascending, (V,) (default: all).
    The choice does not change what happens on a page."""
    day, visits, people = world.day(number), world.visits(number), world.shoppers
    views = np.arange(visits.n) if views is None else views
    pages = PagePolicy(world, day).pages(visits, views)
    at, position = np.nonzero(np.arange(pages.shape[1]) < visits.size[views][:, None])
    view = views[at]
    row, user, ts_ms = pages[at, position], visits.user[view], visits.start_ms[view]
    chance = day.click_probability(user, row, position, ts_ms, visits.shift[view])
    keys = (user, visits.day, visits.session[view], visits.page[view])
    done = react(world.seed, world.params, chance, people.business[user], ts_ms, position, keys)

    ordered: dict[str, Any] = {}
    if world.params.order_rate:
        orders = _orders(world, number, done.click_ms, user, row, visits, view, position)
        kept = np.where(orders.refund_ms > 0, 0, orders.order_ms)
        ordered = {
            "purchase_ms": _times(kept),
            "order_ms": _times(orders.order_ms),
            "refund_ms": _times(orders.refund_ms),
        }
        ordered["p_purchase"] = pa.array(orders.chance.astype(np.float32))
    inventory = day.inventory
    category = inventory.category[row]
    parents = world.catalogue.parent_of
    requests = pa.array([f"{number}-{k}" for k in range(visits.n)])
    columns: Mapping[str, Any] = {
        "ts_ms": pa.array(ts_ms),
        "request_id": requests.take(pa.array(view)),
        "position": pa.array(position.astype(np.int16)),
        "user_id": pa.array(user + 1),
        "item_id": pa.array(inventory.item_id[row]),
        "click": pa.array((done.click_ms > 0).astype(np.int8)),
        "click_ms": _times(done.click_ms),
        "collect_ms": _times(done.collect_ms),
        "cart_ms": _times(done.cart_ms),
        "purchase_ms": _times(done.purchase_ms),
        "kind": _named(np.where(people.business[user], 0, 1), ("business", "consumer")),
        "seller": pa.array(people.seller[user] == 1, mask=people.seller[user] < 0),
        "region": _named(people.region[user], [f"r{k}" for k in range(world.params.regions)]),
        "age_band": _named(people.age[user], AGES),
        "gender": _named(people.gender[user], GENDERS),
        "household": _named(people.household[user], HOUSEHOLDS),
        "category": _named(category, [f"c{k}" for k in range(len(parents))]),
        "parent_category": _named(parents[category], [f"p{k}" for k in range(world.params.parents)]),
        "shop_id": pa.array(inventory.shop[row] + 1),
        "price_band": pa.array(price_band(inventory.price_z[row])),
        "price": pa.array(inventory.price[row]),
        "min_order": pa.array(inventory.min_order[row]),
        "born_ms": pa.array(inventory.born_ms[row]),
        "age_days": pa.array(((ts_ms - inventory.born_ms[row]) / DAY_MS).astype(np.float32)),
        "p_true": pa.array(chance.astype(np.float32)),
    }
    return pa.table({**columns, **ordered})


def _orders(
    world: World, number: int, click_ms: I64, user: I64, row: I64, visits: Visits, view: I64, position: I64
) -> Orders:
    """Of all exposures; those without a click have no order, but a chance if they had."""
    chance = world.day(number).order_chance(user, row)
    at = np.flatnonzero(click_ms)
    keys = (user[at], visits.day, visits.session[view[at]], visits.page[view[at]], position[at])
    p, business = world.params, world.shoppers.business[user[at]]
    drawn = draw_orders(world.seed, p, chance[at], business, click_ms[at], keys)
    found = np.zeros((2, len(user)), np.int64)
    found[:, at] = drawn.order_ms, drawn.refund_ms
    return Orders(found[0], found[1], chance * (1 - p.return_rate))


def write_days(
    out: Path | str,
    days: int,
    seed: int,
    start: str = "2026-03-02",
    users: int = 4000,
    tick: Tick = lambda what, done, of: None,
    ends: Callable[[], bool] = lambda: False,
    world: str = "shop",
) -> list[Path]:
    """Writes the logs of ``days`` local days from ``start`` on into the folder ``out``, and returns their paths. A file
    is whole or absent. About 0.5 s and 7 MB a day. ``ends`` is called before each day; True ends the writing. ``world``
    names one of :data:`~simulator.params.WORLDS`.

    Raises LogError when ``start`` is no date, there is nothing to write, or the folder cannot be written to.
    """
    if days < 1:
        raise LogError(f"{days} days are nothing to write", "ask for at least one")
    if world not in WORLDS:
        raise LogError(f"there is no world '{world}'", f"choose one of {', '.join(WORLDS)}")
    first, folder = parse_day(start), Path(out)
    paths: list[Path] = []
    with _writable(folder):
        made = World(seed, users, WORLDS[world])
        for number in range(first, first + days):
            if ends():
                break
            tick("days", len(paths), days)
            name = f"{world}-{date.fromordinal(EPOCH.toordinal() + number)}.parquet"
            paths.append(_written(folder / name, day_table(made, number)))
    return paths


def write_traffic(
    out: Path | str, seed: int, rate: float, rows: int, history_rows: int = 0, start: str = "2026-03-02"
) -> list[Path]:
    """Writes a stretch of traffic at real speed, ``traffic.parquet``, and the time before it, ``history.parquet``.
    Returns their paths in this order of time: history first. Raises LogError as :func:`write_days`.

    Times are never compressed: the world has as many shoppers as ``rate`` needs on average over the stretch. Traffic
    begins at noon of the day after ``start`` if it ends within that day, otherwise at its midnight, and then it may go
    on for days. The history is the day ``start`` of a random share of its shoppers, each with every page, so some of
    them come back. The result depends on the arguments alone.

    Args:
        seed: of the world.
        rate: exposures a second. The measured rate differs by chance, more so in a short stretch.
        rows: exposures of the traffic.
        history_rows: about how many exposures the history has; 0: no history, and no file.
    """
    if not 0 < rate <= MOST_RATE:
        raise LogError(f"{rate:g} exposures a second", f"ask for more than 0 and at most {MOST_RATE}")
    if rows < 1 or history_rows < 0:
        raise LogError(f"{rows} rows after a history of {history_rows}", "ask for at least one row")
    before, folder = parse_day(start), Path(out)
    number = before + 1
    seconds = rows / rate
    begins_s = _HALF_DAY_S if seconds <= _HALF_DAY_S else 0
    world = World(seed, max(1, round(rows / _exposures_of_one(number, begins_s, seconds, DEFAULT))))
    written = {}
    if history_rows:
        visits = world.visits(before)
        share = min(1.0, history_rows / max(1, int(visits.size.sum())))
        lucky = uniform(seed, "traffic.history", visits.user) < share
        written["history"] = day_table(world, before, np.flatnonzero(lucky))
    tables, left, from_ms = [], rows, start_of(number) + 1000 * begins_s
    while left > 0:
        visits = world.visits(number)
        views = np.flatnonzero(visits.start_ms >= from_ms)
        views = views[: int(np.searchsorted(np.cumsum(visits.size[views]), left)) + 1]
        tables.append(day_table(world, number, views))
        left, number = left - tables[-1].num_rows, number + 1
    written["traffic"] = pa.concat_tables(tables).slice(0, rows)
    with _writable(folder):
        return [_written(folder / f"{name}.parquet", table) for name, table in written.items()]


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        why = error.strerror or error
        raise LogError(f"folder '{folder}' cannot be written to ({why})", "name another with --out") from None


def _written(path: Path, table: pa.Table) -> Path:
    body = pa.BufferOutputStream()
    pq.write_table(table, body, compression="zstd")
    write_whole(path, memoryview(body.getvalue()), durable=False)
    return path


def _exposures_of_one(number: int, begins_s: int, seconds: float, p: Params) -> float:
    """Expected exposures of a world of one user a day, for so many seconds from ``begins_s`` of a local day on."""
    total = 0.0
    while seconds > 0:
        span = min(seconds, _DAY_S - begins_s)
        business = WORKDAY if weekday(number) < 5 else WEEKEND
        for rhythm, share in ((business, p.business_share), (CONSUMER, 1 - p.business_share)):
            edges = np.r_[0.0, np.cumsum(rhythm)] / np.sum(rhythm)
            first, last = np.interp([begins_s / 3600, (begins_s + span) / 3600], np.arange(25.0), edges)
            total += share * p.exposures * float(last - first)
        seconds, number, begins_s = seconds - span, number + 1, 0
    return total


def _times(ms: I64) -> pa.Array:
    return pa.array(ms, mask=ms == 0)


def _named(code: I64, names: Sequence[str]) -> pa.Array:
    """Texts by code; a code below 0 is null."""
    return pa.array(list(names)).take(pa.array(code, mask=code < 0))
