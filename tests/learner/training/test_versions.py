"""Learners, a topic and a store through anything: never backwards, never torn, never for ever, in the end equal.

A script is data: each item is a step of a learner, a crash, another learner, a message lost or flipped, a file damaged,
retention. A scorer follows now and then, and checks each version that it serves against what the learner noted of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.training.learner_versions import Progress, newest_valid
from millrace.basics.errors import SnapshotError, StoreError
from millrace.basics.store import DamagedError
from millrace.contracts.topics import MODEL_DELTAS
from millrace.versions.image import split
from millrace.versions.modellog import Claimed, Delta
from millrace.versions.modelstore import ModelStore
from millrace.versions.proof import prove
from millrace.versions.versioning import Place
from tests.scenes.exploring import examples
from tests.scenes.following_scorer import Scorer
from tests.scenes.learning import SCHEMA
from tests.scenes.version_play import STEPS, Play, scene, started
from tests.scenes.version_scene import Fenced, Scene


@examples(60)
@given(st.lists(STEPS, min_size=8, max_size=40))
@pytest.mark.slow
def test_whatever_happens(script: list[tuple[str, int]]) -> None:
    place = scene()
    try:
        play = Play(place)
        play.followers.append(Scorer(place))
        for what, n in script:
            play.do(what, n)
        peer = play.heal()
        play.followers.append(Scorer(place))
        newest = Place(peer.versions.epoch, peer.versions.version)
        for follower in play.followers:
            follower.catch_up()
            assert follower.head is not None
            assert follower.head.place == newest
            assert follower.image.same_bits(place.truth[newest]) == ""
            assert len(follower.loads) == len(set(follower.loads)), "no snapshot is loaded twice"
        deltas = [entry for entry in place.entries() if isinstance(entry, Delta)]
        prove(ModelStore(place.url), {delta.note.place: delta.body for delta in deltas})
    finally:
        place.close()


def test_the_scene_can_fail() -> None:
    """A follower that was shown a version twice, or one that nobody published, is found out."""
    place = scene()
    peer = started(place)
    follower = Scorer(place)
    peer.learn(1)
    peer.delta(dense=True)
    follower.catch_up()
    assert follower.head is not None
    follower._check(follower.head)
    with pytest.raises(AssertionError, match="backwards"):
        follower.catch_up()
    follower.wrong.clear()
    peer.learn(2)
    peer.delta(dense=True)
    place.truth[Place(1, 2)].dense["delays"][...] += 1
    with pytest.raises(AssertionError, match="torn"):
        follower.catch_up()


def test_two_learners_that_claim_at_once_are_one() -> None:
    """Both read the topic before either has claimed: the first claim wins, the other writes nothing."""
    place = scene()
    a, b = place.peer(), place.peer()
    a.read()
    b.read()
    a.claim()
    b.claim()
    a.begin()
    before = place.store.store.names()
    with pytest.raises(Fenced):
        b.begin()
    assert place.store.store.names() == before


def test_a_learner_that_was_fenced_writes_nothing_more() -> None:
    place = scene()
    a = started(place)
    a.learn(1)
    b = started(place)
    files, end = place.store.store.names(), place.topic.end
    a.learn(2)
    with pytest.raises(Fenced):
        a.delta(dense=True)
    with pytest.raises(Fenced):
        a.snapshot()
    assert place.topic.end == end
    assert [n for n in place.store.store.names() if n.endswith(".manifest")] == [n for n in files if "manifest" in n]
    b.learn(3)
    b.delta(dense=True)


def test_what_a_fenced_learner_had_on_its_way_is_not_followed() -> None:
    """It looks, finds itself alone, and writes; meanwhile another has claimed. Readers know whose epoch it is."""
    place = scene()
    a = started(place)
    follower = Scorer(place)
    a.learn(1)
    b = started(place)
    a.delta(dense=True, late=True)
    a.learn(2)
    a.snapshot(late=True)
    follower.catch_up()
    fresh = Scorer(place)
    fresh.catch_up()
    newest = Place(b.versions.epoch, b.versions.version)
    for one in (follower, fresh):
        assert one.head is not None
        assert one.head.place == newest
    assert place.store.latest() is not None
    assert next(n.epoch for n in place.store.snapshots()) == b.versions.epoch


def test_a_clock_that_goes_back_changes_nothing() -> None:
    """Announcements carry wall times for tracing; order is epoch and number. Neither a follower, nor one that begins,
    nor the next learner, nor what removes old snapshots goes by them."""
    place = scene()
    a = started(place)
    follower = Scorer(place)
    begun_ms = place.now_ms
    for number in range(2):
        a.learn(number)
        a.delta(dense=True)
        place.now_ms -= 60_000
        a.snapshot()
    place.now_ms -= 86_400_000
    b = started(place)
    for number in range(2, 4):
        b.learn(number)
        b.delta(dense=True)
        place.now_ms -= 60_000
        b.snapshot()
    newest = Place(b.versions.epoch, b.versions.version)
    notes = place.store.snapshots()
    assert [n.place for n in notes] == sorted((n.place for n in notes), reverse=True)
    published = [n.published_ms for n in notes]
    assert published == sorted(published), "the newest has the earliest time"
    assert published[-1] < begun_ms, "the clock did go back"
    fresh = Scorer(place)
    assert fresh.served == [newest], "from the newest snapshot"
    for one in (follower, fresh):
        one.catch_up()
        assert one.head is not None
        assert one.head.place == newest
    c = started(place)
    assert c.versions.epoch == b.versions.epoch + 1
    assert c.versions.version > b.versions.version
    assert c.model.snapshot()[0].same_bits(b.model.snapshot()[0]) == "", "it goes on from the newest"


def test_a_store_of_which_nothing_is_whole_is_not_begun_again_without_a_word() -> None:
    place = scene()
    a = started(place)
    a.learn(1)
    a.snapshot()
    a.learn(2)
    a.snapshot()
    for name in place.store.store.names():
        if name.endswith(".serving"):
            place.damage_file(name, 5, 1)
    c = place.peer()
    c.read()
    c.claim()
    with pytest.raises(StoreError, match="none of the snapshots"):
        c.begin()


def test_the_topic_was_emptied_and_the_store_goes_on() -> None:
    """An embedded broker that was started again: the learner claims above the store's epochs, followers read from the
    beginning of the new log, and nobody goes back."""
    place = scene()
    a = started(place)
    for number in range(3):
        a.learn(number)
        a.delta(dense=True)
    a.snapshot()
    follower = Scorer(place)
    place.broker.lose(MODEL_DELTAS)
    follower.feed._reader = None  # its connection broke with the broker
    b = started(place)
    b.learn(9)
    b.delta(dense=True)
    fresh = Scorer(place)
    for one in (follower, fresh):
        one.catch_up()
        assert one.head is not None
        assert one.head.place == (b.versions.epoch, b.versions.version)
    assert b.versions.epoch == a.versions.epoch + 1


def test_retention_keeps_what_the_newest_two_snapshots_need() -> None:
    place = scene()
    peer = started(place)
    number = 0
    for _ in range(5):
        for _ in range(4):
            number += 1
            peer.learn(number)
            peer.delta(dense=number % 3 == 0)
        peer.snapshot()
    kept = place.store.snapshots()
    assert len(kept) == 2
    assert place.topic.messages[0].offset == kept[1].follows > 0
    entries = place.entries()
    assert not any(isinstance(entry, Claimed) for entry in entries)
    bodies = {entry.note.place: entry.body for entry in entries if isinstance(entry, Delta)}
    found = prove(place.store, bodies)
    assert [(p.base, p.target) for p in found.proofs] == [(kept[1].place, kept[0].place)]
    assert not found.unproved
    bodies.pop(Place(1, kept[0].version))
    (gap,) = prove(place.store, bodies).unproved
    assert gap.missing == (kept[0].version,)


def test_of_older_snapshots_without_their_deltas_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are there to go back to."""
    place = scene()
    peer = started(place)
    monkeypatch.setattr(place.store, "prune", lambda: None)
    for number in range(1, 4):
        peer.learn(number)
        peer.delta(dense=True)
        peer.snapshot()
    kept = place.store.snapshots()
    assert len(kept) >= 3
    found = prove(place.store, {})
    assert [(gap.base, gap.target) for gap in found.unproved] == [(kept[1].place, kept[0].place)]
    assert not found.proofs


