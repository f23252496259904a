"""Changes of items, from several intakes at once: whoever reads the topic has the same items, compacted or not."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.contracts.events import BadEventError, Item
from millrace.contracts.profile_reader import Intake
from millrace.contracts.schema import parse_schema
from millrace.labels import Waits
from millrace.processes.repeated_warnings import Kinds
from millrace.windows.features import FeatureBuilder
from scorer.catalog.item_index import ItemIndex
from scorer.feeder.kafka_feed import FeedRecord, ItemFeed
from stream.archive.archive_rows import Archive, TopicRecord
from stream.intake.intake_wire import LineReader, OutMessage
from stream.worker.listkeeper import take
from stream.worker.shop_lists import ShopLists

HOUR, NOW_MS = 3_600_000, 1_772_323_200_000
SCHEMA = parse_schema(
    """
    name = "small"
    filters = ["in_stock"]
    fields = [{name = "user_id", of = "user"}, {name = "item_id", of = "item"}, {name = "shelf", of = "item"},
              {name = "price", of = "item", kind = "numeric"},
              {name = "tags", of = "item", slots = 3, separator = "|"}]
    [windows]
    days = [1]
    actions = ["exposure", "click"]
    keys = [{columns = ["item_id"]}, {columns = ["shelf"]}, {columns = ["user_id", "shelf"]}]
    """
)
READER = LineReader(SCHEMA, HOUR)


def sent(body: dict[str, Any]) -> list[OutMessage]:
    """The messages of a line of POST /items."""
    last = READER.read("items", msgspec.json.encode(body), NOW_MS, NOW_MS)
    return [*last.before, last]


def removed(item_id: str) -> list[OutMessage]:
    last = READER.removal("items", item_id)
    return [*last.before, last]


def compacted(topic: list[OutMessage]) -> list[OutMessage]:
    newest = {message.key: n for n, message in enumerate(topic)}
    return [message for n, message in enumerate(topic) if newest[message.key] == n]


class _Shop:
    """Stands for a feeder: an index that nobody else uses."""

    def __init__(self) -> None:
        self.primary, self.state, self.meters = self, self, self
        self.intake, self.index = Intake(SCHEMA), ItemIndex(FeatureBuilder(SCHEMA))
        self.errors: list[str] = []

    def alone(self, change: Any, *args: Any) -> Any:
        return change(*args)

    def error(self, what: str) -> None:
        self.errors.append(what)


def index_of(topic: list[OutMessage]) -> tuple[ItemIndex, list[str]]:
    shop, feed = _Shop(), ItemFeed.__new__(ItemFeed)
    feed.primary, feed.state, feed.meters, feed._kinds = shop, shop, shop, Kinds()  # type: ignore[assignment]
    feed.take([FeedRecord(message.key, message.value, n) for n, message in enumerate(topic)])
    return shop.index, shop.errors


def rows(index: ItemIndex, ids: list[str]) -> dict[str, Any]:
    """What the index holds of each item that is there."""
    found = {}
    for name in ids:
        (row,) = index.rows_of([name]).tolist()
        if row >= 0 and index.born_ms[row] >= 0:
            image = index.image(row, row + 1)
            arrays = {name: array.ravel().tolist() for name, array in image.arrays.items()}
            filters = {name: [v for v in values if v] for name, values in arrays.items() if name.startswith("filter/")}
            found[name] = arrays | filters
    return found


def lists_of(topic: list[OutMessage]) -> tuple[ShopLists, list[str]]:
    lists, dead = ShopLists(SCHEMA, ["shelf"]), []
    intake = Intake(SCHEMA)
    for n, message in enumerate(topic):
        found = take(lists, intake, _Record("items", 0, n, message.key, message.value))
        dead += [found.reason] if found else []
    return lists, dead


class _Record(msgspec.Struct):
    topic: str
    partition: int
    offset: int
    key: bytes
    value: bytes | None


def archived(topic: list[OutMessage]) -> dict[str, bytes]:
    archive = Archive(SCHEMA, Waits(0, 0, 0), HOUR, 1)
    for n, message in enumerate(topic):
        archive.take(TopicRecord("items", 0, n, message.key, message.value, NOW_MS))
    return archive._attributes["item"]


IDS = ["a", "7", "ü"]
VALUES = {
    "shelf": st.sampled_from(["shoes", "hats", None]),
    "price": st.sampled_from([1.5, 20, None]),
    "tags": st.sampled_from([["red"], ["red", "new"], "x|y|z", None]),
    "in_stock": st.sampled_from([True, False, ["eu", "us"]]),
}
ATTRIBUTES = st.fixed_dictionaries({}, optional=VALUES)
GONE = st.fixed_dictionaries({}, optional={"gone": st.booleans()})
LINES = st.one_of(
    st.builds(lambda a, g: {"attributes": a, **g}, ATTRIBUTES, GONE),
    st.builds(lambda a, g: {"changes": a, **g}, ATTRIBUTES, GONE).filter(lambda b: b["changes"] or "gone" in b),
    st.none(),
)
STORY = st.lists(st.tuples(st.integers(0, 1), st.sampled_from(IDS), LINES), max_size=14)


@settings(max_examples=150, deadline=None)
@given(STORY, st.randoms(use_true_random=False))
def test_all_readers_have_the_items_of_the_topic_compacted_or_not(story: Any, dice: Any) -> None:
    """Two intakes write; their messages lie between one another's. Expected: the fold of the topic in its order."""
    queues: list[list[OutMessage]] = [[], []]
    for intake, name, body in story:
        queues[intake] += removed(name) if body is None else sent({"item_id": name, **body})
    topic: list[OutMessage] = []
    while any(queues):
        topic.append(dice.choice([queue for queue in queues if queue]).pop(0))
    items: dict[str, Item] = {}
    for message in topic:
        name, mark, _ = message.key.partition(b"\xff")
        held = items.get(name.decode())
        if message.value is None:
            if not mark:
                items.pop(name.decode(), None)
            continue
        body = msgspec.json.decode(message.value)
        if "attributes" in body:
            items[name.decode()] = msgspec.convert(body, Item)
        elif held is not None:
            gone = body.get("gone", held.gone)
            items[name.decode()] = Item(held.item_id, {**held.attributes, **body["changes"]}, 0, gone)
    whole = [sent(msgspec.to_builtins(item))[-1] for item in items.values()]
    expected = rows(index_of(whole)[0], IDS), lists_of(whole)[0]._items, archived(whole)
    assert set(expected[0]) == set(items)
    for read in (topic, compacted(topic), [*topic, *topic]):
        assert (rows(index_of(read)[0], IDS), lists_of(read)[0]._items, archived(read)) == expected


