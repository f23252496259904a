# shell
"""What a scorer reads of a shop (catalogue, counts, users), and what it writes, as topics and Redis carry it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa

from experiments.recall.recallshop import RecallShop, params_of
from millrace.connections.redis_clients import redis_client
from millrace.contracts.events import NOT_READ, key_of, to_json, to_msgpack
from millrace.contracts.itemtiles import pack as pack_tiles
from millrace.contracts.online_layout import user_key
from millrace.contracts.page_logs import decode_served
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import FEATURES_ITEMS, ITEMS, PAGE_LOGS
from millrace.processes.kafka import make_reader
from millrace.processes.wall import wall_ms
from simulator.daylog import day_table
from simulator.world import World, day_of, start_of

KEYS_A_SECOND = 1000
_USERS_A_TIME = 500


class ShopWire:
    """The simulated shop after a day of its previous recommender's pages, sent as the stream sends it.

    Args:
        producer: a Kafka producer of raw bytes.
        items: on sale, about.
        users: who came on the day, on average.
    """

    def __init__(self, settings: Settings, producer: Any, items: int, users: int, seed: int = 1) -> None:
        self._settings, self._producer = settings, producer
        self._rng, self._seq = np.random.default_rng(seed), 0
        yesterday = day_of(wall_ms()) - 1
        world = World(seed, users, params_of(items))
        self.users = world.shoppers.n  # ids from 1 on
        self.log: pa.Table = day_table(world, yesterday)
        """The day's exposures."""
        self.shop = RecallShop(world, shop_schema(), start_of(yesterday), settings)
        self.shop.take(self.log)
        self.shop.advance(start_of(yesterday + 1))
        image = self.shop.index.image(0, len(self.shop.index.ids))
        keys = np.unique(image.arrays["keys"])
        self._keys = keys[keys != 0]

    def publish(self) -> None:
        """Sends the catalogue and all counts."""
        catalogue = self.shop.world.catalogue
        goods = catalogue.inventory(day_of(self.shop.now_ms))
        on_sale = (goods.born_ms <= self.shop.now_ms) & (self.shop.now_ms < goods.dies_ms)
        for row in np.flatnonzero(on_sale).tolist():
            item = catalogue.item(goods, row)
            self._producer.send(ITEMS, key=key_of(item.item_id), value=to_json(item))
        self._send(self._keys)
        self._producer.flush()

    def publish_changes(self, keys: int = KEYS_A_SECOND) -> None:
        """Sends the counts of ``keys`` window keys, to which one exposure was added."""
        chosen = self._rng.choice(self._keys, keys)
        self.shop.windows.add(chosen, np.full(keys, wall_ms()), np.zeros(keys, np.int64))
        self._send(np.unique(chosen))

    def _send(self, keys: Any) -> None:
        for message in pack_tiles(0, self._seq, wall_ms(), keys, self.shop.windows.export(keys)):
            self._producer.send(FEATURES_ITEMS, key=b"0", value=to_msgpack(message))
            self._seq = message.seq + 1

    def fill_users(self) -> None:
        """Writes all users into Redis."""
        with closing(redis_client(self._settings.redis)) as client:
            for start in range(0, self.users, _USERS_A_TIME):
                pipeline = client.pipeline(transaction=False)
                for user in range(start, min(start + _USERS_A_TIME, self.users)):
                    record = cast(Any, self.shop.record(user))
                    pipeline.hset(self._settings.key(user_key(user + 1)), mapping=record)
                pipeline.execute()


class PageLogCheck:
    """Reads the topic ``page_logs`` from where it ends now, and says which pages are in it."""

    def __init__(self, settings: Settings) -> None:
        self._reader = make_reader(settings, PAGE_LOGS)
        ends = self._reader.end_offsets(list(self._reader.assignment()))
        for partition, end in ends.items():
            self._reader.seek(partition, end)
        self._early: set[str] = set()  # read before anybody asked for them
        self.without_user: set[str] = set()
        """Pages that were made without what Redis has of their user."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def missing(self, wanted: set[str], patience_s: float) -> set[str]:
        """Reads on until the pages ``wanted`` are there, or nothing comes for ``patience_s``; those that are not.
        Raises BadEventError where a message is no page."""
        left, heard = wanted - self._early, time.monotonic()
        self._early -= wanted
        while left and time.monotonic() - heard < patience_s:
            for records in self._reader.poll(timeout_ms=200).values():
                heard = time.monotonic()
                pages = [decode_served(record.value) for record in records]
                self.without_user |= {page.request_id for page in pages if page.user_missing & NOT_READ}
                seen = {page.request_id for page in pages}
                self._early |= seen - left
                left -= seen
        return left


@contextmanager
def steadily(call: Callable[[], object], every_s: float) -> Iterator[None]:
    """Calls something in a thread, at an even pace. A call that takes too long delays the next one, no more. Raises
    what it raised."""
    ending = threading.Event()

    def run() -> None:
        due = time.monotonic()
        while not ending.wait(max(0.0, due - time.monotonic())):
            due = max(due + every_s, time.monotonic())
            call()

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run)
        try:
            yield
        finally:
            ending.set()
        running.result()
