"""The archive's cores: events, page logs and attributes in; rows, Parquet, a schema that replay reads out."""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition

from millrace.basics.errors import StoreError
from millrace.basics.hashing import kafka_partition, value_hash
from millrace.commands.history.logevents import LogEvents
from millrace.commands.judge.judgerun import judge
from millrace.commands.replay.grouped import GroupedRows
from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.commands.replay.logsamples import KnownSamples
from millrace.commands.replay.replayrun import replay
from millrace.contracts.events import ACTIONS, BadEventError, Click, PageLog, decode_event, key_of, to_msgpack
from millrace.contracts.page_logs import page_log_bytes
from millrace.contracts.pagepack import Rates
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE
from millrace.contracts.schema import Schema, load_schema, parse_schema, shop_schema
from millrace.contracts.settings import Settings
from millrace.evidence.sequences import NOTHING
from millrace.labels import REGISTRY, Waits, label_ms
from millrace.logs import read_log
from stream.archive import archive_main
from stream.archive.archive_columns import TIMES, ArchiveColumns, text
from stream.archive.archive_folder import ArchiveFolder
from stream.archive.archive_rows import Archive, TopicRecord
from stream.archive.arm_figures import ArmFigures
from stream.archive.forget import Forgotten, forget
from stream.archive.logged import arrays
from stream.archive.merge import Merge
from stream.archive.schemafile import schema_text
from stream.join.join import InputMessage, Policy
from stream.partition.partition import Partition
from tests.scenes.arrivals import NOW, SETTLED, arrivals
from tests.scenes.exploring import examples
from tests.scenes.stream_world import HOUR, MINUTE, POLICY, SCHEMA, T0, Sum, action, exposure, page_log

WAITS = POLICY.waits
SMALL = """
name = "small"
fields = [{ name = "color", of = "item" }, { name = "price", of = "item", kind = "numeric" },
          { name = "tags", of = "item", slots = 3 }, { name = "country", of = "user" },
          { name = "device", of = "context" }, { name = "position", of = "context", bias = true }]
[windows]
days = [1, 7]
actions = ["exposure", "click"]
[[windows.keys]]
columns = ["color"]
"""


class Feed:
    """Messages to an archive of one partition, with their offsets."""

    def __init__(self, schema: Schema = SCHEMA, waits: Waits = WAITS) -> None:
        self.archive = Archive(schema, waits, HOUR, 1)
        self.schema = schema
        self.records: list[TopicRecord] = []

    def __call__(self, topic: str, value: bytes | None, key: str = "", now_ms: int = T0 + 10**9) -> Feed:
        offset = sum(1 for record in self.records if record.topic == topic)
        self.records.append(TopicRecord(topic, 0, offset, key.encode(), value, now_ms))
        self.archive.take(self.records[-1])
        return self

    def item(self, item_id: Any, born_ms: int = 0, **attributes: Any) -> Feed:
        body = {"item_id": item_id, "attributes": attributes, "born_ms": born_ms}
        return self("items", msgspec.json.encode(body), str(item_id))

    def user(self, user_id: Any, **attributes: Any) -> Feed:
        return self("users", msgspec.json.encode({"user_id": user_id, "attributes": attributes}), str(user_id))

    def page(self, request: str, ts_ms: int, items: Sequence[int], user: Any = 7, **values: Any) -> Feed:
        """A page log whose features are all 0."""
        n, layout = len(items), self.schema.layout
        sizes = {"keys": 8 * layout.K, "cat": 8 * layout.F, "num": 4 * layout.N}
        arrays = {name: bytes(n * size) for name, size in sizes.items()}
        return self(
            "page_logs", page_log(request, ts_ms, items, user, **{"schema_id": self.schema.id} | arrays | values)
        )

    def events(self, *raws: bytes) -> Feed:
        for raw in raws:
            self("events", raw)
        return self

    def rows(self, after_ms: int = 10 * HOUR) -> list[dict[str, Any]]:
        """All rows, when so much time has gone by."""
        self.archive.advance(0, T0 + after_ms)
        found: list[dict[str, Any]] = self.archive.cut().exposures.to_pylist()
        return found


def test_a_page_log_that_comes_late_leaves_a_state_that_is_gone_on_from() -> None:
    """The page's labels are all given then, and its rows wait for actions still."""
    late_ms = WAITS.attribution_ms + 5 * MINUTE
    feed = Feed().events(exposure("r0", T0, [1]), exposure("other", T0 + late_ms, [2])).page("r0", T0, [1])
    feed.archive.advance(0, T0 + late_ms + 2 * MINUTE)
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(feed.archive.cut().state))
    feed.archive = Archive(SCHEMA, WAITS, HOUR, 1)
    feed.archive.resume(state)
    assert [row["request_id"] for row in feed.rows()] == ["r0"]


def test_one_click_ahead_of_the_clock_costs_no_other_its_label_and_stalls_nothing() -> None:
    """Each page is clicked two minutes after it was seen; one click among them is dated half an hour ahead."""
    feed, settled = Feed(), list[dict[str, Any]]()
    for minute in range(60):
        now_ms, name = T0 + minute * MINUTE, f"p{minute}"
        feed("page_logs", page_log(name, now_ms, [11, 12]), now_ms=now_ms)
        feed("events", exposure(name, now_ms, [11, 12]), now_ms=now_ms)
        if minute >= 2:
            feed("events", action("click", f"p{minute - 2}", now_ms, 0, 11), now_ms=now_ms)
        if minute == 10:
            feed("events", action("click", name, now_ms + 30 * MINUTE, 1, 12), now_ms=now_ms)
            state = feed.archive.cut().state
            feed.archive = Archive(SCHEMA, WAITS, HOUR, 1)
            feed.archive.resume(state)
        settled += feed.archive.cut().exposures.to_pylist()
        # A page's rows are written after half an hour of attribution and a minute of disorder.
        assert len(settled) == 2 * max(0, minute - 30)
    settled += feed.rows()
    assert {row["request_id"]: row["label"] for row in settled if not row["position"]} == {
        f"p{minute}": int(minute < 58) for minute in range(60)
    }
    (ahead,) = [row for row in settled if row["position"] and row["click_ms"]]
    assert (ahead["request_id"], ahead["click_ms"], ahead["label"]) == ("p10", T0 + 40 * MINUTE, 0)
    assert not feed.archive.late


def brief(rows: list[dict[str, Any]], *names: str) -> list[Any]:
    return [tuple(row[name] for name in names) for row in rows]


