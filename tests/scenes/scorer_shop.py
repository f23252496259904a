"""A small shop for the scorer's tests: schema, items, users, events, models; and a client that speaks ASGI."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from prometheus_client import generate_latest
from starlette.applications import Starlette

from learner.ranker.model import OnlineModel
from learner.serving.serving_model import ServingModel
from millrace.basics.hashing import U64, column_hash
from millrace.contracts.clock import EventClock
from millrace.contracts.events import Id, Item, PageLog
from millrace.contracts.online_layout import PROFILE, list_key, window_fields
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, load_schema
from millrace.contracts.settings import Settings
from millrace.versions.clicks import ClickHistogram
from millrace.versions.modellog import encode_claim, encode_delta, encode_snapshot
from millrace.versions.modelstore import ModelStore
from millrace.versions.packing import pack
from millrace.versions.versioning import Announcement, Claim, Place, chain
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import TileStore
from scorer.catalog.item_index import ItemIndex
from scorer.catalog.itemtable import ItemTable
from scorer.ipc.meters import ScorerMeters
from scorer.page.page_service import Serving
from scorer.page.rank import Features
from scorer.recall.candidate_lists import make_lists
from scorer.users.userrecord import AWAY, UserRecord
from scorer.worker.page_app import make_app, model_facts, retrieval_facts
from tests.scenes.app_server import asked

DAY_MS = 86_400_000
NOW_MS = 20_000 * DAY_MS + 10 * 3_600_000
SCHEMA_TOML = Path(__file__).parent / "scorer_shop.toml"
SCHEMA = load_schema(SCHEMA_TOML)
LAYOUT = SCHEMA.layout
BUILDER = FeatureBuilder(SCHEMA)
USER, CATEGORY, ITEM, TASTE, SLOT = range(5)  # columns of `keys`
SPEC: dict[str, Any] = {"hidden": (8,), "blocks": 1, "width": 4, "embedding_rate": 0.5}


def item(i: Id, category: str = "shoes", **more: Any) -> Item:
    known = {"category": category, "tags": ["red", "new"], "price": 5.0, **more.pop("attributes", {})}
    return Item(i, known, more.pop("born_ms", NOW_MS - DAY_MS), **more)


def window_keys(user: Id, items: list[Item]) -> U64:
    """(n, K) keys of exposures of these items to a user, without a position."""
    columns = {
        "user_id": column_hash([user]),
        "item_id": column_hash([i.item_id for i in items]),
        "category": column_hash([i.attributes.get("category") for i in items]),
    }
    return BUILDER.keys(columns, len(items))


def tiles(keys: U64, exposures: int, clicks: int, ts_ms: int = NOW_MS - 60_000) -> TileStore:
    """Counts of one hour under each of the keys."""
    store = TileStore(SCHEMA.windows.days, len(SCHEMA.windows.actions))
    for action, amount in ((0, exposures), (1, clicks)):
        if amount:
            n = len(keys)
            store.add(keys, np.full(n, ts_ms), np.full(n, action), amount)
    return store


def record(keys: U64, store: TileStore, profile: bytes = b'{"kind": "business"}') -> dict[bytes, bytes]:
    """A user's hash in the online store."""
    return {PROFILE: profile, **dict(zip(window_fields(keys), store.export(keys), strict=True))}


class Users:
    """An online store in memory: users, and the shop's lists by name; ``away`` makes it one that does not answer."""

    def __init__(self, records: Mapping[Id, dict[bytes, bytes]] | None = None) -> None:
        self.records = dict(records or {})
        self.shop_lists: dict[str, list[str]] = {}
        self.ranked: dict[str, bytes] = {}
        self.away = False

    async def record(self, user_id: Id) -> UserRecord:
        await asyncio.sleep(0)  # as a round trip would, this lets others run
        return UserRecord({}, AWAY) if self.away else UserRecord(self.records.get(user_id, {}))

    async def kept(self, key: str) -> bytes | None:
        await asyncio.sleep(0)
        return None if self.away else self.ranked.get(key)

    async def keep(self, key: str, value: bytes, seconds: float) -> None:
        await asyncio.sleep(0)
        if not self.away:
            self.ranked[key] = value

    async def list_keys(self) -> list[str] | None:
        await asyncio.sleep(0)
        return None if self.away else [list_key(name) for name in self.shop_lists]

    async def lists(self, names: Sequence[str]) -> list[list[str]] | None:
        await asyncio.sleep(0)
        return None if self.away else [self.shop_lists.get(name, []) for name in names]


