"""One contract over everything that has state: ``snapshot``, ``resume``, ``changes``.

::

    pieces of a script     0   1   2   3 │ 4   5   6   7
    the object             ───────────── S ─────────────►  outputs, changes, snapshot
    another                     resume(S) ─────────────►   the same, to the bit

Each case knows how to make a fresh object, feed it a piece of a deterministic script, and take its state. To add one,
write a :class:`Case` and put it into :data:`CASES`; :func:`test_nothing_that_has_state_is_left_out` finds classes that
have a ``snapshot`` and no case. A case that skips a check says why in words.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
import torch

from learner.evaluation.progressive import Progressive
from learner.gate.quarantine import Quarantine
from learner.gate.verdicts import GateRefusal
from learner.network.dense import DenseState
from learner.network.models.delays import SIZE, Delays
from learner.network.models.spec import read_spec
from learner.ranker.buckets import Reservoir
from learner.ranker.guard import LossGuard
from learner.ranker.inputs import Inputs
from learner.ranker.model import OnlineModel, build_network
from learner.ranker.outcome_heads import OutcomeHeads
from learner.ranker.repeats import Repeats
from learner.ranker.slot_effect import SlotEffect
from learner.ranker.snapshot_slices import merge
from learner.retrieval.click_history import History, Pending, RecentItems
from learner.retrieval.tower import Tower
from learner.serving import overlay
from learner.serving.serving_model import ServingModel
from learner.tables.table import SparseTable, StepSizes
from learner.training.trainer import Trainer
from millrace.basics.errors import MillraceError, SnapshotError, StoreError
from millrace.basics.store import Store
from millrace.contracts.clock import EventClock
from millrace.contracts.events import Action, Exposure, User, decode_event, to_json
from millrace.contracts.logforms import OutcomeRule
from millrace.contracts.page_logs import decode_served
from millrace.contracts.samples import CORRECTION, OUTCOME, POLICIES
from millrace.versions.decisions import Span
from millrace.versions.image import RETRIEVAL_TABLES, split
from millrace.versions.modelstore import Image, TableRows
from millrace.windows.tiles import TileStore, counts_of
from stream.join.dropped import DroppedPages
from stream.join.join import InputMessage, LabelJoin, Outcome
from stream.join.labelling import Labeller
from stream.join.outcome_book import OutcomeBook, ToFiles
from stream.join.page_rows import LoggedPage
from stream.join.shown import ShownPages
from stream.join.topic_order import ReadTo
from stream.partition.coclick_counts import CoClicks, CoClicksSnapshot
from stream.partition.counters import Counters
from stream.partition.decoder import Decoder
from stream.partition.early_events import EarlyEvents
from stream.partition.owners import Owners
from stream.partition.partition import Partition, StepOutput
from stream.partition.recents import CLICKS, PURCHASES, Recents
from stream.worker.turn import INPUTS, Advance, Now, Pace, Publish, Take, Turn, arrival
from tests.architecture import ROOT
from tests.scenes.late_outcomes import BY_AGE
from tests.scenes.learning import SCHEMA as LEARNT
from tests.scenes.learning import START_MS, make_samples, tables_of
from tests.scenes.stream_world import DAY, HOUR, MINUTE, POLICY, SCHEMA, T0, Log, action, exposure, page_log, rows
from tests.scenes.tile_changes import changes as tile_changes
from tests.scenes.turn_scene import lists_of

BEFORE, AFTER = range(4), range(4, 8)
"""Pieces of a script before the snapshot and after it."""

ROUND_TRIP, APART, UNTOUCHED, CHANGES_ONCE, CHANGES_ABSOLUTE, DAMAGED = (
    "round trip",
    "apart from what happens later",
    "a snapshot changes nothing",
    "changes are given once",
    "changes are absolute",
    "a damaged state is a named error",
)


def plain(value: Any) -> Any:
    """A value in a form that is equal exactly where every bit of it is equal."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    if isinstance(value, float):
        return np.float64(value).tobytes()
    if isinstance(value, LoggedPage):
        return value.raw
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    return value


class Case:
    """How the contract handles one kind of object. ``covers``: the classes whose ``snapshot`` it tries."""

    covers: ClassVar[tuple[type, ...]] = ()
    skips: ClassVar[dict[str, str]] = {}
    """Check -> why it says nothing about this object."""

    resumes_changes = False
    """Whether what :meth:`changes` has not yet given is part of the state."""

    def fresh(self) -> Any:
        raise NotImplementedError

    def feed(self, subject: Any, piece: int) -> Any:
        """Does the script's piece; what came out."""
        raise NotImplementedError

    def snapshot(self, subject: Any) -> Any:
        return subject.snapshot()

    def form(self, state: Any) -> Any:
        """A state in a form to be compared."""
        return plain(state)

    def resume(self, state: Any) -> Any:
        """A fresh object that has become what ``state`` was taken of."""
        subject = self.fresh()
        subject.resume(state)
        return subject

    def changes(self, subject: Any) -> Any:
        return subject.changes()

    def is_empty(self, changes: Any) -> bool:
        raise NotImplementedError

    def read(self, reader: dict[Any, Any], changes: Any) -> None:
        """Applies changes as whoever is told them does."""
        raise NotImplementedError

    damaged: ClassVar[dict[str, Callable[[Any], Any]]] = {}
    """What makes an unusable state of a state."""

    error: ClassVar[type[Exception] | tuple[type[Exception], ...]] = MillraceError


NO_CHANGES = "it is published as a part of something else, which knows what changed"
A_PART = "the snapshot that it is a part of is checked as a whole: a partition's"


def untold(why: str) -> dict[str, str]:
    """The skips of what tells nobody its changes."""
    return {CHANGES_ONCE: why, CHANGES_ABSOLUTE: why}