def crowded(bots: bool) -> list[TopicRecord]:
    """Two hours of people, one page each, of whom every second is in an arm and every fifth clicks. With bots: one in
    each arm, and from the second hour on another one, all of which click on all of ten items once a minute."""
    records, offsets, items = list[TopicRecord](), Counter[str](), list(range(11, 21))

    def send(topic: str, value: bytes, now_ms: int) -> None:
        records.append(TopicRecord(topic, 0, offsets[topic], b"", value, now_ms))
        offsets[topic] += 1

    def page(name: str, ts_ms: int, user: int, arm: str, clicks: list[int]) -> None:
        made = {"arm": "other", "arm_name": arm} if arm == "hits" else {"arm": arm}
        send("page_logs", page_log(name, ts_ms, items, user, **made), ts_ms)
        send("events", exposure(name, ts_ms, items, user_id=user), ts_ms)
        for at in clicks:
            send("events", action("click", name, ts_ms + 1000, at, items[at], user_id=user), ts_ms + 1000)

    for minute in range(360):
        for n in range(4 if minute < 120 else 1):
            user = 1000 + 4 * minute + n
            page(f"p{user}", T0 + minute * MINUTE + n, user, ("model", "hits")[n % 2], [n] if user % 5 == 0 else [])
        for user, arm, since in ((1, "model", 0), (2, "hits", 0), (3, "hits", 60)) if bots else ():
            if since <= minute < 180:
                page(f"b{user}-{minute}", T0 + minute * MINUTE + 10, user, arm, list(range(10)))
    return records


def counted(records: list[TopicRecord], folder: Path, limit: int | None, cuts: int = 12) -> tuple[list[Any], Any]:
    """The live figures, and what ``millrace judge`` says of the archive, which is killed after each cut."""
    place, state = ArchiveFolder(folder), None
    place.put_schema(schema_text(SCHEMA, 30.0), ArchiveColumns(SCHEMA).schema.names)
    for part in np.array_split(np.arange(len(records)), cuts):
        one = Archive(SCHEMA, WAITS, HOUR, 1, arms=ArmFigures(2 * HOUR), limit=limit)
        if state is not None:
            one.resume(msgspec.msgpack.decode(msgspec.msgpack.encode(state), strict=False))
        for n in part.tolist():
            one.take(records[n])
        cut = one.cut()
        state = cut.state
        place.write({"events": cut.events, "exposures": cut.exposures}, state)
    place.close()
    return one.arm_figures, judge(folder, folder / "out", horizon_ms=2 * HOUR, every_ms=HOUR, baseline="model")


def test_bots_count_in_no_arm_live_or_judged(tmp_path: Path) -> None:
    """Both are what people alone would have made of them, through twelve restarts."""
    live, report = counted(crowded(bots=True), tmp_path / "bots", limit=100)
    exact, people = counted(crowded(bots=False), tmp_path / "people", limit=100)
    bent, wrong = counted(crowded(bots=True), tmp_path / "bent", limit=None)
    for found, true, off in zip(live, exact, bent, strict=True):
        assert (found.name, found.estimate, found.band, found.more_band) == (
            *(true.name, true.estimate, true.band, true.more_band),
        )
        assert (found.early_rows, found.early_clicks) == (true.early_rows, true.early_clicks)
        assert found.estimate.n > 200
        assert off.estimate.value > 5 * true.estimate.value
    assert [(one.name, one.left_out) for one in live] == [("model", 1), ("hits", 2)]
    assert [one.left_out for one in exact] == [0, 0]
    assert (report["arms"], report["curves"]) == (people["arms"], people["curves"]) != (wrong["arms"], wrong["curves"])
    assert (report["users_left_out"], people["users_left_out"], wrong["users_left_out"]) == (3, 0, 0)
    assert "beyond the training limit of an hour count in no arm: 3." in report["verdict"]
    assert "training limit" not in people["verdict"]
    assert [row["users"] for row in report["arms"]] == [one.estimate.n for one in live]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_user_at_the_limit_counts_and_the_next_hour_begins_anew(restarts: bool) -> None:
    feed, rows = Feed(), list[dict[str, Any]]()
    feed.archive = Archive(SCHEMA, WAITS, HOUR, 1, limit=4)
    for n, minute in enumerate((0, 10, 20, 65, 70, 75)):
        items = [11, 12] if n < 5 else [11]
        feed("page_logs", page_log(f"p{n}", T0 + minute * MINUTE, items))
        feed.events(exposure(f"p{n}", T0 + minute * MINUTE, items))
        if restarts:
            cut, before = feed.archive.cut(), feed.archive
            rows += cut.exposures.to_pylist()
            feed.archive = Archive(SCHEMA, WAITS, HOUR, 1, limit=4)
            feed.archive.resume(cut.state)
            assert feed.archive.newest_ms(0) == before.newest_ms(0)
            assert feed.archive.due_ms(0) == before.due_ms(0)
    assert brief(rows + feed.rows(), "request_id", "over_limit") == [
        *[("p0", False)] * 2,
        *[("p1", False)] * 2,
        *[("p2", True)] * 2,
        *[("p3", False)] * 2,
        *[("p4", False)] * 2,
        ("p5", True),
    ]


def test_arms_are_there_from_the_first_minute_and_say_that_nothing_is_settled() -> None:
    records = [record for record in crowded(bots=False) if record.clock_ms < T0 + 6 * MINUTE]
    archive = Archive(SCHEMA, WAITS, HOUR, 1, arms=ArmFigures(2 * HOUR))
    for record in records:
        archive.take(record)
    archive.cut()
    told = {one.name: (one.estimate.n, one.early_rows, one.early_clicks) for one in archive.arm_figures}
    assert told == {"model": (0, 120, 3), "hits": (0, 120, 2)}
    assert {one.band for one in archive.arm_figures} == {NOTHING}
    archive.advance(0, T0 + 100 * MINUTE)  # labels are known, and the horizon runs
    archive.cut()
    assert {one.name: (one.estimate.n, one.early_rows, one.early_clicks) for one in archive.arm_figures} == told
    archive.advance(0, T0 + 200 * MINUTE)
    archive.cut()
    assert {one.name: (one.estimate.n, one.early_rows) for one in archive.arm_figures} == {
        "model": (12, 0),
        "hits": (12, 0),
    }


# ---------------------------------------------------------------------- rows


def test_an_exposure_becomes_one_row_with_what_was_known_then() -> None:
    feed = Feed(parse_schema(SMALL))
    feed.item(11, color="red", price="12.5", tags=["a", 7]).item(12, color=True).user(7, country="de")
    odds, ranked = (np.array(of, np.float32).tobytes() for of in ([0.5, 0.25], [np.nan, 0.75]))
    feed.page("p", T0, [11, 12], sources=bytes([4, 5]), odds=odds, ranked=ranked)
    feed.events(exposure("p", T0, [11, 12]))
    feed.item(11, color="blue").user(7, country="fr")
    feed.events(action("click", "p", T0 + MINUTE, 1, 12), action("purchase", "p", T0 + 2 * MINUTE, 1, 12))
    rows = feed.rows()
    assert brief(rows, "request_id", "position", "item_id", "user_id", "label", "click_ms", "purchase_ms") == [
        ("p", 0, "11", "7", 0, None, None),
        ("p", 1, "12", "7", 1, T0 + MINUTE, T0 + 2 * MINUTE),
    ]
    assert brief(rows, "color", "price", "tags", "country", "device", "source", "arm", "model_version") == [
        ("red", 12.5, ["a", "7"], "de", None, "hot", "model", 3),
        ("1", None, None, "de", None, "new", "model", 3),
    ]
    assert [round(row["score"], 3) for row in rows] == [0.1, 0.9]
    assert [row["odds"] for row in rows] == [0.5, 0.25]
    assert str([row["ranked"] for row in rows]) == "[nan, 0.75]"


