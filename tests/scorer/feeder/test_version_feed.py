"""The scorer's own feed in the scripts of tests/learner/training/test_versions.py: what learners, topic and store go
through."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.versions.versioning import Place
from tests.scenes.exploring import examples
from tests.scenes.following_scorer import Scorer
from tests.scenes.learning import tables_of
from tests.scenes.version_play import STEPS, Play, scene, started


@pytest.mark.slow
@examples(30)
@given(st.lists(STEPS, min_size=8, max_size=40))
def test_whatever_happens_to_learners_a_scorer_serves_whole_versions_in_order(
    script: list[tuple[str, int]],
) -> None:
    place = scene(url=f"memory://scorer-{uuid.uuid4().hex}/models")
    try:
        play = Play(place, Scorer)
        scorers = play.followers
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


def test_a_head_that_was_lost_is_healed_by_the_next_snapshot() -> None:
    """Retrieval stays at the version before, whole; what a delta carried comes again with the snapshot."""
    place = scene(url=f"memory://scorer-{uuid.uuid4().hex}/models")
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
