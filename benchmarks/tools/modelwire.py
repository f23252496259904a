# shell
"""A learner as a scorer knows it, without learning: a snapshot of millions of rows, and deltas at a steady pace.

::

    store          parts of the snapshot, written once; a manifest a load, which names the same parts
    model.deltas   claim │ snapshot │ delta │ delta │ delta with dense weights │ delta ...

Table rows have the ids that pages ask for: users, items and their attributes in the embedding table, crosses of users
and categories in the wide one. A delta's body is packed as the learner's is. Bodies are made beforehand and sent in
turn, since making them costs what it costs a learner, and that is not the scorer's. Rows of new ids come with each body
and go with a later one, so tables grow and shrink.

The model has a retrieval head, whose rows come with each delta that has dense weights: its maps, and a tenth of the
rows of items and users. So each of these is a new retrieval version, and all vectors are made anew.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.tools.pagewire import CATEGORIES, PARENTS, SHOPS, item_attributes, user_attributes
from learner.network.models import network_of
from learner.network.models.spec import read_spec
from learner.ranker.inputs import Inputs
from learner.ranker.model import OnlineModel
from learner.retrieval.tower import ITEM, USER, Sides, factors_of, map_ids
from learner.role.learnloop import PACE
from millrace.basics.hashing import column_hash
from millrace.basics.store import Sealed
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.wall import wall_ms
from millrace.versions.image import Array, Image, TableRows
from millrace.versions.modellog import encode_claim, encode_delta, encode_snapshot
from millrace.versions.modelstore import ModelStore
from millrace.versions.packing import pack
from millrace.versions.versioning import Announcement, Claim, Place, chain
from millrace.windows.features import FeatureBuilder

SLICE = 100_000
BODIES = 10
"""Bodies that are sent in turn, at least."""
PASSING = 500
"""Rows of each table that come with a body, and go with the one that is half a turn later."""
HEAD = {"retrieval_width": 32}
HEAD_USERS = 20_000
"""Users that the retrieval head knows, at most; the ids of pages that the benchmark asks for are among them."""
HEAD_CLICKS = 1_000_000
HEAD_SHARE = 0.1
"""Of the head's rows that change with a retrieval version."""
CLAIMANT = "bench"
_DELIVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class _Body:
    packed: bytes
    digest: str
    dense: int | None  # number of the dense state that it leads to