def test_a_row_waits_for_an_attribution_window() -> None:
    feed = Feed().page("p", T0, [11, 12]).events(exposure("p", T0, [11]), exposure("p", T0 + MINUTE, [12], offset=1))
    due_ms = POLICY.attribution_ms + POLICY.disorder_ms
    assert feed.rows(due_ms - 1) == []
    assert feed.archive.pending == 2
    assert brief(feed.rows(due_ms), "item_id") == [("11",)]
    assert feed.archive.pending == 1
    assert brief(feed.rows(due_ms + MINUTE), "item_id") == [("12",)]
    assert feed.archive.pending == 0


def test_an_event_of_the_partition_settles_what_is_before_it() -> None:
    feed = Feed().page("p", T0, [11]).events(exposure("p", T0, [11]), exposure("q", T0 + HOUR, [11]))
    assert brief(feed.archive.cut().exposures.to_pylist(), "request_id") == [("p",)]


def test_without_its_page_log_an_exposure_is_left_out_as_in_the_stream() -> None:
    feed = Feed().events(exposure("p", T0, [11]), action("click", "p", T0 + 1, 0, 11))
    feed.archive.advance(0, T0 + 10 * HOUR)
    cut = feed.archive.cut()
    assert (cut.exposures.num_rows, cut.events.num_rows, feed.archive.pending) == (0, 2, 0)
    assert feed.archive.counts == {"no-page-log": 2}


def test_a_page_log_may_come_after_its_exposure_and_a_click_before() -> None:
    feed = Feed().events(action("click", "p", T0 + 5, 0, 11), exposure("p", T0, [11]))
    (row,) = feed("page_logs", page_log("p", T0, [11])).rows()
    assert (row["click_ms"], row["model_version"]) == (T0 + 5, 3)


def test_the_first_click_gives_the_time_and_repeats_change_nothing() -> None:
    feed = Feed().page("p", T0, [11])
    feed.events(exposure("p", T0, [11]), *[action("click", "p", T0 + n, 0, 11) for n in (9, 5)])
    feed.events(exposure("p", T0 + 99, [11]))
    assert brief(feed.rows(), "time_ms", "click_ms") == [(T0, T0 + 9)]
    feed.events(exposure("p", T0, [11]))
    cut = feed.archive.cut()
    assert (cut.exposures.num_rows, cut.events.num_rows) == (0, 1)  # events stay as they came


def test_a_click_after_the_window_has_its_time_and_one_after_the_row_is_in_the_events_alone() -> None:
    """There it is marked if the stream corrects a 0 by it. The last one comes when nothing more is taken."""
    feed = Feed().page("p", T0, [11, 12, 13, 14]).events(exposure("p", T0, [11, 12, 13, 14]))
    feed.events(action("click", "p", T0 + POLICY.attribution_ms, 0, 11))  # not less than the window
    rows = feed.rows(POLICY.attribution_ms + POLICY.disorder_ms)
    assert brief(rows, "label", "click_ms") == [(0, T0 + POLICY.attribution_ms), *[(0, None)] * 3]
    assert feed.archive.cut().events["after_row"].to_pylist() == []
    feed.events(action("click", "p", T0 + 1, 1, 12), action("click", "p", T0 + 2, 1, 12))
    feed.events(action("click", "p", T0 + 1, 2, 11), action("cart", "p", T0 + 5, 0, 11))
    feed.archive.advance(0, T0 + 2 * HOUR)
    feed.events(action("click", "p", T0 + 1, 3, 14))
    assert feed.archive.late == {"click": 2, "cart": 1}
    assert brief(feed.archive.cut().events.to_pylist(), "type", "position", "after_row") == [
        ("click", 1, True),
        ("click", 1, None),
        ("click", 2, None),
        ("cart", 0, True),
        ("click", 3, None),
    ]
    assert feed.archive.counts == {"wrong-item": 1}


def test_a_click_on_another_item_or_on_nothing_is_none() -> None:
    feed = Feed()("page_logs", page_log("p", T0, [11, 12])).events(exposure("p", T0, [11]))
    feed.events(action("click", "p", T0 + 1, 0, 12), action("click", "p", T0 + 1, 1, 12))
    assert brief(feed.rows(), "item_id", "label") == [("11", 0)]
    assert feed.archive.counts == {"wrong-item": 1, "no-exposure": 1}


def test_what_another_user_sends_about_a_page_is_left_out() -> None:
    feed = Feed()("page_logs", page_log("p", T0, [11, 12])).events(exposure("p", T0, [11]))
    feed.events(action("click", "p", T0 + 1, 0, 11, user_id=8), exposure("p", T0, [12], offset=1, user_id=8))
    assert brief(feed.rows(), "item_id", "label") == [("11", 0)]
    assert feed.archive.counts == {"wrong-user": 2}


def test_an_exposure_of_another_item_than_the_page_had_is_left_out() -> None:
    feed = Feed()("page_logs", page_log("p", T0, [11, 12])).events(exposure("p", T0, [11, 13]))
    assert brief(feed.rows(), "item_id") == [("11",)]
    assert feed.archive.counts == {"wrong-item": 1}


def test_slots_say_where_an_item_was_shown() -> None:
    feed = Feed()("page_logs", page_log("p", T0, [11, 12, 13], offset=40))
    feed.events(exposure("p", T0, [13, 11], slots=[2, 0]), action("click", "p", T0 + 1, 2, 13))
    assert brief(feed.rows(), "position", "slot", "item_id", "label") == [(2, 40, "13", 1), (0, 41, "11", 0)]


def test_an_exposure_that_comes_late_still_waits_for_its_click() -> None:
    feed = Feed().page("p", T0, [11])
    feed.events(exposure("other", T0 + 40 * MINUTE, [11]), exposure("p", T0, [11]))
    feed.events(exposure("next", T0 + 41 * MINUTE, [11]))
    feed.events(action("click", "p", T0 + 1, 0, 11))
    assert ("p", 1) in brief(feed.rows(), "request_id", "label")
    feed = Feed().page("p", T0, [11]).page("other", T0 + 3 * HOUR, [11])
    feed.events(exposure("other", T0 + 3 * HOUR, [11]), exposure("p", T0, [11]))
    assert brief(feed.rows(), "request_id") == [("other",)]
    assert feed.archive.counts == {"late": 1}


