"""The scorer's benchmark: what it feeds is what a learner and a stream would send, and it sees what goes wrong."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.tools import modelwire, pagewire
from benchmarks.tools.modelwire import ModelWire
from learner.ranker.inputs import Inputs
from learner.ranker.model import OnlineModel
from learner.retrieval.tower import ITEM, USER, Sides
from learner.role.learnloop import LearnPace
from millrace.commands.replay.stretches import Stretches
from millrace.contracts.events import PageLog
from millrace.contracts.page_logs import page_log_bytes
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.logs import LogTable
from millrace.versions.image import Image, check_head, split
from millrace.versions.modellog import Assembler, Claimed, Delta, Snapshot
from millrace.versions.packing import unpack
from scorer.feeder.version_order import Follower
from scorer.users.userrecord import SLOW, UserRecord
from simulator.daylog import day_table
from simulator.world import World
from tests.scenes.waiting import LONG

ROWS = 20_000
DAY = 20_500


@cache
def log() -> pa.Table:
    return day_table(World(1, 20), DAY)


def model_wire(folder: Path, topic: _Topic) -> ModelWire:
    return ModelWire(Settings(data=str(folder)), topic, log(), ROWS, 100, "log")


def features() -> tuple[Any, Any]:
    """cat (n, F) and num (n, N) of the log."""
    schema = shop_schema()
    own = schema.log
    assert own is not None
    table = LogTable(log(), own.user, own.item, own.label, log().num_rows, 0)
    return Stretches(table, schema).of(np.arange(log().num_rows))


class _Topic:
    """A Kafka producer whose messages stay here."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def send(self, _: str, value: bytes) -> _Topic:
        self.messages.append(value)
        return self

    def get(self, _: float) -> _Topic:
        return self

    def add_callback(self, _: Any) -> None: ...

    add_errback = add_callback

    @property
    def offset(self) -> int:
        return len(self.messages) - 1


@pytest.fixture(autouse=True)
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second delta has dense tensors, every fourth the retrieval head."""
    monkeypatch.setattr(modelwire, "PACE", LearnPace(delta_seconds=1.0, dense_seconds=2.0, retrieval_seconds=4.0))


def test_a_scorer_can_follow_what_is_sent(tmp_path: Path) -> None:
    """Every delta follows, unpacks against the dense tensors that were reached, and fits the model."""
    topic = _Topic()
    wire = model_wire(tmp_path, topic)
    follower, assembler, state = Follower(shop_schema().id), Assembler(), Image({}, {})
    verdicts: list[str] = []

    def follow() -> None:
        nonlocal state
        offset = len(verdicts)
        for message in topic.messages[offset:]:
            verdicts.append("")
            for entry in assembler.take(message):
                verdicts[-1] = follower.take(entry)
                assert isinstance(entry, Claimed | Snapshot | Delta)
                if verdicts[-1] == "patch" and isinstance(entry, Delta):
                    check_head(split(unpack(entry.body, state.dense))[1], 31)
                    state = state.apply(unpack(entry.body, state.dense))
                    follower.patched(entry.note)
                elif verdicts[-1] == "look":
                    found = follower.candidates(wire.store.snapshots())
                    if found:
                        state = wire.store.read(found[0])
                        for part in wire.store.read_parts(found[0]):
                            check_head(split(part)[1], 31)
                        follower.loaded(found[0])

    wire.new_root()
    follow()
    assert verdicts[-1] == "look"
    rows = sum(len(table.ids) for table in state.tables.values())
    assert rows == pytest.approx(ROWS, rel=0.3)
    assert state.dense.keys() == OnlineModel(shop_schema(), Settings().spec(), 0).snapshot()[0].dense.keys()
    seen = set()
    for _ in range(7):
        wire.delta()
        follow()
        assert verdicts[-1] == "patch"
        seen.add(state.dense["out.weight"].tobytes())
    assert len(seen) == 2  # dense weights go to and fro
    version = wire.new_root()
    follow()
    assert follower.at is not None
    assert (follower.at.epoch, follower.at.version) == (2, version)
    wire.delta()
    follow()
    assert verdicts[-1] == "patch"


def test_pages_ask_for_rows_that_the_tables_have(tmp_path: Path) -> None:
    wire = model_wire(tmp_path, _Topic())
    inputs = Inputs(shop_schema(), 16, True, True)
    cat, _ = features()
    for group in inputs.groups:
        asked = inputs.ids(group, cat)
        assert np.isin(asked[asked != 0], wire.ids[group.name]).mean() > 0.9, group.name


def test_the_retrieval_head_knows_the_items_and_the_users(tmp_path: Path) -> None:
    """Every fourth version is a retrieval version: it changes maps, items and users."""
    topic = _Topic()
    wire = model_wire(tmp_path, topic)
    sides, (cat, num) = Sides(shop_schema()), features()
    clicked = log()["click"].to_numpy() == 1
    of_item = sides.item_features(np.ascontiguousarray(cat[clicked][:, sides.item_columns]), num[clicked][:, :3])[0]
    of_user = sides.user_features(np.ascontiguousarray(cat[clicked][:, sides.user_columns]))[0]
    for name, ids in ((ITEM, of_item[:, :5]), (USER, of_user)):
        assert np.isin(ids[ids != 0], wire.head_ids[name]).mean() > 0.9, name
    wire.new_root()
    for _ in range(4):
        wire.delta()
    assembler = Assembler()
    notes = [e.note for m in topic.messages for e in assembler.take(m) if isinstance(e, Delta)]
    assert sorted(note.retrieval_clicks >= 0 for note in notes) == [False, False, False, True]
    root = wire.store.read(wire.store.snapshots()[0])
    assert set(root.tables[ITEM].ids.tolist()) == set(wire.head_ids[ITEM].tolist())
    assert set(root.tables[USER].ids.tolist()) == set(wire.head_ids[USER].tolist())


class _Pages:
    """A Kafka consumer of page logs that all come at once."""

    def __init__(self, *pages: PageLog) -> None:
        self._left = [[SimpleNamespace(value=page_log_bytes(page)) for page in pages]]

    def assignment(self) -> set[Any]:
        return set()

    def end_offsets(self, partitions: list[Any]) -> dict[Any, int]:
        return {}

    def poll(self, timeout_ms: int) -> dict[str, list[Any]]:
        return {"page_logs": self._left.pop()} if self._left else {}


def test_pages_without_their_user_are_seen_in_their_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    of = {"a": UserRecord({}, SLOW), "b": UserRecord({}), "c": UserRecord({b"profile": b"{}"}, SLOW, 7)}
    pages = [
        PageLog(
            request_id=name, ts_ms=1, user_id=1, arm="model", model_version=1, schema_id="s", items=[1],
            scores=bytes(4), keys=b"", cat=b"", num=b"", user_missing=record.lacking,
        )
        for name, record in of.items()
    ]  # fmt: skip
    monkeypatch.setattr(pagewire, "make_reader", lambda *_: _Pages(*pages))
    check = pagewire.PageLogCheck(Settings())
    assert check.missing(set(of), LONG) == set()
    assert check.without_user == {"a"}, "b is unknown to Redis, c was in the cache"
