# core
"""A shop in one process, as a scorer that recalls holds it at any time of a simulated world's days.

::

    exposures ── take() ──► events that wait for their time
                               │ advance(ts): what is due by ts
                               ├─► windows of users and items ──► records as Redis has them, item counts
                               ├─► last clicks and purchases ───► the same records
                               └─► co-clicks ───────────────────► neighbours of an item
    a model's retrieval head ── publish() ─────────► tower ──► vectors of all living items, user tower
    world ────────────────────────► births and deaths ──────────► item index ──► shelf, recall's lists

All parts are the classes that stream and scorer run, with one partition of events; only Kafka, Redis and threads are
left out.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from commands.replay.logfeatures import Labels, LogRows
from learner.retrieval.tower import Tower, UserTower
from millrace.basics.durations import DAY_MS
from millrace.basics.hashing import U64, column_hash
from millrace.contracts.clock import EventClock
from millrace.contracts.events import CLICK, PURCHASE, Id
from millrace.contracts.online_layout import PROFILE, RECENT, pack_profile, window_fields
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.logs import LogTable
from millrace.windows.affinity import clicks_a_day
from millrace.windows.tiles import TileStore
from scorer.catalog.itemimage import ItemImage
from scorer.catalog.itemtable import ItemRows, ItemTable
from scorer.feeder.primary import Primary
from scorer.page.candidates import Recaller, Sources
from scorer.page.rank import Ranker
from scorer.recall import nearestkernels
from scorer.recall.candidate_lists import CandidateLists, largest
from scorer.recall.nearest import Retrieval, new_tiles
from scorer.recall.neighbours import CoClickFeed as MergedCoClicks
from scorer.recall.neighbours import Neighbours
from scorer.users.userrecord import KnownUser
from simulator.catalogue import Goods, price_band
from simulator.params import DEFAULT, Params
from simulator.world import World, day_of
from stream.partition.coclick_counts import EARLIER, CoClicks
from stream.partition.recents import CLICKS, PURCHASES, Recents

I64 = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]
"""Columns by name, all of one length."""

LIVING_A_BIRTH = 36.9
"""Items on sale at a time for each that is born a day, at the default length of life."""
NEVER_MS = 1 << 62
SLICE = 65_536
"""Rows and slots of the index that the shelf takes at a time."""


def params_of(items: int) -> Params:
    """The default world's parameters, with as many births that about ``items`` are on sale at a time.

    >>> params_of(5904).births
    160
    """
    return replace(DEFAULT, births=max(1, round(items / LIVING_A_BIRTH)))


class Waiting:
    """Rows that wait for their time, the column ``ms``."""

    def __init__(self) -> None:
        self._rows: list[Rows] = []

    def put(self, rows: Rows) -> None:
        self._rows.append(rows)

    def due(self, ts_ms: int) -> Rows:
        """Takes out the rows of before ``ts_ms``, in order of time; of equal times the first that was put comes first.
        Empty when there are none."""
        if not self._rows:
            return {}
        rows = {name: np.concatenate([r[name] for r in self._rows]) for name in self._rows[0]}
        order = np.argsort(rows["ms"], kind="stable")
        split = int(np.searchsorted(rows["ms"][order], ts_ms))
        self._rows = [{name: column[order[split:]] for name, column in rows.items()}]
        return {name: column[order[:split]] for name, column in rows.items()} if split else {}


class RecallShop:
    """See the module's text. One thread.

    Args:
        start_ms: what is on sale then is in the index from the beginning.
    """

    def __init__(self, world: World, schema: Schema, start_ms: int, settings: Settings | None = None) -> None:
        self.world, self.schema, self.settings = world, schema, settings or Settings()
        self.now_ms = start_ms
        self.primary = Primary(self.settings, schema, EventClock(), lambda: self.now_ms)
        self.builder, self.index = self.primary.builder, self.primary.index
        self.items = ItemTable(self.builder)
        self.ranker = Ranker(self.builder, self.items)
        self.windows = TileStore.of(schema.windows)
        """Counts of all window keys, as the stream's partitions have them together."""
        self.events = 0
        self._events = Waiting()
        names = schema.windows.keys
        self._of_item = np.array([k for k, key in enumerate(names) if schema.key_side(key) == "item"], np.intp)
        self._of_user = np.array([k for k, key in enumerate(names) if schema.key_side(key) == "user"], np.intp)
        self._user_keys: defaultdict[int, set[int]] = defaultdict(set)
        self._changed: set[int] = set()  # item-side keys that the index has to be told of
        self._recents, self._coclicks, self._merged = Recents(), CoClicks(), MergedCoClicks()
        self._recent: dict[Id, bytes] = {}  # by user id: the field of the record
        self._ids = np.empty(0, np.int64)  # by index row
        self._item_keys = np.empty(0, np.uint64)  # the window key of each item alone, by index row
        item = (self.builder.item_column,)
        self._item_key = next(k for k, key in enumerate(names) if key.columns == item)
        self._version = 0
        self._day, self._next_ms = -1, 0  # the day whose goods are known, and when the next of them comes or leaves
        self.lists = CandidateLists()
        self.retrieval: Retrieval | None = None
        self.neighbours: Neighbours | None = None
        self.recaller = Recaller(self.settings, self.ranker)
        self.births_and_deaths(start_ms)

    # -- what happens -----------------------------------------------------------------------------------------

    def take(self, table: pa.Table) -> None:
        """Exposures and what followed them: columns as of :func:`simulator.daylog.day_table`, in order of time. Nothing
        counts before :meth:`live` has come to its time."""
        log = LogTable(table, "user_id", "item_id", "click", table.num_rows, 0)
        rows = LogRows(log, self.schema)
        labels = Labels(log, self.schema, rows)
        keys = self.builder.keys(rows.columns(slice(None))[0], rows.n)
        user, item, of = table["user_id"].to_numpy() - 1, table["item_id"].to_numpy(), labels.event_row
        self._events.put(
            {"ms": labels.event_ms, "action": labels.event_action, "keys": keys[of], "user": user[of], "item": item[of]}
        )

    def live(self, ts_ms: int) -> None:
        """Counts all that happened before ``ts_ms``."""
        self.now_ms = ts_ms
        events = self._events.due(ts_ms)
        if events:
            self.count(events["keys"], events["ms"], events["action"], events["user"])
            for action in (CLICK, PURCHASE):
                done = np.flatnonzero(events["action"] == action)
                self.acted(events["user"][done], events["item"][done], events["ms"][done], action)

    def count(self, keys: U64, ts_ms: I64, action: NDArray[Any], user: I64) -> None:
        """Counts actions, (n,), in the windows of ``keys`` (n, K) of the users ``user`` (indices of shoppers)."""
        self.events += len(keys)
        self.windows.add(keys, ts_ms, action)
        self._changed.update(np.unique(keys[:, self._of_item]).tolist())
        for k in self._of_user.tolist():
            _, first = np.unique(keys[:, k], return_index=True)
            for who, key in zip(user[first].tolist(), keys[first, k].tolist(), strict=True):
                self._user_keys[who].add(key)

    def acted(self, user: I64, item: I64, ts_ms: I64, action: int) -> None:
        """Clicks, or purchases, in order of time: (n,) shoppers by index, item ids, times. Others are passed over."""
        if action not in (CLICK, PURCHASE) or not len(item):
            return
        what = CLICKS if action == CLICK else PURCHASES
        hashes = column_hash(item)
        sizes = np.zeros(len(item), np.int64)
        before: list[Any] = []  # item, time, item, time, ...
        for i, (who, item_id, ms) in enumerate(zip(user.tolist(), item.tolist(), ts_ms.tolist(), strict=True)):
            told = self._recents.add(who + 1, what, item_id, ms, EARLIER)
            sizes[i] = len(told) // 2
            before += told
        self._recent.update(self._recents.changes())
        if action == CLICK and before:
            others = column_hash(np.array(before[::2], np.int64))
            self._coclicks.click(hashes, np.asarray(ts_ms, np.int64), sizes, others, np.array(before[1::2], np.int64))

    # -- what a scorer holds ------------------------------------------------------------------------------------

    def advance(self, ts_ms: int) -> None:
        """:meth:`live`, then :meth:`renew`."""
        self.live(ts_ms)
        self.renew(ts_ms)

    def births_and_deaths(self, ts_ms: int) -> None:
        """Puts into the index what was born, and takes out what left the shop, by ``ts_ms``."""
        day = day_of(ts_ms)
        if day == self._day and ts_ms < self._next_ms:
            return
        goods = self.world.catalogue.goods(day)
        turns = np.concatenate([goods.born_ms, goods.dies_ms])
        self._day, self._next_ms = day, int(turns.min(initial=NEVER_MS, where=turns > ts_ms))
        on_sale = (goods.born_ms <= ts_ms) & (ts_ms < goods.dies_ms)
        fresh = on_sale & ~np.isin(goods.item_id, self._ids)
        if fresh.any():
            born = goods.take(fresh)
            image = self.image(born)
            self.index.put([image])
            self._ids = np.concatenate([self._ids, born.item_id])
            own = self.index.form.own_keys.index(self._item_key)
            self._item_keys = np.concatenate([self._item_keys, image.arrays["keys"][:, own]])
        gone = self.index.alive & ~np.isin(self._ids, goods.item_id[on_sale])
        for item_id in self._ids[gone].tolist():
            self.index.remove(item_id)

    def image(self, goods: Goods) -> ItemImage:
        """Goods as rows of the index: what the topic ``items`` says of them."""
        builder, parent = self.builder, self.world.catalogue.parent_of[goods.category]
        values: dict[str, NDArray[Any]] = {
            "item_id": goods.item_id,
            "category": np.char.add("c", goods.category.astype(str)),
            "parent_category": np.char.add("p", parent.astype(str)),
            "shop_id": goods.shop + 1,
            "price_band": price_band(goods.price_z),
        }
        columns = {name: builder.column(name, values[name]) for name in self.index.form.names}
        arrays: dict[str, NDArray[Any]] = {
            **{f"column/{name}": column for name, column in columns.items()},
            "plain/price": goods.price.astype(np.float32),
            "plain/min_order": goods.min_order.astype(np.float32),
            "keys": builder.keys(columns, goods.n)[:, self.index.own_keys],
            "born_ms": goods.born_ms,
            "alive": np.ones(goods.n, np.bool_),
        }
        return ItemImage(goods.item_id.tolist(), arrays)

    def publish(self, tower: Tower, clicks: int) -> None:
        """Makes the next retrieval version: the vectors of all living items by ``tower``, which learnt from ``clicks``.

        Whoever has a retrieval head calls it after :meth:`renew`.
        """
        self._version += 1
        shelf, form = self.items, self.items.form
        rows = np.flatnonzero(shelf.alive)
        plain = shelf.rows.plain[rows]
        if "age_days" in form.plain_names:
            now = np.array([self.now_ms], np.int64)
            plain[:, form.plain_names.index("age_days")] = self.builder.age_days(now, shelf.rows.born_ms[rows])
        vectors = tower.item_vectors(shelf.rows.cat[rows], plain)
        tiles = new_tiles(len(rows), vectors.shape[1])
        nearestkernels.lay(vectors, np.arange(len(rows)), tiles)
        at = np.full(len(shelf), -1, np.int32)
        at[rows] = np.arange(len(rows))
        user = UserTower.of_arrays(tower.user_arrays())
        self.retrieval = Retrieval((1, self._version), clicks, rows.astype(np.int32), tiles, at, user)

    def renew(self, ts_ms: int) -> None:
        """Brings index, shelf, lists, retrieval version and neighbours up to ``ts_ms``."""
        self.now_ms = ts_ms
        self.births_and_deaths(ts_ms)
        self._changed.discard(0)
        if self._changed:
            keys = np.fromiter(self._changed, np.uint64, len(self._changed))
            self.index.put_tiles(0, keys, self.windows.export(keys))
            self._changed.clear()
        while self.primary.refresh_hot():
            pass
        self.items.follow(lambda: self.index.changes(ts_ms, SLICE, SLICE))
        self.lists = self.primary.sorting()()
        self._merged.take(0, self._coclicks.changes())
        self._merged.know(self.index.ids[self._merged.known :])
        if self._merged.changed:
            self.neighbours = Neighbours.of_arrays(self._merged.arrays(ts_ms // DAY_MS))

    # -- recall -------------------------------------------------------------------------------------------------

    def recall(self, user: KnownUser, ts_ms: int, size: int, seed: int) -> tuple[ItemRows, NDArray[np.uint8]]:
        """Candidates of the recall that serves, with the source of each; without those that left the shop since."""
        sources = Sources(self.lists, self.retrieval, self.neighbours)
        found = self.recaller.page(sources, user, ts_ms, size, 0, seed)
        alive = self.items.alive[found.rows]
        return found.rows[alive], found.sources[alive]

    def query_of(self, user: KnownUser, ts_ms: int) -> NDArray[np.float32]:
        """A user's vector by the present retrieval version. (W,)

        Raises:
            ValueError: there is no version yet.
        """
        if self.retrieval is None:
            raise ValueError("no retrieval version yet; publish one")
        clicks = [past for past in user.recent.clicks if past.ts_ms < ts_ms]
        rows = self.items.rows_of([past.item_id for past in clicks])
        ages = ts_ms - np.array([past.ts_ms for past in clicks], np.int64)
        return self.retrieval.query(self.ranker.user_ids(user), rows, ages)

    def clicks_a_day(self) -> NDArray[np.float32]:
        """How hot each item is, by index row, straight from the windows. (n,)"""
        heat = clicks_a_day(self.windows.counts(self._item_keys, self.now_ms), self.schema.windows)
        return heat.astype(np.float32)

    def popular(self, size: int) -> ItemRows:
        """The ``size`` hottest living items."""
        living = np.flatnonzero(self.index.alive)
        return living[largest(self.clicks_a_day()[living], size)]

    # -- who asks -----------------------------------------------------------------------------------------------

    def record(self, user: int) -> dict[bytes, bytes]:
        """A shopper's hash in the online store."""
        attributes = self.world.shoppers.user(user).attributes
        record = {PROFILE: pack_profile(attributes)}
        held = self._user_keys.get(user)
        if held:
            keys = np.fromiter(held, np.uint64, len(held))
            record |= dict(zip(window_fields(keys), self.windows.export(keys), strict=True))
        recent = self._recent.get(str(user + 1))
        if recent:
            record[RECENT] = recent
        return record

    def user(self, user: int) -> KnownUser:
        """A shopper as a scorer reads it, by index."""
        return KnownUser.of(self.builder, user + 1, self.record(user))

    def rows_of(self, item_ids: I64) -> ItemRows:
        """Index rows of items, -1 where the index has none. (n,)"""
        return self.index.rows_of(item_ids.tolist())

    def item_ids(self, rows: ItemRows) -> I64:
        """Ids of the items at index rows. (n,)"""
        return self._ids[rows]
