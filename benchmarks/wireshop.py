# shell
"""The whole loop in one process, without a broker: what each role would send, and when.

::

    simulator's shoppers ──► scorer's pages ──► impressions ─┐
            └──► outbox ──► events ──────────────────────────┴──► partitions ──► samples
                                                                      └──► item tiles, back to the scorer's index

Time goes in steps of the wall, and the event clock runs ``speed`` times as fast. The windows hold some days of the
shop's previous recommender when the play begins, so that counts are as they are after a while. A function of the seed:
nothing reads a clock.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import column_hash, kafka_partition
from millrace.contracts import itemtiles
from millrace.contracts.clock import EventClock
from millrace.contracts.events import Exposure, Id, Impression, key_of, to_msgpack
from millrace.contracts.online import PROFILE, pack_profile, window_fields
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, FEATURES_ITEMS, IMPRESSIONS, SAMPLES
from millrace.versions.versioning import Announcement
from scorer.catalog.index import ItemIndex
from scorer.page.serving import Serving
from scorer.recall.recall import make_lists
from scorer.users.userrecord import Record
from simulator.daylog import day_table
from simulator.outbox import Outbox, Rates
from simulator.reaction import react
from simulator.visits import Visits
from simulator.world import World, start_of
from stream.partition.partition import Message, Partition, Policy

STEP_MS = 20
"""As long as the stream's worker lets messages gather."""
FIRST_DAY = 20_500
OPENS_MS = 10 * 3_600_000  # in a busy hour
_TIMES = ("ts_ms", "click_ms", "collect_ms", "cart_ms", "purchase_ms")


@dataclass(frozen=True, slots=True)
class Sent:
    """What a role gave to its producer: an event's or tiles' bytes, or what a message is to be made of."""

    wall_ms: int
    role: str
    topic: str
    partition: int
    key: bytes | None
    value: bytes | Impression | SampleBatch


