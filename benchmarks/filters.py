# shell
"""What filters cost a page: one worker in this process, 100,000 items, pages with and without filters in turns.

::

    round    plain   in_stock   changed   narrow   hidden   caps   empty      one page of each, the order drawn anew

*plain* has no filter. *in_stock* is what a shop asks for on every page: seven items in ten pass. *changed* is the same
after a row of the catalogue has changed, so the mask is worked out anew; *narrow* lets one item in a hundred pass.
*hidden* is in_stock with 200 excluded ids and what the user bought and saw hidden. *caps* allows three of a category.
*empty* lets nothing pass, by a filter that is new each time. A figure is the median, by the thread's CPU time; a ratio
is the median of a round's time over that of its plain page. HTTP and Redis, which cost the same with and without, are
not in it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from benchmarks.pagewire import item_attributes, user_attributes
from benchmarks.runner import Figure, Say, figure
from learner.network.dense import threads
from learner.network.forward import matrix_units
from learner.ranker.model import OnlineModel
from learner.serving.serving import ServingModel
from millrace.basics.hashing import column_hash
from millrace.contracts.clock import EventClock
from millrace.contracts.events import Id, Item
from millrace.contracts.online import PROFILE, RECENT, Past, Recent, pack_profile, pack_recent, window_fields
from millrace.contracts.schema import Schema, WindowKey, shop_schema
from millrace.contracts.settings import Settings
from millrace.versions.versioning import Announcement
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore
from scorer.catalog.index import ItemIndex
from scorer.ipc.meters import ScorerMeters
from scorer.page.serving import Serving
from scorer.recall.nearest import Retrieval, new_tiles
from scorer.recall.nearestkernels import lay
from scorer.recall.recall import make_lists
from scorer.users.userrecord import Record

ITEMS = 100_000
ROUNDS = 150
PAGE = 20
SEEN, WIDTH = 400, 32
_WARM = 10
_NOW_MS = 1_772_414_000_000
_HOUR_MS = 3_600_000
PLAIN = "plain"


class Users:
    """An online store with one user, and nothing to wait for."""

    def __init__(self, fields: dict[bytes, bytes]) -> None:
        self._fields = fields

    async def record(self, user_id: Id) -> Record:
        return Record(self._fields)

    async def kept(self, key: str) -> bytes | None:
        return None

    async def keep(self, key: str, value: bytes, seconds: float) -> None:
        return None

    async def list_keys(self) -> list[str] | None:
        return None

    async def lists(self, names: Sequence[str]) -> list[list[str]] | None:
        return None


class Anybody:
    """A user tower that knows one user."""

    def query(self, ids: Any, recent: Any, age_ms: Any) -> Any:
        return np.ones(WIDTH, np.float32)


def bench_schema() -> Schema:
    """The simulated shop's, with attributes to filter by and counts of what each user saw of each item."""
    shop = shop_schema()
    keys = (*shop.windows.keys, WindowKey(("user_id", "item_id"), ("item_id",)))
    return replace(shop, filters=("in_stock", "market"), windows=replace(shop.windows, keys=keys))


def attributes(i: int) -> dict[str, Any]:
    """What the catalogue says of item ``i``."""
    return item_attributes(i) | {"in_stock": i % 10 < 7, "market": f"m{i % 100}"}


