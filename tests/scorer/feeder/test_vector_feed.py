"""Vectors of the catalogue follow the head and the items, and a worker that joins has what the others have."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millrace.basics.errors import SettingError
from millrace.contracts.events import Item
from millrace.contracts.settings import Settings
from scorer.feeder import towerhost
from scorer.ipc.link import Packet
from scorer.recall.approximate import Approximate, Builder
from scorer.recall.nearest import Retrieval
from tests.scenes.scorer_feeder import Whole
from tests.scenes.scorer_shop import DAY_MS, NOW_MS, item
from tests.scenes.scorer_vectors import USER_IDS, features, head, inputs, note, plain_scores, rounded, tower
from tests.scenes.waiting import until

NOBODY = np.zeros(USER_IDS, np.int64)


def good(i: Any, turn: int = 0, **more: Any) -> Item:
    n = i if isinstance(i, int) else 3
    return item(i, f"c{n % 5}/{turn}", born_ms=NOW_MS - n * DAY_MS // 7, attributes={"price": 1.7 ** (n % 9)}, **more)


ITEMS = [good(i) for i in range(150)]
LATER = features(inputs([good(i) for i in range(200)]), inputs([good(i, 1) for i in range(150)]))
"""What any test's items are made of: heads have rows for these."""
FIRST = tower(head(1, LATER))


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towerhost, "SLICE", 64)  # several, of this small shop


class Scorer(Whole):
    """Notes what goes to the worker."""

    def put(self, packet: Packet) -> None:
        self.__dict__.setdefault("packets", []).append(packet.kind)
        super().put(packet)

    def sent_kinds(self) -> list[str]:
        """Kinds of the messages about vectors since the last call."""
        packets: list[str] = self.__dict__["packets"]
        kinds = [kind for kind in packets if kind in ("retrieval", "vectors")]
        packets.clear()
        return kinds

    def serve(self, version: int = 7, by: int = 1, **more: Any) -> None:
        """A version of the head comes, and its vectors."""
        self.towers.install(note(version, **more), tower(head(by, LATER)))
        self.vectors()

    @property
    def retrieval(self) -> Retrieval:
        found = self.serving.retrieval
        assert isinstance(found, Retrieval)
        return found


def make(tmp_path: Path, **more: Any) -> Scorer:
    return Scorer(Settings(data=str(tmp_path), control_share=0, candidates=50, **more))


@pytest.fixture
def scorer(tmp_path: Path) -> Scorer:
    whole = make(tmp_path)
    whole.stock(ITEMS)
    whole.vectors()
    return whole


def finds(scorer: Scorer, items: list[Item], by: Any = FIRST) -> None:
    """The worker finds these items by their vectors, each by its plain product, and no other."""
    retrieval = scorer.retrieval
    query = retrieval.query(NOBODY, np.empty(0, np.intp), np.empty(0, np.int64))
    found = [scorer.serving.items.ids[row] for row in retrieval.nearest(query, 1000).tolist()]
    scores = dict(zip([i.item_id for i in items], plain_scores(by, inputs(items), NOBODY).tolist(), strict=True))
    assert sorted(map(str, found)) == sorted(map(str, scores))
    values = np.array([scores[i] for i in found])
    assert (np.diff(values) < 1e-4).all()
    assert len(retrieval) == len(items)
    for i in items[:3] + items[-3:]:  # the vectors themselves, by way of a user who clicked that one
        row = scorer.serving.items.rows_of([i.item_id])
        own = retrieval.query(NOBODY, row, np.zeros(1, np.int64))
        plain = rounded(by.item_vectors(*inputs([i])))
        np.testing.assert_allclose(own, _query(by, plain), rtol=1e-5, atol=1e-5)


def _query(by: Any, recent: Any) -> Any:
    from learner.retrieval.tower import UserTower

    return UserTower.of_arrays(by.user_arrays()).query(NOBODY, recent, np.zeros(len(recent), np.int64))


def test_a_version_is_the_plain_tower_s_vectors_of_all_living_items(scorer: Scorer) -> None:
    scorer.serve(clicks=123)
    assert scorer.retrieval.version == (1, 7)
    assert scorer.retrieval.clicks == 123
    finds(scorer, ITEMS)
    assert scorer.towers.facts() == {"epoch": 1, "version": 7, "clicks": 123}