def copied(found: PageLog) -> PageLog:
    """The same with arrays of its own."""
    values: dict[str, Any] = {name: getattr(found, name) for name in found.__struct_fields__}
    return PageLog(**(values | {name: bytes(values[name]) for name in ("scores", "keys", "cat", "num")}))


def serving(
    users: Users | None = None, settings: Settings | None = None, schema: Schema = SCHEMA
) -> tuple[Serving, list[PageLog], ScorerMeters]:
    """A scorer without a model and items, the page logs that its logs become, its meters."""
    sent: list[PageLog] = []
    meters = ScorerMeters()
    chosen = settings or Settings(control_share=0, candidates=50)
    numbers = itertools.count()
    scorer = Serving(
        chosen,
        schema,
        EventClock(),
        users or Users(),
        lambda page: sent.append(copied(page)),
        meters,
        wall=lambda: NOW_MS,
        new_id=lambda: f"request-{next(numbers)}",
    )
    return scorer, sent, meters


class OwnFigures:
    """The figures of a worker alone."""

    def __init__(self, scorer: Serving, meters: ScorerMeters) -> None:
        self._serving, self._meters = scorer, meters

    async def model(self) -> dict[str, Any]:
        held, meters = self._serving.retrieval, self._meters
        found = None if held is None else retrieval_facts(*held.version, held.clicks)
        return model_facts(self._serving.note, self._serving.schema.id, meters, dict(meters.errors), found)

    async def metrics(self) -> bytes:
        return generate_latest()


def own_app(scorer: Serving, meters: ScorerMeters) -> Starlette:
    """The application of a worker without a feeder."""
    return make_app(scorer, meters, OwnFigures(scorer, meters))


def stock(scorer: Serving, items: Sequence[Item], index: ItemIndex | None = None, lists: bool = True) -> ItemIndex:
    """Puts items in an index (a new one) and all of it in the scorer's item table, and makes its lists."""
    index = ItemIndex(scorer.builder) if index is None else index
    index.put([index.prepare(i) for i in items])
    while index.refresh_hot(NOW_MS):
        pass
    scorer.items.follow(lambda: index.changes(NOW_MS))
    if lists:
        names = (name for name in scorer.builder.needs("item") if not scorer.builder.is_numeric(name))
        scorer.lists = make_lists(scorer.builder, index.copies(names), index.alive, index.born_ms, index.heat)
    return index


def index_of(items: list[Item], builder: FeatureBuilder = BUILDER) -> ItemIndex:
    index = ItemIndex(builder)
    index.put([index.prepare(i) for i in items])
    return index


def table_of(index: ItemIndex, now_ms: int = NOW_MS) -> ItemTable:
    table = ItemTable(index.builder)
    table.follow(lambda: index.changes(now_ms))
    return table


ITEMS = [item(i, f"c{i % 5}", attributes={"price": float(i)}) for i in range(200)]


def batch(seed: int, n: int = 256) -> SampleBatch:
    """Samples of the items to learn from; labels are drawn, so that every item's score is another."""
    rng = np.random.default_rng(seed)
    chosen = [ITEMS[i] for i in rng.integers(0, len(ITEMS), n)]
    columns = {
        "user_id": column_hash(rng.integers(0, 20, n)),
        "item_id": column_hash([i.item_id for i in chosen]),
        "category": column_hash([i.attributes["category"] for i in chosen]),
        "position": BUILDER.position(rng.integers(0, 20, n)),
    }
    kind = (rng.random(n) < 0.5).astype(np.uint8)
    num = rng.random((n, LAYOUT.N), np.float32)
    position = np.arange(n, dtype=np.int32)
    return SampleBatch.of_rows(kind, np.full(n, NOW_MS), BUILDER.cat(columns, n), num, ("r",), position=position)


