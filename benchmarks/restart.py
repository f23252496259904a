# shell
"""How long a scorer that starts takes until it is ready, with all that it reads in place.

::

    store     a snapshot of 5,000,000 rows, 500 MB in parts                     made up, as in benchmarks/tables.py
              the item index: 100,000 items, 4 x 100,200 window keys            written by the first scorer
    broker    items          the catalogue, and the changes of a minute
              features.items the counts of 31 days, one message a minute; then one a second for a minute
              model.deltas   one delta a second for a minute, behind the snapshot

The first scorer has no index in the store, and reads the catalogue and all 31 days, as every scorer once did. It
writes the index and ends. What came "since then" is put on the topics, and scorers are started one after the other.
Each time runs from the start of the process (``millrace serve``) to the first ``/readyz`` of status 200.

The stream publishes counts once a second, so 31 days have up to sixty times as many messages as the first scorer reads
here. 100,000 items are ten times what the simulated shop has on sale at once.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from learner.ranker.model import OnlineModel
from millrace.basics.errors import ServiceError
from millrace.basics.hashing import column_hash
from millrace.basics.store import Sealed, Store
from millrace.contracts.events import Item, key_of, to_json, to_msgpack
from millrace.contracts.itemtiles import pack as pack_tiles
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import FEATURES_ITEMS, ITEMS, MODEL_DELTAS
from millrace.processes.kafka import create_topics, make_producer, topic_ids
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port
from millrace.processes.spawn import spawn, stop, tail
from millrace.processes.wall import wall_ms
from millrace.versions.image import Image, TableRows
from millrace.versions.modellog import chunks_of, encode_claim, encode_delta, encode_snapshot
from millrace.versions.modelstore import ModelStore
from millrace.versions.packing import pack
from millrace.versions.versioning import Announcement, Claim, Place, chain
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore

ROWS, SLICE = 5_000_000, 100_000
ITEM_COUNT, CATEGORIES = 100_000, 200
HISTORY, KEYS_A_MESSAGE = 31 * 24 * 60, 100
SINCE, KEYS_SINCE, ROWS_SINCE = 60, 1000, 2000
STARTS = 5
PATIENCE_S = 600.0
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

Say = Callable[[str], None]


def scorer_restart(
    rows: int = ROWS, items: int = ITEM_COUNT, history: int = HISTORY, starts: int = STARTS, progress: Say = print
) -> dict[str, float]:
    """Seconds from the start of the process to ready: the median and the longest of ``starts``, the first scorer's
    without an index in the store, and until a scorer listens; then how much there was to read.

    Raises:
        ServiceError: a scorer ended, or was not ready within ten minutes.
    """
    with tempfile.TemporaryDirectory(prefix="millrace-restart-") as name:
        folder = Path(name)
        with EmbeddedBroker(folder / "broker") as broker, EmbeddedRedis(folder / "redis") as redis:
            settings = Settings(
                kafka=broker.address,
                redis=redis.address,
                data=str(folder / "data"),
                store=str(folder / "store"),
                port=free_port(),
                metrics_port=0,
            )
            create_topics(settings)
            with closing(make_producer(settings)) as producer:
                shop = _Shop(settings, producer, items)
                progress(f"writing a snapshot of {rows:,} rows")
                model = _Model(settings, producer, rows)
                progress(f"publishing {items:,} items and {history:,} messages of counts")
                shop.publish_all(history)
                first = _until_ready(settings, folder, _has_index)
                progress(f"without an index in the store: ready after {first[1]:.1f} s")
                shop.publish_since()
                model.publish_since()
            found = []
            for n in range(starts):
                found.append(_until_ready(settings, folder))
                progress(f"start {n + 1}: ready after {found[-1][1]:.2f} s")
            ready = sorted(seconds for _, seconds in found)
            return {
                "scorer_restart_seconds": ready[len(ready) // 2],
                "scorer_restart_longest_seconds": ready[-1],
                "scorer_listens_seconds": sorted(seconds for seconds, _ in found)[len(found) // 2],
                "scorer_restart_without_index_seconds": first[1],
                "rows": float(rows),
                "items": float(items),
                "keys": float(shop.keys),
                "messages_of_history": float(shop.history),
                "messages_since": float(shop.since + model.since),
            }


class _Shop:
    """The catalogue and its counts, as the topics carry them."""

    def __init__(self, settings: Settings, producer: Any, items: int) -> None:
        self._producer, self._settings = producer, settings
        self._rng = np.random.default_rng(0)
        self.now_ms = wall_ms()
        self._items = items
        schema = shop_schema()
        builder = FeatureBuilder(schema)
        columns = {
            "item_id": column_hash(np.arange(items)),
            "category": column_hash([f"c{i % CATEGORIES}" for i in range(items)]),
        }
        keys = np.unique(builder.keys(columns, items))
        self._keys = keys[keys != 0]
        self.stores = [self._counted(TileStore.of(schema.windows)) for _ in range(settings.partitions)]
        self.keys = sum(len(store) for store in self.stores)
        self.messages = self.history = self.since = 0

    def _counted(self, store: TileStore) -> TileStore:
        """A partition's counts of a month: exposures and clicks of each key in some ten different hours."""
        n, rng = len(self._keys), self._rng
        for _ in range(10):
            hours_ms = self.now_ms - rng.integers(1, 30 * 24, n) * HOUR_MS
            store.add(self._keys, hours_ms, rng.integers(0, 2, n), rng.integers(1, 20, n))
        return store

    def publish_all(self, history: int) -> None:
        for i in range(self._items):
            self._item(i)
        for partition, store in enumerate(self.stores):
            self._counts(partition, self._keys, store)
        for n in range(history):
            partition = n % len(self.stores)
            self._counts(partition, self._rng.choice(self._keys, KEYS_A_MESSAGE), self.stores[partition])
        self._producer.flush()
        self.history = self.messages

    def publish_since(self) -> None:
        for n in range(SINCE):
            self._item(int(self._rng.integers(self._items)))
            partition = n % len(self.stores)
            self._counts(partition, self._rng.choice(self._keys, KEYS_SINCE), self.stores[partition])
        self._producer.flush()
        self.since = self.messages - self.history + SINCE

    def _item(self, i: int) -> None:
        attributes: dict[str, Any] = {
            "category": f"c{i % CATEGORIES}",
            "parent_category": f"p{i % 20}",
            "shop_id": i % 3000,
            "price_band": i % 7,
            "price": float(i % 500),
            "min_order": 1 + i % 12,
        }
        item = Item(i, attributes, self.now_ms - (i % 60) * DAY_MS)
        self._producer.send(ITEMS, key=key_of(i), value=to_json(item))

    def _counts(self, partition: int, keys: Any, store: TileStore) -> None:
        for message in pack_tiles(partition, self.messages, self.now_ms, keys, store.export(keys)):
            self._producer.send(FEATURES_ITEMS, value=to_msgpack(message))
            self.messages += 1


