"""What to do with an announcement: a table of cases, and every order in which a chain can arrive."""

from __future__ import annotations

from itertools import permutations
from typing import Any, Literal

import pytest

from millrace.contracts.modelstore import Announcement, chain
from scorer.versions import judge, order, path_from


def note(version: int, own: str, parent: str = "", **more: Any) -> Announcement:
    kind: Literal["snapshot", "delta"] = "delta" if parent else "snapshot"
    values: dict[str, Any] = {
        "digest": "d",
        "file": "f",
        "size": 1,
        "schema_id": "s",
        "spec": {},
        "event_ms": 0,
        "trained": 0,
        "origins": [],
        "published_ms": 1000 + version,
        **more,
    }
    return Announcement(kind, version, parent or own, own, **values)


ROOT = note(1, chain("", "root"), digest="root")
V2, V3, V4 = note(2, "h2", ROOT.hash), note(3, "h3", "h2"), note(4, "h4", "h3")
SNAP3 = note(3, "h3")
NEW_ROOT = note(9, chain("", "new"), digest="new")


@pytest.mark.parametrize(
    ("serving", "incoming", "verdict"),
    [
        (None, ROOT, "load"),
        (None, SNAP3, "load"),
        (None, V2, "gap"),
        (ROOT, ROOT, "ignore"),
        (ROOT, V2, "patch"),
        (V2, V2, "ignore"),
        (V3, V2, "ignore"),
        (V3, ROOT, "ignore"),
        (V3, SNAP3, "ignore"),
        (V2, V4, "gap"),
        (V2, SNAP3, "gap"),
        (V3, NEW_ROOT, "load"),
        (NEW_ROOT, V4, "ignore"),
        # A learner that was restored from a backup numbers lower, but what it published last is the truth.
        (V4, note(2, "x", "y", published_ms=9999), "gap"),
        (V4, note(1, chain("", "z"), digest="z", published_ms=9999), "load"),
    ],
)
def test_verdicts(serving: Announcement | None, incoming: Announcement, verdict: str) -> None:
    assert judge(serving, incoming) == verdict


@pytest.mark.parametrize("sequence", list(permutations([V2, V3, V4])), ids=str)
def test_whatever_the_order_a_delta_is_only_ever_put_on_its_parent(sequence: tuple[Announcement, ...]) -> None:
    serving = ROOT
    for incoming in sequence:
        if judge(serving, incoming) == "patch":
            assert incoming.parent == serving.hash
            serving = incoming
        elif judge(serving, incoming) == "gap":
            path = path_from(ROOT, [V2, V3, V4])
            assert [n.version for n in path] == [2, 3, 4]
            serving = path[-1]
    assert serving == V4


def test_a_path_ends_at_the_first_missing_delta_and_keeps_to_its_chain() -> None:
    foreign = note(3, "x3", "x2")
    assert [n.hash for n in path_from(ROOT, [V4, foreign, V2])] == ["h2"]
    assert path_from(SNAP3, [V2, V3, V4]) == [V4]
    assert path_from(NEW_ROOT, [V2, V3, V4]) == []


def test_order_is_that_of_publishing() -> None:
    assert sorted([V4, V2, note(1, "late", published_ms=5000)], key=order)[-1].hash == "late"