def test_damaged_training_is_noticed_and_the_snapshot_before_is_used() -> None:
    place = scene()
    peer = started(place)
    notes = []
    for number in range(2):
        peer.learn(number)
        peer.snapshot()
        notes.append(place.store.latest())
    older, newer = notes
    assert older is not None
    assert newer is not None
    place.damage_file(newer.training[-1].name, 11, 3)
    found = newest_valid(place.store, SCHEMA.id, {}, lambda note, parts: _resumed(place, parts))
    assert found is not None
    assert found.note == older


def _resumed(place: Scene, parts: Any) -> Any:
    model = place.untrained()
    model.resume(parts)
    return model


# -- what was done to a store or topic once, and what a learner does now ----------------------------------------------


def test_four_hundred_flips_in_training_are_all_noticed() -> None:
    place = scene()
    peer = started(place)
    peer.learn(1)
    peer.snapshot()
    note = place.store.latest()
    assert note is not None
    reader = ModelStore(place.url, writes=False)
    rng = np.random.default_rng(0)
    noticed = 0
    for _ in range(400):
        file = note.training[int(rng.integers(len(note.training)))]
        at, bit = int(rng.integers(file.size)), int(rng.integers(8))
        place.damage_file(file.name, at, bit)
        with pytest.raises(DamagedError):
            list(reader.read_training(note))
        noticed += 1
        place.damage_file(file.name, at, bit)
    assert noticed == 400
    list(reader.read_training(note))