class ModelWire:
    """Versions of a made-up model. One thread may send deltas while another publishes snapshots.

    Args:
        producer: a Kafka producer of raw bytes.
        rows: of all tables together.
        rows_a_second: that deltas change.
        log_id: of the topic ``model.deltas``.
    """

    def __init__(
        self, settings: Settings, producer: Any, rows: int, items: int, rows_a_second: int, log_id: str, seed: int = 1
    ) -> None:
        self._producer, self._seed = producer, seed
        self._schema = shop_schema()
        model = OnlineModel(self._schema, settings.spec() | HEAD | {"max_rows": int(rows * 1.5)}, seed)
        self._spec = model.spec
        self._maps = map_ids(factors_of(read_spec(self._spec))).reshape(-1)
        blank, self._training = model.snapshot()
        self._blank = {name: rows.columns for name, rows in blank.tables.items()}
        rng = np.random.default_rng(seed)
        moved = {
            name: a + rng.normal(0, 1e-3, a.shape).astype(a.dtype) if name.endswith("weight") else a
            for name, a in blank.dense.items()
        }
        self._dense = (blank.dense, moved)
        self.ids = _table_ids(self._schema, self._spec, rows, items, rng)
        self.head_ids = _head_ids(self._schema, self._spec, items, min(HEAD_USERS, max(1, rows // 20)))
        self.store = ModelStore(settings.place("models"))
        self._parts: list[tuple[Sealed, Sealed]] | None = None
        self._dense_every = max(1, round(PACE.dense_seconds / PACE.delta_seconds))
        delta_rows = round(rows_a_second * PACE.delta_seconds)
        self._bodies = {state: self._make_bodies(state, delta_rows) for state in (0, 1)}
        self._place, self._hash, self._state, self._turn = Place(0, 0), "", 0, 0
        self._lock = threading.Lock()  # a version is made and sent whole before the next one begins
        self._log_id = log_id

    @property
    def version(self) -> int:
        """The number of the newest version that was sent."""
        return self._place.number

    # -- snapshots ----------------------------------------------------------------------------------------------

    def new_root(self) -> int:
        """Claims the next epoch and publishes a snapshot that follows nothing: a scorer loads it, whatever it has.
        Returns its version."""
        with self._lock:
            self._place = Place(self._place.epoch + 1, self._place.number + 1)
            self._publish(None)
            return self.version

    def lose_delta(self) -> None:
        """Makes a version that nobody hears of: the next delta does not follow what a scorer has."""
        with self._lock:
            self._step(self._body(), send=False)

    def snapshot(self) -> int:
        """Publishes a snapshot of the newest version, and returns that."""
        with self._lock:
            self._publish(self._hash)
            return self.version

    def _publish(self, own_hash: str | None) -> None:
        if self._parts is None:
            self._parts = self._write_parts()
        follows = self._deliver(encode_claim(Claim(self._place.epoch, CLAIMANT))) + 1
        note = self.store.write_manifest(
            self._parts,
            own_hash,
            spec=self._spec,
            log=self._log_id,
            follows=follows,
            extra={"rows": {name: len(ids) for name, ids in (self.ids | self.head_ids).items()}},
            retrieval_clicks=HEAD_CLICKS,
            **self._meta(),
        )
        self._hash, self._state = note.hash, 0
        self._deliver(encode_snapshot(note))

    def _write_parts(self) -> list[tuple[Sealed, Sealed]]:
        """Writes the rows, which all snapshots have."""
        begun, rng = Place(1, 1), np.random.default_rng(self._seed + 1)
        sealed: list[tuple[Sealed, Sealed]] = []
        for name, ids in (self.ids | self.head_ids).items():
            for start in range(0, len(ids), SLICE):
                image = Image({}, self._rows({name: ids[start : start + SLICE]}, rng))
                sealed.append(self.store.write_part(begun, len(sealed), image, {}))
        last = Image(self._dense[0], self._rows({}, rng))
        sealed.append(self.store.write_part(begun, len(sealed), last, self._training))
        return sealed

    # -- deltas -------------------------------------------------------------------------------------------------

    def delta(self) -> None:
        """Sends the next delta, without waiting for its delivery."""
        with self._lock:
            self._step(self._body())

    def _body(self) -> _Body:
        self._turn += 1
        bodies = self._bodies[self._state]
        return bodies[self._turn % len(bodies)]

    def _step(self, body: _Body, send: bool = True) -> None:
        self._place = Place(self._place.epoch, self._place.number + 1)
        own = chain(self._hash, body.digest)
        note = Announcement(
            kind="delta",
            parent=self._hash,
            hash=own,
            digest=body.digest,
            size=len(body.packed),
            spec={},
            retrieval_clicks=-1 if body.dense is None else HEAD_CLICKS,
            **self._meta(),
        )
        self._hash = own
        self._state = self._state if body.dense is None else body.dense
        for message in encode_delta(note, body.packed) if send else ():
            self._producer.send(MODEL_DELTAS, message)

    def _make_bodies(self, state: int, delta_rows: int) -> list[_Body]:
        """Bodies that can follow when the dense tensors are those of ``state``."""
        bodies = []
        shares = {name: len(ids) / sum(map(len, self.ids.values())) for name, ids in self.ids.items()}
        count = self._dense_every * -(-BODIES // self._dense_every)
        passing = {name: _made_up(name, self._seed, count * PASSING) for name in self.ids}
        for turn in range(count):
            rng = np.random.default_rng([self._seed, turn])
            chosen, removed = {}, {}
            for name, ids in self.ids.items():
                came, goes = (
                    passing[name][t * PASSING : (t + 1) * PASSING] for t in (turn, (turn + count // 2) % count)
                )
                known = np.unique(rng.choice(ids, round(delta_rows * shares[name])))
                chosen[name], removed[name] = np.concatenate([known, came]), goes
            led = 1 - state if turn % self._dense_every == 0 else None
            dense = {} if led is None else self._dense[led]
            tables = self._rows(chosen, rng, removed, self._some_of_head(rng) if led is not None else None)
            packed = pack(Image(dense, tables), self._dense[state])
            bodies.append(_Body(packed, hashlib.sha256(packed).hexdigest(), led))
        return bodies

    # -- within -------------------------------------------------------------------------------------------------

    def _some_of_head(self, rng: np.random.Generator) -> dict[str, Any]:
        """Ids of the head that change with a version: the maps and some of the rest."""
        some = {
            name: rng.choice(ids, round(HEAD_SHARE * len(ids)), replace=False) for name, ids in self.head_ids.items()
        }
        return some | {ITEM: np.union1d(some[ITEM], self._maps)}

    def _rows(
        self,
        ids: dict[str, Any],
        rng: np.random.Generator,
        removed: dict[str, Any] | None = None,
        head: dict[str, Any] | None = None,
    ) -> dict[str, TableRows]:
        """Rows of these ids, of made-up numbers; none in tables that are not named. Without ``head`` the tables of the
        retrieval head are left out, unless they are named in ``ids``."""
        none = np.empty(0, np.int64)
        ids = ids | (head or {})
        with_head = bool(self.head_ids.keys() & ids.keys())  # both of its tables, or neither
        tables = {}
        for name, blank in self._blank.items():
            if name in self.head_ids and not with_head:
                continue
            own = ids.get(name, none)
            columns: dict[str, Array] = {
                column: (0.05 * rng.standard_normal((len(own), *c.shape[1:]), np.float32)).astype(c.dtype)
                for column, c in blank.items()
            }
            tables[name] = TableRows(own, columns, (removed or {}).get(name, none))
        return tables

    def _meta(self) -> dict[str, Any]:
        now_ms = wall_ms()
        return {
            "epoch": self._place.epoch,
            "version": self._place.number,
            "claimant": CLAIMANT,
            "schema_id": self._schema.id,
            "event_ms": now_ms,
            "trained": 1,
            "published_ms": now_ms,
        }

    def _deliver(self, message: bytes) -> int:
        return int(self._producer.send(MODEL_DELTAS, value=message).get(_DELIVERY_S).offset)


def _head_ids(schema: Schema, spec: dict[str, Any], items: int, users: int) -> dict[str, Any]:
    """Ids of the retrieval head's rows: those of all items, of some users, and of the maps."""
    builder, sides = FeatureBuilder(schema), Sides(schema)
    said_of_items = ("category", "parent_category", "shop_id", "price_band")
    of_item: list[Any] = [map_ids(factors_of(read_spec(spec))).reshape(-1)]
    for start in range(0, items, SLICE):
        at = np.arange(start, min(start + SLICE, items))
        said = [item_attributes(i) for i in at.tolist()]
        columns = {name: column_hash([a[name] for a in said]) for name in said_of_items}
        cat = builder.cat({**columns, "item_id": column_hash(at)}, len(at))[:, sides.item_columns]
        numbers = {"price": [a["price"] for a in said], "min_order": [a["min_order"] for a in said]}
        plain = np.zeros((len(at), len(sides.plain_columns)), np.float32)
        for p, column in enumerate(sides.plain_columns.tolist()):
            plain[:, p] = numbers.get(schema.layout.plain_fields[column].name, at % 61)  # ages of up to two months
        of_item.append(np.unique(sides.item_features(np.ascontiguousarray(cat), plain)[0]))
    who = np.arange(1, users + 1)
    told = [user_attributes(u) for u in who.tolist()]
    names = ("kind", "seller", "region", "age_band", "gender", "household")
    own = {name: column_hash([a.get(name) for a in told]) for name in names} | {"user_id": column_hash(who)}
    of_user = sides.user_features(np.ascontiguousarray(builder.cat(own, users)[:, sides.user_columns]))[0]
    found = {ITEM: np.unique(np.concatenate(of_item)), USER: np.unique(of_user)}
    return {name: ids[ids != 0] for name, ids in found.items()}


def _made_up(name: str, seed: int, n: int) -> Any:
    """Ids that no page has. (n,) int64"""
    return np.random.default_rng([seed, len(name), sum(name.encode())]).integers(1, 2**62, n)


def _table_ids(schema: Any, spec: dict[str, Any], rows: int, items: int, rng: np.random.Generator) -> dict[str, Any]:
    """Distinct ids of each table, some ``rows`` in all: three in five of users, items and their attributes, the others
    crosses."""
    own = read_spec(spec)
    kind = network_of(own.model)
    inputs = Inputs(schema, own.width, kind.own_widths, own.numerics == "squash", own.buckets, own.bucket_width)
    builder = FeatureBuilder(schema)
    users = max(1, rows * 3 // 5 - items)
    pairs = max(1, rows * 2 // 5)
    said = [user_attributes(u) for u in range(60)]
    found: dict[str, list[Any]] = {group.name: [] for group in inputs.groups}
    for start in range(0, max(users, pairs, items), SLICE):
        at = np.arange(start, min(start + SLICE, max(users, pairs, items)))
        columns = {
            "user_id": column_hash(at % users + 1),
            "item_id": column_hash(at % items),
            "category": column_hash([f"c{i}" for i in rng.integers(0, CATEGORIES, len(at)).tolist()]),
            "parent_category": column_hash([f"p{i % PARENTS}" for i in at.tolist()]),
            "shop_id": column_hash(at % SHOPS),
            "price_band": column_hash(at % 7),
            "hour": column_hash(at % 24),
            "weekday": column_hash(at % 7),
            "position": column_hash(at % 600),
        }
        for name in ("kind", "seller", "region", "age_band", "gender", "household"):
            columns[name] = np.resize(column_hash([u.get(name) for u in said]), len(at))
        cat = builder.cat(columns, len(at))
        for group in inputs.groups:
            some = cat if group.width else cat[: max(0, pairs - start)]
            found[group.name].append(np.unique(inputs.ids(group, some)))
    ids = {name: np.unique(np.concatenate(parts)) for name, parts in found.items()}
    return {name: own_ids[own_ids != 0] for name, own_ids in ids.items()}