def test_an_exposure_that_comes_after_its_pages_window_has_its_arm_and_score() -> None:
    """A page of one client is seen at once, its end later; another's messages all come late. Both are sent late."""
    late_ms = T0 + POLICY.attribution_ms + POLICY.disorder_ms + 15 * MINUTE

    def archived(restarts: bool) -> list[dict[str, Any]]:
        feed, rows = Feed(), list[dict[str, Any]]()
        for name in ("p", "q", "r"):
            feed("page_logs", page_log(name, T0, [11, 12], arm="control", model_version=4, offset=20))
        feed.page("far", late_ms, [11], user=8)
        feed.events(exposure("p", T0, [11]), exposure("far", late_ms, [11], user_id=8))
        if restarts:
            cut = feed.archive.cut()
            rows += cut.exposures.to_pylist()
            before, feed.archive = feed.archive, Archive(SCHEMA, WAITS, HOUR, 1)
            feed.archive.resume(msgspec.msgpack.decode(msgspec.msgpack.encode(cut.state)))
            assert before.positions == feed.archive.positions
        feed.events(exposure("p", T0 + MINUTE, [12], offset=1), exposure("q", T0 + MINUTE, [11, 12]))
        feed.events(action("click", "q", T0 + 2 * MINUTE, 1, 12), exposure("r", T0, [11], user_id=8))
        feed.events(exposure("p", late_ms, [12], offset=1))  # again
        rows = [row for row in rows + feed.rows() if row["request_id"] in "pqr"]
        assert feed.archive.counts == {"wrong-user": 1}
        feed.archive.advance(0, T0 + 100 * HOUR)
        assert not feed.archive._pages[0].join.pages, "they go as all that is written does"
        return rows

    rows = archived(False)
    seen = brief(rows, "request_id", "position", "label", "arm", "model_version", "slot")
    assert sorted(seen) == [
        ("p", 0, 0, "control", 4, 20),
        ("p", 1, 0, "control", 4, 21),
        ("q", 0, 0, "control", 4, 20),
        ("q", 1, 1, "control", 4, 21),
    ]
    assert [round(row["score"], 3) for row in rows] == [(0.1, 0.9)[row["position"]] for row in rows]
    assert archived(True) == rows


