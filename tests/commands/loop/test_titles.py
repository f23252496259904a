"""Titles of items as the topic of items tells them: the newest, with changes, and none of what is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from millrace.commands.loop.titles import titles, watchable
from millrace.contracts.events import Id, Item, ItemChange, PageLog, change_key, key_of, to_json
from millrace.contracts.page_logs import page_log_bytes
from millrace.contracts.settings import Settings
from millrace.contracts.topics import ITEMS, PAGE_LOGS
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


def page_log(user: Id, arm: str, ts_ms: int) -> bytes:
    return page_log_bytes(PageLog(f"p{ts_ms}", ts_ms, user, arm, 1, "", [7], b"\0" * 4, b"", b"", b""))


def test_users_whose_pages_can_be_looked_at_are_those_of_the_model_and_gone(shop: Settings) -> None:
    producer = make_producer(shop)
    for user, arm, ts_ms in (
        ("ann", "model", 1000),
        (7, "model", 2000),
        ("bo", "control", 500),
        ("ann", "model", 3000),
    ):
        producer.send(PAGE_LOGS, key=key_of(user), value=page_log(user, arm, ts_ms))
    producer.send(PAGE_LOGS, key=b"odd", value=b"no page log")
    producer.close()
    assert watchable(shop) == [7, "ann"], "the longest silent first"
    assert watchable(replace(shop, tokens="a-token-of-a-person")) == [], "users are for those who have the token"


def test_without_a_broker_there_are_no_titles() -> None:
    assert titles(Settings(), [7]) == {}
    assert titles(Settings(kafka="127.0.0.1:9", patience_seconds=1), [7]) == {}
    assert watchable(Settings()) == []
    assert watchable(Settings(kafka="127.0.0.1:9", patience_seconds=1)) == []