def test_a_deleted_item_leaves_nothing_but_tombstones() -> None:
    changes = {"price": 3, "shelf": "hats", "tags": None, "in_stock": True}
    topic = [*sent({"item_id": 7, "attributes": {}}), *sent({"item_id": 7, "changes": changes, "gone": False})]
    assert len(compacted(topic)) == 6
    assert [message.value for message in compacted([*topic, *removed("7")])] == [None] * 6


def test_a_change_of_an_item_that_is_not_there_is_a_dead_letter() -> None:
    topic = sent({"item_id": 7, "changes": {"price": 3}})
    assert index_of(topic)[1] == ["item"]
    assert lists_of(topic)[1] == ["bad-item"]
    assert len(index_of(topic)[0]) == 0


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"changes": {}}, "it changes nothing"),
        ({"changes": {"colour": "red"}}, "'colour' is no attribute of items"),
        ({"changes": {"price": "12,50"}}, "is no number"),
        ({"changes": {"in_stock": list(range(17))}}, "17 values"),
        ({"changes": {"price": 1}, "attributes": {"price": 1}}, "send one of them"),
        ({"changes": [1]}, "Expected `object`"),
    ],
)
def test_what_a_change_cannot_say_is_refused(body: dict[str, Any], why: str) -> None:
    with pytest.raises(BadEventError, match=why):
        sent({"item_id": 7, **body})


def test_an_attribute_may_be_called_changes() -> None:
    (message,) = sent({"item_id": 7, "attributes": {"changes": 1}})
    assert message.key == b"7"
    assert np.isin(0, index_of([message])[0].rows_of([7]))
