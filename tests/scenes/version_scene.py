"""Versions without Kafka, threads or clocks: a topic and a store in memory, learners that publish, and what goes wrong.

::

    Scene ── topic   messages by offset; the first ones may be gone (retention), one may be flipped or lost
          ├─ store   sealed files in memory; any may be flipped, torn or removed
          ├─ truth   what each version is, by place: noted when it was published, from the learner itself
          └─ peers   learners: each reads, claims, publishes, crashes

A follower is shown the topic and the store, never the truth (tests/scenes/following_scorer.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from learner.ranker.interfaces import Slicing
from learner.ranker.model import OnlineModel
from learner.training.learner_versions import Progress, SnapshotFiles, Versions, newest_valid, write_root
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.topics import MODEL_DELTAS
from millrace.versions.image import Array, Image, split
from millrace.versions.modellog import (
    Assembler,
    Bad,
    Claimed,
    Decisions,
    Entry,
    Fence,
    encode_claim,
    encode_delta,
    encode_snapshot,
)
from millrace.versions.modelstore import Announcement, ModelStore
from millrace.versions.versioning import Claim, Place
from tests.scenes.scorer_log import Log, MemoryBroker


class Fenced(Exception):
    """A learner has ended because another one has taken over."""


class Peer:
    """A learner, step by step as :mod:`learner.role.service` takes them."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene, self.name = scene, name
        self.model: OnlineModel
        self.versions: Versions
        self.copying: Slicing | None = None
        self.head = Image({}, {})  # as it was published last
        self._files: SnapshotFiles
        self._fence, self._assembler = Fence(), Assembler()
        self._read_to, self._newest = 0, -1
        self._claim: Claim
        self._follows = 0
        self.running = False

    def read(self) -> None:
        """Reads the topic to its end."""
        self._read()

    def claim(self) -> None:
        """Claims the epoch above all that it has read of."""
        epoch = max(self._fence.epoch, self.scene.store.highest().epoch) + 1
        self._claim = Claim(epoch, self.name)
        self._follows = self.scene.topic.append(encode_claim(self._claim)) + 1

    def begin(self) -> None:
        """Finds out whether the claim has won; then goes on from the newest valid snapshot and publishes the root.

        Raises:
            Fenced: another's claim was first.
        """
        self._hold()
        scene, store = self.scene, self.scene.store

        def build(note: Announcement, parts: Any) -> OnlineModel:
            model = scene.untrained()
            model.resume(parts)
            return model

        found = newest_valid(store, scene.schema.id, {}, build)
        model = scene.untrained() if found is None else found.model
        assert isinstance(model, OnlineModel)
        self.model = model
        highest = max(store.highest().number, self._newest)
        self.versions = Versions(self.model, self._claim.epoch, self.name, highest)
        note = write_root(store, self.versions, Progress(), {}, scene.now_ms, follows=self._follows, log=scene.topic.id)
        scene.note_truth(self)
        self._hold()
        scene.topic.append(encode_snapshot(note))
        self.running = True

    def learn(self, number: int) -> None:
        report = self.model.learn(self.scene.batch(number))
        if self.model.head is not None:
            self.model.head.flush()  # so few clicks would wait for most of a script
        if report.rows:
            self.versions.learnt(np.empty(0, np.int64))

    def delta(self, dense: bool, lost: int | None = None, late: bool = False, retrieval: bool = False) -> None:
        """Publishes what was learnt.

        Args:
            retrieval: with the retrieval head, if there is one.
            lost: this message of it is never delivered.
            late: it looked whether it is still the learner some time ago.
        """
        if not late:
            self._hold()
        found = self.versions.delta(Progress(), self.scene.now_ms, dense, retrieval)
        if found is None:
            return
        note, body = found
        self.scene.note_truth(self)
        messages = encode_delta(note, body)
        for index, message in enumerate(messages):
            if lost is None or index != lost % len(messages):
                self._follows = self.scene.topic.append(message) + 1

    def slice(self) -> bool:
        """Goes on with a snapshot, or begins one. Whether all but its end is copied."""
        if self.copying is None:
            self.copying = self.versions.begin(self.scene.slice_rows)
            self._files = SnapshotFiles(self.scene.store, self.versions.place)
        part = self.copying.next()
        if part is not None:
            self._files.add(part)
        return part is None

    def snapshot(self, late: bool = False) -> None:
        """Ends the snapshot at a new version, announces it, and removes what is no longer needed."""
        while not self.slice():
            pass
        self.delta(dense=True, late=late, retrieval=True)
        assert self.copying is not None
        last, self.copying = self.versions.finish(self.copying, Progress(), {}, self.scene.now_ms), None
        scene = self.scene
        note = self._files.end(last, follows=self._follows, log=scene.topic.id)
        scene.topic.append(encode_snapshot(note))
        scene.store.prune()
        kept = scene.store.snapshots()[:2]
        if len(kept) == 2 and kept[0].log == kept[1].log:
            scene.topic.cut(min(note.follows for note in kept))

    def crash(self) -> None:
        self.running = False

    def _hold(self) -> None:
        self._read()
        if (self._fence.epoch, self._fence.claimant) != (self._claim.epoch, self._claim.claimant):
            self.running = False
            raise Fenced(self.name)

    def _read(self) -> None:
        messages = [m for m in self.scene.topic.messages if m.offset >= self._read_to]
        self._read_to = self.scene.topic.end
        for message in messages:
            for entry in self._assembler.take(message.value):
                if isinstance(entry, Claimed):
                    self._fence.claims(entry.claim)
                elif isinstance(entry, Bad):
                    self._newest = max(self._newest, entry.place.number if entry.place else -1)
                else:
                    self._fence.admits(entry.note.epoch, entry.note.claimant)
                    if not isinstance(entry, Decisions):
                        self._newest = max(self._newest, entry.note.version)