def test_what_nobody_can_use_is_counted() -> None:
    feed = Feed().events(b"rubbish")
    feed("events", exposure("p", T0 + 2 * HOUR, [11]), now_ms=T0)("events", exposure("p", T0 // 1000, [11]))
    feed("page_logs", b"\xc1")("users", b"no")("items", b"no")("events", None)
    stranger = Archive(SCHEMA, WAITS, HOUR, 2)
    number = 1 - kafka_partition(key_of(7), 2)
    stranger.take(TopicRecord("events", number, 0, b"7", exposure("p", T0, [11]), T0))
    assert feed.archive.counts == {"malformed": 2, "bad-page-log": 1, "future": 1, "seconds": 1}
    assert stranger.counts == {"wrong-partition": 1}
    assert feed.archive.cut().events.num_rows == stranger.cut().events.num_rows == 0


def test_a_deleted_user_has_no_attributes_from_then_on() -> None:
    feed = Feed(parse_schema(SMALL)).user(7, country="de").page("p", T0, [11]).page("q", T0, [11])
    feed.events(exposure("p", T0, [11]))("users", None, "7").events(exposure("q", T0 + 1, [11]))
    assert brief(feed.rows(), "request_id", "country") == [("p", "de"), ("q", None)]


def test_attributes_change_by_what_the_stream_takes_and_by_nothing_else() -> None:
    """An empty message is no tombstone, and a message in another user's partition says nothing."""
    feed = Feed(parse_schema(SMALL)).user(7, country="de").item(11, color="red")
    feed("users", b"", "7")("items", b"", "11").page("p", T0, [11]).events(exposure("p", T0, [11]))
    assert brief(feed.rows(), "country", "color") == [("de", "red")]
    home = kafka_partition(key_of(7), 2)
    archive, raw = Archive(parse_schema(SMALL), WAITS, HOUR, 2), exposure("p", T0, [11])
    logged = next(record.value for record in feed.records if record.topic == "page_logs")
    for number, value in ((home, b'{"user_id": 7, "attributes": {"country": "de"}}'), (1 - home, None)):
        archive.take(TopicRecord("users", number, 0, b"7", value, T0))
    archive.take(TopicRecord("users", 1 - home, 1, b"7", b'{"user_id": 7, "attributes": {"country": "at"}}', T0))
    archive.take(TopicRecord("page_logs", home, 0, b"7", logged, T0))
    archive.take(TopicRecord("events", home, 0, b"7", raw, T0))
    archive.advance(home, T0 + 10 * HOUR)
    assert brief(archive.cut().exposures.to_pylist(), "country") == [("de",)]


def test_both_forms_of_page_logs_give_the_same_rows() -> None:
    """Form 2 is what a scorer sends for most pages."""
    schema = shop_schema()
    n, layout = 40, schema.layout
    keys, cat, num = (bytes(n * w * size) for w, size in ((layout.K, 8), (layout.F, 8), (layout.N, 4)))
    page = PageLog("p", T0, 7, "control", 5, schema.id, [*range(n)], bytes(4 * n), keys, cat, num, 0, 3, bytes(n))
    found = []
    for raw in (to_msgpack(page), page_log_bytes(page, Rates.of(schema))):
        found.append(Feed(schema)("page_logs", raw).events(exposure("p", T0, [*range(n)])).rows())
    assert raw[0] in (0x90 + 15, 0xDC)  # an array, not a map
    assert found[0] == found[1]
    assert found[0][0]["arm"] == "control"


@pytest.mark.parametrize("value", [True, 7, 7.0, 7.5, "seven", "", None, float("nan"), -0.0])
def test_a_text_hashes_like_its_value(value: object) -> None:
    assert value_hash(text(value)) == value_hash(value)


def test_a_field_may_have_a_name_of_the_archives_own() -> None:
    schema = parse_schema('name = "s"\nfields = [{ name = "label", of = "item" }, { name = "source", of = "user" }]')
    columns = ArchiveColumns(schema)
    assert (columns.own["label"], columns.own["source"], columns.own["score"]) == (
        "archive_label",
        "archive_source",
        "score",
    )
    assert parse_schema(schema_text(schema, 5.0)).log.label == "archive_label"  # type: ignore[union-attr]


# ---------------------------------------------------------------------- the same labels as the stream


def told_by_stream(messages: list[InputMessage], to_ms: int, policy: Policy) -> tuple[dict[Any, Any], Counter[str]]:
    """By request and position of each exposure: its time, and that of each action by kind. And how many exposures, or
    else messages, became dead letters by reason. An action's sample says when it was sent, 5 ms after it happened."""
    partition, out = Partition(0, SCHEMA, policy), Sum()
    out += partition.take(messages, NOW)
    out += partition.advance(to_ms)
    assert partition.pending == 0
    exposed = {(row.request, row.position): row.ts_ms for row in out.samples if row.kind in (NEGATIVE, POSITIVE)}
    times = defaultdict[Any, dict[int, int]](dict)
    for row in out.samples:
        kind = (row.actions >> 1).bit_length()
        if kind:
            times[row.request, row.position][kind] = row.origin_ms - 5
    dead = Counter[str]()
    for one in out.dead:
        dead[one.reason] += one.exposures or 1
    return {of: (ts_ms, times[of]) for of, ts_ms in exposed.items()}, dead


@examples(150)
@given(
    arrivals(wild=True, clocked=True),
    st.integers(0, 2**32),
    st.sampled_from([31, 3]),
    st.sampled_from([POLICY, SETTLED]),
)
def test_archive_and_stream_agree_on_every_exposure_label_and_time(
    messages: list[InputMessage], seed: int, pages: int, policy: Policy
) -> None:
    """Disorder, repeats, late clicks, clocks ahead, wrong users and items, pages without a log, pages shown otherwise
    than they were answered; the archive is killed after some of its cuts. What is left out is what the stream makes
    dead letters of. An action is in its row, or was counted after it and is marked among the events."""
    rng, rows, events, counts = random.Random(seed), list[dict[str, Any]](), list[dict[str, Any]](), Counter[str]()

    def cut(archive: Archive) -> dict[str, Any]:
        nonlocal counts
        found = archive.cut()
        rows.extend(found.exposures.to_pylist())
        events.extend(found.events.to_pylist())
        counts += archive.counts + Counter(late=archive.late.total())
        return found.state

    archive = Archive(SCHEMA, policy.waits, HOUR, 1)
    with patch("millrace.contracts.clock.PAGES", pages):
        stream, dead = told_by_stream(messages, NOW + 100 * HOUR, policy)
        for one in messages:
            clock_ms = NOW if one.clock_ms is None else min(one.clock_ms, NOW)
            archive.take(TopicRecord(one.topic, 0, one.offset, b"", one.raw, clock_ms))
            if rng.random() < 0.1:
                state = cut(archive)
                archive = Archive(SCHEMA, policy.waits, HOUR, 1)
                archive.resume(msgspec.msgpack.decode(msgspec.msgpack.encode(state)))
        archive.advance(0, NOW + 100 * HOUR)
    assert archive.pending == 0
    cut(archive)
    kept = {(row["request_id"], row["position"]): row for row in rows}
    assert len(kept) == len(rows)
    happened = {
        of: (row["time_ms"], {kind: row[name] for kind, name in enumerate(TIMES, 1) if row[name] is not None})
        for of, row in kept.items()
    }
    for row in kept.values():
        assert row["label"] == int(
            row["click_ms"] is not None and row["click_ms"] - row["time_ms"] < policy.attribution_ms
        )
    for later in (event for event in events if event["after_row"]):
        own, kind = happened[later["request_id"], later["position"]][1], ACTIONS.index(later["type"])
        assert kind not in own
        own[kind] = later["ts_ms"]
        counts["late"] -= 1
    assert happened == stream
    assert +counts == dead


@examples(60)
@given(arrivals(wild=True), st.sampled_from([POLICY, SETTLED]), st.sampled_from(sorted(REGISTRY)))
def test_a_replay_of_the_archive_learns_what_the_stream_sent(
    messages: list[InputMessage], policy: Policy, name: str
) -> None:
    """The same kinds for the same exposures. The stream gives a label by the watermark, replay by the events' own
    times: so a click in time that comes when its label was given is a correction live, and may be a label in replay."""
    label = REGISTRY[name]
    partition, archive, out = (
        Partition(0, SCHEMA, replace(policy, label=label)),
        Archive(SCHEMA, policy.waits, HOUR, 1),
        Sum(),
    )
    came = dict[tuple[str, int, int], int]()  # by request, position and time of a click: the watermark when it came
    for one in messages:
        out += partition.take([one], NOW)
        archive.take(TopicRecord(one.topic, 0, one.offset, b"", one.raw, NOW))
        with suppress(BadEventError):
            event = decode_event(one.raw)
            if isinstance(event, Click):
                came.setdefault((event.request_id, event.position, event.ts_ms), partition.watermark_ms)
    out += partition.advance(NOW + 100 * HOUR)
    archive.advance(0, NOW + 100 * HOUR)
    live, replayed = defaultdict[Any, list[int]](list), defaultdict[Any, list[int]](list)
    for sent in out.samples:
        if sent.kind in (NEGATIVE, POSITIVE, CORRECTION):
            live[sent.request, sent.position].append(sent.kind)
    cut = archive.cut()
    if not cut.exposures.num_rows:
        assert not live
        return
    with TemporaryDirectory() as folder:
        place = ArchiveFolder(Path(folder))
        place.put_schema(schema_text(SCHEMA, policy.attribution_ms / MINUTE))
        place.write({"events": cut.events, "exposures": cut.exposures}, cut.state)
        place.close()
        schema = load_schema(Path(folder) / "schema.toml")
        log = read_log(Path(folder) / "exposures", schema)
    rows = LogRows(log, schema)
    labels = Labels(log, schema, rows)
    made = KnownSamples.of(rows.ts_ms, labels, label, policy.observation_ms)
    assert set(made.policy.tolist()) == {label.code}
    ids = list(zip(log.table["request_id"].to_pylist(), log.table["position"].to_pylist(), strict=True))
    for row, kind in zip(made.row.tolist(), made.kind.tolist(), strict=True):
        replayed[ids[row]].append(kind)
    assert live.keys() == replayed.keys()
    for row, of in enumerate(ids):
        if live[of] != replayed[of]:
            assert {name, *live[of], *replayed[of]} == {name, NEGATIVE, CORRECTION, POSITIVE}, (
                "the last word is the same"
            )
            assert name != "fake-negative-weighted"
            assert rows.label[row] == 1, "what was counted when the row was written is equal"
            if name != "prompt":  # its promise follows the traffic, in the order in which it comes
                promise = label.promise(policy.waits, 0)
                assert live[of] == [NEGATIVE, CORRECTION]
                ts_ms, acted_ms = int(rows.ts_ms[row]), int(labels.acted_ms[row])  # a click is not before its exposure
                marks = [mark for (*its, ms), mark in came.items() if its == [*of] and max(ms, ts_ms) == acted_ms]
                assert marks[0] - ts_ms >= label_ms(promise)


# ---------------------------------------------------------------------- files, state, restarts


def killed_at(story: list[TopicRecord], folder: Path, cuts: list[int], stops: list[int]) -> None:
    """Archives a story whose process is killed after ``stops`` records, and cuts after ``cuts`` of all."""
    at = 0
    for stop in [*stops, len(story)]:
        place, archive = ArchiveFolder(folder), Archive(SCHEMA, WAITS, HOUR, 1)
        state = place.load()
        if state is not None:
            archive.resume(state)
        at = archive.positions["events"].get(0, 0) + archive.positions["page_logs"].get(0, 0)
        while at < stop:
            archive.take(story[at])
            at += 1
            if at in cuts:
                cut = archive.cut()
                place.write({"events": cut.events, "exposures": cut.exposures}, cut.state)
        if stop == len(story):
            archive.advance(0, T0 + 10**8)
            cut = archive.cut()
            place.write({"events": cut.events, "exposures": cut.exposures}, cut.state)
        place.close()


def tables(folder: Path) -> Iterator[list[dict[str, Any]]]:
    for kind, order in (("events", "log_offset"), ("exposures", "time_ms")):
        files = sorted((folder / kind).glob("*.parquet"))
        whole = pa.concat_tables([pa.parquet.read_table(f) for f in files])
        yield whole.sort_by([(order, "ascending"), ("request_id", "ascending"), ("position", "ascending")]).to_pylist()


def many_pages() -> list[TopicRecord]:
    feed = Feed()
    for n in range(40):
        feed("page_logs", page_log(f"p{n}", T0 + n * MINUTE, [11, 12]))
        feed.events(exposure(f"p{n}", T0 + n * MINUTE, [11, 12]), action("click", f"p{n}", T0 + n * MINUTE, n % 2, 11))
    return feed.records


def test_a_restart_neither_loses_nor_doubles_a_row(tmp_path: Path) -> None:
    story = many_pages()
    killed_at(story, tmp_path / "calm", [60], [])
    killed_at(story, tmp_path / "killed", [20, 50, 51, 90], [10, 35, 50, 70, 119])
    assert list(tables(tmp_path / "killed")) == list(tables(tmp_path / "calm"))


def test_a_message_that_was_taken_is_not_taken_again_unless_its_topic_is_another_one() -> None:
    feed = Feed().events(exposure("p", T0, [11]))
    again = Archive(SCHEMA, WAITS, HOUR, 1)
    again.resume(feed.archive.cut().state)
    again.take(feed.records[0])
    assert again.rows == 0
    again.reset_offsets("events", 0)
    again.take(feed.records[0])
    assert again.rows == 1
    assert again.pending == 1  # the exposure was known


def test_files_that_no_manifest_names_are_removed(tmp_path: Path) -> None:
    """The process was killed between the files and the manifest."""
    killed_at(many_pages(), tmp_path, [60], [])
    left = tmp_path / "events" / "0000000099.parquet"
    left.write_bytes(b"half")
    place = ArchiveFolder(tmp_path)
    assert place.load() is not None
    assert place.last == 2
    assert not left.exists()
    place.close()


def test_a_process_that_is_killed_in_its_first_cut_does_not_keep_the_next_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """The process ends, and does nothing more."""

    class Hands:
        """Of a process that is killed between a file and the manifest, if it meets a new archive."""

        def __init__(self, _: Settings, archive: Archive, folder: ArchiveFolder, topics: dict[str, str]) -> None:
            starts.append((archive.positions, topics))

        def work(self, _: threading.Event) -> None:
            if len(starts) == 1:
                (place / "events" / "0000000002.parquet").write_bytes(b"a whole file")
                raise Killed

        def close(self) -> None:
            pass

    starts: list[Any] = []
    here = Settings(data=str(tmp_path))
    place = here.folder("archive")
    monkeypatch.setattr(archive_main, "Shell", Hands)
    monkeypatch.setattr(archive_main, "serve_metrics", lambda *_: None)
    monkeypatch.setattr(archive_main, "open_broker", lambda _: None)
    monkeypatch.setattr(archive_main, "topic_ids", lambda _: {"events": "e", "page_logs": "i"})
    with pytest.raises(Killed):
        archive_main.run(here, threading.Event())
    archive_main.run(here, threading.Event())
    assert starts == [({"events": {}, "page_logs": {}}, {"events": "e", "page_logs": "i"})] * 2
    assert not any((place / "events").iterdir())


class Reader:
    """A consumer of two partitions of each topic, which have nothing beyond its positions and end at ``end``."""

    end = 1000

    def __init__(self, _: Settings, starts: dict[str, dict[int, int]], **options: Any) -> None:
        self.at = {TopicPartition(t, number): start.get(number, 0) for t, start in starts.items() for number in (0, 1)}

    def assignment(self) -> list[TopicPartition]:
        return list(self.at)

    def position(self, tp: TopicPartition) -> int:
        return self.at[tp]

    def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 0)

    def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: min(at, self.end) for tp, at in self.at.items()}

    def seek(self, tp: TopicPartition, to: int) -> None:
        self.at[tp] = to

    def seek_to_beginning(self, tp: TopicPartition) -> None:
        self.at[tp] = 0


