"""Neighbours of items: merged against plain Python, read off, and brought to workers by their feed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.durations import DAY_MS
from millrace.basics.hashing import value_hash
from millrace.contracts import coclick_message
from millrace.contracts.clock import EventClock
from millrace.contracts.coclick_message import DAYS, MOST, WEIGHTS, Lists
from millrace.contracts.settings import Settings
from millrace.contracts.topics import FEATURES_COCLICKS
from millrace.processes.kafka import create_topics, make_producer, wait_for_broker
from millrace.processes.services import EmbeddedBroker
from scorer.catalog.itemtable import ItemRows
from scorer.feeder.cofeed import RENEW_SECONDS, CoFeed
from scorer.feeder.kafka_feed import TopicSource
from scorer.ipc.link import Packet
from scorer.recall.neighbours import CoClickFeed, Neighbours
from tests.scenes.scorer_feeder import Whole
from tests.scenes.scorer_log import MemoryBroker, caught_up
from tests.scenes.scorer_shop import ITEMS, NOW_MS, item

TODAY = NOW_MS // DAY_MS
CoclickCounts = dict[Any, dict[Any, list[int]]]
"""Item -> neighbour -> counts by age, newest first."""


def lists(coclicks: CoclickCounts, day: int = TODAY) -> Lists:
    """As a partition says it."""
    pairs = [(other, counts) for near in coclicks.values() for other, counts in near.items()]
    return Lists(
        day,
        np.array([value_hash(name) for name in coclicks], np.uint64),
        np.array([len(near) for near in coclicks.values()], np.uint8),
        np.array([value_hash(other) for other, _ in pairs], np.uint64),
        np.array([[*counts, *(0,) * (DAYS - len(counts))] for _, counts in pairs], np.uint16).reshape(-1, DAYS),
    )


def of(merged: CoClickFeed, row: int, day: int = TODAY) -> list[int]:
    rows: list[int] = Neighbours.of_arrays(merged.arrays(day)).of(np.array([row]), 1000).tolist()
    return rows


COUNTS = st.lists(st.integers(0, 3), min_size=1, max_size=DAYS)
COCLICKS = st.dictionaries(st.integers(0, 9), st.dictionaries(st.integers(0, 25), COUNTS, max_size=MOST), max_size=5)
MESSAGES = st.lists(st.tuples(st.integers(0, 2), st.integers(TODAY - 9, TODAY), COCLICKS), max_size=8)


@given(MESSAGES, st.integers(0, 20))
def test_the_newest_lists_of_all_partitions_are_added_up(
    messages: list[tuple[int, int, CoclickCounts]], known: int
) -> None:
    merged, newest = CoClickFeed(), dict[tuple[int, int], tuple[int, dict[int, list[int]]]]()
    for partition, day, coclicks in messages:
        merged.take(partition, lists(coclicks, day))
        newest |= {(partition, name): (day, near) for name, near in coclicks.items()}
    merged.know(list(range(known)))
    worth: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for (_, name), (day, near) in newest.items():
        for other, counts in near.items():
            for age, n in enumerate(counts):
                if age + TODAY - day < DAYS:
                    worth[name][other] += n * WEIGHTS[age + TODAY - day]
    arrays = merged.arrays(TODAY)
    found = Neighbours.of_arrays(arrays)
    for row in range(known):
        best = sorted((-w, other) for other, w in worth[row].items() if w and other != row and other < known)
        assert found.of(np.array([row]), 1000).tolist() == [other for _, other in best[:MOST]]
        along, clicks = found.counted(row)
        assert list(zip((-420 * clicks).round().tolist(), along.tolist(), strict=True)) == best[:MOST]
    assert [len(part) for part in found.counted(known)] == [0, 0], "newer than the arrays"
    assert len(arrays["starts"]) == known + 1
    assert {str(array.dtype) for array in arrays.values()} == {"int32"}


LISTS = st.lists(st.lists(st.integers(0, 30), max_size=MOST, unique=True), min_size=1, max_size=30)


@given(LISTS, st.lists(st.integers(-1, 40), max_size=16), st.integers(0, 60))
def test_neighbours_of_several_items_are_interleaved_distinct_and_none_of_these(
    near: list[list[int]], rows: list[int], most: int
) -> None:
    starts = np.cumsum([0, *map(len, near)]).astype(np.int32)
    flat = np.array([n for own in near for n in own], np.int32)
    found = Neighbours(starts, flat, np.ones_like(flat)).of(np.array(rows, np.intp), most)
    plain: list[int] = []
    for rank in range(MOST):
        for row in rows:
            if 0 <= row < len(near) and rank < len(near[row]):
                plain += [near[row][rank]]
    plain = [n for n in dict.fromkeys(plain) if n not in rows]
    assert found.tolist() == plain[:most]
    assert found.dtype == np.intp


def test_a_list_that_comes_again_replaces_the_one_before_and_an_empty_one_takes_it_away() -> None:
    merged = CoClickFeed()
    merged.know([0, 1, 2])
    merged.take(0, lists({0: {1: [1]}}))
    merged.take(0, lists({0: {2: [1]}}))
    assert of(merged, 0) == [2]
    merged.take(0, lists({0: {}}))
    assert of(merged, 0) == []


def test_what_is_over_is_forgotten_though_nobody_tells() -> None:
    merged = CoClickFeed()
    merged.know([0, 1, 2])
    merged.take(0, lists({0: {1: [0, 1], 2: [1]}}))
    assert of(merged, 0, TODAY + DAYS - 2) == [1, 2]
    assert len(merged) == 1
    assert of(merged, 0, TODAY + DAYS - 1) == [2]
    assert of(merged, 0, TODAY + DAYS) == []
    assert len(merged) == 0


def test_lists_are_bounded_and_those_sent_longest_ago_go() -> None:
    merged = CoClickFeed(most_lists=64)
    merged.know(list(range(200)))
    for name in range(100):
        merged.take(0, lists({name: {name + 1: [1]}}))
    merged.take(0, lists({99: {1: [1]}}))
    assert len(merged) <= 64
    assert of(merged, 99) == [1]
    assert of(merged, 0) == []


def test_ids_are_the_same_as_numbers_and_as_text() -> None:
    merged = CoClickFeed()
    merged.know(["0", 1])
    merged.take(0, lists({0: {"1": [1]}}))
    assert of(merged, 0) == [1]


# ---------------------------------------------------------------------- the feed


class Shop:
    """A feed that is no thread, a broker in memory, and a worker."""

    def __init__(self, folder: Path) -> None:
        self.whole = Whole(Settings(data=str(folder)))
        self.whole.stock(ITEMS[:50])
        self.broker, self.now_s, self.kept = MemoryBroker(), 0.0, 0
        whole = self.whole
        self.feed = CoFeed(whole.state, self.keep, self.broker, lambda: self.now_s)

    def keep(self, name: str, packet: Packet) -> None:
        self.kept += 1
        self.whole.publisher.keep(name, packet)

    def publish(self, coclicks: CoclickCounts, partition: int = 0) -> None:
        for raw in coclick_message.pack(partition, lists(coclicks)):
            self.broker.log(FEATURES_COCLICKS).append(raw)

    def read(self) -> None:
        """What there is, and, ten seconds later, what is made of it."""
        caught_up(self.feed)
        self.now_s += RENEW_SECONDS
        caught_up(self.feed)

    def along(self, *ids: Any) -> list[Any]:
        """What a worker finds along with items."""
        found: Any = self.whole.serving.neighbours
        rows: ItemRows = found.of(self.whole.index.rows_of(ids), 10)
        return [self.whole.index.ids[row] for row in rows.tolist()]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


A, B, C = (one.item_id for one in ITEMS[:3])


def test_lists_reach_workers_and_those_that_start_later(shop: Shop) -> None:
    assert shop.whole.serving.neighbours is None
    shop.publish({A: {B: [1], C: [3]}})
    shop.publish({A: {B: [4]}}, partition=1)
    shop.read()
    assert shop.along(A) == [B, C]
    shop.whole.replace_worker()
    assert shop.along(A) == [B, C]


def test_nobody_waits_for_the_feed(shop: Shop) -> None:
    shop.publish({A: {B: [1]}})
    before = shop.whole.not_ready()
    shop.read()
    assert shop.feed.caught_up
    assert shop.whole.not_ready() == before
    assert "co-clicks" not in before


def test_messages_that_are_none_are_counted_and_passed_over(shop: Shop) -> None:
    log = shop.broker.log(FEATURES_COCLICKS)
    shop.publish({A: {B: [1]}})
    for raw in (None, b"", b"\xc1", next(coclick_message.pack(0, lists({A: {C: [1]}})))[:-1]):
        log.append(raw)
    shop.publish({B: {C: [1]}})
    shop.read()
    assert shop.whole.meters.errors == {"co-clicks": 4}
    assert (shop.along(A), shop.along(B)) == ([B], [C])


def test_reading_begins_a_quarter_of_an_hour_before_the_end(shop: Shop) -> None:
    shop.publish({A: {B: [1]}})
    shop.publish({B: {C: [1]}})
    shop.broker.started[FEATURES_COCLICKS] = 1
    shop.read()
    assert (shop.along(A), shop.along(B)) == ([], [C])


def test_neighbours_are_made_again_only_when_something_changed_and_not_all_the_time(shop: Shop) -> None:
    shop.read()
    assert shop.kept == 0
    shop.publish({A: {B: [1]}})
    shop.read()
    assert shop.kept == 1
    shop.read()
    assert shop.kept == 1
    shop.publish({A: {C: [2]}})
    caught_up(shop.feed)
    assert shop.along(A) == [B], "not yet"
    shop.read()
    assert shop.along(A) == [C]
    assert shop.kept == 2


def test_an_item_that_comes_later_has_neighbours_then(shop: Shop) -> None:
    shop.publish({A: {"late": [1]}})
    shop.read()
    assert shop.along(A) == []
    shop.whole.stock([item("late")])
    shop.read()
    assert shop.along(A) == ["late"]


def test_a_day_that_is_not_ours_ends_nothing(shop: Shop) -> None:
    """Whoever sends a message of the year 2999 does not thereby end all that others have counted."""
    shop.publish({A: {B: [1]}})
    far = lists({C: {B: [1]}})._replace(day=375_000)
    shop.broker.log(FEATURES_COCLICKS).append(next(coclick_message.pack(0, far)))
    shop.read()
    assert shop.along(A) == [B]


def test_what_is_over_ends_in_a_shop_that_has_no_co_clicks_any_more(shop: Shop) -> None:
    """The stream tells nothing of days that end: events of later days are enough."""
    primary = shop.whole.primary
    shop.publish({A: {B: [1], C: [0, 3]}})
    shop.read()
    assert shop.along(A) == [C, B]
    for days, left in ((DAYS - 1, [B]), (DAYS, [])):
        later_ms = NOW_MS + days * DAY_MS
        primary.newest_counted_ms, primary.clock = later_ms, EventClock(NOW_MS, later_ms)
        shop.read()
        assert shop.along(A) == left
    assert shop.kept == 3


def test_a_failure_leaves_workers_what_they_have(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.publish({A: {B: [1]}})
    shop.read()
    shop.publish({A: {C: [1]}})
    with monkeypatch.context() as patched:
        patched.setattr(CoClickFeed, "arrays", lambda self, day: 1 // 0)
        shop.read()
    assert shop.whole.meters.errors == {"neighbours": 1}
    assert shop.along(A) == [B]
    shop.read()
    assert shop.along(A) == [C]


@pytest.mark.services
def test_a_broker_tells_from_where_messages_are_younger(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path / "broker") as server:
        settings = Settings(kafka=server.address, data=str(tmp_path))
        wait_for_broker(settings)
        create_topics(settings)
        broker = TopicSource(settings)
        assert broker.since(FEATURES_COCLICKS, 1000) == {}
        producer = make_producer(settings)
        for stamp_ms in (1_000_000, 2_000_000, 3_000_000):
            producer.send(FEATURES_COCLICKS, b"x", timestamp_ms=stamp_ms)
        producer.flush()
        producer.close()
        since = [broker.since(FEATURES_COCLICKS, ms) for ms in (1, 2_000_000, 2_000_001, 4_000_000)]
        assert since == [{0: 0}, {0: 1}, {0: 2}, {}]
