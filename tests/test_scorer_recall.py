"""Recall: candidates are distinct, living, as many as asked for, and chosen for a reason."""

from __future__ import annotations

import numpy as np
import pytest

from millrace.contracts.hashing import column_hash
from millrace.windows.likings import taste_keys
from scorer.recall import CandidateLists, largest, make_lists, random_page, recall
from tests.scorer_shop import BUILDER, TASTE


def lists_of(n: int, clicks: np.ndarray, alive: np.ndarray | None = None, categories: int = 10) -> CandidateLists:
    columns = {"category": column_hash([f"c{i % categories}" for i in range(n)])}
    living = np.ones(n, np.bool_) if alive is None else alive
    return make_lists(BUILDER, columns, living, np.arange(1, n + 1), clicks.astype(np.float32))


@pytest.fixture(scope="module")
def shop() -> CandidateLists:
    clicks = np.zeros(5000)
    clicks[1000:3000] = np.arange(2000) + 1  # the hottest is 2999
    return lists_of(5000, clicks)


def seeded(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_only_keys_of_user_and_item_columns_tell_a_taste() -> None:
    assert taste_keys(BUILDER) == [TASTE]


@pytest.mark.parametrize("size", [1, 10, 999, 1000, 4900, 5000, 6000])
def test_candidates_are_distinct_and_as_many_as_asked_for(shop: CandidateLists, size: int) -> None:
    rows = recall(shop, size, seeded(), [])
    assert len(rows) == min(size, 5000)
    assert len(set(rows.tolist())) == len(rows)


def test_the_same_seed_draws_the_same_candidates(shop: CandidateLists) -> None:
    assert np.array_equal(recall(shop, 1000, seeded(1), []), recall(shop, 1000, seeded(1), []))
    assert not np.array_equal(recall(shop, 1000, seeded(1), []), recall(shop, 1000, seeded(2), []))


def test_hot_and_newest_items_are_always_in_and_every_other_can_be(shop: CandidateLists) -> None:
    seen: set[int] = set()
    for seed in range(60):
        rows = set(recall(shop, 1000, seeded(seed), []).tolist())
        assert rows >= set(range(2700, 3000)), "the 300 hottest"
        assert rows >= set(range(4900, 5000)), "the 100 newest"
        seen |= rows
    assert len(seen) == 5000


def test_the_hottest_items_of_liked_groups_come_in_as_the_liking_says(shop: CandidateLists) -> None:
    (groups,) = shop.groups
    liking = np.zeros(10)
    liking[3], liking[7] = 3.0, 1.0
    rows = set(recall(shop, 1000, seeded(), [(groups, liking)]).tolist())
    for g, share in ((3, 300), (7, 100)):
        members = groups.rows[groups.starts[g] : groups.starts[g + 1]]
        assert rows >= set(members[:share].tolist())


def test_groups_are_items_of_one_category_hottest_first(shop: CandidateLists) -> None:
    (groups,) = shop.groups
    assert len(groups.example) == 10
    for g in range(10):
        members = groups.rows[groups.starts[g] : groups.starts[g + 1]]
        assert len({int(r) % 10 for r in members}) == 1
        assert len(members) == 500
        hot = [int(r) for r in members if 1000 <= r < 3000]
        assert members[: len(hot)].tolist() == sorted(hot, reverse=True)
        assert groups.example[g] in members


def test_items_without_the_attribute_are_in_no_group() -> None:
    columns = {"category": column_hash(["a", None, "a", "b"])}
    lists = make_lists(BUILDER, columns, np.ones(4, np.bool_), np.arange(4), np.arange(4, dtype=np.float32))
    assert sorted(lists.groups[0].rows.tolist()) == [0, 2, 3]


def test_the_dead_are_in_no_list() -> None:
    alive = np.arange(3000) % 2 == 0
    lists = lists_of(3000, np.arange(3000), alive)
    for rows in (lists.living, lists.hot, lists.newest, lists.groups[0].rows, recall(lists, 1200, seeded(), [])):
        assert not (rows % 2).any()
    assert not (random_page(lists, 100, seeded()) % 2).any()


def test_a_user_who_likes_nothing_gets_hot_items_and_chance(shop: CandidateLists) -> None:
    nothing = [(shop.groups[0], np.zeros(10))]
    assert np.array_equal(recall(shop, 500, seeded(), nothing), recall(shop, 500, seeded(), []))


def test_the_control_page_is_uniform_over_items_and_places(shop: CandidateLists) -> None:
    pages = np.array([random_page(shop, 50, seeded(seed)) for seed in range(2000)])
    assert all(len(set(page.tolist())) == 50 for page in pages)
    hits = np.bincount(pages.ravel(), minlength=5000)  # 20 expected of each
    assert abs(hits[2700:3000].mean() - 20) < 1.5, "hot items are no likelier"
    assert abs((pages[:, 0] >= 2500).mean() - 0.5) < 0.05, "nor do they come first"


def test_a_page_cannot_be_longer_than_the_shop() -> None:
    lists = lists_of(5, np.zeros(5))
    assert sorted(random_page(lists, 20, seeded()).tolist()) == [0, 1, 2, 3, 4]
    assert sorted(recall(lists, 20, seeded(), []).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [1, 7, 50, 99, 100, 150])
def test_largest_equals_a_stable_sort(count: int) -> None:
    values = np.random.default_rng(5).integers(0, 12, 100)  # many ties
    expected = sorted(range(100), key=lambda i: (-values[i], i))[:count]
    assert largest(values, count).tolist() == expected
