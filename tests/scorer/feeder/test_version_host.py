"""Versions in shared memory: folded when all workers have them, counted when all serve them, whole for who joins."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from scorer.feeder import versionhost
from scorer.ipc.scorer_metrics import Sums, metric_samples, values_of
from tests.scenes.feed_scene import Scene, same_model
from tests.scenes.slow_sender import Slow
from tests.scenes.waiting import until


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.learner.snapshot()
    scene.read()
    return scene


def test_nothing_is_folded_before_the_slowest_worker_has_it(scene: Scene) -> None:
    host, slow = scene.scorer.host, Slow(scene.scorer)
    scene.learner.delta()
    scene.read()
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
    assert same_model(scene.scorer, scene.learner)


def test_a_version_counts_as_served_when_the_last_worker_serves_it(scene: Scene) -> None:
    slow, meters = Slow(scene.scorer), scene.meters
    slow.take()
    served = meters.versions_served
    scene.learner.delta()
    scene.read()
    assert meters.versions_served == served
    assert scene.scorer.primary.note is not None
    assert scene.scorer.primary.note.version == 0
    slow.take()
    assert meters.versions_served == served + 1
    assert scene.scorer.primary.note.version == 1


def test_a_worker_that_is_gone_is_not_waited_for(scene: Scene) -> None:
    slow = Slow(scene.scorer)
    scene.learner.delta()
    scene.read()
    assert scene.scorer.host.behind(slow) == 0
    scene.scorer.host.remove(slow)
    assert scene.scorer.host.behind(slow) is None
    assert scene.scorer.primary.note is not None
    assert scene.scorer.primary.note.version == 1
    assert scene.scorer.host.fold()


@pytest.mark.parametrize("folded", [0, 1, 7])
def test_a_worker_that_joins_while_rows_move_serves_nothing_but_the_whole_version(scene: Scene, folded: int) -> None:
    for _ in range(3):
        scene.learner.delta()
        scene.read()
    for _ in range(folded):
        scene.scorer.host.fold(1)
    slow = Slow(scene.scorer)
    served = []
    install = slow.serving.install

    def installed(note: Any, model: Any) -> None:
        served.append(note.version)
        install(note, model)

    slow.serving.install = installed  # type: ignore[method-assign]
    slow.take()
    assert set(served) == {3}
    model: Any = slow.serving.model
    image, _ = scene.learner.model.snapshot()
    assert model.snapshot().same_bits(image) == ""


def test_with_too_many_versions_staged_the_feed_waits_until_the_worker_follows(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versionhost, "MOST_STAGED", 2)
    monkeypatch.setattr(versionhost, "WARN_AFTER_SECONDS", 0.01)
    slow = Slow(scene.scorer)
    for _ in range(3):
        scene.learner.delta()
    said: list[str] = []
    monkeypatch.setattr(versionhost.log, "warning", lambda event, **_: said.append(event))
    reading = threading.Thread(target=scene.read)
    reading.start()
    until(lambda: bool(said), "it says that it waits")
    assert scene.scorer.host.unfolded == 2
    for _ in range(10_000):
        slow.take()
        reading.join(0.01)
        if not reading.is_alive():
            break
    slow.take()
    assert scene.scorer.primary.note is not None
    assert scene.scorer.primary.note.version == 3
    assert same_model(scene.scorer, scene.learner)


def test_a_writer_whose_overlay_nobody_got_is_never_folded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows would come into the base that workers read, unseen before."""
    host, writer = scene.scorer.host, scene.scorer.host.writer
    assert writer is not None
    served = scene.scorer.model
    assert served is not None
    before = served.snapshot()
    packet = host._delta_packet

    def fails(*_: Any) -> Any:
        raise OSError("too many open files")

    monkeypatch.setattr(host, "_delta_packet", fails)
    scene.learner.delta()
    scene.read()
    monkeypatch.setattr(host, "_delta_packet", packet)
    assert not host.fold()
    assert served.snapshot().same_bits(before) == ""
    assert scene.meters.errors == {"patch": 2, "delta": 1}, "tried again with a new model, and then given up"
    assert scene.meters.loads == 2
    scene.learner.snapshot()
    scene.now += 100
    assert scene.read() == 1
    assert host.writer is not writer
    assert same_model(scene.scorer, scene.learner)


def test_threads_that_fold_and_patch_at_once_leave_a_whole_model(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.learner.snapshot()
    scene.read()
    scene.scorer.host.start()
    for _ in range(20):
        scene.learner.delta()
        scene.read()
    until(lambda: scene.scorer.host.unfolded == 0, "all is folded")
    scene.scorer.stop.set()
    assert same_model(scene.scorer, scene.learner)


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
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows how far they came. What is served goes on to be right, and a snapshot mends it."""
    monkeypatch.setattr(versionhost, "MOST_STAGED", 1)
    host, writer, served = scene.scorer.host, scene.scorer.host.writer, scene.scorer
    assert writer is not None
    scene.learner.delta()
    scene.read()

    def fails(_: int) -> bool:
        raise OSError("no memory")

    monkeypatch.setattr(writer, "fold", fails)
    before = served.model.snapshot() if served.model is not None else None
    scene.learner.delta()
    with pytest.raises(OSError, match="no memory"):
        host.fold()
    monkeypatch.undo()
    assert not host.fold()
    assert before is not None
    assert served.model is not None
    assert served.model.snapshot().same_bits(before) == ""
    scene.read()
    assert host.writer is not writer
    assert same_model(scene.scorer, scene.learner)
