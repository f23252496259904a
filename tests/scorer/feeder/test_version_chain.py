"""What to do with an entry of the topic: a table of cases, and every order in which a chain can arrive."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import msgspec
import pytest

from millrace.versions.clicks import ClickHistogram
from millrace.versions.modellog import Bad, Claimed, Delta, Entry, Snapshot
from millrace.versions.versioning import Announcement, Claim, Place, VersionClicks, chain
from scorer.feeder.version_order import MOST_FAILED, MOST_MISSED, Follower, Verdict


def note(version: int, own: str, parent: str = "", **more: Any) -> Announcement:
    values: dict[str, Any] = {
        "kind": "delta" if parent else "snapshot",
        "epoch": 1,
        "version": version,
        "claimant": f"of {more.get('epoch', 1)}",
        "parent": parent or own,
        "hash": own,
        "digest": f"digest of {own}",
        "size": 1,
        "schema_id": "s",
        "spec": {},
        "event_ms": 0,
        "trained": 0,
        "clicks": ClickHistogram.of([version]),
        "published_ms": 0,
        **more,
    }
    return Announcement(**values)


def delta(version: int, own: str, parent: str, **more: Any) -> Delta:
    return Delta(note(version, own, parent, **more), b"")


def snap(version: int, own: str, **more: Any) -> Snapshot:
    return Snapshot(note(version, own, **more))


V1 = note(1, chain("", "root"))
V2, V3, V4 = delta(2, "h2", V1.hash), delta(3, "h3", "h2"), delta(4, "h4", "h3")
ROOT2 = snap(3, "r2", epoch=2)


def follower(at: Announcement | None = V1, *before: Entry) -> Follower:
    """One that has ``at``, and has put in the deltas ``before``."""
    one = Follower("s")
    if at is not None:
        one.loaded(at)
    for entry in before:
        assert one.take(entry) == "patch"
        assert isinstance(entry, Delta)
        one.patched(entry.note)
    return one


@pytest.mark.parametrize(
    ("one", "entry", "verdict"),
    [
        (follower(None), Snapshot(V1), "look"),
        (follower(None), V2, "ignore"),
        (follower(None), Bad("damaged", Place(1, 2)), "bad"),
        (follower(), Snapshot(V1), "ignore"),
        (follower(), V2, "patch"),
        (follower(), V3, "look"),
        (follower(), snap(2, "h2"), "look"),
        (follower(), Bad("damaged", Place(1, 2)), "bad"),
        (follower(), Bad("damaged", None), "bad"),
        (follower(), Bad("damaged", Place(1, 1)), "ignore"),
        (follower(), Bad("damaged", Place(0, 9)), "ignore"),
        (follower(V1, V2), V2, "ignore"),
        (follower(V1, V2, V3), V2, "ignore"),
        (follower(V1, V2), snap(2, "h2"), "ignore"),
        (follower(V1, V2, V3), snap(2, "h2"), "ignore"),
        # A learner of a higher epoch: its root is newer whatever its number, and the one before has lost.
        (follower(V1, V2, V3), snap(0, "low", epoch=2), "look"),
        (follower(V1, V2, V3), ROOT2, "look"),
        (follower(V1, V2), delta(4, "x", "r2", epoch=2), "look"),
        (follower(ROOT2.note), V4, "fenced"),
        (follower(ROOT2.note), snap(99, "h99"), "fenced"),
        (follower(ROOT2.note), delta(4, "x", "r2", epoch=2), "patch"),
        (follower(ROOT2.note), delta(4, "x", "r2", epoch=2, claimant="another"), "fenced"),
        (follower(), delta(2, "h2", V1.hash, schema_id="other"), "foreign"),
        (follower(), snap(9, "f", schema_id="other"), "foreign"),
    ],
)
def test_verdicts(one: Follower, entry: Entry, verdict: Verdict) -> None:
    assert one.take(entry) == verdict


def test_from_a_claim_on_the_learner_before_has_lost() -> None:
    one = follower(V1, V2)
    assert one.take(Claimed(Claim(2, "of 2"))) == "ignore"
    assert one.take(Claimed(Claim(2, "late"))) == "ignore"
    assert one.take(V3) == "fenced"
    assert one.take(Bad("damaged", Place(1, 3))) == "ignore", "nobody waits for it"
    assert one.take(Bad("damaged", Place(2, 3))) == "bad"
    assert one.take(snap(3, "x", epoch=2, claimant="late")) in ("fenced", "look")  # only who has won publishes
    assert one.take(Claimed(Claim(1, "stale"))) == "ignore"


@pytest.mark.parametrize("sequence", list(permutations([V2, V3, V4])), ids=str)
def test_whatever_the_order_a_delta_is_only_ever_put_on_its_parent(sequence: tuple[Delta, ...]) -> None:
    one = follower()
    looks = 0
    for entry in (*sequence, *sequence, *sequence):
        verdict = one.take(entry)
        if verdict == "patch":
            assert one.at is not None
            assert entry.note.parent == one.at.hash
            one.patched(entry.note)
        looks += verdict == "look"
    assert one.at == V4.note
    assert one.waiting == ""
    assert looks <= 3


def test_a_gap_is_one_look_and_later_deltas_are_none() -> None:
    one = follower()
    assert one.take(V3) == "look"
    assert one.waiting
    assert [one.take(V4), one.take(delta(5, "h5", "h4"))] == ["ignore", "ignore"]
    assert one.take(snap(5, "h5")) == "look"
    one.loaded(note(5, "h5"))
    assert one.waiting == ""


def test_a_delta_that_was_refused_is_waited_for_and_its_clicks_are_not_forgotten() -> None:
    one = follower()
    assert one.take(V2) == "patch"
    one.refused(V2.note, "it lacks a column")
    assert one.waiting == "it lacks a column"
    assert one.take(V3) == "ignore"
    assert one.clicks() == []
    one.loaded(note(3, "h3", clicks=ClickHistogram()))
    assert one.clicks() == [VersionClicks.of(V2.note), VersionClicks.of(V3.note)]
    assert one.clicks() == []


def test_candidates_are_what_is_beyond_us_best_first_and_never_tried_twice() -> None:
    one = follower(V1, V2)
    found = [note(v, f"h{v}") for v in (1, 2, 3, 5)]
    foreign, second, loser = note(9, "f", schema_id="x"), note(4, "r", epoch=2), note(6, "l", claimant="loser")
    assert [n.place for n in one.candidates([*found, foreign, second, loser])] == [(2, 4), (1, 5), (1, 3)]
    one.failed(second)
    one.failed(found[3])
    assert [n.place for n in one.candidates([*found, second])] == [(1, 3)]
    assert one.take(Snapshot(found[3])) == "ignore"
    repaired = msgspec.structs.replace(found[3], digest="another")
    assert [n.digest for n in one.candidates([*found, repaired])] == ["another", found[2].digest]
    assert [n.version for n in follower(None).candidates(found)] == [5, 3, 2, 1]


def test_a_torn_model_is_no_version_and_less_than_was_served_is_not_served() -> None:
    one = follower(V1, V2, V3)
    one.torn("half of version 4 is in it")
    assert one.at is None
    assert not one.serves
    assert [n.version for n in one.candidates([V1])] == [1], "there is nothing better to begin with"
    one.loaded(V1)
    assert not one.serves
    for entry, serves in ((V2, False), (V3, True), (V4, True)):
        assert one.take(entry) == "patch"
        one.patched(entry.note)
        assert one.serves == serves
    assert one.floor == Place(1, 4)


def test_what_it_remembers_has_a_bound() -> None:
    one = follower()
    for version in range(3, 3 + 2 * MOST_FAILED):
        one.failed(note(version, f"h{version}"))
    for version in range(3, 3 + 2 * MOST_MISSED):
        one.take(delta(version, f"h{version}", "nobody", clicks=ClickHistogram.of([1000 * version])))
    one.loaded(note(10**6, "last", clicks=ClickHistogram()))
    assert len(one._failed) <= MOST_FAILED
    missed = one.clicks()
    assert len(missed) <= MOST_MISSED
    assert sum(v.clicks.total for v in missed) == 2 * MOST_MISSED, "no click is forgotten"
