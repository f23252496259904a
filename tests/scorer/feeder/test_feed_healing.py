"""Random lives of a store, its log, learners and scorers, with damage to any file and message at any moment.

Never backwards: what a scorer serves only rises in the order of versions. Never torn: whatever it serves is, bit for
bit, a version that a learner published. Never for ever: nothing is loaded twice, and after one good snapshot the scorer
serves what the learner has.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.serving.serving_model import ServingModel
from millrace.contracts.topics import MODEL_DELTAS
from millrace.versions.image import Image
from millrace.versions.versioning import Announcement, Place
from tests.scenes.exploring import examples
from tests.scenes.feed_scene import Scene
from tests.scenes.scorer_shop import Learner


class World(Scene):
    """A scene that checks each version as it begins to serve."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.states: dict[str, Image] = {}  # by hash: what a published version is
        self.places: list[Place] = []  # what this scorer has served
        self.loads: list[str] = []  # first parts that this scorer has read
        self.old: list[Learner] = []
        super().__init__(folder, **more)

    def start(self) -> None:
        super().start()
        self.places, self.loads = [], []
        self.scorer.began = self.check
        parts = self.feed.store.read_parts

        def read_parts(note: Announcement) -> Any:
            self.loads.append(note.parts[0].digest + note.parts[0].name)
            return parts(note)

        self.feed.store.read_parts = read_parts

    def check(self, note: Announcement) -> None:
        assert not self.places or note.place > self.places[-1], f"{self.places[-1]} -> {note.place}: backwards"
        self.places.append(note.place)
        assert isinstance(self.scorer.model, ServingModel)
        assert self.scorer.model.snapshot().same_bits(self.states[note.hash]) == "", f"{note.place} is torn"

    def published(self, learner: Learner) -> None:
        tables = learner.model.snapshot()[0].tables
        self.states[learner.hash] = Image({n: a.copy() for n, a in learner.dense.items()}, tables)

    # -- what may happen --------------------------------------------------------------------------------------

    def learn(self, rng: random.Random, learner: Learner | None = None) -> None:
        learner = learner or self.learner
        if learner.hash:
            learner.delta(dense=rng.random() < 0.5, lost=rng.random() < 0.2)
            self.published(learner)

    def snapshot(self, rng: random.Random, announce: bool = True) -> None:
        if self.learner.rows_only:
            self.learn_whole()
        self.learner.snapshot(announce=announce)
        self.published(self.learner)
        self.learner.store.prune()

    def unannounced(self, rng: random.Random) -> None:
        self.snapshot(rng, announce=False)

    def learn_whole(self) -> None:
        self.learner.delta()
        self.published(self.learner)

    def stale(self, rng: random.Random) -> None:
        """A learner that has lost its epoch has not heard of it yet."""
        if self.old:
            self.learn(rng, rng.choice(self.old))

    def next_learner(self, rng: random.Random) -> None:
        self.old.append(self.learner)
        place = self.learner.place
        self.learner = self.another(seed=rng.randrange(5), epoch=place.epoch + 1, version=place.number + 1)
        self.snapshot(rng, announce=rng.random() < 0.8)

    def damage_file(self, rng: random.Random) -> None:
        files = sorted(p for p in (self.folder / "models").iterdir() if not p.name.startswith((".", "damaged-")))
        if files:
            path = rng.choice(files)
            body = bytearray(path.read_bytes())
            kind = rng.randrange(4)
            if kind == 0 or not body:
                path.unlink()
            elif kind == 1:
                path.write_bytes(body[: rng.randrange(len(body))])
            elif kind == 2:
                path.write_bytes(rng.choice(files).read_bytes())
            else:
                body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
                path.write_bytes(body)

    def damage_message(self, rng: random.Random) -> None:
        messages = self.broker.log(MODEL_DELTAS).messages
        if messages:
            chosen = rng.choice(messages[-8:])
            kind = rng.randrange(3)
            if kind == 0:
                messages.remove(chosen)
            elif kind == 1 or not chosen.value:
                chosen.value = None
            else:
                body = bytearray(chosen.value)
                body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
                chosen.value = bytes(body)

    def repeat(self, rng: random.Random) -> None:
        """A producer tries again what had arrived."""
        messages = self.broker.log(MODEL_DELTAS).messages
        if messages:
            self.broker.log(MODEL_DELTAS).append(rng.choice(messages[-4:]).value)

    def retention(self, rng: random.Random) -> None:
        notes = self.learner.store.snapshots()[:2]
        if notes and notes[-1].log == self.learner.log:
            self.broker.log(MODEL_DELTAS).cut(notes[-1].follows)

    def lose_topic(self, rng: random.Random) -> None:
        self.broker.lose(MODEL_DELTAS)
        self.next_learner(rng)
        self.start()  # its reader would fail; where it goes on is the same as that of a new one

    def restart(self, rng: random.Random) -> None:
        self.start()

    def fold(self, rng: random.Random) -> None:
        """Some rows of the oldest overlay move into the base. What is served stays the same."""
        before = self.scorer.note
        for _ in range(rng.randrange(1, 5)):
            self.scorer.host.fold(rng.randrange(1, 40))
        if before is not None:
            assert self.scorer.note == before
            assert isinstance(self.scorer.model, ServingModel)
            assert self.scorer.model.snapshot().same_bits(self.states[before.hash]) == "", "torn by folding"

    def worker(self, rng: random.Random) -> None:
        """The worker is killed, and another one starts."""
        self.scorer.replace_worker()
        if self.places:
            assert self.scorer.note is not None
            assert self.scorer.note.place == self.places[-1]
            assert isinstance(self.scorer.model, ServingModel)
            assert self.scorer.model.snapshot().same_bits(self.states[self.scorer.note.hash]) == ""

    def look(self, rng: random.Random) -> None:
        self.now += 100
        self.read()

    def go_on(self, rng: random.Random) -> None:
        self.read()


STEPS = ["learn", "snapshot", "unannounced", "stale", "next_learner", "damage_file", "damage_message", "repeat"]
STEPS += ["retention", "lose_topic", "restart", "look", "go_on", "learn", "learn", "go_on"]
STEPS += ["fold", "fold", "worker"]


@pytest.mark.slow
@examples(50)
@given(steps=st.lists(st.sampled_from(STEPS), max_size=25), seed=st.integers(0, 10**6))
def test_never_backwards_never_torn_never_for_ever(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("world")
    rng = random.Random(seed)
    world = World(folder)
    world.snapshot(rng)
    for step in steps:
        getattr(world, step)(rng)
        assert len(set(world.loads)) == len(world.loads), "a snapshot is loaded once, or given up"
        assert world.scorer.model is not None or not world.places, "what served once goes on serving"
    world.learn_whole()
    world.snapshot(rng)
    world.learn_whole()
    world.look(rng)
    assert world.places[-1] == world.learner.place
    assert isinstance(world.scorer.model, ServingModel)
    assert world.scorer.model.snapshot().same_bits(world.states[world.learner.hash]) == ""
    assert not world.scorer.to_read
    assert not world.feed.follower.waiting
    shutil.rmtree(folder)