class _Model:
    """A snapshot of made-up rows in the store, and deltas on the topic."""

    def __init__(self, settings: Settings, producer: Any, rows: int) -> None:
        self._producer = producer
        self._rng = np.random.default_rng(1)
        self._schema = shop_schema()
        self._model = OnlineModel(self._schema, settings.spec() | {"max_rows": int(rows * 1.2)}, 0)
        self._blank, training = self._model.snapshot()
        self._table = max(self._model.tables, key=lambda name: self._model.tables[name].width)
        self._ids = np.arange(1, rows + 1) * np.int64(-7046029254386353131)
        self._claimant, self.since = "bench", 0
        self._place = Place(1, 1)
        follows = self._send(encode_claim(Claim(1, self._claimant))) + 1
        store = ModelStore(settings.place("models"))
        parts: list[tuple[Sealed, Sealed]] = []
        for start in range(0, rows, SLICE):
            image = Image({}, self._rows(self._ids[start : start + SLICE]))
            parts.append(store.write_part(self._place, len(parts), image, {}))
        parts.append(store.write_part(self._place, len(parts), self._blank, training))
        facts: dict[str, Any] = {
            "spec": self._model.spec,
            "log": topic_ids(settings)[MODEL_DELTAS],
            "follows": follows,
            "extra": {"rows": {self._table: rows}},
        }
        note = store.write_manifest(parts, **self._meta(), **facts)
        self._send(encode_snapshot(note))
        self._hash = note.hash

    def publish_since(self) -> None:
        for _ in range(SINCE):
            self._place = Place(1, self._place.number + 1)
            rows = self._rows(np.unique(self._rng.choice(self._ids, ROWS_SINCE)))
            body = pack(Image({}, rows))
            digest = hashlib.sha256(body).hexdigest()
            own = chain(self._hash, digest)
            note = Announcement(
                kind="delta",
                parent=self._hash,
                hash=own,
                digest=digest,
                size=len(body),
                chunks=chunks_of(len(body)),
                spec={},
                **self._meta(),
            )
            for message in encode_delta(note, body):
                self._send(message)
                self.since += 1
            self._hash = own

    def _rows(self, ids: Any) -> dict[str, TableRows]:
        """Rows of these ids, of made-up numbers; and none in the other tables."""
        n = len(ids)
        columns = {
            name: self._rng.random((n, *c.shape[1:]), np.float32)
            for name, c in self._blank.tables[self._table].columns.items()
        }
        return {**self._blank.tables, self._table: TableRows(ids, columns)}

    def _meta(self) -> dict[str, Any]:
        return {
            "epoch": 1,
            "version": self._place.number,
            "claimant": self._claimant,
            "schema_id": self._schema.id,
            "event_ms": wall_ms(),
            "trained": 1,
            "published_ms": wall_ms(),
        }

    def _send(self, message: bytes) -> int:
        return int(self._producer.send(MODEL_DELTAS, value=message).get(PATIENCE_S).offset)


