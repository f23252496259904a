"""The mixture before recall was learnt stays what it was: it is what the learnt one is compared with."""

from __future__ import annotations

import numpy as np

from experiments.recallbefore import CandidateLists, make_lists, recall
from millrace.basics.hashing import column_hash
from millrace.contracts.schema import shop_schema
from millrace.windows.features import FeatureBuilder
from scorer.recall.recall import Groups

N = 4000
BUILDER = FeatureBuilder(shop_schema())
_rng = np.random.default_rng(5)
CATEGORY = _rng.integers(0, 20, N)
CLICKS = np.where(_rng.random(N) < 0.5, _rng.exponential(1.0, N), 0).astype(np.float32)
ALIVE = _rng.random(N) < 0.9
BORN = _rng.permutation(N).astype(np.int64) + 1


def lists() -> CandidateLists:
    columns = {"category": column_hash(CATEGORY), "item_id": column_hash(np.arange(N))}
    return make_lists(BUILDER, columns, ALIVE, BORN, CLICKS)


def taken(liked: list[tuple[Groups, np.ndarray]], seed: int = 1) -> np.ndarray:
    return recall(lists(), 500, np.random.default_rng(seed), liked)


def test_without_likings_it_is_hot_new_and_chance() -> None:
    rows = taken([])
    living = np.flatnonzero(ALIVE)
    hottest = living[np.argsort(-CLICKS[living], kind="stable")][:150]
    newest = living[np.argsort(-BORN[living], kind="stable")][:50]
    assert rows[:150].tolist() == hottest.tolist()
    expected = [r for r in newest.tolist() if r not in set(hottest.tolist())]
    assert rows[150 : 150 + len(expected)].tolist() == expected
    assert len(set(rows.tolist())) == 500
    assert ALIVE[rows].all()
    rest = rows[150 + len(expected) :]
    assert 0.3 < (CLICKS[rest] > 0).mean() < 0.7, "chance looks at no clicks"


def test_taste_gives_the_hottest_of_liked_groups_in_proportion() -> None:
    (groups,) = lists().groups
    liking = np.zeros(len(groups.example))
    liking[[2, 7]] = 3.0, 1.0
    rows = taken([(groups, liking)])[:200]
    of_group = [CATEGORY[groups.example[g]] for g in (2, 7)]
    for category, count in zip(of_group, (150, 50), strict=True):
        mine = np.flatnonzero(ALIVE & (category == CATEGORY))
        hottest = mine[np.argsort(-CLICKS[mine], kind="stable")][:count]
        assert set(hottest.tolist()) <= set(rows.tolist())


def test_a_small_shop_is_given_whole() -> None:
    assert sorted(recall(lists(), N, np.random.default_rng(0), [])) == np.flatnonzero(ALIVE).tolist()