class Shop:
    """One worker over ``items`` items, with a model, vectors and a user who did much."""

    def __init__(self, items: int) -> None:
        self.schema = bench_schema()
        self.builder = FeatureBuilder(self.schema)
        numbers = itertools.count()
        self.serving = Serving(
            Settings(control_share=0, recall_clicks=1),
            self.schema,
            EventClock(),
            Users(self._user(items)),
            lambda page: True,
            ScorerMeters(),
            wall=lambda: _NOW_MS,
            new_id=lambda: f"page{next(numbers)}",
        )
        self.index = ItemIndex(self.builder)
        for start in range(0, items, 1000):
            self.index.put(self.index.prepare(self._item(i)) for i in range(start, min(start + 1000, items)))
        index = self.index
        self.serving.shelf.follow(lambda: index.changes(_NOW_MS, 16_384, 65_536))
        columns = index.copies(name for name in self.builder.needs("item") if not self.builder.is_numeric(name))
        self.serving.lists = make_lists(self.builder, columns, index.alive, index.born_ms, index.heat)
        image, _ = OnlineModel(self.schema, {}, 0).snapshot()
        model = ServingModel.of(self.schema, {}, image, half=matrix_units())
        model.warm(self.serving.settings.candidates)
        self.serving.install(_note(self.schema), model)
        self.serving.retrieval = self._vectors(items)

    def change(self, i: int) -> None:
        """A row of the catalogue changes."""
        self.index.put([self.index.prepare(self._item(i))])
        self.serving.shelf.follow(lambda: self.index.changes(_NOW_MS))

    async def ask(self, body: Mapping[str, Any]) -> tuple[float, int]:
        """CPU milliseconds of a page, and how many items it has."""
        raw = msgspec.json.encode({"user_id": 7, "size": PAGE, **body})
        began = time.thread_time()
        answer = await self.serving.recommend(raw)
        return 1000 * (time.thread_time() - began), len(answer.items)

    @staticmethod
    def _item(i: int) -> Item:
        return Item(i, attributes(i), _NOW_MS - 24 * _HOUR_MS - i)

    def _user(self, items: int) -> dict[bytes, bytes]:
        rng = np.random.default_rng(0)
        seen = rng.choice(items, min(SEEN, items), replace=False)
        columns = {
            "user_id": column_hash([7]),
            "item_id": column_hash(seen),
            "category": column_hash([attributes(int(i))["category"] for i in seen]),
        }
        keys = np.unique(self.builder.keys(columns, len(seen)))
        keys = keys[keys > 0]
        store = TileStore.of(self.schema.windows)
        when = np.full(len(keys), _NOW_MS - _HOUR_MS, np.int64)
        for action in (0, 1):
            store.add(keys, when, np.full(len(keys), action, np.int64))
        pasts = [Past(int(i), _NOW_MS - 1000 * (n + 1)) for n, i in enumerate(seen[:16])]
        tiles = dict(zip(window_fields(keys), store.export(keys), strict=True))
        return {PROFILE: pack_profile(user_attributes(7)), RECENT: pack_recent(Recent(pasts, pasts)), **tiles}

    @staticmethod
    def _vectors(items: int) -> Retrieval:
        vectors = np.random.default_rng(1).standard_normal((items, WIDTH)).astype(np.float32)
        tiles, rows = new_tiles(items, WIDTH), np.arange(items, dtype=np.int32)
        lay(vectors, np.arange(items), tiles)
        return Retrieval((1, 1), 10**6, rows, tiles, rows.copy(), Anybody())


def _note(schema: Schema) -> Announcement:
    return Announcement(
        kind="snapshot",
        epoch=1,
        version=1,
        claimant="bench",
        parent="",
        hash="",
        digest="",
        size=0,
        schema_id=schema.id,
        spec={},
        event_ms=_NOW_MS,
        trained=0,
        published_ms=_NOW_MS,
    )


def requests(turn: int) -> dict[str, dict[str, Any]]:
    """The pages of one round, by name."""
    stock = {"only": {"in_stock": True}}
    return {
        PLAIN: {},
        "in_stock": stock,
        "changed": stock,
        "narrow": {"only": {"market": f"m{turn % 70}"}},
        "hidden": {**stock, "exclude": list(range(turn, turn + 200)), "hide": ["bought", "seen"]},
        "caps": {**stock, "caps": {"category": 3}},
        "empty": {"only": {"market": f"nobody sells here {turn}"}},
    }


async def measure(items: int, rounds: int, say: Say) -> dict[str, Any]:
    """CPU milliseconds of each kind of page, (rounds,) each."""
    say(f"a shop of {items:,} items is built")
    shop, rng = Shop(items), np.random.default_rng(2)
    found: dict[str, list[float]] = {}
    with threads(1):
        for turn in range(-_WARM, rounds):
            asked = requests(turn + _WARM)
            for place in rng.permutation(len(asked)).tolist():
                name = list(asked)[place]
                if name == "changed":
                    shop.change(turn % items)
                ms, shown = await shop.ask(asked[name])
                if (shown == 0) != (name == "empty"):
                    raise RuntimeError(f"a page '{name}' has {shown} items")
                if turn >= 0:
                    found.setdefault(name, []).append(ms)
    return {name: np.array(times) for name, times in found.items()}


def run(out: Path, say: Say, items: int = ITEMS, rounds: int = ROUNDS) -> list[Figure]:
    """The figures of the module's text: ``filtered_ratio`` is of the page that is asked for with most filters at once
    (hidden), ``empty_ratio`` of the one on which nothing may come."""
    found = asyncio.run(measure(items, rounds, say))
    ratios = {name: float(np.median(times / found[PLAIN])) for name, times in found.items()}
    figures = [figure("plain_ms", float(np.median(found[PLAIN])), "ms")]
    for name in list(found):
        if name != PLAIN:
            ms = float(np.median(found[name]))
            told = {"hidden": "filtered_ratio"}.get(name, f"{name}_ratio")
            figures.append(figure(told, ratios[name], f"of {ms:.2f} ms", PLAIN, ratios[name]))
    return figures