def _has_index(settings: Settings) -> bool:
    return any(name.count("-") == 2 for name in Store(settings.place("index"), writes=False).names())


def _until_ready(
    settings: Settings, folder: Path, also: Callable[[Settings], bool] = lambda _: True
) -> tuple[float, float]:
    """Starts a scorer and ends it: seconds until it listened, and until it was ready. ``also``: what is waited for
    besides, without being measured."""
    log = folder / f"scorer-{time.monotonic_ns()}.log"
    # The first writes the index as soon as it is ready; later ones find it young.
    chosen = msgspec.structs.replace(settings, index_seconds=2.0) if also is _has_index else settings
    began = time.perf_counter()
    child = spawn([sys.executable, "-m", "commands", "run", "serve"], {**os.environ, **chosen.environment()}, log)
    try:
        listened = 0.0
        for status in _asked(settings.port):
            now = time.perf_counter() - began
            if status and not listened:
                listened = now
            if status == 200:
                break
            if child.poll() is not None or now > PATIENCE_S:
                raise ServiceError(f"scorer not ready after {now:.0f} s ({tail(log)})", "see what it says")
        while not also(settings):
            time.sleep(0.1)
        return listened, now
    finally:
        stop(child)


def _asked(port: int) -> Iterator[int]:
    """What ``/readyz`` answers, again and again; 0 while nobody listens."""
    while True:
        try:
            with _connection(port) as connection:
                while True:
                    connection.request("GET", "/readyz")
                    answer = connection.getresponse()
                    answer.read()
                    yield answer.status
                    time.sleep(0.02)
        except (OSError, http.client.HTTPException):
            yield 0
            time.sleep(0.02)


@contextmanager
def _connection(port: int) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        yield connection
    finally:
        connection.close()
