"""One line a minute a kind; and warnings about users and items that are used."""

from __future__ import annotations

from collections import Counter

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from millrace.contracts.dead_letter_reasons import REASONS, WARNINGS
from millrace.contracts.events import DeadLetter, Item, User
from millrace.contracts.profile_warnings import SECONDS_MS, ProfileChecks
from millrace.contracts.schema import parse_schema
from millrace.processes.repeated_warnings import MOST_KINDS, OTHERS, Kinds
from stream.worker.problemlog import ProblemLog

SCHEMA = parse_schema(
    """
    name = "small"
    filters = ["region"]
    [[fields]]
    name = "user_id"
    of = "user"
    [[fields]]
    name = "kind"
    of = "user"
    [[fields]]
    name = "tags"
    of = "item"
    slots = 2
    [[fields]]
    name = "category"
    of = "item"
    [[fields]]
    name = "price"
    of = "item"
    kind = "numeric"
    [[fields]]
    name = "age_days"
    of = "item"
    kind = "numeric"
    """
)


@given(st.lists(st.tuples(st.floats(0, 100), st.sampled_from("abc"), st.integers(1, 5)), max_size=60))
def test_every_case_is_reported_once_and_no_kind_twice_a_minute(story: list[tuple[float, str, int]]) -> None:
    kinds, now, noted, reported = Kinds(60.0), 0.0, Counter[str](), Counter[str]()
    last: dict[str, float] = {}
    for wait, kind, n in story:
        now += wait
        kinds.note(kind, f"case of {kind}", n)
        noted[kind] += n
        for line in kinds.due(now):
            assert now - last.get(line.kind, -60.0) >= 60.0
            assert line.example == f"case of {line.kind}"
            last[line.kind] = now
            reported[line.kind] += line.times
    reported.update({line.kind: line.times for line in kinds.due(now + 60.0)})
    assert reported == noted
    assert kinds.due(now + 600.0) == []


def test_a_sender_cannot_make_kinds_without_end() -> None:
    kinds = Kinds()
    for number in range(10 * MOST_KINDS):
        kinds.note(f"kind {number}")
    reported = kinds.due(0.0)
    assert len(reported) == MOST_KINDS + 1
    assert next(line.times for line in reported if line.kind == OTHERS) == 9 * MOST_KINDS


def test_the_worker_tells_each_reason_with_its_remedy_and_not_more_than_once_a_minute() -> None:
    problems = ProblemLog()
    dead_letter = DeadLetter.of("late", "7 ms behind the watermark", "events", 1, 42, b"{}")
    with structlog.testing.capture_logs() as lines:
        for second in range(60):
            problems.note([dead_letter], ProfileChecks(SCHEMA).of_user(User(7, {"tint": "red"})))
            problems.write(float(second))
        assert [(line["reason"], line["count"]) for line in lines if "reason" in line] == [("late", 1)]
        problems.write(60.0)
    late = [line for line in lines if "reason" in line]
    assert [line["count"] for line in late] == [1, 59]
    assert late[0]["remedy"] == REASONS["late"].mend
    assert late[0]["example"] == "events, partition 1, offset 42: 7 ms behind the watermark"
    assert [line["kind"] for line in lines if "kind" in line] == ["unknown-attribute"], "once an hour"


@pytest.mark.parametrize(
    ("item", "key", "kinds"),
    [
        (Item("a", {"tags": ["x", "y"], "category": 7, "price": 12.5, "region": "de"}, SECONDS_MS), b"a", []),
        (Item("a", {"tags": "x,y, x,"}), b"a", []),
        (Item("a", {"tags": "x,y,z"}), b"a", ["beyond-slots"]),
        (Item("a", {"tags": ["x", "y", "z"]}), b"a", ["beyond-slots"]),
        (Item("a", {"tags": ["x", "y", "x"]}), b"a", []),
        (Item("a", {"category": 12.5}), b"a", ["fraction"]),
        (Item("a", {"category": 12.0, "tags": None, "price": None}), b"a", []),
        (Item("a", {"colour": None}), b"a", ["unknown-attribute"]),
        (Item("a", {}, born_ms=SECONDS_MS - 1), b"a", ["born-in-seconds"]),
        (Item("a", {}), b"b", ["wrong-key"]),
        (Item(7, {}), b"7", []),
        (Item(7, {}), None, []),
    ],
)
def test_warnings_about_items(item: Item, key: bytes | None, kinds: list[str]) -> None:
    assert [warning.kind for warning in ProfileChecks(SCHEMA).of_item(item, key)] == kinds
    assert set(kinds) <= WARNINGS.keys()


def test_warnings_about_users() -> None:
    found = ProfileChecks(SCHEMA).of_user(User("ann", {"kind": 1.5, "region": "de", "user_id": "x"}))
    assert [warning.kind for warning in found] == ["fraction", "unknown-attribute"]
    assert "'ann'" in found[0].detail