def test_a_topic_that_is_made_again_beneath_a_running_archive_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_main, "read_topics", Reader)
    monkeypatch.setattr(archive_main, "topic_ids", lambda _: {"events": "new", "page_logs": "i"})
    here, place = Settings(data=str(tmp_path), partitions=2), ArchiveFolder(tmp_path)
    archive = Archive(SCHEMA, WAITS, HOUR, 2)
    archive.positions = {"events": {0: 7, 1: 9}, "page_logs": {0: 5}}
    shell = archive_main.Shell(here, archive, place, {"events": "old", "page_logs": "i"})
    user = next(n for n in range(99) if kafka_partition(key_of(n), 2) == 0)
    raw = exposure("p", T0, [11], user_id=user)
    reader: Any = shell._reader
    reader.at[TopicPartition("events", 0)] = 1  # it was read from the beginning by itself
    shell._take(SimpleNamespace(topic="events", partition=0, offset=0, key=b"", value=raw, timestamp=T0, headers=()))
    shell.write()
    place.close()
    assert [reader.at[TopicPartition("events", n)] for n in (0, 1)] == [1, 0]
    place = ArchiveFolder(tmp_path)
    state = place.load()
    place.close()
    assert state is not None
    assert state["topics"] == {"events": "new", "page_logs": "i"}  # else the next start would read it again
    assert [dict(map(tuple, at)) for at in state["positions"].values()] == [{0: 1, 1: 0}, {0: 5}]


@pytest.mark.parametrize(("id", "goes_on"), [("e", 6), ("", 0)])
def test_a_topic_that_lost_its_end_is_not_archived_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, id: str, goes_on: int
) -> None:
    """In a power cut, for example. Without an id it may be another topic."""
    monkeypatch.setattr(archive_main, "read_topics", Reader)
    monkeypatch.setattr(Reader, "end", 6)
    archive, place = Archive(SCHEMA, WAITS, HOUR, 2), ArchiveFolder(tmp_path)
    archive.positions = {"events": {0: 9, 1: 5}, "page_logs": {}}
    shell = archive_main.Shell(Settings(data=str(tmp_path), partitions=2), archive, place, {"events": id})
    place.close()
    assert archive.positions["events"] == {0: goes_on, 1: 5}
    assert [shell._reader.position(TopicPartition("events", n)) for n in (0, 1)] == [goes_on, 5]


