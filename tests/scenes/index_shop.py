"""Item indexes over a store and a broker in memory: scorers come and go, and find what others kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from millrace.basics.store import Store
from millrace.contracts.clock import EventClock
from millrace.contracts.events import to_json, to_msgpack
from millrace.contracts.itemtiles import pack
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import FEATURES_ITEMS, ITEMS
from scorer.catalog.index_checkpoint import Manifest
from scorer.feeder.index_keeper import IndexKeeper
from scorer.feeder.kafka_feed import ItemFeed, TileFeed, TopicFeed
from scorer.feeder.primary import Primary
from scorer.feeder.state import FeederState
from scorer.ipc.meters import ScorerMeters
from tests.scenes.scorer_log import MemoryBroker, caught_up
from tests.scenes.scorer_shop import CATEGORY, ITEM, NOW_MS, SCHEMA, tiles, window_keys

MINUTE_MS = 60_000


class Shop:
    """A store, a broker, and scorers' indexes that come and go between them; no threads, and a clock of its own."""

    def __init__(self, folder: Path, schema: Schema = SCHEMA) -> None:
        self.folder, self.broker, self.now_ms = folder, MemoryBroker(), NOW_MS
        self.settings = Settings(store=str(folder), data=str(folder / "data"))
        self.names, self.schema = 0, schema
        self.start()

    def start(self, load: bool = True) -> IndexKeeper:
        """A scorer that starts, and reads all there is. The one before is no more."""
        self.scorer, self.meters = primary(self), ScorerMeters()
        self.keeper, self.feeds = keeper_of(self, self.scorer, self.meters)
        if load:
            self.keeper.load()
        self.read()
        return self.keeper

    def read(self) -> None:
        for feed in self.feeds:
            caught_up(feed)

    def items(self, *items: Any) -> None:
        for one in items:
            self.broker.log(ITEMS).append(to_json(one), str(one.item_id).encode())

    def gone(self, item_id: Any) -> None:
        self.broker.log(ITEMS).append(None, str(item_id).encode())

    def clicks(self, items: list[Any], clicks: int, partition: int = 0) -> None:
        """The counts of these items and their categories in a partition become so many clicks."""
        keys = np.unique(window_keys("u", items)[:, [ITEM, CATEGORY]])
        blobs = tiles(keys, 2 * clicks, clicks).export(keys) if clicks else [b""] * len(keys)
        for message in pack(partition, 0, NOW_MS, keys, blobs):
            self.broker.log(FEATURES_ITEMS).append(to_msgpack(message))

    def next_of(self, queue: list[tuple[Callable[[Shop, int], None], int]]) -> None:
        """The last of the queue happens, and is read."""
        if queue:
            change, n = queue.pop()
            change(self, n)
            self.read()

    def keep(self) -> Manifest | None:
        """Writes a checkpoint, a minute after the last one."""
        self.now_ms += 2 * MINUTE_MS
        return self.keeper.keep()

    def files(self) -> list[str]:
        return Store(self.settings.place("index"), writes=False).names()

    def path(self, name: str) -> Path:
        return self.folder / "index" / name


def primary(shop: Shop) -> Primary:
    return Primary(shop.settings, shop.schema, EventClock(), lambda: shop.now_ms)


def keeper_of(shop: Shop, scorer: Primary, meters: ScorerMeters) -> tuple[IndexKeeper, list[TopicFeed]]:
    shop.names += 1
    state = FeederState(scorer, meters, threading.Event())
    keeper = IndexKeeper(state, f"w{shop.names}")
    feeds: list[TopicFeed] = [kind(state, broker=shop.broker) for kind in (ItemFeed, TileFeed)]
    keeper.feeds = {feed.topic: feed for feed in feeds}
    return keeper, feeds
