"""Pages while the head and the catalogue move: each page's vectors are of one retrieval version, and nothing that has
died is on a page."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.ranker.model import OnlineModel
from learner.retrieval.tower import Tower
from learner.serving.staging import ModelWriter
from millrace.contracts.events import Item
from millrace.contracts.online_layout import PROFILE, RECENT, Past, Recent, pack_recent
from millrace.contracts.settings import Settings
from millrace.versions.image import Image
from scorer.ipc.link import LinkMessage
from scorer.page.page_arms import PageArms
from scorer.page.page_wire import RecommendAnswer
from scorer.page.rank import Ranker
from scorer.users.userrecord import KnownUser
from scorer.worker.replica import attach
from tests.scenes.exploring import examples
from tests.scenes.scorer_feeder import Whole
from tests.scenes.scorer_shop import BUILDER, DAY_MS, NOW_MS, SCHEMA, SPEC, Users, item
from tests.scenes.scorer_vectors import features, head, inputs, note, plain_scores, tower

ITEMS, CANDIDATES, STEADY = 200, 50, 5
RECORD = {
    PROFILE: b'{"kind": "business"}',
    RECENT: pack_recent(Recent([Past(i, NOW_MS - 1000 * (i + 1)) for i in range(STEADY)], [])),
}


def good(i: int, turn: int = 0, gone: bool = False) -> Item:
    attributes = {"price": 1.7 ** ((i + turn) % 9)}
    return item(i, f"c{(i + 3 * turn) % 11}", born_ms=NOW_MS - i * DAY_MS // 7, attributes=attributes, gone=gone)


TURNS = 11


@cache
def plain() -> list[Any]:
    """What an item tower takes of all items, by turn."""
    return [inputs([good(i, turn) for i in range(ITEMS)]) for turn in range(TURNS)]


@cache
def all_features() -> Any:
    return features(*plain())


@cache
def model() -> OnlineModel:
    return OnlineModel(SCHEMA, SPEC, 0)


@cache
def user_ids() -> Any:
    return Ranker(BUILDER, Whole(Settings(), schema=SCHEMA).serving.items).user_ids(KnownUser.of(BUILDER, "u", RECORD))


class Scorer(Whole):
    """A scorer whose worker attaches to what it is sent when it is told to. The first :data:`STEADY` items stay as they
    are: the user clicked them."""

    def __init__(self, data: Path) -> None:
        self.coming: list[LinkMessage] = []
        chosen = Settings(data=str(data), control_share=0, candidates=CANDIDATES, recall={"vectors": 1})
        super().__init__(chosen, Users({"u": RECORD}))
        self.heads: dict[int, list[Image]] = {}  # of each retrieval version: all that its tower has taken
        self.version = 0
        self.turns = dict.fromkeys(range(ITEMS), 0)
        self.dead: set[int] = set()
        self.buried: set[int] = set()  # and the item table knows it
        self.loose: set[int] = set(range(ITEMS))  # vectors of these may be of what they were
        self.unspread: set[int] = set()

    def _attach(self, message: LinkMessage) -> None:
        assert isinstance(message, LinkMessage)
        self.coming.append(message)

    # -- what can happen --------------------------------------------------------------------------------------

    def attached(self) -> None:
        if self.coming:
            message = self.coming.pop(0)
            self.replica.attached(message, attach(SCHEMA, message, 4))

    def reload(self) -> None:
        """The model from a snapshot, by another learner."""
        self.version += 1
        writer = ModelWriter.of(SCHEMA, model().spec, model().snapshot()[0], {})
        said = msgspec.structs.replace(note(self.version, epoch=self.version), spec=model().spec)
        self.host.install(said, writer, 0, [])
        images = [head(self.version, all_features())]
        self.heads[self.version] = images
        self.towers.install(said, tower(*images))

    def delta(self) -> None:
        self.version += 1
        change = head(self.version, all_features()[self.version % 3 :: 3])
        self.heads[self.version] = [*self.heads[self.version - 1], change]
        self.towers.patch(note(self.version), change)

    def change(self) -> None:
        """A tenth of the catalogue, and a few die."""
        rng = np.random.default_rng(len(self.heads) + sum(self.turns.values()))
        for i in (STEADY + rng.choice(ITEMS - STEADY, ITEMS // 10, replace=False)).tolist():
            if rng.random() < 0.2:
                self.dead.add(i)
                self.index.remove(i)
            else:
                self.turns[i] += 1
                self.dead.discard(i)
                self.buried.discard(i)
                self.index.put([self.index.prepare(good(i, self.turns[i] % TURNS))])
            self.unspread.add(i)
            self.loose.add(i)

    def spread_some(self) -> None:
        """What changed reaches the worker's item table."""
        self.spread()
        self.unspread.clear()
        self.buried = set(self.dead)

    def step(self) -> None:
        if not self.towers.step() and not self.unspread and not self.coming:
            self.loose.clear()

    def drain(self) -> None:
        self.spread_some()
        while self.towers.step():
            pass
        while self.coming:
            self.attached()
        self.step()

    def worker(self) -> None:
        self.coming.clear()
        self.replace_worker()
        self.unspread.clear()  # it gets the whole index
        self.buried = set(self.dead)

    # -- what must hold ---------------------------------------------------------------------------------------

    def page(self, towers: dict[int, Tower]) -> int:
        """Looks at a page; the retrieval version that it was made by, -1: none."""
        body = msgspec.json.encode({"user_id": "u", "size": CANDIDATES, "explain": True})
        answer = asyncio.run(self.serving.recommend(body))
        assert isinstance(answer, RecommendAnswer)
        shown: list[Any] = [placed.item_id for placed in answer.items]
        assert not self.buried & set(shown)
        version = answer.retrieval_version
        assert isinstance(version, int)
        if version < 0:
            return version
        by = towers.setdefault(version, tower(*self.heads[version]))
        ids = [i for i in range(ITEMS) if i not in self.loose and i not in self.dead]
        rows = [plain()[self.turns[i] % TURNS] for i in ids]
        if not ids:
            return version
        of_items = np.stack([cat[i] for i, (cat, _) in zip(ids, rows, strict=True)])
        numbers = np.stack([given[i] for i, (_, given) in zip(ids, rows, strict=True)])
        clicked = plain()[0][0][:STEADY], plain()[0][1][:STEADY]
        scores = plain_scores(by, (of_items, numbers), user_ids(), clicked)
        found = {placed.item_id for placed in answer.items if placed.source == "vectors"}
        assert len(found) > CANDIDATES // 2
        inside = np.array([i in found for i in ids])
        if inside.any() and not inside.all():
            assert scores[inside].min() > scores[~inside].max() - 1e-3
        return version


