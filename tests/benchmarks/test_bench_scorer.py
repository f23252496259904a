"""The scorer's benchmark: what it feeds is what a learner and a stream would send, and it sees what goes wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.tools import modelwire
from benchmarks.tools.modelwire import ModelWire
from benchmarks.tools.pagewire import item_attributes, same_page, user_attributes
from learner.ranker.inputs import Inputs
from learner.ranker.model import OnlineModel
from learner.retrieval.tower import ITEM, USER, Sides
from learner.role.learnloop import LearnPace
from millrace.contracts.events import Impression, to_msgpack
from millrace.contracts.impressions import decode_served
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.versions.image import Image, check_head, split
from millrace.versions.modellog import Assembler, Claimed, Delta, Snapshot
from millrace.versions.packing import unpack
from millrace.windows.features import FeatureBuilder
from scorer.feeder.version_order import Follower
from tests.scenes.waiting import LONG

ROWS, ITEMS = 20_000, 100


class _Topic:
    """A Kafka producer whose messages stay here."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def send(self, _: str, value: bytes) -> _Topic:
        self.messages.append(value)
        return self

    def get(self, _: float) -> _Topic:
        return self

    @property
    def offset(self) -> int:
        return len(self.messages) - 1


@pytest.fixture(autouse=True)
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second delta has dense tensors."""
    monkeypatch.setattr(modelwire, "PACE", LearnPace(delta_seconds=1.0, dense_seconds=2.0))


def test_a_scorer_can_follow_what_is_sent(tmp_path: Path) -> None:
    """Every delta follows, unpacks against the dense tensors that were reached, and fits the model."""
    topic = _Topic()
    wire = ModelWire(Settings(data=str(tmp_path)), topic, ROWS, ITEMS, 100, "log")
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
    wire.lose_delta()
    wire.delta()
    follow()
    assert follower.waiting
    assert wire.snapshot() == wire.version
    follow()
    assert not follower.waiting
    assert follower.at is not None
    assert follower.at.version == wire.version
    wire.delta()
    follow()
    assert verdicts[-1] == "patch"
    wire.new_root()
    follow()
    assert follower.at.epoch == 2


def test_pages_ask_for_rows_that_the_tables_have(tmp_path: Path) -> None:
    wire = ModelWire(Settings(data=str(tmp_path)), _Topic(), ROWS, ITEMS, 100, "log")
    builder = FeatureBuilder(shop_schema())
    item, _ = builder.attributes("item", {**item_attributes(17), "item_id": 17})
    user, _ = builder.attributes("user", {**user_attributes(5), "user_id": 5})
    inputs = Inputs(shop_schema(), 16, True, True)
    cat = builder.cat({**user, **item}, 1)
    deep = inputs.ids(inputs.groups[0], cat)
    asked = deep[deep != 0]
    assert len(asked) > 8
    assert np.isin(asked, wire.ids[inputs.groups[0].name]).all()


def test_the_retrieval_head_knows_the_items_and_the_users(tmp_path: Path) -> None:
    """Each version with dense weights is a retrieval version: it changes maps, items and users."""
    topic = _Topic()
    wire = ModelWire(Settings(data=str(tmp_path)), topic, ROWS, ITEMS, 100, "log")
    builder, sides = FeatureBuilder(shop_schema()), Sides(shop_schema())
    item, _ = builder.attributes("item", {**item_attributes(17), "item_id": 17})
    user, _ = builder.attributes("user", {**user_attributes(5), "user_id": 5})
    of_item = sides.item_features(builder.cat(item, 1)[:, sides.item_columns], np.zeros((1, 3), np.float32))[0]
    of_user = sides.user_features(builder.cat(user, 1)[:, sides.user_columns])[0]
    for name, ids in ((ITEM, of_item[0, :5]), (USER, of_user[of_user != 0])):
        assert len(ids) > 3
        assert np.isin(ids, wire.head_ids[name]).all()
    wire.new_root()
    for _ in range(4):
        wire.delta()
    assembler = Assembler()
    notes = [e.note for m in topic.messages for e in assembler.take(m) if isinstance(e, Delta)]
    assert sorted(note.retrieval_clicks >= 0 for note in notes) == [False, False, True, True]
    root = wire.store.read(wire.store.snapshots()[0])
    assert {ITEM, USER} <= set(root.tables)
    assert set(root.tables[ITEM].ids.tolist()) == set(wire.head_ids[ITEM].tolist())


@pytest.mark.parametrize("change", [{}, {"model_version": 4}, {"items": [3, 1]}, {"scores": b"\0\0\0\0\0\0\0\0"}])
def test_a_log_that_differs_from_its_page_is_seen(change: Mapping[str, Any]) -> None:
    given: dict[str, Any] = {
        "request_id": "r",
        "ts_ms": 1,
        "user_id": 1,
        "arm": "model",
        "model_version": 3,
        "schema_id": "s",
        "items": [1, 3],
        "scores": np.array([0.25, np.nan], "<f4").tobytes(),
        "keys": b"",
        "cat": b"",
        "num": b"",
    }
    placed = [{"item_id": 1, "position": 0, "score": 0.25}, {"item_id": 3, "position": 1, "score": 0.0}]
    answer = msgspec.json.encode({"model_version": 3, "items": placed}).decode()
    assert same_page(decode_served(to_msgpack(Impression(**{**given, **change}))), answer) is (not change)


RUN = """
import sys, msgspec
from pathlib import Path
from benchmarks.scorer import Size, run
print(msgspec.json.encode(run(Path(sys.argv[1]), lambda _: None, Size(**msgspec.json.decode(sys.argv[2])))).decode())
"""


@pytest.mark.services
@pytest.mark.timeout(LONG)
@pytest.mark.slow
def test_a_small_run_loses_nothing(tmp_path: Path) -> None:
    """In a process of its own, with Kafka clients of its own."""
    size = {
        "rows": 20_000,
        "items": 700,
        "users": 30,
        "rate": 10.0,
        "seconds": 2.0,
        "rounds": 1,
        "warm_s": 0.5,
        "loads": 1,
        "step_s": 0.5,
        "first_rate": 10.0,
        "steps": 1,
    }
    command = [sys.executable, "-c", RUN, str(tmp_path), msgspec.json.encode(size).decode()]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    figures = {f["name"]: f["value"] for f in msgspec.json.decode(done.stdout.splitlines()[-1])}
    assert figures["pages_asked"] > 100
    assert figures["lost_impressions"] == figures["unlike_impressions"] == 0
    assert figures["failed_answers"] < figures["pages_asked"] / 10  # a busy machine may refuse some, and says so
    assert figures["compared_pages"] > 0
    for page in ("page_20", "page_600"):
        assert 0 < figures[f"{page}_p50_ms"] <= figures[f"{page}_p99_ms"]
    assert figures["page_20_cpu_ms"] > 0