def test_an_archive_has_one_writer(tmp_path: Path) -> None:
    place = ArchiveFolder(tmp_path)
    with pytest.raises(StoreError, match="another process writes"):
        ArchiveFolder(tmp_path)
    place.close()
    ArchiveFolder(tmp_path).close()


@pytest.mark.parametrize("damage", ["flipped", "gone", "torn"])
def test_a_damaged_manifest_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    """To begin again beside the files would double their rows."""
    killed_at(many_pages(), tmp_path, [60], [])
    manifest = tmp_path / "manifest"
    raw = bytearray(manifest.read_bytes())
    raw[10] ^= 1
    manifest.unlink()
    if damage != "gone":
        manifest.write_bytes(raw if damage == "flipped" else raw[:50])
    place = ArchiveFolder(tmp_path)
    with pytest.raises(StoreError, match="move the folder away"):
        place.load()
    place.close()


def test_another_number_of_partitions_is_refused() -> None:
    state = Feed().archive.cut().state
    with pytest.raises(StoreError, match="1 partitions, not 2"):
        Archive(SCHEMA, WAITS, HOUR, 2).resume(state)


@pytest.mark.parametrize("form", [1, 99])
def test_a_state_of_another_form_is_refused(form: int) -> None:
    state = Feed().archive.cut().state | {"form": form}
    with pytest.raises(StoreError, match=rf"an archive of form {form}, this version reads 2; move the folder"):
        Feed().archive.resume(state)


def test_a_state_outlives_a_new_field() -> None:
    feed = Feed(parse_schema(SMALL)).item(11, color="red").page("p", T0, [11]).events(exposure("p", T0, [11]))
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(feed.archive.cut().state))
    grown = parse_schema(SMALL.replace("fields = [", 'fields = [{ name = "brand", of = "item" }, '))
    later = Archive(grown, WAITS, HOUR, 1)
    later.resume(state)
    later.advance(0, T0 + 10 * HOUR)
    assert brief(later.cut().exposures.to_pylist(), "color", "brand") == [("red", None)]


def test_a_page_of_an_earlier_schema_has_rows_and_one_of_an_unknown_schema_has_none() -> None:
    old, new = (
        parse_schema(text) for text in (SMALL, SMALL.replace("fields = [", 'fields = [{ name = "x", of = "item" }, '))
    )
    for history, rows, counts in (
        ((old, new), [("p", "red")], {}),
        ((), [], {"bad-page-log": 1, "no-page-log": 1}),
    ):
        feed = Feed(old)
        feed.archive = Archive(new, WAITS, HOUR, 1, history=history)
        feed.item(11, color="red").page("p", T0, [11]).events(exposure("p", T0, [11]))
        assert brief(feed.rows(), "request_id", "color") == rows
        assert feed.archive.counts == counts


@pytest.mark.parametrize("lateness", [0, 20, 60])
def test_rows_that_wait_outlive_another_lateness(lateness: int) -> None:
    """Each page has a second part, which keeps it for longer than the first, whose last click comes late."""
    feed, waits = Feed(), WAITS._replace(lateness_ms=lateness * MINUTE)
    rows, late = list[dict[str, Any]](), Counter[str]()
    for n in range(100):
        at_ms = T0 + n * MINUTE
        feed.page(f"p{n}", at_ms, [11, 12]).events(exposure(f"p{n}", at_ms, [11]))
        if n >= 10:
            feed.events(exposure(f"p{n - 10}", at_ms, [12], offset=1))
        if n >= 52:
            feed.events(action("click", f"p{n - 52}", at_ms, 0, 11))
        if n in (45, 55, 70, 90):
            cut = feed.archive.cut()
            rows += cut.exposures.to_pylist()
            late += feed.archive.late
            feed.archive = Archive(SCHEMA, waits, HOUR, 1)
            feed.archive.resume(msgspec.msgpack.decode(msgspec.msgpack.encode(cut.state)))
    late += feed.archive.late
    rows += feed.rows(100 * HOUR)
    assert sorted(brief(rows, "request_id", "position")) == sorted(
        [(f"p{n}", 0) for n in range(100)] + [(f"p{n}", 1) for n in range(90)]
    )
    assert late.total() + sum(row["click_ms"] is not None for row in rows) == 48


def test_old_files_go(tmp_path: Path) -> None:
    killed_at(many_pages(), tmp_path, [60], [])
    place = ArchiveFolder(tmp_path)
    files = list(place.files())
    written_s = files[0].stat().st_mtime
    assert place.expire(written_s - 10) == 0
    assert place.expire(written_s + 1000) == len(files) == 3
    place.close()


def test_records_go_in_the_order_in_which_they_came_to_kafka() -> None:
    class Stamped(msgspec.Struct):
        timestamp: int
        name: str = ""

    lines = [("users", 0), ("page_logs", 0), ("events", 0)]
    merge = Merge(lines)

    def ready(*at_end: int) -> str:
        return "".join(record.name for record in merge.ready({lines[n] for n in at_end}))

    merge.put(lines[2], [Stamped(5, "e"), Stamped(9, "f")])
    assert ready(1) == ""  # users may still have something older
    merge.put(lines[0], [Stamped(1, "u"), Stamped(7, "v")])
    assert ready(1) == "uev"
    merge.put(lines[1], [Stamped(9, "i")])
    assert ready(0, 1, 2) == "if"
    assert merge.waiting(lines[2]) == 0


# ---------------------------------------------------------------------- replay


@pytest.mark.parametrize("which", ["shop", "small", "named"])
def test_replay_reads_the_archive_as_it_is(tmp_path: Path, which: str) -> None:
    """The schema's id is the live one's, so a model of the replay fits the loop."""
    named = SMALL + '[log]\ntime = "t"\nuser = "uid"\nitem = "sku"\nlabel = "y"\n[[join]]\nfile = "x.csv"\non = "sku"'
    schema = {"shop": shop_schema(), "small": parse_schema(SMALL), "named": parse_schema(named)}[which]
    feed = Feed(schema)
    for n in range(10):
        feed.item(n, born_ms=T0 - HOUR, color="red", price=n, category="shoes", tags="a, b", price_band=n % 3)
    for n in range(50):
        feed.user(7, country=f"c{n}", kind="business", region=n)
        feed.page(f"p{n}", T0 + n * MINUTE, [n % 10, (n + 1) % 10])
        feed.events(exposure(f"p{n}", T0 + n * MINUTE, [n % 10, (n + 1) % 10]))
        feed.events(action("click", f"p{n}", T0 + n * MINUTE + 5000, n % 2, (n + n % 2) % 10))
    place = ArchiveFolder(tmp_path)
    place.put_schema(schema_text(schema, 30.0))
    feed.archive.advance(0, T0 + 10**8)
    cut = feed.archive.cut()
    place.write({"events": cut.events, "exposures": cut.exposures}, cut.state)
    place.close()
    written = parse_schema((tmp_path / "schema.toml").read_text())
    assert written.id == schema.id
    log = read_log(tmp_path / "exposures", written)
    assert (log.rows_read, log.duplicates) == (100, 0)
    assert log.table[log.label].to_pylist().count(1) == 50
    report = replay(tmp_path / "exposures", tmp_path / "schema.toml", tmp_path / "out", progress=False)
    assert report["rows"] == 100


