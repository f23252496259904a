# core
"""Runs every compiled function on a partition of its own. Otherwise a worker's loop would stand still during
compilation (half a minute without a cache), and would hold up the whole group's rebalance."""

from __future__ import annotations

import gc

import numpy as np

from millrace.basics.durations import DAY_MS
from millrace.contracts import pagepack
from millrace.contracts.events import Click, Exposure, Item, PageLog, to_json
from millrace.contracts.itemtiles import pack
from millrace.contracts.page_logs import page_log_bytes
from millrace.contracts.pagepack import Rates
from millrace.contracts.schema import Schema
from millrace.contracts.topics import EVENTS, PAGE_LOGS
from stream.partition.partition import InputMessage, Partition, Policy
from stream.worker.shop_lists import ShopLists

_TS_MS = 1_700_000_000_000
_STEPS = 200
_ITEM = np.array([1], np.uint64)


_NEW_OBJECTS = 100_000


def calm_collector() -> None:
    """Makes Python look for garbage cycles rarely. The join's objects live for minutes and form no cycles, and looking
    after every 700 new objects, the default, takes more than a quarter of the join's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, 20, 20)


def warm_up(schema: Schema, policy: Policy) -> None:
    """Compiles the functions that a worker will call. It touches only objects of its own."""
    pagepack.warm_up()
    part, layout, rates = Partition(0, schema, policy), schema.layout, Rates.of(schema)
    n, last_ms = 300, _TS_MS + schema.windows.minutes[-1] * 60_000 + 3 * DAY_MS
    for turn, ts in enumerate((_TS_MS, _TS_MS + 2 * DAY_MS, last_ms)):
        page, items = f"r{turn}", list(range(n))
        keys = np.arange(1, n * layout.K + 1, dtype=np.uint64).reshape(n, layout.K)
        served = PageLog(
            request_id=page,
            ts_ms=ts,
            user_id=1,
            arm="model",
            model_version=0,
            schema_id=schema.id,
            items=[*items],
            scores=bytes(4 * n),
            keys=keys.tobytes(),
            cat=bytes(8 * n * layout.F),
            num=bytes(4 * n * layout.N),
        )
        seen, click = Exposure(page, page, ts, 1, [*items]), Click(f"c{turn}", page, ts + 1, 1, 0, 0)
        part.take([InputMessage(PAGE_LOGS, turn, page_log_bytes(served, rates))], ts)
        part.take(
            [InputMessage(EVENTS, 2 * turn, to_json(seen)), InputMessage(EVENTS, 2 * turn + 1, to_json(click))], ts
        )
        part.advance(ts + policy.life_ms)
        now_ms = np.array([ts])
        part.coclicks.click(_ITEM, now_ms, np.array([1]), _ITEM + np.uint64(1), now_ms)
        changes = part.changes()
        list(part.whole())
        state = part.snapshot().to_bytes()
        part = Partition(0, schema, policy)
        part.resume(state)
    for _ in range(_STEPS):  # a sweep comes round
        part.take([], last_ms)
    lists = ShopLists(schema)
    lists.put(Item(1, {}))
    for message in pack(0, 1, last_ms, changes.item_keys, changes.item_tiles):
        lists.count(message)
    lists.make(last_ms + 2)
