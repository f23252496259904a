"""The scorer's own feed in the scripts of tests/test_version_scene.py: what learners, topic and store go through."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kafka import TopicPartition

from learner.serving import ServingModel
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.versions.image import Image
from millrace.versions.versioning import Announcement, Place
from scorer.feed import Broker, Reader
from scorer.modelfeed import ModelFeed
from tests import test_version_scene
from tests.learning import SCHEMA
from tests.scorer_feeder import Whole
from tests.scorer_log import Message, caught_up
from tests.test_scorer_feed import Here
from tests.test_version_scene import STEPS, Play, scene
from tests.version_scene import Scene

TP = TopicPartition(MODEL_DELTAS, 0)


class SceneBroker(Broker):
    """The scene's topic."""

    def __init__(self, place: Scene) -> None:
        self.place = place

    def reader(self, topic: str, start: dict[int, int]) -> Reader:
        return SceneReader(self.place, start.get(0, 0))

    def log_id(self, topic: str) -> str:
        return self.place.topic.id


class SceneReader:
    def __init__(self, place: Scene, start: int) -> None:
        self._place, self._at = place, start

    def poll(self, timeout_ms: int) -> Mapping[Any, list[Any]]:
        found = [Message(offset, None, raw) for offset, raw in self._place.topic.read(self._at)]
        self._at = self._place.topic.end
        return {TP: found} if found else {}

    def assignment(self) -> set[Any]:
        return {TP}

    def position(self, partition: Any) -> int:
        return self._at

    def end_offsets(self, partitions: Any) -> dict[Any, int]:
        return {TP: self._place.topic.end}

    def seek(self, partition: Any, offset: int) -> None:
        self._at = offset

    def close(self) -> None:
        pass


class Scorer:
    """A scorer as a follower of the scene, in the words of :class:`tests.version_scene.PlainFollower`."""

    def __init__(self, place: Scene) -> None:
        self.scene, self.loads, self.served = place, list[Place](), list[Place]()
        chosen = Settings(store=place.url.removesuffix("/models"))
        self.whole = Whole(chosen, schema=SCHEMA)
        self.now = 0.0
        self.feed = ModelFeed(
            chosen, self.whole.host, Here(), self.whole.stop, broker=SceneBroker(place), monotonic=lambda: self.now
        )
        install = self.whole.host.install

        def installed(note: Announcement, *rest: Any) -> None:
            self.loads.append(note.place)
            install(note, *rest)

        self.whole.host.install = installed  # type: ignore[method-assign, assignment]
        self.whole.began = self._check
        self.catch_up()

    def catch_up(self) -> None:
        self.now += 100
        caught_up(self.feed)
        self.whole.fold()

    @property
    def head(self) -> Announcement | None:
        return self.whole.note

    @property
    def image(self) -> Image:
        assert isinstance(self.whole.model, ServingModel)
        return self.whole.model.snapshot()

    def _check(self, note: Announcement) -> None:
        assert not self.served or note.place > self.served[-1], f"backwards from {self.served[-1]} to {note.place}"
        self.served.append(note.place)
        assert self.image.same_bits(self.scene.truth[note.place]) == "", f"version {note.place} is torn"


@settings(max_examples=30)
@given(st.lists(STEPS, min_size=8, max_size=40), st.booleans())
def test_whatever_happens_to_learners_a_scorer_serves_whole_versions_in_order(
    script: list[tuple[str, int]], bodies_in_store: bool
) -> None:
    place = scene(bodies_in_store=bodies_in_store, url=f"memory://scorer-{uuid.uuid4().hex}/models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_version_scene, "PlainFollower", Scorer)
        try:
            play = Play(place)
            scorers: list[Any] = play.followers
            scorers.append(Scorer(place))
            for what, n in script:
                play.do(what, n)
            peer = play.heal()
            scorers.append(Scorer(place))
            newest = Place(peer.versions.epoch, peer.versions.version)
            for scorer in scorers:
                scorer.catch_up()
                assert scorer.head is not None
                assert scorer.head.place == newest
                assert scorer.image.same_bits(place.truth[newest]) == ""
                assert len(scorer.loads) == len(set(scorer.loads)), "no snapshot is loaded twice"
        finally:
            place.close()
