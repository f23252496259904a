# shell
"""Versions of a model as a scorer receives them, without learning: a snapshot of millions of rows, and deltas.

::

    store          parts of the snapshot, written once; a manifest a load, which names the same parts
    model.deltas   claim │ snapshot │ delta │ delta │ delta with dense weights │ delta ...

The model has learnt a day of the shop, so its tables have the rows that pages ask for; others fill them up. Bodies of
deltas are packed beforehand, as the learner's are: the scorer is measured alone. A tenth of the retrieval head's rows
comes with each delta that has dense weights, so each of these is a new retrieval version.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from benchmarks.tools.bench_figures import Say
from benchmarks.tools.pagewire import ShopWire
from experiments.recall.recallloop import learn_days
from learner.network.models.spec import read_spec
from learner.ranker.model import OnlineModel
from learner.retrieval.tower import ITEM, USER, factors_of, map_ids
from learner.role.learnloop import PACE
from learner.training.publisher import Publisher
from millrace.basics.store import Sealed
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings, load_settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import create_topics, make_producer, topic_ids
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port
from millrace.processes.wall import wall_ms
from millrace.versions.image import Image, TableRows
from millrace.versions.modelstore import ModelStore
from millrace.versions.packing import pack
from millrace.versions.versioning import Announcement, Claim, Place, chain

SLICE = 100_000
HEAD_SHARE = 0.1  # of the head's rows that change with a retrieval version
_HEAD = {"retrieval_width": 32}
_CLAIMANT = "bench"


class _Body(NamedTuple):
    packed: bytes
    digest: str
    head: bool


class ModelWire:
    """Versions of a made-up model. One thread may send deltas while another publishes snapshots.

    Args:
        producer: a Kafka producer of raw bytes.
        log: a day's exposures, which the model learns first.
        rows: of all tables together, at least.
        rows_a_second: that deltas change.
        log_id: of the topic ``model.deltas``.
    """

    def __init__(
        self,
        settings: Settings,
        producer: Any,
        log: pa.Table,
        rows: int,
        rows_a_second: int,
        log_id: str,
        seed: int = 1,
    ) -> None:
        self._publisher, self._seed = Publisher(settings, producer, log_id), seed
        self._schema, rng = shop_schema(), np.random.default_rng(seed)
        spec = settings.spec() | _HEAD | {"max_rows": int(rows * 1.5)}
        model = learn_days(OnlineModel(self._schema, spec, seed), [log])
        assert model.head is not None
        model.head.flush()
        self.learnt, self._spec, self._clicks = model, model.spec, model.head.clicks
        state, self._training = model.snapshot()
        self._maps = map_ids(factors_of(read_spec(self._spec))).reshape(-1)
        self._columns = {name: table.columns for name, table in state.tables.items()}
        moved = {
            name: a + rng.normal(0, 1e-3, a.shape).astype(a.dtype) if name.endswith("weight") else a
            for name, a in state.dense.items()
        }
        self._dense = (state.dense, moved)
        own = {name: table.ids for name, table in state.tables.items()}
        self.head_ids = {name: own.pop(name) for name in (ITEM, USER)}
        more = max(1.0, rows / sum(map(len, own.values())))
        self.ids = {
            name: np.concatenate([ids, np.unique(rng.integers(1, 2**62, int(len(ids) * (more - 1))))])
            for name, ids in own.items()
        }
        self.store = ModelStore(settings.place("models"))
        self._parts: list[tuple[Sealed, Sealed]] | None = None
        self._dense_every = max(1, round(PACE.dense_seconds / PACE.delta_seconds))
        self._head_every = max(1, round(PACE.retrieval_seconds / PACE.delta_seconds))
        delta_rows = round(rows_a_second * PACE.delta_seconds)
        self._bodies = self._make_bodies(delta_rows)
        self._place, self._hash, self._turn = Place(0, 0), "", 0
        self._lock = threading.Lock()  # a version is made and sent whole before the next one begins

    def new_root(self) -> int:
        """Claims the next epoch and publishes a snapshot that follows nothing: a scorer loads it, whatever it has.
        Returns its version."""
        with self._lock:
            self._place = Place(self._place.epoch + 1, self._place.number + 1)
            if self._parts is None:
                self._parts = self._write_parts()
            note = self.store.write_manifest(
                self._parts,
                None,
                spec=self._spec,
                log=self._publisher.log_id,
                follows=self._publisher.claim(Claim(self._place.epoch, _CLAIMANT)) + 1,
                extra={"rows": {name: len(ids) for name, ids in (self.ids | self.head_ids).items()}},
                retrieval_clicks=self._clicks,
                **self._meta(),
            )
            self._hash, self._turn = note.hash, 0
            self._publisher.snapshot(note)
            return self._place.number

    def _write_parts(self) -> list[tuple[Sealed, Sealed]]:
        """Writes the rows, which all snapshots have."""
        begun, rng = Place(1, 1), np.random.default_rng(self._seed + 1)
        sealed: list[tuple[Sealed, Sealed]] = []
        for name, ids in (self.ids | self.head_ids).items():
            for start in range(0, len(ids), SLICE):
                image = Image({}, self._rows({name: ids[start : start + SLICE]}, rng, name in self.head_ids))
                sealed.append(self.store.write_part(begun, len(sealed), image, {}))
        last = Image(self._dense[0], self._rows({}, rng, False))
        sealed.append(self.store.write_part(begun, len(sealed), last, self._training))
        return sealed

    def delta(self) -> None:
        """Sends the next delta, without waiting for its delivery."""
        with self._lock:
            body = self._bodies[self._turn % len(self._bodies)]
            self._turn += 1
            self._place = Place(self._place.epoch, self._place.number + 1)
            own = chain(self._hash, body.digest)
            note = Announcement(
                kind="delta",
                parent=self._hash,
                hash=own,
                digest=body.digest,
                size=len(body.packed),
                spec={},
                retrieval_clicks=self._clicks if body.head else -1,
                **self._meta(),
            )
            self._hash = own
            self._publisher.delta(note, body.packed)

    def _make_bodies(self, delta_rows: int) -> list[_Body]:
        """Bodies that follow a root, one after the other and again from the first: two with dense tensors go to other
        ones and back. Dense tensors and the retrieval head go as often as the learner's do."""
        bodies, state, whole = [], 0, sum(map(len, self.ids.values()))
        for turn in range(2 * self._dense_every):
            rng = np.random.default_rng([self._seed, turn])
            chosen = {
                name: np.unique(rng.choice(ids, round(delta_rows * len(ids) / whole))) for name, ids in self.ids.items()
            }
            dense, head = ((turn + 1) % every == 0 for every in (self._dense_every, self._head_every))
            if head:
                some = {n: rng.choice(i, round(HEAD_SHARE * len(i)), replace=False) for n, i in self.head_ids.items()}
                chosen |= some | {ITEM: np.union1d(some[ITEM], self._maps)}
            tables = self._rows(chosen, rng, head)
            packed = pack(Image(self._dense[1 - state] if dense else {}, tables), self._dense[state])
            bodies.append(_Body(packed, hashlib.sha256(packed).hexdigest(), head))
            state = 1 - state if dense else state
        return bodies

    def _rows(self, ids: dict[str, Any], rng: np.random.Generator, head: bool) -> dict[str, TableRows]:
        """Rows of these ids, of made-up numbers, none in tables that are not named; ``head``: with both tables of the
        retrieval head, or neither."""
        tables = {}
        for name, columns in self._columns.items():
            if name in self.head_ids and not head:
                continue
            own = ids.get(name, np.empty(0, np.int64))
            made = {
                column: (0.05 * rng.standard_normal((len(own), *c.shape[1:]), np.float32)).astype(c.dtype)
                for column, c in columns.items()
            }
            tables[name] = TableRows(own, made)
        return tables

    def _meta(self) -> dict[str, Any]:
        now_ms = wall_ms()
        return {
            "epoch": self._place.epoch,
            "version": self._place.number,
            "claimant": _CLAIMANT,
            "schema_id": self._schema.id,
            "event_ms": now_ms,
            "trained": 1,
            "published_ms": now_ms,
        }