@pytest.mark.parametrize("which", [0, 1])
def test_an_unreadable_manifest_stops_neither_the_learner_nor_who_follows(which: int) -> None:
    place = scene()
    peer = started(place)
    peer.learn(1)
    peer.snapshot()
    follower = Scorer(place)
    name = [n for n in place.store.store.names() if n.endswith(".manifest")][which]
    place.damage_file(name, 40, 2)
    for number in range(2, 5):
        peer.learn(number)
        peer.snapshot()
    follower.catch_up()
    assert follower.head is not None
    assert follower.head.version == peer.versions.version
    assert len(place.store.snapshots()) == 2
    assert place.store.damaged == [name]
    assert Scorer(place).head is not None


def test_the_head_is_left_out_and_nothing_of_it_is_lost() -> None:
    """It is as it was in the versions between; a delta that carries it has all that was learnt since."""
    place = scene()
    peer = started(place)
    follower = Scorer(place)
    head = peer.model.head
    assert head is not None
    for number in range(1, 9):
        peer.learn(number)
        peer.delta(dense=False, retrieval=number % 4 == 0)
        follower.catch_up()
        assert follower.head is not None
        carried = follower.head.retrieval_clicks
        assert carried == (head.clicks if number % 4 == 0 else -1)
    assert head.clicks > 0
    assert split(follower.image)[1].same_bits(split(peer.model.snapshot()[0])[1]) == ""
    assert len(follower.loads) == 1


def test_a_snapshot_waits_for_a_delta_with_the_head() -> None:
    place = scene()
    peer = started(place)
    peer.learn(1)
    peer.slice()
    assert peer.copying is not None
    while not peer.slice():
        pass
    peer.delta(dense=True)
    assert not peer.versions.snapshot_ready
    with pytest.raises(SnapshotError, match="would have what no delta had"):
        peer.versions.finish(peer.copying, Progress(), {}, 0)
    assert peer.versions.delta(Progress(), 0) is not None, "a version of the head alone"
    assert peer.versions.snapshot_ready
