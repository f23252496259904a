"""Titles of items as the topic of items tells them: the newest, with changes, and none of what is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.commands.loop.titles import titles
from millrace.contracts.events import Id, Item, ItemChange, change_key, key_of, to_json
from millrace.contracts.settings import Settings
from millrace.contracts.topics import ITEMS
from millrace.processes.kafka import create_topics, make_producer
from millrace.processes.services import EmbeddedBroker


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Settings]:
    with EmbeddedBroker(tmp_path / "broker") as broker:
        settings = Settings(kafka=broker.address)
        create_topics(settings)
        yield settings


def test_the_newest_title_of_each_item_is_told(shop: Settings) -> None:
    producer = make_producer(shop)
    mug, hat = Item(7, {"title": "Mug", "price": 3.5}), Item("hat", {"category": "c2", "price": 12.345})
    for key, value in (
        (key_of(7), to_json(mug)),
        (key_of("hat"), to_json(hat)),
        (change_key(7, "title"), to_json(ItemChange(7, {"title": "Blue mug"}))),
        (key_of("gone"), to_json(Item("gone", {"title": "Old"}))),
        (key_of("gone"), None),
        (key_of("odd"), b"no JSON"),
        (key_of("other"), to_json(Item("other", {"title": "Not asked for"}))),
    ):
        producer.send(ITEMS, key=key, value=value)
    producer.close()
    asked: list[Id] = [7, "hat", "gone", "odd", "never seen"]
    assert titles(shop, asked) == {"7": "Blue mug", "hat": "category c2, price 12.35"}
    assert titles(shop, asked, seconds=-1.0) == {}, "no page waits longer for its titles"


def test_without_a_broker_there_are_no_titles() -> None:
    assert titles(Settings(), [7]) == {}
    assert titles(Settings(kafka="127.0.0.1:9", patience_seconds=1), [7]) == {}
