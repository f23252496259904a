# shell
"""A shop in one process, as a scorer that recalls holds it at any time of a simulated world's days.

::

    exposures ── take() ──► events that wait for their time
                               │ advance(ts): what is due by ts
                               ├─► windows of users and items ──► records as Redis has them, item counts
                               ├─► last clicks and purchases ───► the same records
                               └─► co-clicks ───────────────────► neighbours of an item
    a model's retrieval head ── publish() ─────────► tower ──► vectors of all living items, user tower
    world ────────────────────────► births and deaths ──────────► item index ──► item table, recall's lists

All parts are the classes that stream and scorer run, with one partition; only Kafka, Redis and threads are left out.
Pages are asked of the scorer's own service, which the shop is.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from learner.retrieval.tower import Tower, UserTower
from millrace.basics.durations import DAY_MS
from millrace.basics.hashing import U64, column_hash
from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.contracts.clock import EventClock
from millrace.contracts.events import CLICK, MODEL, PURCHASE, Id, PageLog
from millrace.contracts.online_layout import PROFILE, RECENT, pack_profile, window_fields
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.logs import LogTable
from millrace.versions.versioning import Announcement
from millrace.windows.affinity import clicks_a_day
from millrace.windows.tiles import TileStore
from scorer.catalog.itemtable import ItemRows
from scorer.feeder.primary import Primary
from scorer.ipc.meters import ScorerMeters
from scorer.page.candidates import Sources
from scorer.page.page_service import Serving
from scorer.recall import nearestkernels
from scorer.recall.candidate_lists import largest
from scorer.recall.nearest import Retrieval, new_tiles
from scorer.recall.neighbours import CoClickFeed as MergedCoClicks
from scorer.recall.neighbours import Neighbours
from scorer.users.userrecord import KnownUser, UserRecord
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
NOTE = Announcement("snapshot", 1, 0, "", "", "", "", 0, "", {}, 0, 0, 0)
"""Of what serves: nobody asks for its version."""
SLICE = 65_536
"""Rows and slots of the index that the item table takes at a time."""


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


class RecallShop(Serving):
    """See the module's text. One thread. ``start_ms``: what is on sale then is in the index from the beginning.

    Chance differs from world to world; on the same pages of one it is the same, whatever serves.
    """

    def __init__(self, world: World, schema: Schema, start_ms: int, settings: Settings | None = None) -> None:
        store: Any = SimpleNamespace(record=self._stored)  # what is asked without a cursor, once there are items
        own, clock = settings or Settings(), EventClock()
        super().__init__(
            own, schema, clock, store, self._log, ScorerMeters(), lambda: self.now_ms, str, secret=world.seed
        )
        self.world, self.now_ms = world, start_ms
        self.logged: PageLog | None = None
        """Of the last page."""
        self.primary = Primary(own, schema, clock, lambda: self.now_ms)
        self.index = self.primary.index
        self.windows = TileStore.of(schema.windows)
        """Counts of all window keys, as the stream's partitions have them together."""
        self._events = Waiting()
        names = schema.windows.keys
        self._of_item = np.array([k for k, key in enumerate(names) if schema.key_side(key) == "item"], np.intp)
        self._of_user = np.array([k for k, key in enumerate(names) if schema.key_side(key) == "user"], np.intp)
        self._user_keys: defaultdict[int, set[int]] = defaultdict(set)
        self._changed: set[int] = set()  # item-side keys that the index does not have yet
        self._recents, self._coclicks, self._merged = Recents(), CoClicks(), MergedCoClicks()
        self._recent: dict[Id, bytes] = {}  # by user id: the field of the record
        self._ids = np.empty(0, np.int64)  # by index row
        self._version = 0
        self._day, self._next_ms = -1, 0  # the day whose goods are known, and when the next of them comes or leaves
        self.births_and_deaths(start_ms)

    # -- what happens -----------------------------------------------------------------------------------------

    def take(self, table: pa.Table) -> None:
        """Exposures and what followed them: columns as of :func:`simulator.daylog.day_table`, in order of time."""
        log = LogTable(table, "user_id", "item_id", "click", table.num_rows, 0)
        rows = LogRows(log, self.schema)
        labels = Labels(log, self.schema, rows)
        keys = self.builder.keys(rows.columns(slice(None))[0], rows.n)
        user, item, of = table["user_id"].to_numpy() - 1, table["item_id"].to_numpy(), labels.event_row
        self.put(labels.event_ms, labels.event_action, keys[of], user[of], item[of])

    def put(self, ms: I64, action: NDArray[Any] | int, keys: U64, user: I64, item: I64) -> None:
        """Events: times (n,), actions (one or n of the schema's windows, as numbers), window keys (n, K), shoppers by
        index (n,) and item ids (n,). Nothing counts before :meth:`live` has come to its time."""
        actions = np.broadcast_to(np.asarray(action, np.uint8), len(ms))
        self._events.put({"ms": ms, "action": actions, "keys": keys, "user": user, "item": item})

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
            earlier = self._recents.add(who + 1, what, item_id, ms, EARLIER)
            sizes[i] = len(earlier) // 2
            before += earlier
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
        inventory = self.world.catalogue.inventory(day)
        turns = np.concatenate([inventory.born_ms, inventory.dies_ms])
        self._day, self._next_ms = day, int(turns.min(initial=NEVER_MS, where=turns > ts_ms))
        on_sale = (inventory.born_ms <= ts_ms) & (ts_ms < inventory.dies_ms)
        fresh = on_sale & ~np.isin(inventory.item_id, self._ids)
        if fresh.any():
            catalogue = self.world.catalogue
            self.index.put(self.index.prepare(catalogue.item(inventory, row)) for row in np.flatnonzero(fresh).tolist())
            self._ids = np.concatenate([self._ids, inventory.item_id[fresh]])
        gone = self.index.alive & ~np.isin(self._ids, inventory.item_id[on_sale])
        for item_id in self._ids[gone].tolist():
            self.index.remove(item_id)

    def publish(self, tower: Tower, clicks: int) -> None:
        """Makes the next retrieval version: the vectors of all living items by ``tower``, which learnt from ``clicks``.

        Whoever has a retrieval head calls it after :meth:`renew`.
        """
        self._version += 1
        items, form = self.items, self.items.form
        rows = np.flatnonzero(items.alive)
        plain = items.rows.plain[rows]
        if "age_days" in form.plain_names:
            now = np.array([self.now_ms], np.int64)
            plain[:, form.plain_names.index("age_days")] = self.builder.age_days(now, items.rows.born_ms[rows])
        vectors = tower.item_vectors(items.rows.cat[rows], plain)
        tiles = new_tiles(len(rows), vectors.shape[1])
        nearestkernels.lay(vectors, np.arange(len(rows)), tiles)
        at = np.full(len(items), -1, np.int32)
        at[rows] = np.arange(len(rows))
        user = UserTower.of_arrays(tower.user_arrays())
        self.retrieval = Retrieval((1, self._version), clicks, rows.astype(np.int32), tiles, at, user)

    def renew(self, ts_ms: int) -> None:
        """Brings index, item table, lists, retrieval version and neighbours up to ``ts_ms``."""
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

    def recall(self, user: KnownUser, ts_ms: int, size: int, seed: int) -> ItemRows:
        """Candidates of the recall that serves; without those that left the shop since."""
        sources = Sources(self.lists, self.retrieval, self.neighbours)
        rows = self.arms.named(MODEL).recaller.page(sources, user, ts_ms, size, 0, seed).rows
        return rows[self.items.alive[rows]]

    def clicks_a_day(self) -> NDArray[np.float32]:
        """How hot each item of the table is, by index row. (n,)"""
        counts = self.items.counts_of(np.arange(len(self.items)))
        assert counts is not None
        return clicks_a_day(counts, self.schema.windows).astype(np.float32)

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

    async def _stored(self, user_id: Id) -> UserRecord:
        return UserRecord(self.record(int(user_id) - 1))

    def _log(self, page: PageLog) -> None:
        self.logged = page

    def user(self, user: int) -> KnownUser:
        """A shopper as a scorer reads it, by index."""
        return KnownUser.of(self.builder, user + 1, self.record(user))

    def rows_of(self, item_ids: I64) -> ItemRows:
        """Index rows of items, -1 where the index has none. (n,)"""
        return self.index.rows_of(item_ids.tolist())

    def item_ids(self, rows: ItemRows) -> I64:
        """Ids of the items at index rows. (n,)"""
        return self._ids[rows]