class Shop:
    """A shop with a stream and a scorer.

    Args:
        seed: which shop, and all chances.
        users: how many come on an average day.
        days: of history in the windows.
        speed: event seconds a second of the wall.
    """

    def __init__(self, seed: int = 0, users: int = 4000, days: int = 8, speed: float = 240.0) -> None:
        self.schema, self.settings, self.speed = shop_schema(), Settings(), speed
        self.world, self._day = World(seed, users), FIRST_DAY + days
        self._open_ms = start_of(self._day) + OPENS_MS
        self.clock = EventClock(0, self._open_ms, speed)
        self.wall_ms, self.exposures = 0, 0
        self.sent: list[Sent] = []
        count = self.settings.partitions
        policy = Policy.of(self.settings)
        self._partitions = [Partition(p, self.schema, policy, count) for p in range(count)]
        self._home = [kafka_partition(key_of(user), count) for user in range(self.world.shoppers.n + 1)]
        self._waiting: list[list[Message]] = [[] for _ in range(count)]
        self._offsets = Counter[tuple[str, int]]()
        self._seq = self._published_ms = 0
        self._serving = Serving(
            self.settings, self.schema, self.clock, self, self._log, _Quiet(), lambda: self.wall_ms, str
        )
        self._index = ItemIndex(self._serving.builder)
        self._outbox = Outbox(self, _Quiet(), self.settings, Rates(), np.random.default_rng(seed), f"shop{seed}")
        for number in range(FIRST_DAY, self._day + 1):
            self._remember(number)
        self._stock()

    def play(self, pages: int) -> None:
        """Opens until so many more pages have been seen."""
        asyncio.run(self._play(pages))

    # -- what the scorer asks for: see scorer.page.serving.Store ------------------------------------------------------

    async def record(self, user_id: Id) -> Record:
        """A user's hash as Redis would have it."""
        user = int(user_id)
        columns = {"user_id": column_hash([user]), "category": self._categories}
        keys = self._serving.builder.keys(columns, len(self._categories))
        names = self.schema.layout.key_names
        wanted = np.append(keys[:, names.index("user_id*category")], keys[0, names.index("user_id")])
        lists = self._partitions[self._home[user]].windows.export(wanted)
        tiles = {field: tiles for field, tiles in zip(window_fields(wanted), lists, strict=True) if len(tiles) > 2}
        return Record({PROFILE: pack_profile(self.world.shoppers.user(user - 1).attributes), **tiles})

    async def kept(self, key: str) -> bytes | None:
        return None

    async def keep(self, key: str, value: bytes, seconds: float) -> None:
        pass

    async def list_keys(self) -> list[str]:
        return []

    async def lists(self, names: Sequence[str]) -> list[list[str]]:
        return []

    # -- what the roles send ------------------------------------------------------------------------------------

    def put(self, topic: str, key: bytes, value: bytes) -> None:
        """From the simulator's outbox."""
        if topic == EVENTS:
            self._arrive(topic, key, value, self._send("simulate", topic, key, value))

    def _log(self, impression: Impression) -> None:
        key = key_of(impression.user_id)
        self._arrive(IMPRESSIONS, key, to_msgpack(impression), self._send("serve", IMPRESSIONS, key, impression))

    def _send(self, role: str, topic: str, key: bytes, value: bytes | Impression) -> int:
        partition = kafka_partition(key, len(self._partitions))
        self.sent.append(Sent(self.wall_ms, role, topic, partition, key, value))
        return partition

    def _arrive(self, topic: str, key: bytes, raw: bytes, partition: int) -> None:
        self._waiting[partition].append(Message(topic, self._offsets[topic, partition], raw))
        self._offsets[topic, partition] += 1

    # -- time -----------------------------------------------------------------------------------------------------

    async def _play(self, pages: int) -> None:
        visits = self.world.visits(self._day)
        view = int(np.searchsorted(visits.start_ms, self.clock.at(self.wall_ms)))
        last = view + pages
        while view < last:
            self.wall_ms += STEP_MS
            now_ms = self.clock.at(self.wall_ms)
            while view < last and visits.start_ms[view] <= now_ms:
                await self._page(visits, view)
                view += 1
            self._outbox.send_due(now_ms, self.wall_ms)
            for number, partition in enumerate(self._partitions):
                messages, self._waiting[number] = self._waiting[number], []
                samples = partition.take(messages, now_ms).samples if messages else None
                if samples is not None and len(samples):
                    self.sent.append(Sent(self.wall_ms, "stream", SAMPLES, number, None, samples))
            if self.wall_ms >= self._published_ms + 1000 * self.settings.publish_seconds:
                self._published_ms = self.wall_ms
                self._publish()

    async def _page(self, visits: Visits, view: int) -> None:
        world, user, ts_ms = self.world, int(visits.user[view]), int(visits.start_ms[view])
        request = f"{FIRST_DAY:08x}-{view}"
        asked = {"user_id": user + 1, "ts_ms": ts_ms, "request_id": request, "size": int(visits.size[view])}
        answer = await self._serving.recommend(msgspec.json.encode(asked))
        items, position = [placed.item_id for placed in answer.items], np.arange(len(answer.items))
        day = world.day(self._day)
        chance = day.click_probability(user, day.rows(np.array(items)), position)
        keys = (user, visits.day, int(visits.session[view]), int(visits.page[view]))
        business = bool(world.shoppers.business[user])
        done = react(world.seed, world.params, chance, business, ts_ms, position, keys)
        exposure = Exposure(f"{request}/e", request, ts_ms, user + 1, items)
        self._outbox.page(exposure, answer.arm)
        for slot in np.flatnonzero(done.click_ms > 0).tolist():
            self._outbox.actions(exposure, slot, done.times(slot), answer.arm)
        self.exposures += len(items)

    def _publish(self) -> None:
        for number, partition in enumerate(self._partitions):
            found = partition.changes()
            self._index.put_tiles(number, found.item_keys, found.item_tiles)
            for message in itemtiles.pack(number, self._seq + 1, found.event_ms, found.item_keys, found.item_tiles):
                self._seq = message.seq
                key, value = str(number).encode(), to_msgpack(message)
                self.sent.append(Sent(self.wall_ms, "stream", FEATURES_ITEMS, 0, key, value))
        self._serving.shelf.follow(lambda: self._index.changes(self.clock.at(self.wall_ms)))

    # -- before it opens --------------------------------------------------------------------------------------------

    def _remember(self, number: int) -> None:
        """Counts a day of the previous recommender in the windows, as far as it lies before the opening."""
        log = day_table(self.world, number)
        columns = {name: column_hash(log[name].to_pylist()) for name in ("user_id", "category", "item_id")}
        keys = self._serving.builder.keys(columns, len(log))
        home = np.array(self._home)[log["user_id"].to_numpy()]
        for action, name in enumerate(_TIMES):
            at_ms = log[name].fill_null(0).to_numpy()
            for p, partition in enumerate(self._partitions):
                rows = np.flatnonzero((home == p) & (at_ms > 0) & (at_ms < self._open_ms))
                partition.windows.add(keys[rows], at_ms[rows], np.full(len(rows), action))

    def _stock(self) -> None:
        """Puts what is on sale on the scorer's shelves, with its counts, and a model that scores by chance."""
        serving, index, goods = self._serving, self._index, self.world.day(self._day).goods
        there = np.flatnonzero((goods.born_ms <= self._open_ms) & (goods.dies_ms > self._open_ms))
        items = [self.world.catalogue.item(goods, row) for row in there.tolist()]
        prepared = [index.prepare(item) for item in items]
        index.put(prepared)
        self._categories = column_hash(sorted({str(item.attributes["category"]) for item in items}))
        keys = np.unique(np.concatenate([p.arrays["keys"] for p in prepared]))
        for number, partition in enumerate(self._partitions):
            partition.windows.export(partition.windows.keys(), settle=True)  # told of: what changes now is published
            index.put_tiles(number, keys, partition.windows.export(keys))
        note = Announcement(
            kind="snapshot", epoch=1, version=1, claimant="", parent="", hash="", digest="", size=0,
            schema_id=self.schema.id, spec={}, event_ms=self._open_ms, trained=0, published_ms=0,
        )  # fmt: skip
        serving.install(note, _Chance())
        while index.refresh_hot(self._open_ms):
            pass
        serving.shelf.follow(lambda: index.changes(self._open_ms))
        columns = index.columns(np.arange(len(index)))
        serving.lists = make_lists(serving.builder, columns, index.alive, index.born_ms, index.heat)


class _Chance:
    """A model whose probabilities are hashes of a row's ids."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        mixed = np.bitwise_xor.reduce(cat, axis=1).view(np.uint64) >> np.uint64(40)
        return np.asarray(0.3 * mixed / 2.0**24, np.float32)


class _Quiet:
    """Counts nothing: see scorer.page.serving.Meters and simulator.outbox.Observer."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None