# -- the learner ---------------------------------------------------------------------------------------------


class Guard(Case):
    covers = (LossGuard,)
    skips: ClassVar = untold(NO_CHANGES)
    damaged: ClassVar = {"too short": lambda state: state[:3]}
    error = ValueError

    def fresh(self) -> LossGuard:
        return LossGuard(3.0)

    def feed(self, subject: LossGuard, piece: int) -> bool:
        rng = np.random.default_rng(piece)
        loss = rng.exponential(40.0 if piece in (3, 6) else 0.5, 1500)  # two bursts that are refused
        return subject.exploded(loss, np.ones(1500), rng.random(1500) < 0.5)


class BucketSample(Case):
    covers = (Reservoir,)
    skips: ClassVar = untold(NO_CHANGES)
    damaged: ClassVar = {"other columns": lambda state: {**state, "values": state["values"][:, :1]}}
    error = ValueError

    def fresh(self) -> Reservoir:
        return Reservoir(2)

    def feed(self, subject: Reservoir, piece: int) -> Any:
        due = subject.add(np.random.default_rng(piece).random((1500, 2), np.float32))  # more than it holds, in the end
        return due, subject.edges(5)


class Slotted(Case):
    covers = (SlotEffect,)
    skips: ClassVar = untold(NO_CHANGES)
    damaged: ClassVar = {"a slot less": lambda state: {**state, "rows": state["rows"][1:]}}
    error = ValueError

    def fresh(self) -> SlotEffect:
        return SlotEffect(LEARNT)

    def feed(self, subject: SlotEffect, piece: int) -> Any:
        samples, odds = make_samples(40, piece), np.random.default_rng(piece).random(40).astype(np.float32)
        _, slots = subject.of(samples.cat, odds)
        assert slots is not None
        told = subject.logits(slots)
        subject.learn(slots, odds, told - samples.label)
        return told


class Dense(Case):
    covers = (DenseState,)
    skips: ClassVar = {CHANGES_ONCE: "a step moves every tensor, so changes are all tensors, whole, at any time"}
    damaged: ClassVar = {"a tensor less": lambda state: (state[0], {k: v for k, v in state[1].items() if k != "first"})}
    error = KeyError

    def fresh(self) -> DenseState:
        spec = read_spec({"model": "wide_resnet_bn", "hidden": [8, 8], "width": 4})
        columns = Inputs(LEARNT, 4, True, True).columns
        network, serving = (build_network(columns, spec, 0) for _ in range(2))
        self.kept = network, serving
        return DenseState(network, serving, "adam", 0.01, 0.9, 100)

    def feed(self, subject: DenseState, piece: int) -> Any:
        rng = np.random.default_rng(piece)
        subject.gradient.copy_(torch.from_numpy(rng.standard_normal(len(subject.gradient), np.float32)))
        subject.buffers.add_(torch.from_numpy(rng.random(len(subject.buffers), np.float32)))
        subject.learn(64)  # a step comes after every second piece
        return subject.average.clone()

    def resume(self, state: Any) -> DenseState:
        dense = self.fresh()
        dense.resume(*state)
        return dense

    def read(self, reader: dict[Any, Any], changes: Any) -> None:
        reader.update(plain(changes))


class Lateness(Case):
    """Clicks of a few minutes each: some wait when the snapshot is taken."""

    covers = (Delays,)
    skips: ClassVar = untold(NO_CHANGES)
    damaged: ClassVar = {"fewer clicks": lambda state: ({**state[0], "places": state[0]["places"][1:]}, state[1])}
    error = ValueError

    def fresh(self) -> Delays:
        self.weights = torch.zeros(SIZE)
        return Delays(self.weights, 300_000)

    def feed(self, subject: Delays, piece: int) -> Any:
        clicks = make_samples(150, piece, start_ms=START_MS + piece * 140_000)
        subject.learn(clicks)
        return subject.early(clicks.position, clicks.cat), subject.count, len(subject)

    def snapshot(self, subject: Delays) -> Any:
        return subject.snapshot(), subject._weights.copy()

    def resume(self, state: Any) -> Delays:
        delays = self.fresh()
        self.weights.copy_(torch.from_numpy(state[1]))  # they come with the network
        delays.resume(state[0])
        return delays


def rows_of(reader: dict[Any, Any], name: str, change: TableRows) -> None:
    """Applies a table's change to a reader's rows."""
    for id_ in change.removed.tolist():
        reader.pop((name, id_), None)
    for k, id_ in enumerate(change.ids.tolist()):
        reader[name, id_] = plain({n: c[k] for n, c in change.columns.items()})


class Table(Case):
    """Small, so that rows go by age and for want of room, and with a threshold of admission."""

    covers = (SparseTable, overlay.Table)
    damaged: ClassVar = {
        "a column less": lambda state: (state[0], {k: v for k, v in state[1].items() if k != "z"}),
    }
    error = KeyError

    def fresh(self) -> SparseTable:
        return SparseTable(4, StepSizes(0.05, 1e-6, 0.1, 1.0, 0.01, 0.0), 60, 100, 2, 0.05, 7)

    def feed(self, subject: SparseTable, piece: int) -> Any:
        rng = np.random.default_rng(piece)
        block = subject.read(rng.integers(0, 60, (64, 2)) + 15 * piece, learning=True)
        seen = block.ids, block.embedding.copy(), block.wide.copy(), block.new.copy()
        grad_embedding = rng.standard_normal(block.embedding.shape, np.float32)
        grad_wide = rng.standard_normal(block.wide.shape, np.float32)
        subject.write(block, grad_embedding, grad_wide, 1000 + 40 * piece)
        return seen, subject.expire(1000 + 40 * piece), len(subject)

    def resume(self, state: Any) -> SparseTable:
        table = self.fresh()
        table.resume(*state)
        return table

    def is_empty(self, changes: TableRows) -> bool:
        return not len(changes.ids) and not len(changes.removed)

    def read(self, reader: dict[Any, Any], changes: TableRows) -> None:
        rows_of(reader, "", changes)