class Scene:
    """A topic, a store, and the learners of a shop.

    Args:
        spec: of the models.
        batch: makes the samples of a step of learning by number.
        url: of the store; one in memory when it is empty.
    """

    def __init__(
        self,
        schema: Schema,
        spec: dict[str, Any],
        batch: Callable[[int], SampleBatch],
        url: str = "",
        slice_rows: int = 20,
    ) -> None:
        self.schema, self.spec, self.batch = schema, spec, batch
        self.slice_rows = slice_rows
        self.broker = MemoryBroker()
        self.url = url or f"memory://scene-{uuid.uuid4().hex}/models"
        self.store = ModelStore(self.url)
        self.truth: dict[Place, Image] = {}
        self.heads: dict[Place, Image] = {}
        self._dense: dict[str, Array] = {}
        self._names = 0
        self.now_ms = 1_800_000_000_000
        """The wall clock of whoever publishes."""

    @property
    def topic(self) -> Log:
        """``model.deltas``."""
        return self.broker.log(MODEL_DELTAS)

    def entries(self) -> list[Entry]:
        """What a reader makes of all messages that are still there."""
        reader = Assembler()
        return [entry for message in self.topic.messages for entry in reader.take(message.value)]

    def untrained(self) -> OnlineModel:
        return OnlineModel(self.schema, self.spec, 0)

    def peer(self) -> Peer:
        """Another learner; it has done nothing yet."""
        self._names += 1
        return Peer(self, f"learner-{self._names}")

    def note_truth(self, peer: Peer) -> None:
        """What the newest version of a learner is. Dense tensors and the retrieval head are those published last: a
        delta may have none."""
        versions = peer.versions
        image, head = split(peer.model.snapshot()[0])
        assert versions._dense is not None
        if not versions._dense_behind:  # just published: they are the model's own
            assert Image(versions._dense, {}).same_bits(Image(image.dense, {})) == ""
        dense = {n: a.copy() for n, a in versions._dense.items()}
        if not versions._head_behind:
            peer.head = head
        place = Place(versions.epoch, versions.version)
        self.truth[place] = Image(dense, {**image.tables, **peer.head.tables})
        self.heads[place] = peer.head

    # -- what goes wrong -------------------------------------------------------------------------------------

    def damage_message(self, number: int, at: int, bit: int) -> None:
        """Flips a bit of a message that is there; ``number``: among them."""
        messages = self.topic.messages
        message = messages[number % len(messages)]
        if message.value:
            broken = bytearray(message.value)
            broken[at % len(broken)] ^= 1 << bit
            message.value = bytes(broken)

    def damage_file(self, name: str, at: int, bit: int | None) -> None:
        """Flips a bit of a file, or (None) tears it off there."""
        path = self.store.store._path(name)
        raw = bytearray(self.store.store._fs.cat_file(path))
        if not raw:
            return
        if bit is None:
            del raw[at % len(raw) :]
        else:
            raw[at % len(raw)] ^= 1 << bit
        self.store.store._fs.pipe_file(path, bytes(raw))

    def close(self) -> None:
        """Frees the memory of the store."""
        self.store.store.remove(self.store.store.names(aside=True))