def test_replay_reads_the_archive_before_the_first_file_with_a_new_field_and_after(tmp_path: Path) -> None:
    def start(text: str, request: str, n: int) -> None:
        schema = parse_schema(text)
        feed = Feed(schema).item(11, color="red", brand="b").page(request, T0 + n, [11])
        feed.events(exposure(request, T0 + n, [11]), action("click", request, T0 + n + 5000, 0, 11))
        feed.archive.advance(0, T0 + 10**8)
        place, cut = ArchiveFolder(tmp_path), feed.archive.cut()
        place.load()
        place.put_schema(schema_text(schema, 30.0), ArchiveColumns(schema).schema.names)
        if n != 1:
            place.write({"events": cut.events, "exposures": cut.exposures}, cut.state)
        place.close()

    def rows() -> tuple[int, list[str]]:
        written = parse_schema((tmp_path / "schema.toml").read_text())
        return read_log(tmp_path / "exposures", written).rows_read, [field.name for field in written.fields]

    grown = SMALL.replace("fields = [", 'fields = [{ name = "brand", of = "item" }, ')
    start(SMALL, "p0", 0)
    start(grown, "p1", 1)  # it is killed before its first file
    assert (rows()[0], "brand" in rows()[1]) == (1, False)
    start(grown, "p2", 2)
    assert (rows()[0], "brand" in rows()[1]) == (2, True)


# ---------------------------------------------------------------------- a user is forgotten


def test_forget_writes_files_again_without_the_user(tmp_path: Path) -> None:
    feed = Feed(parse_schema(SMALL))
    for n in range(20):
        feed.page(f"p{n}", T0 + n, [11, 12], n % 2 or "7")
        feed.events(exposure(f"p{n}", T0 + n, [11, 12], user_id=n % 2 or "7"))
    place = ArchiveFolder(tmp_path)
    place.put_schema(schema_text(parse_schema(SMALL), 30.0))
    feed.archive.advance(0, T0 + 10**8)
    cut = feed.archive.cut()
    place.write({"events": cut.events, "exposures": cut.exposures}, cut.state)
    before = [(path.name, path.stat().st_mtime_ns) for path in place.files()]
    assert forget(tmp_path, "7") == Forgotten(rows=10 + 20, files=2, looked_at=2)
    assert forget(tmp_path, "7") == Forgotten(rows=0, files=0, looked_at=2)
    assert [(path.name, path.stat().st_mtime_ns) for path in place.files()] == before
    left = [pa.parquet.read_table(path)["user_id"].to_pylist() for path in place.files()]
    assert left == [["1"] * 10, ["1"] * 20]
    place.close()
    with pytest.raises(StoreError, match="is no archive"):
        forget(tmp_path / "events", "7")


# ---------------------------------------------------------------------- one request id, two users


def shared_request() -> tuple[Archive, list[str]]:
    """Two users whose clients call their pages alike, in two partitions; the second page is longer. (the archive, the
    users)"""
    users = [next(str(u) for u in range(99) if kafka_partition(key_of(u), 2) == number) for number in (0, 1)]
    archive, layout = Archive(SCHEMA, WAITS, HOUR, 2, features=True), SCHEMA.layout
    for number, (user, n) in enumerate(zip(users, (1, 3), strict=True)):
        items = [11 + k for k in range(n)]
        page = {
            "cat": np.full((n, layout.F), number + 1, "<i8").tobytes(),
            "num": np.full((n, layout.N), number + 0.5, "<f4").tobytes(),
        }
        raw = page_log("home", T0, items, int(user), schema_id=SCHEMA.id, **page)
        archive.take(TopicRecord("page_logs", number, 0, user.encode(), raw, T0))
        shown = exposure("home", T0, items, user_id=int(user))
        archive.take(TopicRecord("events", number, 0, user.encode(), shown, T0))
        clicked = action("click", "home", T0 + MINUTE, 0, 11, user_id=int(user))
        for k in range(number):  # the second user clicks
            archive.take(TopicRecord("events", number, 1 + k, user.encode(), clicked, T0))
        archive.advance(number, T0 + 10 * HOUR)
    return archive, users


def test_features_are_of_the_exposures_own_page() -> None:
    archive, (first, second) = shared_request()
    features = archive.cut().features
    cat, _ = arrays(features, SCHEMA)
    columns = features["user_id"].to_pylist(), features["position"].to_pylist(), cat[:, 0].tolist()
    found = list(zip(*columns, strict=True))
    assert sorted(found) == sorted([(first, 0, 1), (second, 0, 2), (second, 1, 2), (second, 2, 2)])


def test_replay_keeps_the_exposures_of_both_users(tmp_path: Path) -> None:
    archive, (first, second) = shared_request()
    folder, cut = ArchiveFolder(tmp_path), archive.cut()
    folder.write({"events": cut.events, "exposures": cut.exposures}, cut.state)
    folder.put_schema(schema_text(SCHEMA, POLICY.attribution_ms / MINUTE))
    folder.close()
    log = read_log(tmp_path / "exposures", load_schema(tmp_path / "schema.toml"))
    rows = log.table.to_pylist()
    assert sorted((str(row["user_id"]), row["label"]) for row in rows) == sorted(
        [(first, 0), (second, 1), (second, 0), (second, 0)]
    )


def test_exposures_of_both_users_are_two_pages(tmp_path: Path) -> None:
    """In replay they are compared within their own page; a loop that goes on from them has two names for them."""
    archive, users = shared_request()
    folder, cut = ArchiveFolder(tmp_path), archive.cut()
    folder.write({"events": cut.events, "exposures": cut.exposures}, cut.state)
    folder.put_schema(schema_text(SCHEMA, POLICY.attribution_ms / MINUTE))
    folder.close()
    schema = load_schema(tmp_path / "schema.toml")
    log = read_log(tmp_path / "exposures", schema)
    page = GroupedRows(log, schema).page
    assert page is not None
    of = dict(zip(log.table["user_id"].to_pylist(), page.tolist(), strict=True))
    assert sorted(map(str, of)) == sorted(users)
    assert len(set(of.values())) == len(set(page.tolist())) == 2
    rows = LogRows(log, schema)
    assert set(rows.requests(rows.page)) == {"home"}
    events = LogEvents(log, schema, rows, HOUR)
    assert sorted(events.names(slice(0, events.pages))) == ["home", "home#1"]