class Learner:
    """Publishes versions as the learner does: snapshots in parts in a store, deltas on a log or as files.

    Args:
        url: of the store.
        send: puts a message on the topic ``model.deltas``, and gives its offset.
        log: id of that topic.
    """

    def __init__(
        self,
        url: Path | str,
        send: Callable[[bytes], int] = lambda _: 0,
        log: str = "",
        *,
        seed: int = 0,
        epoch: int = 1,
        version: int = 0,
    ) -> None:
        self.model = OnlineModel(SCHEMA, SPEC, seed)
        self.store = ModelStore(url)
        self.send, self.log = send, log
        self.place = Place(epoch, version)
        self.claimant = f"learner of {epoch}"
        self.hash, self.dense = "", dict[str, Any]()
        self.follows, self.rows_only = 0, False
        self.published: list[Announcement] = []
        for i in range(8):
            self.model.learn(batch(1000 + 10 * seed + i))
        self.send(encode_claim(Claim(epoch, self.claimant)))

    def snapshot(self, rows: int = 64, announce: bool = True) -> Announcement:
        """Writes a snapshot of the newest version; without one before it, a root."""
        if self.rows_only:  # a delta with the dense tensors that the snapshot has
            self.delta()
        slices = self.model.slices(rows)
        pairs = []
        while (part := slices.next()) is not None:
            pairs.append(part)
        if not self.hash:
            self.dense = self.model.changes().dense
        pairs.append(slices.finish())
        files = [self.store.write_part(self.place, number, *pair) for number, pair in enumerate(pairs)]
        note = self.store.write_manifest(
            files,
            self.hash or None,
            log=self.log,
            follows=self.follows,
            spec=self.model.spec,
            **{**self._meta(), "clicks": ClickHistogram()},
        )
        self.hash = note.hash
        if announce:
            self.send(encode_snapshot(note))
        self.published.append(note)
        return note

    def delta(self, dense: bool = True, lost: bool = False) -> Announcement:
        """Learns, and publishes what changed. ``lost``: it never arrives."""
        self.place = Place(self.place.epoch, self.place.number + 1)
        self.model.learn(batch(self.place.number))
        image = self.model.changes(dense)
        body = pack(image, self.dense)
        self.dense, self.rows_only = image.dense or self.dense, not dense
        digest = hashlib.sha256(body).hexdigest()
        note = Announcement(
            kind="delta",
            parent=self.hash,
            hash=chain(self.hash, digest),
            digest=digest,
            size=len(body),
            spec={},
            **self._meta(),
        )
        for message in [] if lost else encode_delta(note, body):
            self.follows = self.send(message) + 1
        self.hash = note.hash
        self.published.append(note)
        return note

    def _meta(self) -> dict[str, Any]:
        return {
            "epoch": self.place.epoch,
            "version": self.place.number,
            "claimant": self.claimant,
            "schema_id": SCHEMA.id,
            "event_ms": NOW_MS,
            "trained": 64 * self.place.number,
            "clicks": ClickHistogram.of([NOW_MS - 500, NOW_MS - 1500]),
            "published_ms": NOW_MS,
        }


class OneWorker:
    """A worker of a scorer in this process, and what it did. It has neither items nor a model until it is given some.

    Args:
        versions: the learner whose versions it may follow, or a folder for one.
        users: in place of Redis.
        schema: of the shop.
        chosen: settings.
    """

    def __init__(
        self, versions: Learner | Path | None, users: Users | None = None, schema: Schema = SCHEMA, **chosen: Any
    ) -> None:
        self.users, self.schema = users or Users(), schema
        self._learner = Learner(versions) if isinstance(versions, Path) else versions
        settings = Settings(**{"control_share": 0, "candidates": 50, **chosen})
        self.scorer, self.sent, self.meters = serving(self.users, settings, schema)
        self.app = own_app(self.scorer, self.meters)

    @property
    def learner(self) -> Learner:
        assert self._learner is not None
        return self._learner

    def follow(self) -> ServingModel:
        """It serves the learner's last snapshot. Where there is none, one is made."""
        note = self.learner.published[-1] if self.learner.published else self.learner.snapshot()
        model = ServingModel.of(SCHEMA, note.spec, self.learner.store.read(note))
        self.scorer.install(note, model)
        return model

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return asyncio.run(call(self.app, method, path, body))

    def ask(self, status: int = 200, path: str = "/recommend", **body: Any) -> Any:
        """The answer to what ``ann`` asks, which has this status. ``without`` is the request's ``not``."""
        if "without" in body:
            body["not"] = body.pop("without")
        found, answer = self.call("POST", path, {"user_id": "ann", **body})
        assert found == status, answer
        return answer


def arrays(page_log: PageLog) -> tuple[Features, Any]:
    """The feature arrays and scores that a page log carries."""
    n = len(page_log.items)
    cat = np.frombuffer(page_log.cat, "<i8").reshape(n, LAYOUT.F)
    num = np.frombuffer(page_log.num, "<f4").reshape(n, LAYOUT.N)
    keys = np.frombuffer(page_log.keys, "<u8").reshape(n, LAYOUT.K)
    return Features(cat, num, keys), np.frombuffer(page_log.scores, "<f4")


async def call(app: Callable[..., Any], method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One HTTP request to an ASGI application: status and answer (JSON decoded where it is JSON)."""
    raw = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
    status, text, _ = await asked(app, method, path, raw)
    try:
        return status, msgspec.json.decode(text)
    except msgspec.DecodeError:
        return status, text.decode()