def test_items_that_are_there_after_the_head_get_their_vectors(tmp_path: Path) -> None:
    scorer = make(tmp_path)
    scorer.serve()
    assert scorer.serving.retrieval is None
    scorer.stock(ITEMS)
    scorer.vectors()
    finds(scorer, ITEMS)


def test_a_catalogue_that_comes_in_after_the_first_version_is_built_again_and_not_sent_item_by_item(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(towerhost, "REBUILT", 30)
    scorer.stock([good(i, gone=True) for i in range(10, 150)])
    scorer.vectors()
    scorer.serve()
    assert scorer.sent_kinds() == ["retrieval"]
    finds(scorer, ITEMS[:10])
    scorer.stock(ITEMS[10:])
    scorer.vectors()
    assert scorer.sent_kinds() == ["retrieval"]
    assert scorer.retrieval.version == (1, 7)
    finds(scorer, ITEMS)
    scorer.stock([good(i, 1) for i in range(40)])  # less than half of it
    scorer.vectors()
    assert scorer.sent_kinds() == ["vectors"]
    finds(scorer, [*(good(i, 1) for i in range(40)), *ITEMS[40:]])
    scorer.stock([good(i, gone=True) for i in range(120)])  # nearly all of it dies
    scorer.vectors()
    assert scorer.sent_kinds() == ["retrieval"]
    finds(scorer, ITEMS[120:])


def test_new_changed_and_dead_items_are_followed_between_versions(scorer: Scorer) -> None:
    scorer.serve()
    scorer.sent_kinds()
    changed, new = [good(i, 1) for i in range(20)], [good(i) for i in range(150, 160)]
    scorer.stock([*changed, *new, *(good(i, gone=True) for i in range(140, 150))])
    scorer.vectors()
    assert scorer.sent_kinds() == ["vectors"]
    assert scorer.retrieval.version == (1, 7)
    finds(scorer, [*changed, *ITEMS[20:140], *new])
    scorer.stock([good(i) for i in range(145, 150)])  # they are back; one that is told of again is nothing new
    scorer.stock([good(i, gone=True) for i in range(150, 155)])
    scorer.vectors()
    scorer.sent_kinds()
    finds(scorer, [*changed, *ITEMS[20:140], *ITEMS[145:], *new[5:]])
    scorer.stock(ITEMS[30:60])
    scorer.vectors()
    assert scorer.sent_kinds() == []


def test_the_next_version_has_what_came_since_and_versions_between_are_skipped(scorer: Scorer) -> None:
    scorer.serve()
    changed = [good(i, 1) for i in range(20)]
    scorer.stock(changed)
    scorer.vectors()
    scorer.sent_kinds()
    for version in (8, 9, 10):
        scorer.towers.patch(note(version, clicks=version), head(version, LATER[version % 2 :: 2]))
    scorer.vectors()
    assert scorer.sent_kinds() == ["retrieval"]
    assert (scorer.retrieval.version, scorer.retrieval.clicks) == ((1, 10), 10)
    heads = [head(1, LATER), *(head(v, LATER[v % 2 :: 2]) for v in (8, 9, 10))]
    finds(scorer, [*changed, *ITEMS[20:]], tower(*heads))


def test_what_changes_while_a_version_is_built_follows_behind_it(scorer: Scorer) -> None:
    class Slow:
        """A tower; the shop changes while it works."""

        def __init__(self) -> None:
            self.tower, self.calls = tower(head(1, LATER)), 0

        def item_vectors(self, cat: Any, plain: Any) -> Any:
            self.calls += 1
            if self.calls == 2:
                scorer.stock([good(0, 1), good(149, 1), good(150), good(75, gone=True)])
            return self.tower.item_vectors(cat, plain)

        def user_arrays(self) -> Any:
            return self.tower.user_arrays()

        def apply(self, image: Any) -> None:
            raise AssertionError

    scorer.towers.install(note(7), Slow())  # type: ignore[arg-type]
    scorer.vectors()
    assert scorer.sent_kinds() == ["retrieval", "vectors"]
    now = [good(0, 1), *(g for g in ITEMS[1:149] if g.item_id != 75), good(149, 1), good(150)]
    finds(scorer, now)


def test_a_worker_that_joins_has_the_version_and_what_came_since(scorer: Scorer) -> None:
    scorer.serve()
    for turn in (1, 0, 1):
        scorer.stock([good(i, turn) for i in range(20)])
        scorer.vectors()
    scorer.stock([good(3, gone=True), good(100, gone=True), good(150)])
    scorer.vectors()
    scorer.stock([good(150, gone=True), good(3, 1)])
    scorer.vectors()
    scorer.sent_kinds()
    scorer.replace_worker()
    assert scorer.sent_kinds() == ["retrieval", "vectors"]
    now = [good(i, 1) for i in range(20)] + [g for g in ITEMS[20:] if g.item_id != 100]
    finds(scorer, now)


def test_what_was_taken_over_of_the_item_table_but_not_published_yet_reaches_a_worker_that_joins(
    scorer: Scorer,
) -> None:
    scorer.serve()
    scorer.stock([good(150)])
    scorer.replace_worker()
    scorer.vectors()
    finds(scorer, [*ITEMS, good(150)])


def test_a_model_without_a_head_withdraws_the_version(scorer: Scorer) -> None:
    scorer.serve()
    scorer.towers.install(note(8, clicks=-1), None)
    scorer.vectors()
    assert scorer.serving.retrieval is None
    assert scorer.towers.facts() is None
    scorer.stock([good(150)])
    scorer.vectors()
    scorer.replace_worker()
    assert scorer.serving.retrieval is None
    scorer.serve(9, by=2, epoch=2)
    assert scorer.retrieval.version == (2, 9)
    finds(scorer, [*ITEMS, good(150)], tower(head(2, LATER)))


def test_a_vector_that_is_no_number_is_never_found(scorer: Scorer) -> None:
    broken = head(1, LATER)
    bad = good("bad")
    ids = np.setdiff1d(tower().sides.item_features(*inputs([bad]))[0], broken.tables["retrieval_item"].ids)
    assert len(ids)
    made = tower(broken)
    broken.tables["retrieval_item"].ids = ids
    broken.tables["retrieval_item"].columns = {
        "embedding": np.full((len(ids), 7), np.inf, np.float32),
        "wide": np.zeros(len(ids), np.float32),
    }
    made.apply(broken)
    scorer.stock([bad])
    scorer.towers.install(note(7), made)
    scorer.vectors()
    finds(scorer, ITEMS)
    assert scorer.meters.errors["retrieval"]
    scorer.stock([good("bad", 1)])  # between versions
    scorer.vectors()
    finds(scorer, ITEMS)
    clicked = scorer.serving.items.rows_of(["bad"])
    query = scorer.retrieval.query(NOBODY, clicked, np.zeros(1, np.int64))
    assert np.isfinite(query).all()


def test_a_head_that_cannot_be_followed_leaves_the_version_that_is_out(scorer: Scorer) -> None:
    scorer.serve()
    torn = head(2, LATER)
    torn.tables["retrieval_item"].columns.pop("wide")
    scorer.towers.patch(note(8), torn)
    with pytest.raises(KeyError):
        scorer.towers.step()
    scorer.towers.patch(note(9), head(3, LATER))
    scorer.vectors()
    assert scorer.retrieval.version == (1, 7)
    finds(scorer, ITEMS)
    scorer.serve(10, by=4)
    finds(scorer, ITEMS, tower(head(4, LATER)))


def test_without_a_head_to_build_from_a_catalogue_that_changes_is_reported(
    scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(towerhost, "REBUILT", 30)
    scorer.serve()
    scorer.towers.install(note(8), tower())
    broken = head(2, LATER)
    broken.tables["retrieval_item"].columns.pop("wide")
    scorer.towers.patch(note(9), broken)
    with pytest.raises(KeyError):
        scorer.towers.step()
    scorer.sent_kinds()
    scorer.stock([good(i, 1) for i in range(100)])
    assert sum(scorer.towers.step() for _ in range(20)) < 20  # it comes to an end
    assert scorer.sent_kinds() == ["vectors"]
    assert scorer.retrieval.version == (1, 7)


def test_after_a_build_that_failed_nothing_of_the_next_version_goes_to_the_one_that_is_out(scorer: Scorer) -> None:
    class Failing:
        """A tower that can follow, and then makes no vectors once."""

        def __init__(self) -> None:
            self.tower, self.fail = tower(head(1, LATER)), False

        def apply(self, image: Any) -> None:
            self.tower.apply(image)
            self.fail = True

        def item_vectors(self, cat: Any, plain: Any) -> Any:
            if self.fail:
                self.fail = False
                raise MemoryError
            return self.tower.item_vectors(cat, plain)

        def user_arrays(self) -> Any:
            return self.tower.user_arrays()

    scorer.towers.install(note(7), Failing())  # type: ignore[arg-type]
    scorer.vectors()
    scorer.towers.patch(note(8), head(2, LATER))
    assert scorer.towers.step()
    with pytest.raises(MemoryError):
        scorer.towers.step()
    scorer.sent_kinds()
    scorer.stock([good(150), good(9, gone=True)])
    scorer.vectors()
    assert scorer.sent_kinds() == []
    assert scorer.retrieval.version == (1, 7)


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors are counted by way of /proc")
def test_the_memory_of_versions_before_is_let_go(scorer: Scorer) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    scorer.serve(1)
    counts = []
    for version in range(2, 8):
        scorer.towers.patch(note(version), head(version, LATER))
        scorer.vectors()
        counts.append(descriptors())
    assert len(set(counts[1:])) == 1


def test_the_thread_makes_and_renews_versions(scorer: Scorer) -> None:
    scorer.towers.thread.start()
    try:
        scorer.towers.install(note(7), tower(head(1, LATER)))
        until(lambda: scorer.serving.retrieval is not None, "a version")
        scorer.towers.patch(note(8), head(2, LATER))
        until(lambda: scorer.retrieval.version == (1, 8), "the next version")
        torn = head(2, LATER)
        torn.tables["retrieval_item"].columns.pop("wide")
        scorer.towers.patch(note(9), torn)
        until(lambda: bool(scorer.meters.errors["retrieval"]), "the error")
        scorer.towers.install(note(10), tower(head(4, LATER)))
        until(lambda: scorer.retrieval.version == (1, 10), "a version after an error")
    finally:
        scorer.stop.set()
        scorer.towers.thread.join(30)
    assert not scorer.towers.thread.is_alive()
    finds(scorer, ITEMS, tower(head(4, LATER)))


# -- with an approximate index ----------------------------------------------------------------------------------------


@pytest.fixture
def indexed(tmp_path: Path) -> Scorer:
    pytest.importorskip("usearch", reason="usearch is not installed (extra 'ann')")
    whole = make(tmp_path, recall_index="usearch")
    whole.stock(ITEMS)
    whole.vectors()
    return whole


def test_an_approximate_index_comes_with_the_version_and_its_recall_is_reported(indexed: Scorer) -> None:
    indexed.serve()
    finds(indexed, ITEMS)  # so few that all are found
    facts = indexed.towers.facts()
    assert facts is not None
    assert 0.9 <= facts["index_recall"] <= 1
    indexed.stock([good(0, 1), good(150), good(9, gone=True)])
    indexed.vectors()
    finds(indexed, [good(0, 1), *(g for g in ITEMS[1:] if g.item_id != 9), good(150)])


def test_the_recall_that_is_reported_is_what_the_index_finds(indexed: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(Approximate):
        def find(self, query: Any, k: int) -> Any:
            return super().find(query, k)[: k // 2]

    monkeypatch.setattr(towerhost, "Approximate", Half)
    indexed.serve()
    facts = indexed.towers.facts()
    assert facts is not None
    assert 0.4 < facts["index_recall"] < 0.51


def test_while_an_index_is_built_items_are_followed_by_the_version_that_is_out(
    indexed: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexed.serve()
    indexed.sent_kinds()
    now = [good(0, 1), *ITEMS[1:], good(150)]
    seen = []

    class Slow(Builder):
        def add(self, first: int, vectors: Any) -> None:
            super().add(first, vectors)
            if first:
                seen.append((indexed.sent_kinds(), indexed.retrieval.version))
                finds(indexed, now)
            else:
                indexed.stock([good(0, 1), good(150)])

    monkeypatch.setattr(towerhost, "Builder", Slow)
    indexed.towers.patch(note(8), head(2, LATER))
    indexed.vectors()
    assert seen == [(["vectors"], (1, 7)), ([], (1, 7))]
    assert indexed.retrieval.version == (1, 8)
    assert indexed.sent_kinds() == ["retrieval", "vectors"]  # they are not in the version, which began before
    finds(indexed, now, tower(head(1, LATER), head(2, LATER)))


def test_without_the_package_a_scorer_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch", None)
    with pytest.raises(SettingError, match=r"pip install '\.\[ann\]'"):
        make(tmp_path, recall_index="usearch")