class MadeLoop(NamedTuple):
    """What the scorer's benchmarks share."""

    settings: Settings
    producer: Any
    shop: ShopWire
    model: ModelWire


@contextmanager
def made_loop(out: Path, items: int, users: int, rows: int, rows_a_second: int, say: Say) -> Iterator[MadeLoop]:
    """Services, topics, catalogue, users and a root of the model; files in a folder in ``out`` that is removed. The
    settings MILLRACE_KAFKA and MILLRACE_REDIS name others than the embedded ones; their topics must be new."""
    given = load_settings()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=out.resolve())))
        settings = msgspec.structs.replace(
            given,
            kafka=given.kafka or stack.enter_context(EmbeddedBroker(folder / "broker")).address,
            redis=given.redis or stack.enter_context(EmbeddedRedis(folder / "redis")).address,
            data=str(folder / "data"),
            port=free_port(),
            metrics_port=0,
            control_share=0.0,
        )
        create_topics(settings)
        producer = stack.enter_context(closing(make_producer(settings)))
        say(f"writing {items:,} items, users, and a snapshot of {rows:,} rows")
        shop = ShopWire(settings, producer, items, users)
        shop.publish()
        shop.fill_users()
        log_id = topic_ids(settings)[MODEL_DELTAS]
        model = ModelWire(settings, producer, shop.log, rows, rows_a_second, log_id)
        model.new_root()
        yield MadeLoop(settings, producer, shop, model)
