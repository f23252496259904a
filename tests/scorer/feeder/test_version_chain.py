"""What to do with an entry of the topic: a table of cases, and every order in which a chain can arrive. Versions
in shared memory."""

from __future__ import annotations

import threading
from itertools import permutations
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from millrace.versions.clicks import ClickHistogram
from millrace.versions.modellog import Bad, Claimed, Delta, Entry, Snapshot
from millrace.versions.versioning import Announcement, Claim, Place, VersionClicks, chain
from scorer.feeder import versionhost
from scorer.feeder.version_order import MOST_FAILED, MOST_MISSED, Follower, Verdict
from scorer.ipc.scorer_metrics import Sums, metric_samples, values_of
from tests.scenes.feed_scene import Scene, same_model
from tests.scenes.following_scorer import Scorer
from tests.scenes.learning import tables_of
from tests.scenes.slow_sender import Slow
from tests.scenes.version_play import scene, started
from tests.scenes.waiting import until


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


# -- Versions in shared memory -----------------------------------------------------------------------------------------
# Folded when all workers have them, counted when all serve them, whole for who joins.


@pytest.fixture
def host_scene(tmp_path: Path) -> Scene:
    host_scene = Scene(tmp_path)
    host_scene.learner.snapshot()
    host_scene.read()
    return host_scene


def test_nothing_is_folded_before_the_slowest_worker_has_it(host_scene: Scene) -> None:
    host, slow = host_scene.scorer.host, Slow(host_scene.scorer)
    host_scene.learner.delta()
    host_scene.read()
    assert not host.fold()
    slow.take(1)  # the base
    assert slow.serving.note is not None
    assert slow.serving.note.version == 0
    before = slow.scores()
    assert not host.fold(), "it serves the version before"
    assert slow.scores() == before
    slow.take()
    assert slow.serving.note.version == 1
    assert slow.scores() != before
    after = slow.scores()
    while host.fold(1):
        assert slow.scores() == after
    assert host.unfolded == 0
    slow.take()
    assert slow.scores() == after
    assert same_model(host_scene.scorer, host_scene.learner)


def test_a_version_counts_as_served_when_the_last_worker_serves_it(host_scene: Scene) -> None:
    slow, meters = Slow(host_scene.scorer), host_scene.meters
    slow.take()
    served = meters.versions_served
    host_scene.learner.delta()
    host_scene.read()
    assert meters.versions_served == served
    assert host_scene.scorer.primary.note is not None
    assert host_scene.scorer.primary.note.version == 0
    slow.take()
    assert meters.versions_served == served + 1
    assert host_scene.scorer.primary.note.version == 1


def test_a_worker_that_is_gone_is_not_waited_for(host_scene: Scene) -> None:
    slow = Slow(host_scene.scorer)
    host_scene.learner.delta()
    host_scene.read()
    assert host_scene.scorer.host.behind(slow) == 0
    host_scene.scorer.host.remove(slow)
    assert host_scene.scorer.host.behind(slow) is None
    assert host_scene.scorer.primary.note is not None
    assert host_scene.scorer.primary.note.version == 1
    assert host_scene.scorer.host.fold()


@pytest.mark.parametrize("folded", [0, 1, 7])
def test_a_worker_that_joins_while_rows_move_serves_nothing_but_the_whole_version(
    host_scene: Scene, folded: int
) -> None:
    for _ in range(3):
        host_scene.learner.delta()
        host_scene.read()
    for _ in range(folded):
        host_scene.scorer.host.fold(1)
    slow = Slow(host_scene.scorer)
    served = []
    install = slow.serving.install

    def installed(note: Any, model: Any) -> None:
        served.append(note.version)
        install(note, model)

    slow.serving.install = installed  # type: ignore[method-assign]
    slow.take()
    assert set(served) == {3}
    model: Any = slow.serving.model
    image, _ = host_scene.learner.model.snapshot()
    assert model.snapshot().same_bits(image) == ""


def test_with_too_many_versions_staged_the_feed_waits_until_the_worker_follows(
    host_scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versionhost, "MOST_STAGED", 2)
    monkeypatch.setattr(versionhost, "WARN_AFTER_SECONDS", 0.01)
    slow = Slow(host_scene.scorer)
    for _ in range(3):
        host_scene.learner.delta()
    said: list[str] = []
    monkeypatch.setattr(versionhost.log, "warning", lambda event, **_: said.append(event))
    reading = threading.Thread(target=host_scene.read)
    reading.start()
    until(lambda: bool(said), "it says that it waits")
    assert host_scene.scorer.host.unfolded == 2
    for _ in range(10_000):
        slow.take()
        reading.join(0.01)
        if not reading.is_alive():
            break
    slow.take()
    assert host_scene.scorer.primary.note is not None
    assert host_scene.scorer.primary.note.version == 3
    assert same_model(host_scene.scorer, host_scene.learner)


