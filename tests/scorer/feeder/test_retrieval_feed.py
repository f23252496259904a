"""The retrieval head on its way through the scorer's feed: checked as a whole, apart from the ranker, never older."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from learner.ranker.model import OnlineModel
from learner.training.learner_versions import Progress
from millrace.basics.errors import SnapshotError
from millrace.versions.image import RETRIEVAL_TABLES, Image, TableRows, check_head, split
from millrace.versions.modellog import encode_delta
from millrace.versions.versioning import Announcement, Place, decode_announcement
from tests.scenes.following_scorer import Scorer
from tests.scenes.learning import SCHEMA, tables_of
from tests.scenes.version_play import scene, started
from tests.scenes.version_scene import Peer, Scene


@pytest.fixture
def place() -> Iterator[Scene]:
    found = scene()
    yield found
    found.close()


def send(peer: Peer, change: Callable[[Announcement], Announcement] = lambda note: note) -> Announcement:
    """Publishes a delta with all there is, whose note is changed on its way."""
    found = peer.versions.delta(Progress(), 0)
    assert found is not None
    note, body = found
    peer.scene.note_truth(peer)
    for message in encode_delta(change(note), body):
        peer.scene.topic.append(message)
    return note


def rows(n: int = 2, width: int = 3, **columns: Any) -> TableRows:
    own = {"embedding": np.zeros((n, width), np.float32), "wide": np.zeros(n, np.float32)}
    return TableRows(np.arange(1, n + 1), {**own, **columns})


INVALID: dict[str, Callable[[Image], Image]] = {
    "half of it": lambda image: Image(image.dense, {n: t for n, t in image.tables.items() if n != RETRIEVAL_TABLES[0]}),
    "another width": lambda image: Image(image.dense, {**image.tables, RETRIEVAL_TABLES[0]: rows(width=4)}),
    "an id twice": lambda image: Image(
        image.dense, {**image.tables, RETRIEVAL_TABLES[1]: TableRows(np.ones(2, np.int64), rows().columns)}
    ),
    "no biases": lambda image: Image(
        image.dense, {**image.tables, RETRIEVAL_TABLES[1]: TableRows(rows().ids, {"embedding": np.zeros((2, 3), "f4")})}
    ),
    "doubles": lambda image: Image(image.dense, {**image.tables, RETRIEVAL_TABLES[1]: rows(wide=np.zeros(2))}),
}


@pytest.mark.parametrize("what", INVALID)
def test_a_delta_whose_head_is_invalid_is_refused_whole(
    place: Scene, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither ranker nor towers take anything of it, and the next snapshot mends it."""
    peer = started(place)
    scorer = Scorer(place)
    peer.learn(1)
    changes = peer.model.changes
    with monkeypatch.context() as patch:
        patch.setattr(peer.model, "changes", lambda *a: INVALID[what](changes(*a)))
        send(peer)
    scorer.catch_up()
    assert scorer.whole.meters.errors == {"delta": 1}
    assert scorer.feed.follower.waiting
    assert scorer.whole.note is not None
    assert scorer.whole.note.place == scorer.heads.served[-1] == (1, 0)
    peer.learn(2)
    peer.snapshot()
    scorer.catch_up()
    assert scorer.heads.served[-1] == Place(1, peer.versions.version)


@pytest.mark.parametrize("clicks", [-1, 7])
def test_a_note_that_says_of_the_head_what_is_not_so_is_refused(place: Scene, clicks: int) -> None:
    peer = started(place)
    scorer = Scorer(place)
    peer.learn(1)
    if clicks < 0:
        send(peer, lambda note: msgspec.structs.replace(note, retrieval_clicks=clicks))
    else:
        peer.versions._head_behind = False  # it is left out
        send(peer, lambda note: msgspec.structs.replace(note, retrieval_clicks=clicks))
    scorer.catch_up()
    assert scorer.whole.meters.errors == {"delta": 1}
    assert scorer.heads.served == [(1, 0)]


def test_the_head_alone_makes_a_version(place: Scene) -> None:
    peer = started(place)
    scorer = Scorer(place)
    peer.learn(1)
    peer.delta(dense=True)
    peer.delta(dense=True, retrieval=True)
    scorer.catch_up()
    assert (scorer.whole.note and scorer.whole.note.place, scorer.heads.served) == ((1, 2), [(1, 0), (1, 2)])


def test_a_retrieval_version_may_be_older_than_what_ranks(place: Scene) -> None:
    """A snapshot that is older than what was served is not served, but patched until it is as new. What it has then of
    the head is the newest that was published, under its own place."""
    peer = started(place)
    scorer = Scorer(place)
    for number, retrieval in enumerate((False, True, False), 1):
        peer.learn(number)
        peer.delta(dense=True, retrieval=retrieval)
    scorer.catch_up()
    assert scorer.heads.served == [(1, 0), (1, 2)]
    scorer.feed.follower.torn("a test says so")
    scorer.feed.look()
    assert scorer.heads.served == [(1, 0), (1, 2)], "the root is too old to be served"
    peer.learn(4)
    peer.delta(dense=True)
    scorer.heads.served = []
    scorer.catch_up()
    assert scorer.whole.note is not None
    assert scorer.whole.note.place == (1, 4), "what came between the look and the seek is read again"
    assert scorer.heads.served == [(1, 2)], "installed as the version that carried it"


