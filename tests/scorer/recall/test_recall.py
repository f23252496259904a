"""Recall: candidates are distinct, living, as many as asked for, and each source gives its share."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.errors import SettingError
from millrace.basics.hashing import column_hash
from millrace.contracts.events import SOURCES
from millrace.contracts.settings import Settings
from millrace.windows.affinity import taste_keys
from scorer.catalog.item_index import Heat
from scorer.feeder.primary import Primary
from scorer.recall import recallkernels
from scorer.recall.candidate_lists import (
    HOT,
    MIXED,
    NEW,
    RANDOM,
    VECTORS,
    WHOLE,
    CandidateLists,
    Candidates,
    Shares,
    largest,
    make_lists,
    random_page,
    recall,
)
from tests.scenes.exploring import examples
from tests.scenes.recall_lists import heat_of, lists_of
from tests.scenes.scorer_shop import BUILDER, NOW_MS, SCHEMA, TASTE
from tests.scorer.recall.plain_recall import interleaved, merged

SHARES = {"vectors": 0.5, "liked": 0.15, "coclicked": 0.1, "hot": 0.1, "new": 0.1, "random": 0.05}
MIXTURE = Shares.of(SHARES)
N = 5000


@pytest.fixture(scope="module")
def shop() -> CandidateLists:
    """Rows 1000 to 2999 were clicked, the last of them most; the last 500 are new; a tenth is in each group."""
    clicks = np.zeros(N)
    clicks[1000:3000] = np.arange(2000) + 1
    return lists_of(N, heat_of(clicks, seen=np.where(np.arange(N) < 4500, 100, 99)))


def full(shop: CandidateLists, likes: int = 3) -> dict[str, Any]:
    """What a user gets whom every source knows."""
    affinity = np.zeros(10)
    affinity[:likes] = 1.0
    return {
        "vectors": np.arange(0, 1000),
        "liked": [(shop.groups[0], affinity)],
        "coclicked": np.arange(500, 1500),
    }


def counts(found: Candidates) -> dict[str, int]:
    return {SOURCES[code]: n for code, n in Counter(found.sources.tolist()).items()}


def ids(rows: Any) -> set[int]:
    return set(np.asarray(rows).tolist())


# -- shares ---------------------------------------------------------------------------------------------------------


def test_shares_are_read_from_the_setting() -> None:
    default = Shares.of(Settings().recall)
    assert dict(zip(MIXED, default.of_source.tolist(), strict=True)) == {
        "vectors": 0.6, "liked": 0.1, "coclicked": 0.05, "hot": 0.2, "new": 0.03, "random": 0.02
    }  # fmt: skip
    assert Shares.of({"hot": 1, "new": 0}).of_source.tolist() == [0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "adds up to 0"),
        (
            {"vektors": 1.0},
            "'vektors', which is no source; the sources are vectors, liked, coclicked, hot, new, random",
        ),
        ({"whole": 1.0}, "'whole', which is no source"),
        ({"hot": float("nan")}, "adds up to nan"),
        ({"hot": 0.5, "new": 0.4}, "'new': 0.4} adds up to 0.9; have the shares add up to 1"),
    ],
)
def test_what_are_no_shares_is_one_line_with_value_and_remedy(given: dict[str, float], words: str) -> None:
    with pytest.raises(SettingError) as caught:
        Shares.of(given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_feeder_does_not_start_with_wrong_shares() -> None:
    settings = Settings(recall={"hot": 2})
    with pytest.raises(SettingError, match="adds up to 2; have the shares"):
        Primary(settings, SCHEMA, settings.event_clock(), lambda: NOW_MS)


# -- the lists ------------------------------------------------------------------------------------------------------


def test_only_keys_of_user_and_item_columns_tell_a_taste() -> None:
    assert taste_keys(BUILDER) == [TASTE]


def test_hot_is_a_rate_so_what_is_shown_much_is_not_hotter_for_it() -> None:
    clicks, exposures = [50.0, 20.0, 1.0, 0.0], [1000.0, 100.0, 1.0, 0.0]
    lists = lists_of(4, heat_of(clicks, exposures))
    # 50 of 1000 is the most clicks and the worst rate; 1 of 1 is drawn to the shop's 6%
    assert lists.hot.tolist() == [1, 2, 0, 3], "what nobody clicked comes last"
    much = lists_of(4, heat_of(np.multiply(clicks, 100), np.multiply(exposures, 100)))
    assert much.hot.tolist() == [2, 1, 0, 3], "a hundred of a hundred is enough to go by"


def test_groups_are_items_of_one_category_hottest_first(shop: CandidateLists) -> None:
    (groups,) = shop.groups
    assert len(groups.example) == 10
    assert groups.starts.tolist() == list(range(0, N + 1, 500))
    for g in range(10):
        members = groups.rows[groups.starts[g] : groups.starts[g + 1]]
        assert len({int(r) % 10 for r in members}) == 1
        hot = [int(r) for r in members if 1000 <= r < 3000]
        assert members[: len(hot)].tolist() == sorted(hot, reverse=True)
        rest = members[len(hot) :].tolist()
        assert rest == sorted(rest), "of equal heat the earlier row"
        assert groups.example[g] == members[0]


def test_an_unseen_item_stands_in_the_middle_of_its_own_group() -> None:
    """Two groups of good and bad items: in each, the unseen one comes behind the better and before the worse."""
    exposures = np.array([4000, 4000, 4000, 4000, 4000, 4000, 0, 0], np.float64)
    clicks = np.array([400, 40, 100, 10, 340, 34, 0, 0], np.float64)
    lists = lists_of(8, heat_of(clicks, exposures), categories=2)
    (groups,) = lists.groups
    for g in range(2):
        members = groups.rows[groups.starts[g] : groups.starts[g + 1]].tolist()
        assert members in ([0, 4, 6, 2], [1, 5, 7, 3])


def test_items_without_the_attribute_are_in_no_group() -> None:
    columns = {"category": column_hash(["a", None, "a", "b"])}
    lists = make_lists(BUILDER, columns, np.ones(4, np.bool_), np.arange(4), heat_of(np.arange(4)))
    assert sorted(lists.groups[0].rows.tolist()) == [0, 2, 3]
    nobody = {"category": column_hash([None, None])}
    assert make_lists(BUILDER, nobody, np.ones(2, np.bool_), np.arange(2), Heat.none(2)).groups == ()


def test_an_item_is_new_until_it_had_its_exposures() -> None:
    lists = lists_of(6, heat_of(np.zeros(6), seen=[0, 9, 10, 11, 0, 10]), new_exposures=10)
    assert lists.new.tolist() == [4, 1, 0], "born last first"
    assert lists_of(6, Heat.none(6), depth=2).new.tolist() == [5, 4]


def test_where_few_have_been_clicked_the_youngest_others_follow_the_hot_ones() -> None:
    clicks = np.zeros(50)
    clicks[[7, 20]] = 1, 2
    alive = np.arange(50) != 48
    lists = lists_of(50, heat_of(clicks), alive, depth=5)
    assert lists.hot.tolist() == [20, 7, 49, 47, 46], "so that what is learnt of these adds up, page by page"
    assert lists_of(50, heat_of(np.arange(50)), depth=5).hot.tolist() == [49, 48, 47, 46, 45]


def test_a_shop_without_counts_tries_the_same_items_on_all_pages_but_for_the_shares_of_new_and_chance() -> None:
    lists = lists_of(500, Heat.none(500))
    pages = [recall(lists, MIXTURE, 100, seed) for seed in range(20)]
    for found in pages:
        assert counts(found) == {"hot": 85, "new": 10, "random": 5}
        assert min(found.rows[found.sources == HOT]) >= 400, "the youngest hundred, but for those that came as new"


def test_lists_cross_to_another_process_whole(shop: CandidateLists) -> None:
    again = CandidateLists.of_arrays(shop.arrays())
    for name, array in shop.arrays().items():
        assert np.array_equal(again.arrays()[name], array), name
    assert len(again.groups) == 1


def test_the_dead_are_in_no_list() -> None:
    alive = np.arange(3000) % 2 == 0
    lists = lists_of(3000, heat_of(np.arange(3000)), alive)
    for rows in (lists.living, lists.hot, lists.new, lists.groups[0].rows, recall(lists, MIXTURE, 1200, 0).rows):
        assert len(rows)
        assert not (rows % 2).any()
    assert not (random_page(lists, 100, np.random.default_rng(0)) % 2).any()


# -- candidates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 10, 999, 1000, 4900, 4999])
def test_candidates_are_distinct_and_as_many_as_asked_for(shop: CandidateLists, size: int) -> None:
    for more in ({}, full(shop), {"bought": np.arange(40)}):
        found = recall(shop, MIXTURE, size, 3, **more)
        assert len(found.rows) == len(found.sources) == len(ids(found.rows)) == size


def test_the_same_seed_draws_the_same_candidates(shop: CandidateLists) -> None:
    one, same, other = (recall(shop, MIXTURE, 1000, seed, **full(shop)) for seed in (1, 1, 2))
    assert np.array_equal(one.rows, same.rows)
    assert np.array_equal(one.sources, same.sources)
    assert not np.array_equal(one.rows, other.rows)


@pytest.mark.parametrize("size", [100, 333, 1000])
@pytest.mark.parametrize(
    "shares", [SHARES, {"vectors": 0.2, "liked": 0.3, "coclicked": 0.07, "hot": 0.2, "new": 0.03, "random": 0.2}]
)
def test_when_every_source_has_enough_each_gives_its_share(
    shop: CandidateLists, size: int, shares: dict[str, float]
) -> None:
    wanted = Shares.of(shares)
    found = recall(shop, wanted, size, 4, **full(shop))
    for code, share in enumerate(wanted.of_source.tolist(), 1):
        assert abs(np.count_nonzero(found.sources == code) - share * size) < 1 + 1e-9, SOURCES[code]


def test_an_item_of_several_sources_counts_for_the_first_and_the_others_go_on_behind_it(shop: CandidateLists) -> None:
    hot = shop.hot[:300].astype(np.intp)
    found = recall(shop, MIXTURE, 1000, 0, vectors=hot, coclicked=hot[:200])
    of = {code: found.rows[found.sources == code].tolist() for code in set(found.sources.tolist())}
    assert set(of[VECTORS]) == ids(hot)
    assert SOURCES.index("coclicked") not in of, "all it had were found by vectors"
    assert of[SOURCES.index("hot")][0] == shop.hot[300]


def test_what_a_source_lacks_is_filled_by_those_that_know_good_items(shop: CandidateLists) -> None:
    few = {**full(shop), "vectors": np.arange(100)}
    found = counts(recall(shop, MIXTURE, 1000, 0, **few))
    assert found["vectors"] == 100
    assert (found["new"], found["random"]) == (100, 50), "their shares and no more"
    share = {"liked": 0.15, "coclicked": 0.1, "hot": 0.1}
    for name, part in share.items():
        assert abs(found[name] - part * 1000 - 400 * part / 0.35) <= 2, name
    nobody = counts(recall(shop, MIXTURE, 1000, 0))
    assert nobody == {"hot": 850, "new": 100, "random": 50}


def test_new_items_and_chance_fill_up_by_their_shares_when_all_else_is_at_its_end() -> None:
    clicks = np.zeros(N)
    clicks[:200] = 1
    lists = replace(lists_of(N, heat_of(clicks)), hot=np.arange(200, dtype=np.int32))
    assert counts(recall(lists, MIXTURE, 900, 0)) == {"hot": 200, "new": 467, "random": 233}


def test_when_all_else_is_at_its_end_chance_fills_up_and_all_items_are_within_reach(shop: CandidateLists) -> None:
    seen: set[int] = set()
    only = Shares.of({"vectors": 0.9, "coclicked": 0.1})
    for seed in range(60):
        found = recall(shop, only, 400, seed, vectors=np.arange(10), coclicked=np.arange(5, 15))
        assert counts(found) == {"vectors": 10, "coclicked": 5, "random": 385}
        seen |= ids(found.rows)
    assert len(seen) > 0.98 * N


def test_a_source_without_a_share_gives_nothing(shop: CandidateLists) -> None:
    found = recall(shop, Shares.of({"hot": 1}), 500, 0, **full(shop))
    assert found.rows.tolist() == shop.hot[:500].tolist()


def test_liked_groups_give_their_hottest_by_affinity(shop: CandidateLists) -> None:
    (groups,) = shop.groups
    affinity = np.zeros(10)
    affinity[3], affinity[7] = 3.0, 1.0
    found = recall(shop, Shares.of({"liked": 1}), 400, 0, liked=[(groups, affinity)])
    for g, share in ((3, 300), (7, 100)):
        members = groups.rows[groups.starts[g] : groups.starts[g + 1]]
        assert ids(found.rows) & ids(members) == ids(members[:share])
    nothing = [(groups, np.zeros(10))]
    assert np.array_equal(recall(shop, MIXTURE, 500, 1, liked=nothing).rows, recall(shop, MIXTURE, 500, 1).rows)


def test_all_that_wait_to_be_seen_get_their_turn_and_no_page_has_them_all(shop: CandidateLists) -> None:
    drawn = Counter[int]()
    pages = 400
    for seed in range(pages):
        found = recall(shop, MIXTURE, 1000, seed, **full(shop))
        drawn.update(found.rows[found.sources == NEW].tolist())
    assert set(drawn) == ids(shop.new), "also those born first"
    assert len(drawn) == 500
    expected = pages * 100 / 500  # 80, give or take the luck of the draw
    assert min(drawn.values()) > expected / 2
    assert max(drawn.values()) < expected * 1.6


def test_what_was_bought_comes_last(shop: CandidateLists) -> None:
    everything = full(shop)
    bought = np.array([3, 2999, 4999, -1, 3])  # a vector's, the hottest, the newest, one that is unknown, one twice
    for seed in range(20):
        assert not ids(recall(shop, MIXTURE, 1000, seed, bought=bought, **everything).rows) & {3, 2999, 4999}
        assert not ids(recall(shop, MIXTURE, 4997, seed, bought=bought, **everything).rows) & {3, 2999, 4999}
        almost = recall(shop, MIXTURE, 4998, seed, bought=bought, **everything)
        assert ids(almost.rows) & {3, 2999, 4999} == {3}, "in the order given, and no more than are needed"
        assert almost.rows[-1] == 3


def test_an_item_that_died_since_the_lists_were_made_is_replaced(shop: CandidateLists) -> None:
    alive = np.ones(N, np.bool_)
    dead = np.concatenate([np.arange(50), np.arange(2900, 3000), np.arange(4900, 5000)])
    alive[dead] = False
    found = recall(shop, MIXTURE, 1000, 0, alive=alive, **full(shop))
    assert len(ids(found.rows)) == 1000
    assert alive[found.rows].all()
    assert counts(found)["vectors"] == 500
    assert counts(found)["hot"] == 100
    assert ids(recall(shop, MIXTURE, N - 1, 0, alive=alive).rows) == ids(np.flatnonzero(alive))
    assert ids(recall(shop, MIXTURE, N, 0, alive=alive).rows) == ids(np.flatnonzero(alive))


def test_rows_that_the_item_table_does_not_have_are_passed_over(shop: CandidateLists) -> None:
    found = recall(shop, MIXTURE, 500, 0, vectors=np.array([N + 7, 1, -1, 2]), alive=np.ones(N, np.bool_))
    assert found.rows[found.sources == VECTORS].tolist() == [1, 2]


def test_a_small_shop_is_ranked_whole() -> None:
    lists = lists_of(5, Heat.none(5))
    for size in (5, 20):
        found = recall(lists, MIXTURE, size, 0, vectors=np.array([1]))
        assert sorted(found.rows.tolist()) == [0, 1, 2, 3, 4]
        assert set(found.sources.tolist()) == {WHOLE}
    bought = np.array([2])
    assert sorted(recall(lists, MIXTURE, 20, 0, bought=bought, least=4).rows.tolist()) == [0, 1, 3, 4]
    assert sorted(recall(lists, MIXTURE, 20, 0, bought=bought, least=5).rows.tolist()) == [0, 1, 2, 3, 4]
    assert not len(recall(CandidateLists(), MIXTURE, 20, 0).rows)


# -- against plain Python -------------------------------------------------------------------------------------------

row_lists = st.lists(st.integers(-1, 45), max_size=50)


@examples(300)
@given(
    lists=st.lists(row_lists, min_size=1, max_size=5),
    weights=st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0]), min_size=6, max_size=6),
    dead=st.sets(st.integers(0, 39)),
    late=st.lists(st.integers(0, 45), max_size=5, unique=True),
    fillers=st.integers(0, 5),
    seed=st.integers(0, 2**64 - 1),
    size=st.integers(0, 39),
)
def test_the_merge_equals_plain_python(
    lists: list[list[int]],
    weights: list[float],
    dead: set[int],
    late: list[int],
    fillers: int,
    seed: int,
    size: int,
) -> None:
    fillers = min(fillers, len(lists))
    shares = np.array(weights[: len(lists) + 1])
    alive = np.array([row not in dead for row in range(40)])
    living = np.arange(40, dtype=np.int32)
    starts = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.intp)
    flat = np.array([row for one in lists for row in one], np.intp)
    rows, sources = np.empty(size, np.intp), np.empty(size, np.uint8)
    n = recallkernels.merge(
        flat, starts, shares, fillers, living, alive, np.array(late, np.intp), np.uint64(seed), rows, sources
    )
    found = list(zip(rows[:n].tolist(), sources[:n].tolist(), strict=True))
    assert found == merged(lists, shares.tolist(), fillers, living.tolist(), alive.tolist(), late, seed, size)
    assert n == len({row for row, _ in found}) == min(size, np.count_nonzero(alive))
    others = int(np.count_nonzero(alive)) - len([row for row in late if row < 40 and alive[row]])
    assert sum(row in late for row, _ in found) == max(0, n - others), "late ones only where there is nothing else"


@given(
    heads=st.lists(st.lists(st.integers(0, 99), max_size=8), min_size=1, max_size=5),
    weights=st.lists(st.sampled_from([0.125, 0.25, 0.5, 1.0, 3.0]), min_size=5, max_size=5),
    most=st.integers(0, 30),
)
def test_taking_in_turn_equals_the_sorted_quotients(heads: list[list[int]], weights: list[float], most: int) -> None:
    starts = np.concatenate([[0], np.cumsum([len(one) for one in heads])]).astype(np.intp)
    out = np.empty(most, np.intp)
    flat = np.array([row for one in heads for row in one], np.intp)
    n = recallkernels.interleave(flat, starts, np.array(weights[: len(heads)]), out)
    assert out[:n].tolist() == interleaved(heads, weights[: len(heads)], most)


# -- the control page -----------------------------------------------------------------------------------------------


def test_the_control_page_is_uniform_over_items_and_places(shop: CandidateLists) -> None:
    pages = np.array([random_page(shop, 50, np.random.default_rng(seed)) for seed in range(2000)])
    assert all(len(set(page.tolist())) == 50 for page in pages)
    hits = np.bincount(pages.ravel(), minlength=N)  # 20 expected of each
    assert abs(hits[2700:3000].mean() - 20) < 1.5, "hot items are no likelier"
    assert abs((pages[:, 0] >= 2500).mean() - 0.5) < 0.05, "nor do they come first"


def test_a_control_page_cannot_be_longer_than_the_shop() -> None:
    lists = lists_of(5, Heat.none(5))
    assert sorted(random_page(lists, 20, np.random.default_rng(0)).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("count", [1, 7, 50, 99, 100, 150])
def test_largest_equals_a_stable_sort(count: int) -> None:
    values = np.random.default_rng(5).integers(0, 12, 100)  # many ties
    expected = sorted(range(100), key=lambda i: (-values[i], i))[:count]
    assert largest(values, count).tolist() == expected


def test_chance_is_even_over_the_living() -> None:
    """Also where rows are drawn again and again because most are taken."""
    lists = lists_of(100, Heat.none(100), new_exposures=0)
    hits = np.zeros(100)
    for seed in range(4000):
        found = recall(lists, Shares.of({"vectors": 0.5, "random": 0.5}), 60, seed, vectors=np.arange(30))
        assert np.count_nonzero(found.sources == RANDOM) == 30
        hits[found.rows] += 1
    assert (hits[:30] == 4000).all()
    assert np.abs(hits[30:] / 4000 - 30 / 70).max() < 0.04
