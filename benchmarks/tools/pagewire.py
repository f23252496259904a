# shell
"""What a scorer reads of a shop, and what it writes, as topics and Redis carry it: for ``millrace dev bench scorer``.

::

    items            the catalogue, with 200 categories                          once
    features.items   counts of a month, of each item and category                once; then of 1,000 keys a second
    Redis            users with a profile, counts in a dozen categories and
                     their last clicks                                           once
    impressions      the log of each page                                        counted, and some compared
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Self, cast

import msgspec
import numpy as np
import redis

from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.basics.hashing import column_hash
from millrace.contracts.events import BadEventError, Item, key_of, to_json, to_msgpack
from millrace.contracts.impressions import PageView, decode_served
from millrace.contracts.itemtiles import pack as pack_tiles
from millrace.contracts.online_layout import (
    MOST_RECENT,
    PROFILE,
    RECENT,
    Past,
    Recent,
    pack_profile,
    pack_recent,
    redis_url,
    user_key,
    window_fields,
)
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import FEATURES_ITEMS, IMPRESSIONS, ITEMS
from millrace.processes.kafka import make_reader
from millrace.processes.wall import wall_ms
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore

CATEGORIES, PARENTS, SHOPS = 200, 20, 3000
USER_CATEGORIES = 12
KEYS_A_SECOND = 1000
_USERS_A_TIME = 500


def item_attributes(i: int) -> dict[str, Any]:
    """What the catalogue says of item ``i``."""
    return {
        "category": f"c{i % CATEGORIES}",
        "parent_category": f"p{i % PARENTS}",
        "shop_id": i % SHOPS,
        "price_band": i % 7,
        "price": float(i % 500),
        "min_order": 1 + i % 12,
    }


def user_attributes(user: int) -> dict[str, Any]:
    """The profile of a user: every third is a business buyer, who tells less of himself."""
    if user % 3 == 0:
        return {"kind": "business", "seller": user % 2, "region": f"r{user % 30}"}
    return {
        "kind": "consumer",
        "region": f"r{user % 30}",
        "age_band": user % 6,
        "gender": user % 2,
        "household": user % 5,
    }


class ShopWire:
    """The catalogue and its counts, sent as the stream sends them.

    Args:
        producer: a Kafka producer of raw bytes.
    """

    def __init__(self, settings: Settings, producer: Any, items: int, seed: int = 0) -> None:
        self._producer, self._items = producer, items
        self._rng = np.random.default_rng(seed)
        self._now_ms, self._seq = wall_ms(), 0
        schema = shop_schema()
        columns = {
            "item_id": column_hash(np.arange(items)),
            "category": column_hash([f"c{i % CATEGORIES}" for i in range(items)]),
        }
        keys = np.unique(FeatureBuilder(schema).keys(columns, items))
        self._keys = keys[keys != 0]
        self._stores = [TileStore.of(schema.windows) for _ in range(settings.partitions)]
        for store in self._stores:
            _count_month(store, self._keys, self._now_ms, self._rng)

    def publish(self) -> None:
        """Sends the catalogue and all counts."""
        for i in range(self._items):
            item = Item(i, item_attributes(i), self._now_ms - (i % 60) * DAY_MS)
            self._producer.send(ITEMS, key=key_of(i), value=to_json(item))
        for partition, store in enumerate(self._stores):
            self._send(partition, self._keys, store)
        self._producer.flush()

    def publish_changes(self, keys: int = KEYS_A_SECOND) -> None:
        """Sends the counts of ``keys`` window keys, to which one exposure was added."""
        partition = self._seq % len(self._stores)
        store, chosen = self._stores[partition], self._rng.choice(self._keys, keys)
        store.add(chosen, np.full(keys, wall_ms()), np.zeros(keys, np.int64))
        self._send(partition, np.unique(chosen), store)

    def _send(self, partition: int, keys: Any, store: TileStore) -> None:
        for message in pack_tiles(partition, self._seq, wall_ms(), keys, store.export(keys)):
            self._producer.send(FEATURES_ITEMS, key=str(partition).encode(), value=to_msgpack(message))
            self._seq = message.seq + 1


def _count_month(store: TileStore, keys: Any, now_ms: int, rng: np.random.Generator) -> None:
    """Exposures and clicks of each key in some ten hours of a month."""
    n = len(keys)
    for _ in range(10):
        hours_ms = now_ms - rng.integers(1, 30 * 24, n) * HOUR_MS
        store.add(keys, hours_ms, rng.integers(0, 2, n), rng.integers(1, 20, n))


def fill_users(settings: Settings, users: int, items: int, seed: int = 0) -> None:
    """Writes users 1 to ``users`` into Redis as the stream does: a profile, their own counts, counts in twelve
    categories each, and what they clicked last of ``items`` items, sixteen of them."""
    rng, builder, now_ms = np.random.default_rng(seed), FeatureBuilder(shop_schema()), wall_ms()
    at = {name: k for k, name in enumerate(builder.layout.key_names)}
    named = column_hash([f"c{i}" for i in range(CATEGORIES)])
    with closing(redis.Redis.from_url(redis_url(settings.redis))) as client:
        for start in range(1, users + 1, _USERS_A_TIME):
            ids = np.arange(start, min(start + _USERS_A_TIME, users + 1))
            columns = {
                "user_id": np.repeat(column_hash(ids), USER_CATEGORIES),
                "category": rng.choice(named, len(ids) * USER_CATEGORIES),
            }
            keys = builder.keys(columns, len(ids) * USER_CATEGORIES)
            liked = keys[:, at["user_id*category"]].reshape(len(ids), USER_CATEGORIES)
            wanted = np.column_stack([keys[::USER_CATEGORIES, at["user_id"]], liked])
            store = TileStore.of(builder.schema.windows)
            for _ in range(2):
                _count_month(store, wanted.ravel(), now_ms, rng)
            lists = iter(zip(window_fields(wanted), store.export(wanted.ravel()), strict=True))
            pipeline = client.pipeline(transaction=False)
            for user in ids.tolist():
                tiles = dict(next(lists) for _ in range(wanted.shape[1]))
                profile = pack_profile(user_attributes(user))
                clicks = enumerate(rng.integers(0, items, MOST_RECENT).tolist(), 1)
                recent = pack_recent(Recent([Past(item, now_ms - age * HOUR_MS) for age, item in clicks], []))
                pipeline.hset(
                    settings.key(user_key(user)), mapping=cast(Any, {PROFILE: profile, RECENT: recent, **tiles})
                )
            pipeline.execute()


class PageLog:
    """Reads the topic ``impressions`` from where it ends now, and says which pages are in it.

    Attributes:
        unreadable: messages that are no impression.
        compared: pages whose log was compared with their answer.
        unlike: pages whose log has other items, scores or another version than their answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._reader = make_reader(settings, IMPRESSIONS)
        ends = self._reader.end_offsets(list(self._reader.assignment()))
        for partition, end in ends.items():
            self._reader.seek(partition, end)
        self.unreadable = self.compared = self.unlike = 0
        self._early: set[str] = set()  # read before anybody asked for them

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def missing(self, wanted: set[str], answers: Mapping[str, str], patience_s: float) -> set[str]:
        """Reads on until the pages ``wanted`` are there, or nothing comes for ``patience_s``; those that are not.

        Args:
            answers: bodies of some of their answers, by request id, to compare.
        """
        left, heard = wanted - self._early, time.monotonic()
        self._early -= wanted
        while left and time.monotonic() - heard < patience_s:
            for records in self._reader.poll(timeout_ms=200).values():
                heard = time.monotonic()
                for record in records:
                    self._see(record.value, left, answers)
        return left

    def _see(self, raw: bytes, left: set[str], answers: Mapping[str, str]) -> None:
        try:
            page = decode_served(raw)
        except BadEventError:
            self.unreadable += 1
            return
        if page.request_id in left:
            left.discard(page.request_id)
        else:
            self._early.add(page.request_id)
        answer = answers.get(page.request_id)
        if answer is not None:
            self.compared += 1
            self.unlike += not same_page(page, answer)


def same_page(page: PageView, answer: str) -> bool:
    """Whether an impression has the version, items and scores that the client was told."""
    told = msgspec.json.decode(answer)
    scores = np.frombuffer(page.scores, "<f4")
    shown = np.array([placed["score"] for placed in told["items"]], np.float32)
    return bool(
        told["model_version"] == page.model_version
        and [placed["item_id"] for placed in told["items"]] == page.items
        and np.array_equal(shown, np.where(np.isfinite(scores), scores, np.float32(0)))
    )


class Steadily(threading.Thread):
    """Calls something at an even pace, until it is ended. A call that takes too long delays the next one, no more.

    Attributes:
        failure: what ended it early.
    """

    def __init__(self, call: Any, every_s: float) -> None:
        super().__init__(name="bench feed", daemon=True)
        self._call, self._every_s = call, every_s
        self._ending = threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        due = time.monotonic()
        while not self._ending.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._every_s, time.monotonic())
            try:
                self._call()
            except Exception as error:
                self.failure = error
                return

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self.join()
        if self.failure is not None:
            raise self.failure