def test_a_model_without_a_head_serves_no_retrieval_version(place: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the head of the model before go on."""
    peer = started(place)
    peer.learn(1)
    peer.delta(dense=True, retrieval=True)
    scorer = Scorer(place)
    reported: list[Any] = []
    monkeypatch.setattr(scorer.heads, "install", lambda note, tower: reported.append((note.place, tower)))
    place.spec = {**place.spec, "retrieval_width": 0}
    other = started(place)
    other.learn(2)
    other.delta(dense=True, retrieval=True)
    scorer.catch_up()
    assert reported == [((2, 2), None)]
    assert scorer.whole.note is not None
    assert scorer.whole.note.place == (2, other.versions.version)
    assert not sum(scorer.whole.meters.errors.values())


def test_a_feed_without_towers_ranks_all_the_same(place: Scene) -> None:
    peer = started(place)
    scorer = Scorer(place)
    scorer.feed.towers = None
    peer.learn(1)
    peer.delta(dense=True, retrieval=True)
    scorer.catch_up()
    peer.learn(2)
    peer.delta(dense=True, retrieval=True, lost=0)
    peer.snapshot()
    scorer.catch_up()
    assert scorer.whole.note is not None
    assert scorer.whole.note.place == (1, peer.versions.version)
    assert scorer.heads.served == [(1, 0)]


def test_a_learner_with_a_head_and_one_without_go_on_from_each_other(place: Scene) -> None:
    spec = place.spec
    peer = started(place)
    for number in range(12):
        peer.learn(number)
    peer.snapshot()
    assert peer.model.head is not None
    ranker = split(peer.model.snapshot()[0])[0]
    assert peer.model.head.clicks
    place.spec = {**spec, "retrieval_width": 0}
    without = started(place)
    assert without.model.head is None
    assert without.model.snapshot()[0].same_bits(ranker) == ""
    place.spec = spec
    again = started(place)
    assert again.model.head is not None
    assert (again.model.head.clicks, len(again.model.head.tables[RETRIEVAL_TABLES[1]])) == (0, 0)
    scorer = Scorer(place)
    again.learn(20)
    again.delta(dense=True, retrieval=True)
    scorer.catch_up()
    assert scorer.heads.served[-1] == Place(3, again.versions.version)
    assert tables_of(scorer.heads.tower).tables[RETRIEVAL_TABLES[1]].ids.size


def test_a_batch_that_is_refused_teaches_the_head_nothing(place: Scene) -> None:
    model = OnlineModel(SCHEMA, {**place.spec, "max_loss": 1e-6}, 0)
    assert model.head is not None
    report = model.learn(place.batch(1))
    assert report.skipped == "loss_exploded"
    assert (len(model.head.recent_items), model.head.pending) == (0, 0)


def test_the_head_is_given_items_whose_negatives_are_left_out(place: Scene) -> None:
    """Its own negatives are drawn from what was shown."""
    model, batch = OnlineModel(SCHEMA, {**place.spec, "negative_keep": 0.01}, 0), place.batch(1)
    assert model.head is not None
    assert model.learn(batch).left_out > 0
    assert len(model.head.recent_items) == len(np.unique(batch.item)) > len(np.unique(batch.item[batch.label > 0]))

    model, shown = OnlineModel(SCHEMA, {**place.spec, "negative_keep": 1e-9}, 0), batch.take(batch.label == 0)
    assert model.head is not None
    assert model.learn(shown).left_out == len(shown)  # nothing is left to rank with
    assert len(model.head.recent_items) == len(np.unique(shown.item))


def test_what_ranks_is_the_same_with_a_head_and_without(place: Scene) -> None:
    """To the last bit: so a twin of the learner needs none."""
    models = [OnlineModel(SCHEMA, {**place.spec, "retrieval_width": width}, 0) for width in (4, 0)]
    for number in range(12):
        for model in models:
            model.learn(place.batch(number))
    assert models[0].head is not None
    models[0].head.flush()
    (image, _), (ranker, _) = (model.snapshot() for model in models)
    assert split(image)[0].same_bits(ranker) == ""
    assert all(len(table.ids) for table in split(image)[1].tables.values())


def test_notes_of_older_learners_have_no_head() -> None:
    names = ("claimant", "parent", "hash", "digest", "schema_id")
    numbers = ("epoch", "version", "size", "event_ms", "trained", "published_ms")
    note = {"kind": "snapshot", "spec": {}, **dict.fromkeys(names, "a"), **dict.fromkeys(numbers, 1)}
    assert decode_announcement(msgspec.json.encode(note)).retrieval_clicks == -1
    with pytest.raises(SnapshotError):
        decode_announcement(msgspec.json.encode({**note, "retrieval_clicks": -2}))


def test_a_head_in_a_model_that_has_none_is_named() -> None:
    head = Image({}, dict.fromkeys(RETRIEVAL_TABLES, rows()))
    check_head(head, 3)
    check_head(Image({}, {}), 0)
    with pytest.raises(SnapshotError, match="its model has none"):
        check_head(head, 0)