def test_a_writer_whose_overlay_nobody_got_is_never_folded(host_scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows would come into the base that workers read, unseen before."""
    host, writer = host_scene.scorer.host, host_scene.scorer.host.writer
    assert writer is not None
    served = host_scene.scorer.model
    assert served is not None
    before = served.snapshot()
    packet = host._delta_packet

    def fails(*_: Any) -> Any:
        raise OSError("too many open files")

    monkeypatch.setattr(host, "_delta_packet", fails)
    host_scene.learner.delta()
    host_scene.read()
    monkeypatch.setattr(host, "_delta_packet", packet)
    assert not host.fold()
    assert served.snapshot().same_bits(before) == ""
    assert host_scene.meters.errors == {"patch": 2, "delta": 1}, "tried again with a new model, and then given up"
    assert host_scene.meters.loads == 2
    host_scene.learner.snapshot()
    host_scene.now += 100
    assert host_scene.read() == 1
    assert host.writer is not writer
    assert same_model(host_scene.scorer, host_scene.learner)


def test_threads_that_fold_and_patch_at_once_leave_a_whole_model(tmp_path: Path) -> None:
    host_scene = Scene(tmp_path)
    host_scene.learner.snapshot()
    host_scene.read()
    host_scene.scorer.host.start()
    for _ in range(20):
        host_scene.learner.delta()
        host_scene.read()
    until(lambda: host_scene.scorer.host.unfolded == 0, "all is folded")
    host_scene.scorer.stop.set()
    assert same_model(host_scene.scorer, host_scene.learner)


# -- figures --------------------------------------------------------------------------------------------------------


def figures() -> tuple[CollectorRegistry, Counter, Histogram, Gauge]:
    registry = CollectorRegistry()
    return (
        registry,
        Counter("millrace_things", "n", ["kind"], registry=registry),
        Histogram("millrace_seconds", "t", buckets=(1, 2), registry=registry),
        Gauge("millrace_level", "l", registry=registry),
    )


def test_counters_and_histograms_are_summed_and_gauges_are_the_feeders() -> None:
    (own, things, seconds, level), (other, their_things, their_seconds, their_level) = figures(), figures()
    things.labels("a").inc(2)
    seconds.observe(0.5)
    level.set(7)
    sums = Sums(own)
    their_things.labels("a").inc(3)
    their_things.labels("b").inc(1)
    their_seconds.observe(1.5)
    their_level.set(100)
    sums.update(1, values_of(metric_samples(other)))
    assert sums.total("millrace_things") == {(("kind", "a"),): 5.0, (("kind", "b"),): 1.0}
    text = generate_latest(sums).decode()
    assert "millrace_level 7.0" in text
    assert 'millrace_seconds_bucket{le="1.0"} 1.0' in text
    assert 'millrace_seconds_bucket{le="+Inf"} 2.0' in text
    assert "millrace_seconds_sum 2.0" in text

    sums.ended(1)
    assert sums.total("millrace_things")[(("kind", "a"),)] == 5.0, "what it had counted stays"
    sums.update(2, values_of(metric_samples(figures()[0])))
    their_things.labels("a").inc(4)
    sums.update(3, values_of(metric_samples(other)))
    assert sums.total("millrace_things")[(("kind", "a"),)] == 12.0


def test_rows_that_cannot_be_folded_while_a_delta_waits_for_room_are_never_folded(
    host_scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows how far they came. What is served goes on to be right, and a snapshot mends it."""
    monkeypatch.setattr(versionhost, "MOST_STAGED", 1)
    host, writer, served = host_scene.scorer.host, host_scene.scorer.host.writer, host_scene.scorer
    assert writer is not None
    host_scene.learner.delta()
    host_scene.read()

    def fails(_: int) -> bool:
        raise OSError("no memory")

    monkeypatch.setattr(writer, "fold", fails)
    before = served.model.snapshot() if served.model is not None else None
    host_scene.learner.delta()
    with pytest.raises(OSError, match="no memory"):
        host.fold()
    monkeypatch.undo()
    assert not host.fold()
    assert before is not None
    assert served.model is not None
    assert served.model.snapshot().same_bits(before) == ""
    host_scene.read()
    assert host.writer is not writer
    assert same_model(host_scene.scorer, host_scene.learner)


# -- The retrieval head in a scorer's feed -----------------------------------------------------------------------------


def test_a_head_that_was_lost_is_healed_by_the_next_snapshot() -> None:
    """Retrieval stays at the version before, whole; what a delta carried comes again with the snapshot."""
    place = scene()
    try:
        peer = started(place)
        scorer = Scorer(place)
        for number in range(1, 4):
            peer.learn(number)
            peer.delta(dense=True, retrieval=True)
        scorer.catch_up()
        reached = scorer.heads.served[-1]
        assert scorer.heads.served == [(1, 0), (1, 1), (1, 2), (1, 3)]
        peer.learn(4)
        peer.delta(dense=True, retrieval=True, lost=0)
        peer.learn(5)
        peer.delta(dense=False, retrieval=True)
        scorer.catch_up()
        assert scorer.heads.served[-1] == reached
        assert tables_of(scorer.heads.tower).same_bits(place.heads[reached]) == ""
        peer.learn(6)
        peer.snapshot()
        scorer.catch_up()
        newest = Place(1, peer.versions.version)
        assert scorer.heads.served[-1] == newest
        assert scorer.image.same_bits(place.truth[newest]) == ""
    finally:
        place.close()