class Memory(Case):
    """Ids that come again, ids that are forgotten by age, and a sweep after the snapshot."""

    covers = (Repeats,)
    skips: ClassVar = untold("nobody is told what it remembers")
    damaged: ClassVar = {"no times": lambda state: {"ids": state["ids"]}}
    error = KeyError

    def fresh(self) -> Repeats:
        return Repeats(keep_ms=30_000, max_ids=400)

    def feed(self, subject: Repeats, piece: int) -> Any:
        new = subject.first_time(make_samples(70, piece, start_ms=START_MS + piece * 7_300))
        again = subject.first_time(make_samples(70, piece // 2, start_ms=START_MS + piece * 7_300))
        return new, again, len(subject)


def learnt(subject: OnlineModel, piece: int) -> Any:
    """A batch into a model, a day's half apart: new ids, old ids, and some that go."""
    start_ms = START_MS + piece * HOUR * 12
    report = subject.learn(make_samples(64, piece, start_ms=start_ms, users=20 + 40 * piece, items=50))
    probe = make_samples(50, 99, users=400)
    return report, subject.score(probe.cat, probe.num)


class Model(Case):
    covers: ClassVar[tuple[type, ...]] = (OnlineModel, ServingModel)
    damaged: ClassVar = {
        "a tensor less": lambda state: (Image(dict(list(state[0].dense.items())[1:]), state[0].tables), state[1]),
        "no table": lambda state: (Image(state[0].dense, {}), state[1]),
        "no optimiser": lambda state: (state[0], {}),
        "a guard of another form": lambda state: (state[0], {**state[1], "guard": np.zeros(3)}),
    }
    error = SnapshotError
    schema = LEARNT

    def __init__(self, **spec: Any) -> None:
        self.spec = {"hidden": [16, 16], "width": 4, "max_rows": 150, "max_age_days": 1.0, "loss_ratio": 3.0}
        self.spec |= {"step_rows": 100, **spec}

    def fresh(self) -> OnlineModel:
        return OnlineModel(self.schema, self.spec, 0)

    def feed(self, subject: OnlineModel, piece: int) -> Any:
        return learnt(subject, piece)

    def resume(self, state: Any) -> OnlineModel:
        model = OnlineModel(self.schema, self.spec, 5)  # the seed is the snapshot's
        model.resume(*state)
        return model

    def is_empty(self, changes: Image) -> bool:
        """Dense tensors are given whole at any time."""
        return all(not len(t.ids) and not len(t.removed) for t in changes.tables.values())

    def read(self, reader: dict[Any, Any], changes: Image) -> None:
        reader.update(plain(changes.dense))
        for name, change in changes.tables.items():
            rows_of(reader, name, change)


class Sold(Model):
    """With an outcome that is told by age: some tellings wait until the model of its delays may learn them."""

    covers = (OutcomeHeads,)
    schema = msgspec.structs.replace(
        LEARNT, outcome=(OutcomeRule("buy", event="purchase", within="30d", policy="es-dfm"),)
    )

    def feed(self, subject: OnlineModel, piece: int) -> Any:
        batch = make_samples(150, piece, start_ms=START_MS + piece * 6 * DAY)
        kind, policy, telling = (
            np.full(150, code, np.uint8) for code in (OUTCOME, POLICIES.index("es-dfm"), 1 + piece)
        )
        told = np.random.default_rng(piece).integers(-2, 3, (150, 1)).astype(np.float32)
        subject.learn(replace(batch, kind=kind, policy=policy, telling=telling, outcomes=told))
        return subject.predict(batch.cat, batch.num)


class Headed(Model):
    """With a retrieval head: some clicks wait for a micro-batch, others were flushed; its rows go by age and for want
    of room."""

    covers = (RecentItems, History, Pending)
    damaged: ClassVar = {
        **Model.damaged,
        "half a head": lambda state: (Image(state[0].dense, _but(state[0].tables, "retrieval_user")), state[1]),
        "no recent_items": lambda state: (state[0], _but(state[1], "retrieval/recent_items/keys")),
        "a ring of nothing": lambda state: (state[0], {**state[1], "retrieval/recent_items/ring": np.full(9, -1)}),
    }

    def feed(self, subject: OnlineModel, piece: int) -> Any:
        head = subject.head
        assert head is not None
        if piece in (AFTER[1], AFTER[3]):
            head.flush()
        return learnt(subject, piece), head.clicks, head.pending, head.loss


def _but(named: Mapping[str, Any], without: str) -> dict[str, Any]:
    return {name: value for name, value in named.items() if name != without}


class Sliced(Model):
    """The same model, its snapshot in slices: a state is the list of their parts."""

    damaged: ClassVar = {
        "no last part": lambda state: state[:-1],
        "a part of no table": lambda state: [(Image({}, {}), {}), *state],
        "a part without optimiser": lambda state: [(state[0][0], {}), *state[1:]],
    }

    def snapshot(self, subject: OnlineModel) -> Any:
        slices = subject.slices(60)
        return [*iter(slices.next, None), slices.finish()]

    def form(self, state: Any) -> Any:
        return plain(merge(state))

    def resume(self, state: Any) -> OnlineModel:
        model = OnlineModel(LEARNT, self.spec, 5)
        model.resume(iter(state))
        return model


class Teacher(Case):
    """A trainer with its model, as the learner's shell keeps them together."""

    covers = (Trainer,)
    skips: ClassVar = untold("its model's changes are published") | {
        DAMAGED: "what is damaged in a snapshot is found by the model, which reads it first"
    }

    def fresh(self) -> Trainer:
        spec = {"model": "wide_deep", "hidden": [8], "width": 4}
        return Trainer(OnlineModel(LEARNT, spec, 0), Progressive(1000), Repeats(30_000, 500), 64)

    def feed(self, subject: Trainer, piece: int) -> Any:
        for number in (piece, piece // 2):  # some were learnt from before
            subject.take(make_samples(100, number, start_ms=START_MS + number * 9_000))
        late = make_samples(150, 9 + piece, start_ms=START_MS + piece * 9_000)  # some are beyond the negatives
        subject.take(replace(late, kind=np.full(150, CORRECTION, np.uint8)))
        reports = []
        while (report := subject.step(drain=True)) is not None:
            reports.append(report)
        clicks = subject.take_clicks()
        return reports, clicks.sent_ms.tolist(), dict(subject.counts)

    def snapshot(self, subject: Trainer) -> Any:
        image, training = subject.model.snapshot()
        return image, {**training, **subject.snapshot()}, dict(subject.counts)

    def resume(self, state: Any) -> Trainer:
        trainer = self.fresh()
        trainer.model.resume(*state[:2])
        trainer.resume(*state[1:])
        return trainer


class Refusals(Case):
    covers = (Quarantine,)
    skips: ClassVar = untold("nobody is told of changes: people read a list")
    damaged: ClassVar = {"cut off": lambda state: state[:-1], "another form": lambda state: b"\x07"}
    error = SnapshotError

    def fresh(self) -> Quarantine:
        return Quarantine(Store("memory://state-contract-quarantine"), "s", most_bytes=2000)  # the oldest go

    def feed(self, subject: Quarantine, piece: int) -> Any:
        for k in range(4):
            refusal = GateRefusal("labels" if piece + k & 2 else "auc", piece / 3, 1.0)
            subject.keep(8 * piece + k, refusal, (Span(50 - piece, 0, 9), Span(60 + piece, 1, 3)), (piece, k), piece)
        gone = subject.remove([subject.entries()[0].name])
        if piece == 5:
            gone += subject.forget_behind(48)
        return gone, subject.entries(), subject.spans(subject.entries()[-1].name), subject.lost_rows


# -- the stream ----------------------------------------------------------------------------------------------


@cache
def messages(piece: int) -> tuple[InputMessage, ...]:
    """Half an hour of a shop: pages whose page log, exposure and actions come in turn, late, or not at all."""
    log, now = Log(), T0 + piece * 31 * MINUTE
    found: list[InputMessage] = []
    for k in range(6):
        name, ts, items = f"{piece}-{k}", now + k * 3 * MINUTE, [k + 1, k + 2, piece + 10]
        served = page_log(name, ts, items, user=7 + k % 2)
        shown = exposure(name, ts + 1000, items[: 3 - k % 2], user_id=7 + k % 2)
        clicked = action("click", name, ts + 2000, 0, items[0], user_id=7 + k % 2)
        parts = [("page_logs", served), ("events", shown), ("events", clicked)]
        if k == 1:
            parts.reverse()  # the click first
        elif k == 2:
            parts = parts[1:]  # the page log is lost
        elif k == 3:
            parts = [*parts[:2], ("users", to_json(User(100 + piece, {"kind": "business"})))]
        elif k == 4:  # a purchase without a click, of this page and of the piece before's: twice
            bought = action("purchase", name, ts + 3000, 2, items[2], user_id=7)
            before = action("purchase", f"{piece - 1}-4", ts + 3000, 1, 6, user_id=7)
            parts = [*parts, ("events", bought), ("events", before), ("events", before)]
            if piece > 2:  # an exposure of a page that was dropped long ago
                parts.append(("events", exposure(f"{piece - 3}-0", ts - 90 * MINUTE, [1, 2, piece + 7])))
        elif k == 5:
            parts = parts[:1] if piece % 2 else parts[:2]  # never shown, or never clicked
        found += [log(topic, raw) for topic, raw in parts]
        if k == 4 and piece % 3 == 2:
            found.append(log("users", b"")._replace(key=b"8", clock_ms=ts + 4000))
    return tuple(m._replace(offset=m.offset + 1000 * piece) for m in found)


class Tiles(Case):
    """Pieces 30 hours apart, so that tiles merge, windows end and a sweep drops keys."""

    covers = (TileStore,)
    resumes_changes = True
    damaged: ClassVar = {
        "a tile list cut short": lambda state: {
            name: array[:-3] if name == "packed" else array for name, array in state.arrays().items()
        },
        "of other columns": lambda state: _other_columns().snapshot().arrays(),
    }
    error = StoreError
    lengths: ClassVar[tuple[int | str, ...]] = (1, 7)
    half_lives = (2.0,)

    def __init__(self, packed: bool) -> None:
        """``packed``: resumes from arrays, as out of a checkpoint, not from the snapshot in memory."""
        self.packed = packed

    def fresh(self) -> TileStore:
        return TileStore(self.lengths, 3, self.half_lives, 1)

    def feed(self, subject: TileStore, piece: int) -> Any:
        rng, start_ms = np.random.default_rng(piece), T0 + piece * 30 * HOUR
        keys = rng.integers(1, 50, (80, 2)).astype(np.uint64) + np.uint64(15 * piece)
        times = start_ms + rng.integers(-3 * HOUR, HOUR, 80)
        fresh = subject.add(keys, times, rng.integers(0, 3, 80), rng.integers(0, 4, 80))
        dropped = subject.expire(start_ms + HOUR) if piece % 3 == 2 else 0
        return np.sort(fresh), dropped, len(subject), subject.counts(keys[:, 0], start_ms + HOUR)

    def form(self, state: Any) -> Any:
        return plain(state if isinstance(state, dict) else state.arrays())

    def resume(self, state: Any) -> TileStore:
        store = self.fresh()
        store.resume(state.arrays() if self.packed and not isinstance(state, dict) else state)
        return store

    def changes(self, subject: TileStore) -> Any:
        return tile_changes(subject)

    def is_empty(self, changes: Any) -> bool:
        return not len(changes[0])

    def read(self, reader: dict[Any, Any], changes: Any) -> None:
        """Lists by what they say at the end; a key that says nothing any more may have been dropped."""
        keys, blobs = changes
        counts = counts_of(blobs, T0 + 9 * 24 * HOUR, self.lengths, 3, self.half_lives, 1)
        for key, own in zip(keys.tolist(), counts, strict=True):
            reader.pop(key, None)
            if own.any():
                reader[key] = own.tolist()


class ShortTiles(Tiles):
    """The same with a window that has tiles of five minutes."""

    lengths = ("15min", "6h", "7d")


def _other_columns() -> TileStore:
    store = TileStore(Tiles.lengths, 2, Tiles.half_lives)
    store.add(np.arange(1, 9, dtype=np.uint64), np.full(8, T0), np.ones(8, np.int64))
    return store


class Outcomes(Case):
    covers = (OutcomeBook,)
    skips: ClassVar = untold("what comes out of it is an outcome of each message") | {DAMAGED: A_PART}

    def fresh(self) -> OutcomeBook:
        return OutcomeBook(BY_AGE, Decoder(SCHEMA, 0, None, ()).shape, POLICY.lateness_ms)

    def feed(self, subject: OutcomeBook, piece: int) -> Any:
        files, dropped = ToFiles(), []
        for message in messages(piece):
            if message.topic == "page_logs":
                request, page = Decoder(SCHEMA, 0, None, ()).page(message.raw)
                subject.open("click", request, ((0, 1),), page, page.ts_ms, page.ts_ms, 0)
            elif message.topic == "events":
                event = decode_event(message.raw)
                dropped += [one.reason for one in subject.expire(event.ts_ms, files)]
                if isinstance(event, Action):
                    subject.act(event, message, True)
        dropped += [one.reason for one in subject.expire(T0 + 5 * piece * 3_600_000, files)]
        sealed = [(one.hour, one.rows.to_bytes()) for one in files.sealed]
        told = [(one.hour, one.outcomes.tobytes(), one.offsets) for one in files.told]
        return sealed, told, files.removed, dropped, subject.due_ms, len(subject)

    def resume(self, state: Any) -> OutcomeBook:
        book = self.fresh()
        book.resume(msgspec.msgpack.decode(msgspec.msgpack.encode(state)), lambda rows: rows)
        return book

    def form(self, state: Any) -> Any:
        return msgspec.msgpack.encode(state)


class Join(Case):
    covers = (LabelJoin, DroppedPages, Labeller)
    skips: ClassVar = untold("what comes out of it is an outcome of each message") | {DAMAGED: A_PART}

    def fresh(self) -> LabelJoin:
        return LabelJoin(POLICY, ShownPages(SCHEMA))

    def feed(self, subject: LabelJoin, piece: int) -> Any:
        out = Outcome()
        for message in messages(piece):
            if message.topic == "page_logs":
                page = self._page(message.raw)
                subject.serve(decode_served(message.raw).request_id, page, out)
            elif message.topic == "events":
                event = decode_event(message.raw)
                if event.ts_ms - POLICY.disorder_ms > subject.watermark_ms:
                    subject.watermark_ms = event.ts_ms - POLICY.disorder_ms
                    subject.expire(out)
                if isinstance(event, Exposure):
                    subject.expose(event, message, out)
                elif isinstance(event, Action):
                    subject.act(event, message, out)
        return out, subject.pending, subject.due_ms

    def resume(self, state: Any) -> LabelJoin:
        join = self.fresh()
        join.resume(msgspec.msgpack.decode(msgspec.msgpack.encode(state)), self._page, decode_event)
        return join

    def form(self, state: Any) -> Any:
        return msgspec.msgpack.encode(state)

    @staticmethod
    def _page(raw: bytes) -> LoggedPage:
        return Decoder(SCHEMA, 0, None, ()).page(raw)[1]


class Middle(Case):
    covers = (Partition, Counters, EarlyEvents)
    resumes_changes = True
    damaged: ClassVar = {
        "nothing": lambda state: b"",
        "half of it": lambda state: state.to_bytes()[: len(state.to_bytes()) // 2],
        "another partition's": lambda state: _headed(state.to_bytes(), "number", 1),
        "another schema's": lambda state: _headed(state.to_bytes(), "schema", "other"),
        "a later version's": lambda state: _headed(state.to_bytes(), "form", 99),
        "damaged tiles": lambda state: _headed(state.to_bytes(), "tiles", {}),
    }
    error = StoreError

    def __init__(self, settles: bool = False) -> None:
        self.settles = settles

    def fresh(self) -> Partition:
        return Partition(0, SCHEMA, POLICY, settles=self.settles)

    def feed(self, subject: Partition, piece: int) -> Any:
        out = subject.take(messages(piece), T0 + 1000 * HOUR)
        if piece == AFTER[-1]:
            return rows(out.samples), out.dead, out.counts, list(subject.whole())
        return rows(out.samples), out.dead, out.counts, subject.pending, subject.watermark_ms

    def form(self, state: Any) -> bytes:
        raw: bytes = state.to_bytes()
        return raw

    def resume(self, state: Any) -> Partition:
        partition = self.fresh()
        partition.resume(state if isinstance(state, bytes) else state.to_bytes())
        return partition

    def is_empty(self, changes: Any) -> bool:
        reported = changes.users, changes.profiles, changes.item_tiles, changes.recents, changes.forgotten
        return not any(reported) and not len(changes.item_keys) and not len(changes.coclicks.items)

    def read(self, reader: dict[Any, Any], changes: Any) -> None:
        """Tile lists by what they say at the end: they are merged as of the moment at which they are given."""
        at = T0 + 24 * HOUR
        for user in changes.forgotten:
            for mine in [key for key in reader if key[0] == str(user)]:
                del reader[mine]
        lists: list[Any] = [((str(user), key), blob) for user, own in changes.users for key, blob in own]
        lists += zip([("", key) for key in changes.item_keys.tolist()], changes.item_tiles, strict=True)
        for key, blob in lists:
            reader[key] = counts_of([blob], at, SCHEMA.windows.days, SCHEMA.windows.columns).tolist()
        reader.update({(str(user.user_id), "profile"): user for user in changes.profiles})
        reader.update({(str(user), "recent"): value for user, value in changes.recents})
        reader.update(lists_of(0, changes.coclicks))


def _headed(raw: bytes, name: str, value: Any) -> bytes:
    """A checkpoint with another value at its head."""
    return msgspec.msgpack.encode({**msgspec.msgpack.decode(raw), name: value})


class Belongings(Case):
    covers = (Owners,)
    skips: ClassVar = untold("its partition tells who is told") | {DAMAGED: A_PART}

    def fresh(self) -> Owners:
        return Owners()

    def feed(self, subject: Owners, piece: int) -> Any:
        keys = np.arange(1, 41, dtype=np.uint64) + np.uint64(20 * piece)
        subject.add([f"u{piece}", "u0"], [0, 25, 40], keys)
        gone = subject.end(np.arange(10 * piece, 1000, dtype=np.uint64)) if piece % 2 else None
        return gone, subject.all()


class LastClicks(Case):
    """So few users that some go for want of room, and pieces so far apart that some go by age."""

    covers = (Recents,)
    resumes_changes = True
    damaged: ClassVar = {"a user's field": lambda state: ({**state[0], "u1": b"\xc1"}, *state[1:])}
    error = StoreError

    def fresh(self) -> Recents:
        return Recents(most_users=20)

    def feed(self, subject: Recents, piece: int) -> Any:
        rng, out = np.random.default_rng(piece), []
        for user, what, item in rng.integers(0, (30, 2, 9), (60, 3)).tolist():
            at = T0 + piece * 9 * DAY + int(rng.integers(0, DAY))
            out.append(subject.add(f"u{user}", (CLICKS, PURCHASES)[what], item, at, 3))
        subject.sweep(T0 + piece * 9 * DAY + DAY)
        return out, len(subject), list(subject.whole()) if piece == AFTER[-1] else None

    def is_empty(self, changes: Any) -> bool:
        return not changes

    def read(self, reader: dict[Any, Any], changes: Any) -> None:
        for user, value in changes:
            reader.pop(user, None)
            if value:
                reader[user] = value


class Together(Case):
    """More neighbours than there are places, days that end, and maybe so few rows that items go for want of room."""

    covers = (CoClicks,)
    resumes_changes = True
    damaged: ClassVar = {
        "fewer neighbours": lambda state: {**_plain(state), "near": _plain(state)["near"][8:]},
        "no counts": lambda state: {k: v for k, v in _plain(state).items() if k != "counts"},
    }
    error = (ValueError, KeyError)

    def __init__(self, most_items: int) -> None:
        self.most_items = most_items
        if most_items < 150:
            why = "an item that goes for want of room is not told: what readers know of it ends with its days"
            self.skips = {CHANGES_ABSOLUTE: why}  # type: ignore[misc]

    def fresh(self) -> CoClicks:
        return CoClicks(self.most_items)

    def feed(self, subject: CoClicks, piece: int) -> Any:
        rng = np.random.default_rng(piece)
        pairs = (70 * rng.random((400, 2)) ** 2).astype(np.uint64) + np.array([1, 100], np.uint64)
        subject.add(pairs, T0 + piece * 2 * DAY + np.sort(rng.integers(0, 3 * DAY, 400)))
        return len(subject), subject.day, subject.part(0.0, 1.0)

    def form(self, state: Any) -> Any:
        return plain(_plain(state))

    def resume(self, state: Any) -> CoClicks:
        counted = self.fresh()
        counted.resume(_plain(state))
        return counted

    def is_empty(self, changes: Any) -> bool:
        return not len(changes.items)

    def read(self, reader: dict[Any, Any], changes: Any) -> None:
        """Lists by what they hold of the last days: days end without a word, and with them items and neighbours."""
        for key, near in lists_of(0, changes).items():
            now = {n: {d: c for d, c in days.items() if d > (T0 + 10 * DAY) // DAY} for n, days in near.items()}
            reader.pop(key, None)
            if any(now.values()):
                reader[key] = {n: days for n, days in now.items() if days}


def _plain(state: Any) -> dict[str, Any]:
    return state.plain() if isinstance(state, CoClicksSnapshot) else state


class Due(Case):
    """A turn with what is due of it done at once, up to an advance that is announced and not yet made."""

    covers = (Turn,)
    skips: ClassVar = untold("its partition's changes are published") | {DAMAGED: A_PART}
    clock = EventClock()

    def turn(self, partition: Partition) -> Turn:
        came = max(T0, partition.newest_ms) / 1000  # nobody takes a partition over before its events have come
        return Turn(partition, Pace(publish_s=60, checkpoint_s=60, idle_s=60), self.clock, Now(0.0, came))

    def fresh(self) -> Turn:
        return self.turn(Partition(0, SCHEMA, POLICY))

    def feed(self, subject: Turn, piece: int) -> Any:
        """A piece of the shop, then silence until the next is near."""
        came, silent = T0 / 1000 + piece * 1860, T0 / 1000 + piece * 1860 + 1700
        for m in messages(piece):
            subject.arrived(arrival(0, m.topic, m.offset, m.raw, came, None, self.clock, came), Now(came, came))
        reads = {t: ReadTo(1000 * piece + 500, 1000 * piece + 500, silent, self._end(t, piece)) for t in INPUTS}
        out: list[Any] = []
        for now in (Now(came, came + 1), Now(came + 100, came + 100), Now(silent, silent)):
            for due in (*subject.inbound(reads, now), *subject.outbound(reads, subject.partition.newest_ms, now)):
                match due:
                    case Take():
                        out.append(subject.partition.take(due.messages, T0 + 1000 * HOUR))
                    case Advance():
                        out.append(subject.partition.advance(due.until_ms))
                    case Publish():
                        out.append(subject.partition.changes())
                subject.done(due)
        return [(rows(o.samples), o.dead, o.counts) if isinstance(o, StepOutput) else o for o in out]

    def _end(self, topic: str, piece: int) -> int:
        return max((m.offset + 1 for m in messages(piece) if m.topic == topic), default=0)

    def form(self, state: Any) -> bytes:
        raw: bytes = state.to_bytes()
        return raw

    def resume(self, state: Any) -> Turn:
        """A turn begins again with its partition."""
        partition = Partition(0, SCHEMA, POLICY)
        partition.resume(state.to_bytes())
        return self.turn(partition)


CASES: dict[str, Case] = {
    "guard": Guard(),
    "buckets": BucketSample(),
    "dense": Dense(),
    "table": Table(),
    "repeats": Memory(),
    "model wide_deep": Model(model="wide_deep"),
    "model wide_resnet_bn": Model(model="wide_resnet_bn", admit=2),
    "model in slices": Sliced(model="wide_deep"),
    "model with a retrieval head": Headed(model="wide_deep", retrieval_width=8, retrieval_negatives=16),
    "model with an outcome": Sold(model="wide_deep"),
    "the same in slices": Sliced(model="wide_deep", retrieval_width=8, retrieval_negatives=16),
    "trainer": Teacher(),
    "tiles in memory": Tiles(packed=False),
    "tiles in arrays": Tiles(packed=True),
    "tiles of minutes in memory": ShortTiles(packed=False),
    "tiles of minutes in arrays": ShortTiles(packed=True),
    "delays": Lateness(),
    "slots": Slotted(),
    "join": Join(),
    "outcomes": Outcomes(),
    "owners": Belongings(),
    "recents": LastClicks(),
    "co-clicks": Together(1000),
    "co-clicks without room": Together(60),
    "partition": Middle(),
    "partition that settles": Middle(settles=True),
    "turn": Due(),
    "quarantine": Refusals(),
}
"""Every kind of object that has state."""

NOT_KEPT = {
    "learner/role/loopoutput.py LoopOutput": "an interface: who hears that a snapshot was made",
    "learner/role/topicoutput.py TopicOutput": "its snapshot announces one",
    "stream/archive/archive_pages.py ArchivedPages": "a part of the archive's state: test_archive.py",
    "stream/archive/arm_figures.py ArmFigures": "a part of the archive's state: test_arm_figures.py",
    "learner/training/publisher.py Publisher": "its snapshot announces one; the files that it names are the state",
    "learner/ranker/interfaces.py CustomModel": "a protocol",
    "learner/ranker/interfaces.py Learning": "a protocol",
    "learner/custom/own.py OwnModel": "test_own_models.py runs the models' contract over it",
    "learner/custom/ownids.py KnownIds": "a part of OwnModel",
    "learner/custom/ownserving.py OwnServing": "a version, whole each time: tests/learner/custom/test_own_models.py",
    "learner/custom/adapters/rivermodel.py RiverFTRL": "test_own_models.py runs the models' contract over it",
    "learner/promotion/gatejudge.py GateJudge": "its snapshot says whether there may be one",
    "learner/promotion/restorer.py Restorer": "its snapshot makes the model of one",
    "learner/gate/median_clock.py MedianClock": "of use to its process alone: test_median_clock.py resumes it",
    "learner/gate/screen.py Screen": "of use to its process alone, no changes: test_screen.py resumes it",
    "learner/gate/quota.py Quota": "of use to its process alone, no changes: test_quota.py resumes it",
    "learner/gate/refused_minutes.py RefusedMinutes": "as the clock: test_refused_minutes.py resumes it",
    "learner/gate/shift.py Shift": "of use to its process alone, no changes: test_shift.py resumes it",
    "learner/gate/heldout.py Heldout": "of use to its process alone: test_heldout.py resumes it",
    "learner/custom/adapters/torchmodule.py TorchModel": "test_own_models.py runs the models' contract over it",
}
"""Classes that have a ``snapshot`` and no case, and why."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = CASES[request.param]
    check = next(m.args[0] for m in request.node.iter_markers("contract"))
    if check in found.skips:
        pytest.skip(f"{request.param}: {found.skips[check]}")
    return found


def fed(case: Case, pieces: range = BEFORE) -> Any:
    subject = case.fresh()
    for piece in pieces:
        case.feed(subject, piece)
    return subject


def has_changes(case: Case) -> bool:
    return CHANGES_ABSOLUTE not in case.skips


@pytest.mark.contract(ROUND_TRIP)
@pytest.mark.parametrize("published", [True, False], ids=["published", "not yet published"])
def test_round_trip(case: Case, published: bool) -> None:
    """What resumes goes on to the bit: the same outputs, changes and snapshot of the same future."""
    mine = fed(case)
    if published and has_changes(case):
        case.changes(mine)
    elif has_changes(case) and not case.resumes_changes:
        pytest.skip("after a start a whole snapshot is published, so nobody waits for the changes before it")
    state = case.snapshot(mine)
    theirs = case.resume(state)
    assert case.form(case.snapshot(theirs)) == case.form(state)
    if case.resumes_changes and not published:
        assert plain(case.changes(case.resume(state))) == plain(case.changes(fed(case)))
    for piece in AFTER:
        assert plain(case.feed(mine, piece)) == plain(case.feed(theirs, piece)), f"piece {piece}"
    if has_changes(case):
        assert plain(case.changes(mine)) == plain(case.changes(theirs))
    assert case.form(case.snapshot(mine)) == case.form(case.snapshot(theirs))


@pytest.mark.contract(APART)
def test_a_snapshot_is_apart_from_what_happens_later(case: Case) -> None:
    """To the object that it was taken of, and to one that resumed it."""
    mine, twin = fed(case), fed(case)
    state, expected = case.snapshot(mine), case.form(case.snapshot(twin))
    theirs = case.resume(state)
    for subject in (mine, theirs):
        for piece in AFTER:
            case.feed(subject, piece)
        if has_changes(case):
            case.changes(subject)
        assert case.form(case.snapshot(subject)) != expected, "the script changes nothing"
        assert case.form(state) == expected


@pytest.mark.contract(UNTOUCHED)
def test_a_snapshot_changes_nothing(case: Case) -> None:
    """An object of which snapshots are taken all the time is to the bit one of which none ever was."""
    often, never = case.fresh(), case.fresh()
    for piece in (*BEFORE, *AFTER):
        assert plain(case.feed(often, piece)) == plain(case.feed(never, piece)), f"piece {piece}"
        case.snapshot(often)
    if has_changes(case):
        assert plain(case.changes(often)) == plain(case.changes(never))
    assert case.form(case.snapshot(often)) == case.form(case.snapshot(never))


@pytest.mark.contract(CHANGES_ONCE)
def test_changes_are_given_once(case: Case) -> None:
    subject = fed(case)
    assert not case.is_empty(case.changes(subject))
    assert case.is_empty(case.changes(subject))
    case.feed(subject, AFTER[0])
    assert not case.is_empty(case.changes(subject))


@pytest.mark.contract(CHANGES_ABSOLUTE)
def test_changes_are_absolute(case: Case) -> None:
    """A reader that is told each piece's changes, some of them twice, is where one is that is told only at the end."""
    often, once = case.fresh(), case.fresh()
    reported: list[Any] = []
    for piece in (*BEFORE, *AFTER):
        case.feed(often, piece)
        case.feed(once, piece)
        reported.append(case.changes(often))
    readers: list[dict[Any, Any]] = [{}, {}, {}]
    for change in reported:
        case.read(readers[0], change)
    for change in (*reported[:5], *reported[2:]):
        case.read(readers[1], change)
    case.read(readers[2], case.changes(once))
    assert readers[0]
    assert readers[0] == readers[1] == readers[2]


@pytest.mark.contract(DAMAGED)
def test_a_damaged_state_is_a_named_error(case: Case) -> None:
    assert case.damaged, "name a damaged state, or say why there is none"
    for name, damage in case.damaged.items():
        state = damage(case.snapshot(fed(case)))
        with pytest.raises(case.error) as caught:
            case.resume(state)
        assert str(caught.value), name


def test_what_serves_is_the_serving_half_of_the_model() -> None:
    """A scorer's model has a snapshot and no ``resume``: it begins with an image and is patched with changes."""
    model = CASES["model wide_resnet_bn"].fresh()
    serving = ServingModel.of(LEARNT, model.spec, model.snapshot()[0])
    for piece in (*BEFORE, *AFTER):
        learnt(model, piece)
        serving.patch(model.changes())
        assert plain(serving.snapshot()) == plain(model.snapshot()[0])


def test_a_tower_is_the_serving_half_of_the_head() -> None:
    """It takes snapshots and changes, in which the ranker's tables are none of its business, and has no ``resume``."""
    case = CASES["model with a retrieval head"]
    model = case.fresh()
    tower, late = Tower(LEARNT, read_spec(model.spec)), Tower(LEARNT, read_spec(model.spec))
    for piece in (*BEFORE, *AFTER):
        case.feed(model, piece)
        left_out = model.changes(retrieval=False)
        assert not left_out.tables.keys() & set(RETRIEVAL_TABLES)
        if piece % 2:
            tower.apply(model.changes())
            assert tables_of(tower).same_bits(split(model.snapshot()[0])[1]) == ""
    late.apply(model.snapshot()[0])
    assert tables_of(late).same_bits(tables_of(tower)) == ""
    assert all(len(rows.ids) for rows in tables_of(tower).tables.values())


def _methods() -> dict[str, set[str]]:
    """The methods of each class of the rooms that keep state."""
    found = {}
    for folder in ("learner", "stream", "scorer", "millrace/windows"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    own = {f.name for f in node.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)}
                    found[f"{path.relative_to(ROOT)} {node.name}"] = own
    return found


def test_nothing_that_has_state_is_left_out() -> None:
    covered = {f"{c.__module__.replace('.', '/')}.py {c.__name__}" for case in CASES.values() for c in case.covers}
    having = {name for name, methods in _methods().items() if "snapshot" in methods}
    assert having - covered - NOT_KEPT.keys() == set(), "classes with a snapshot and no case in the contract"
    assert covered | NOT_KEPT.keys() <= having, "cases of classes that have no snapshot"


def test_state_has_one_vocabulary() -> None:
    others = {"freeze", "thaw", "state", "private", "to_arrays", "from_arrays", "restore", "changed"}
    assert {name: m & others for name, m in _methods().items() if m & others} == {}
