"""Scripts of learners that publish and followers that read, while messages and files are lost, late and torn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from millrace.basics.errors import StoreError
from tests.scenes.following_scorer import Scorer
from tests.scenes.learning import SCHEMA, make_samples
from tests.scenes.version_scene import Fenced, Peer, Scene

SPEC: dict[str, Any] = {"model": "wide_deep", "hidden": [4], "width": 4, "admit": 1, "max_rows": 300}
SPEC |= {"retrieval_width": 4, "retrieval_negatives": 8}


def scene(**more: Any) -> Scene:
    return Scene(SCHEMA, SPEC, lambda n: make_samples(12, n, users=10 + n, items=10), **more)


def started(place: Scene) -> Peer:
    peer = place.peer()
    peer.read()
    peer.claim()
    peer.begin()
    return peer


NUMBER = st.integers(0, 2**31)
DELTAS = ("delta", "delta", "delta with dense", "delta with head", "late delta", "lose", "lose with head")
LEARNERS = ("learn", *DELTAS, "slice", "snapshot", "late snapshot")
WORLD = ("follow", "follow", "crash", "another", "race", "flip message", "flip file", "tear file", "follower")
STEPS = st.tuples(st.sampled_from(LEARNERS + WORLD), NUMBER)


class Play:
    """Plays a script. ``peers`` are the learners that run: more than one until the older ones look at the topic."""

    def __init__(self, place: Scene) -> None:
        self.scene = place
        self.peers: list[Peer] = []
        self.learnt = 0
        self.followers: list[Scorer] = []
        self.restart()

    def restart(self) -> None:
        try:
            self.peers.append(started(self.scene))
        except StoreError:  # no snapshot is whole: a person looks at the store, and empties it
            self.scene.store.store.remove(self.scene.store.store.names(aside=True))
            self.peers.append(started(self.scene))

    def race(self) -> None:
        """Two start at once: both claim before either looks."""
        two = self.scene.peer(), self.scene.peer()
        for peer in two:
            peer.read()
        for peer in two:
            peer.claim()
        with pytest.raises(Fenced):
            two[1].begin()
        self.restart()

    def do(self, what: str, n: int) -> None:
        peer = self.peers[n % len(self.peers)] if self.peers else None
        files = self.scene.store.store.names()
        if what == "follower":
            self.followers.append(Scorer(self.scene))
        elif what == "follow":
            for follower in self.followers:
                follower.catch_up()
        elif what == "another":
            self.restart()
        elif what == "race":
            self.race()
        elif what == "flip message" and self.scene.topic.messages:
            self.scene.damage_message(n, n // 7, n % 8)
        elif what in ("flip file", "tear file") and files:
            self.scene.damage_file(files[n % len(files)], n // 7, n % 8 if what == "flip file" else None)
        elif peer is not None:
            self._act(peer, what, n)

    def _act(self, peer: Peer, what: str, n: int) -> None:
        if n % 4 or what == "learn":
            self.learnt += 1
            peer.learn(self.learnt)
        if what == "learn":
            pass
        elif what == "slice":
            peer.slice()
        elif what == "crash":
            peer.crash()
            self.peers.remove(peer)
        else:
            late = "late" in what
            try:
                if "snapshot" in what:
                    peer.snapshot(late)
                else:
                    peer.delta("dense" in what, n if "lose" in what else None, late, "head" in what)
                if late:
                    peer._hold()
            except Fenced:
                self.peers.remove(peer)

    def heal(self) -> Peer:
        """In the end one learner runs, and publishes a snapshot and a delta that nobody damages."""
        self.restart()
        peer = self.peers[-1]
        for number in (1, 2):
            peer.learn(1000 + number)
            peer.delta(dense=number == 2, retrieval=number == 2)
        peer.snapshot()
        peer.learn(2000)
        peer.delta(dense=False, retrieval=True)
        return peer
