# core
"""Day logs: the world in open loop, written as Parquet, one row an exposure, as ``[log]`` in ``shop.toml`` reads it.

Pages are the previous recommender's; shoppers react as they do live. A file holds one local day, a function of the
seed and that day: days may be written in any order, or alone. Besides the schema's columns there are ``born_ms`` and
the true click probability ``p_true``. No schema names ``p_true``, so no model learns from it; a report reads the
oracle's AUC from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from millrace.contracts.errors import LogError
from millrace.contracts.files import write_whole
from simulator.catalogue import price_band
from simulator.pages import PagePolicy
from simulator.params import DAY_MS, PAGE
from simulator.reaction import react
from simulator.shoppers import AGES, GENDERS, HOUSEHOLDS
from simulator.world import World

I64 = NDArray[np.int64]
EPOCH = date(1970, 1, 1)


def parse_day(text: str) -> int:
    """A local day (counted from 1970) from ``YYYY-MM-DD``.

    Raises:
        LogError: it is no date, or lies before 1971.
    """
    try:
        day = (date.fromisoformat(text) - EPOCH).days
    except ValueError:
        raise LogError(f"start '{text}' is no date", "write it as YYYY-MM-DD") from None
    if day < 365:
        raise LogError(f"start '{text}' is before 1971", "choose a later day")
    return day


def day_table(world: World, number: int) -> pa.Table:
    """The log of one local day, by time."""
    day, visits, people = world.day(number), world.visits(number), world.shoppers
    pages = PagePolicy(world, day).pages(visits, np.arange(visits.n))
    view, position = np.nonzero(np.arange(PAGE) < visits.size[:, None])
    row, user, ts_ms = pages[view, position], visits.user[view], visits.start_ms[view]
    chance = day.click_probability(user, row, position)
    keys = (user, visits.day, visits.session[view], visits.page[view])
    done = react(world.seed, world.params, chance, people.business[user], ts_ms, position, keys)

    goods = day.goods
    category = goods.category[row]
    parents = world.catalogue.parent_of
    requests = pa.array([f"{number}-{k}" for k in range(visits.n)])
    columns: Mapping[str, Any] = {
        "ts_ms": pa.array(ts_ms),
        "request_id": requests.take(pa.array(view)),
        "position": pa.array(position.astype(np.int16)),
        "user_id": pa.array(user + 1),
        "item_id": pa.array(goods.item_id[row]),
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
        "shop_id": pa.array(goods.shop[row] + 1),
        "price_band": pa.array(price_band(goods.price_z[row])),
        "price": pa.array(goods.price[row]),
        "min_order": pa.array(goods.min_order[row]),
        "born_ms": pa.array(goods.born_ms[row]),
        "age_days": pa.array(((ts_ms - goods.born_ms[row]) / DAY_MS).astype(np.float32)),
        "p_true": pa.array(chance.astype(np.float32)),
    }
    return pa.table(columns)


def write_days(
    out: Path | str, days: int, seed: int, start: str = "2026-03-02", users: int = 4000, quiet: bool = False
) -> list[Path]:
    """Writes the logs of ``days`` local days from ``start`` on into the folder ``out``, and returns their paths.

    A file is whole or absent. About 0.5 s and 7 MB a day.

    Raises:
        LogError: ``start`` is no date, there is nothing to write, or the folder cannot be written to.
    """
    if days < 1:
        raise LogError(f"{days} days are nothing to write", "ask for at least one")
    first, folder = parse_day(start), Path(out)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet,
    )
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with bar:
            task = bar.add_task("writing day logs", total=days)
            world = World(seed, users)
            for number in range(first, first + days):
                path = folder / f"shop-{date.fromordinal(EPOCH.toordinal() + number)}.parquet"
                body = pa.BufferOutputStream()
                pq.write_table(day_table(world, number), body, compression="zstd")
                write_whole(path, memoryview(body.getvalue()), durable=False)
                paths.append(path)
                bar.advance(task)
    except OSError as error:
        raise LogError(
            f"folder '{folder}' cannot be written to ({error.strerror or error})", "name another with --out"
        ) from None
    return paths


def _times(ms: I64) -> pa.Array:
    return pa.array(ms, mask=ms == 0)


def _named(code: I64, names: Sequence[str]) -> pa.Array:
    """Texts by code; a code below 0 is null."""
    return pa.array(list(names)).take(pa.array(code, mask=code < 0))