def begun(data: Path) -> Scorer:
    scorer = Scorer(data)
    scorer.reload()
    scorer.stock([good(i) for i in range(ITEMS)])
    scorer.drain()
    return scorer


STEPS = ["change", "spread_some", "step", "step", "delta", "reload", "attached", "worker", "drain"]


@given(st.lists(st.sampled_from(STEPS), max_size=25))
@examples(12)
def test_no_page_mixes_two_retrieval_versions_whatever_happens_between_pages(story: list[str]) -> None:
    with TemporaryDirectory() as data:
        scorer, towers = begun(Path(data)), dict[int, Tower]()
        assert scorer.page(towers) == 1
        for step in story:
            getattr(scorer, step)()
            if scorer.serving.model is not None:
                scorer.page(towers)
        scorer.drain()
        assert scorer.page(towers) == scorer.version
        assert not scorer.loose


def test_pages_follow_versions_while_a_tenth_of_the_catalogue_changes_between_two(tmp_path: Path) -> None:
    scorer, towers = begun(tmp_path), dict[int, Tower]()
    seen = []
    for round_ in range(12):
        scorer.change()
        (scorer.reload if round_ % 5 == 4 else scorer.delta)()
        for happens in (scorer.spread_some, scorer.step, scorer.step, scorer.attached, scorer.attached, scorer.step):
            happens()
            seen.append(scorer.page(towers))
        scorer.drain()
        assert scorer.page(towers) == scorer.version
    assert sorted(set(seen)) == list(range(1, scorer.version + 1))
    assert seen == sorted(seen)


def test_an_item_that_dies_while_a_page_waits_for_counts_is_not_on_it(tmp_path: Path) -> None:
    scorer = begun(tmp_path)
    died: list[int] = []

    async def ask(rows: Any, ts_ms: int) -> None:
        await asyncio.sleep(0)
        died.extend(rows[:10].tolist())
        for row in died:
            scorer.index.remove(scorer.index.ids[row])
        scorer.spread()

    scorer.serving.maker.ask_counts = ask
    ago = NOW_MS - 2 * 3_600_000
    body = msgspec.json.encode({"user_id": "u", "size": 20, "ts_ms": ago, "explain": True})
    for _ in range(3):
        answer = asyncio.run(scorer.serving.recommend(body))
        assert isinstance(answer, RecommendAnswer)
        shown = scorer.serving.items.rows_of([placed.item_id for placed in answer.items])
        assert died
        assert not np.isin(shown, died).any()


@pytest.mark.parametrize("recall", [{"vectors": 1.0}, {"hot": 0.5, "new": 0.5}])
def test_a_dead_item_is_on_no_page_after_the_item_tables_next_slice(tmp_path: Path, recall: dict[str, float]) -> None:
    """Though lists and vectors still name it: the item table decides."""
    scorer = begun(tmp_path)
    scorer.serving.arms = PageArms(msgspec.structs.replace(scorer.settings, recall=recall), scorer.serving.ranker)
    body = msgspec.json.encode({"user_id": "u", "size": CANDIDATES})
    before = asyncio.run(scorer.serving.recommend(body))
    assert isinstance(before, RecommendAnswer)
    gone = [placed.item_id for placed in before.items[:30]]
    for i in gone:
        scorer.index.remove(i)
    while scorer.publisher.changes():
        pass
    after = asyncio.run(scorer.serving.recommend(body))
    assert isinstance(after, RecommendAnswer)
    assert not set(gone) & {placed.item_id for placed in after.items}
    assert len(after.items) == CANDIDATES
