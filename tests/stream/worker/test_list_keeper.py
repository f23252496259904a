"""Dead letters of items by the thread that keeps the shop's lists: each once, whatever starts again."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from millrace.contracts.clock import EventClock
from millrace.contracts.events import DeadLetter, Item, to_json
from millrace.contracts.settings import Settings
from millrace.contracts.topics import FEATURES_ITEMS, ITEMS
from stream.worker import listkeeper
from stream.worker.listkeeper import ListKeeper
from tests.scenes.own_metrics import figure
from tests.scenes.scorer_shop import SCHEMA

GOOD = (b"a", to_json(Item("a", {"category": "home"})))
BAD = (b"b", b'{"item_id": "b", "attributes": {"price": "12,50"}}')
ODD = (b"c", to_json(Item("c", {"tint": "red"})))


class Topic:
    """The topics of a broker; only `items` has messages."""

    def __init__(self) -> None:
        self.id, self.messages = "first", list[tuple[bytes, bytes | None]]()

    def reader(self) -> Any:
        left = [
            SimpleNamespace(topic=ITEMS, partition=0, offset=offset, key=key, value=value)
            for offset, (key, value) in enumerate(self.messages)
        ]

        def poll(timeout_ms: int) -> dict[str, list[Any]]:
            found, left[:] = left[:2], left[2:]
            return {"items-0": found} if found else {}

        return SimpleNamespace(poll=poll, close=lambda: None, left=left)


class Lives:
    """Keepers one after another, as workers that hold partition 0, on one data folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.topic, self.settings = Topic(), Settings(data=str(folder), redis="127.0.0.1:1")
        self.dead_letters: list[DeadLetter] = []
        self.stop = threading.Event()
        monkeypatch.setattr(listkeeper, "read_topics", lambda *_, **__: self.topic.reader())
        monkeypatch.setattr(listkeeper, "topic_ids", lambda _: {ITEMS: self.topic.id, FEATURES_ITEMS: "counts"})
        monkeypatch.setattr(listkeeper, "write", lambda *_: self.stop.set())
        monkeypatch.setattr(listkeeper, "EVERY_PUBLICATIONS", 0)
        monkeypatch.setattr(listkeeper, "read_up", lambda reader: not reader.left)

    def live(self) -> list[int]:
        """A keeper reads all there is, writes the lists and ends; offsets of its dead letters."""
        self.dead_letters.clear()
        self.stop.clear()
        keeper = ListKeeper(self.settings, SCHEMA, EventClock(), self.dead_letters.extend)
        keeper.ending = self.stop
        keeper.active.set()
        keeper._keep()
        assert {dead_letter.reason for dead_letter in self.dead_letters} <= {"bad-item"}
        return [dead_letter.offset for dead_letter in self.dead_letters]


def test_a_restart_writes_no_dead_letter_twice_and_misses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Lives(tmp_path, monkeypatch)
    lives.topic.messages = [GOOD, BAD, GOOD, BAD]
    assert lives.live() == [1, 3]
    lives.topic.messages += [GOOD, BAD]  # while nobody kept the lists
    assert lives.live() == [5]
    assert lives.live() == []


def test_a_topic_that_was_created_again_has_dead_letters_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its offsets begin again below those that are given."""
    lives = Lives(tmp_path, monkeypatch)
    lives.topic.messages = [GOOD, GOOD, GOOD, BAD]
    assert lives.live() == [3]
    lives.topic.id, lives.topic.messages = "second", [BAD, GOOD]
    assert lives.live() == [0]


def test_warnings_about_items_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Lives(tmp_path, monkeypatch)
    lives.topic.messages = [GOOD, ODD, ODD]
    before = figure("millrace_profile_warnings_total", kind="unknown-attribute")
    assert lives.live() == []
    assert figure("millrace_profile_warnings_total", kind="unknown-attribute") == before + 2
