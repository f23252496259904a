"""What filters are made of, apart: compiled loops, vectors under a mask, values from a message to a worker."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from millrace.basics.hashing import combine, salt, value_hash
from millrace.contracts.filter_attributes import asked_hashes, filterable, hashes_of
from millrace.contracts.settings import Settings
from millrace.contracts.topics import FEATURES_ITEMS, ITEMS
from scorer.catalog.item_index import ItemIndex
from scorer.catalog.itemimage import ItemImage
from scorer.page import filterkernels
from scorer.recall.approximate import Builder
from scorer.recall.candidate_lists import LIKED, MIXED, WHOLE, Allowed, Shares, recall
from scorer.recall.nearest import Finder, Retrieval
from tests.scenes.exploring import examples
from tests.scenes.filter_world import SCHEMA as FILTERED
from tests.scenes.index_shop import Shop
from tests.scenes.nearest_items import W, plain_best, retrieval, rounded
from tests.scenes.recall_lists import heat_of, lists_of
from tests.scenes.scorer_feeder import Whole
from tests.scenes.scorer_shop import BUILDER, NOW_MS, SCHEMA, item

ALIKE = replace(SCHEMA, filters=("in_stock", "region"))  # the same arrays and the same id


# -- values -----------------------------------------------------------------------------------------------------------


def test_values_are_one_where_columns_take_them_for_one() -> None:
    assert hashes_of(None, [7, "7", 7, ""]) == [value_hash(7)]
    assert hashes_of(None, True) == hashes_of(None, 1) == asked_hashes([1])
    assert set(hashes_of(None, "true")) <= set(asked_hashes([True])), "as a table read from a file has it"
    assert not set(hashes_of(None, "false")) & set(asked_hashes([True]))
    assert asked_hashes(["yes"]) == [value_hash("yes")]
    assert hashes_of(None, None) == hashes_of(None, []) == hashes_of(None, float("nan")) == []
    assert hashes_of(None, "a, b") == [value_hash("a, b")], "a text is one value"
    tags = next(f for f in SCHEMA.fields if f.name == "tags")
    assert hashes_of(tags, "a, b,c") == [*map(value_hash, "abc")], "but of a field with several slots"


def test_categorical_fields_of_items_can_be_filtered_by_without_being_named() -> None:
    assert filterable(SCHEMA) == ("item_id", "category", "tags")
    assert filterable(ALIKE) == ("in_stock", "region", "item_id", "category", "tags")


# -- loops ------------------------------------------------------------------------------------------------------------


@given(st.data())
@examples(60)
def test_a_clause_takes_away_what_has_or_has_not_one_of_the_values(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    rows, width, wanted = data.draw(st.integers(0, 50)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    columns = rng.integers(0, 12, (rows + 3, width + 2)).astype(np.uint64)
    values = np.unique(rng.integers(1, 14, wanted)).astype(np.uint64)
    for keep in (True, False):
        allowed = rng.random(rows) < 0.7
        hit = [bool(set(columns[r, 1 : 1 + width].tolist()) & set(values.tolist())) for r in range(rows)]
        plain = [bool(a) and h == keep for a, h in zip(allowed, hit, strict=True)]
        filterkernels.narrow(columns, 1, 1 + width, values, keep, allowed)
        assert allowed.tolist() == plain


@given(st.data())
@examples(80)
def test_caps_take_each_that_fits_in_its_turn(data: st.DataObject) -> None:
    n, size, caps = data.draw(st.integers(0, 60)), data.draw(st.integers(0, 30)), data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    values = rng.integers(0, data.draw(st.integers(2, 9)), (n, caps)).astype(np.uint64)
    values *= np.uint64(1 << 40)  # low bits are equal, as those of other hashes may be
    limits = rng.integers(1, 4, caps)
    plain, taken = list[int](), Counter[tuple[int, int]]()
    for i, row in enumerate(values.tolist()):
        of = [(c, v) for c, v in enumerate(row) if v]
        if len(plain) < size and all(taken[pair] < limits[pair[0]] for pair in of):
            plain.append(i)
            taken.update(of)
    out = np.empty(size, np.int64)
    assert out[: filterkernels.capped(values, limits, out)].tolist() == plain


@pytest.mark.parametrize("user_first", [True, False])
def test_what_was_seen_is_found_by_the_key_of_user_and_item(user_first: bool) -> None:
    own, seed = np.array([value_hash("ann")], np.uint64), salt("window", "user_id*item_id")
    items = np.array([[value_hash(i)] for i in range(200)], np.uint64)
    items[5] = 0  # an item whose row has not come
    parts = (own, items[:, 0]) if user_first else (items[:, 0], own)
    keys = combine(seed, *parts)
    seen = keys[[3, 77, 150]]
    others = combine(seed, np.array([value_hash("bob")], np.uint64), items[:, 0])[:40]
    table = filterkernels.table_of(np.concatenate([seen, others[others > 0]]))
    allowed = np.ones(200, np.bool_)
    filterkernels.unseen(seed, own[0], items, 0, user_first, table, allowed)
    assert np.flatnonzero(~allowed).tolist() == [3, 77, 150]


# -- vectors ----------------------------------------------------------------------------------------------------------


@given(
    n=st.integers(1, 400),
    k=st.integers(1, 60),
    share=st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]),
    seed=st.integers(0, 99),
)
@examples(60)
def test_the_nearest_of_what_is_allowed_are_all_of_these_sorted(n: int, k: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, W)).astype(np.float32)
    found = retrieval(vectors, room=n + 5)
    fresh = np.arange(n, min(n + 3, n + 5), dtype=np.int32)  # that came since
    more = rng.standard_normal((len(fresh), W)).astype(np.float32)
    found.take(fresh, more, np.array([0], np.int32))
    allowed = rng.random(n + 2) < share  # the last row is one that nothing is known of
    query = rng.standard_normal(W).astype(np.float32)
    scores = np.concatenate([rounded(vectors), rounded(more)]) @ query
    scores[0] = -np.inf
    scores[np.flatnonzero(~np.append(allowed, [False] * (len(scores) - len(allowed))))] = -np.inf
    rows = found.nearest(query, k, allowed)
    assert rows.tolist() == plain_best(scores, k).tolist()


class Forgetful:
    """An approximate index that finds the places in their order, and counts how many it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def find(self, query: Any, k: int) -> Any:
        self.asked.append(k)
        return np.arange(k)


def approximately(finder: Finder) -> Retrieval:
    return retrieval(np.random.default_rng(1).standard_normal((4000, W)).astype(np.float32), finder=finder)


def test_an_approximate_index_is_asked_for_more_or_not_at_all() -> None:
    finder, query = Forgetful(), np.ones(W, np.float32)
    found, half, few = approximately(finder), np.arange(4000) % 2 == 0, np.arange(4000) % 50 == 0
    rows = found.nearest(query, 100, half)
    assert finder.asked == [250]
    assert len(rows) == 100
    assert half[rows].all()
    finder.asked.clear()
    exact = retrieval(np.random.default_rng(1).standard_normal((4000, W)).astype(np.float32))
    assert found.nearest(query, 100, few).tolist() == exact.nearest(query, 100, few).tolist()
    late = np.arange(4000) >= 2000  # half of all, but none of those that the index finds
    assert found.nearest(query, 100, late).tolist() == exact.nearest(query, 100, late).tolist()
    assert finder.asked == [250], "two per cent are looked at one by one"
    found.nearest(query, 100)
    assert finder.asked[-1] == 100


def test_usearch_under_a_mask_finds_only_what_is_allowed() -> None:
    pytest.importorskip("usearch")
    from scorer.recall.approximate import Approximate

    vectors = rounded(np.random.default_rng(1).standard_normal((4000, W)).astype(np.float32))
    builder = Builder(W, float(np.linalg.norm(vectors, axis=1).max()))
    builder.add(0, vectors)
    found = retrieval(vectors, finder=Approximate(W, builder.saved()))
    allowed = np.random.default_rng(2).random(4000) < 0.5
    rows = found.nearest(np.ones(W, np.float32), 100, allowed)
    best = np.flatnonzero(allowed)[np.argsort(-(vectors[allowed] @ np.ones(W, np.float32)))[:100]]
    assert allowed[rows].all()
    assert len(np.intersect1d(rows, best)) >= 80


# -- recall -----------------------------------------------------------------------------------------------------------


def test_each_source_gives_its_share_of_what_is_allowed() -> None:
    """Of 5,000 items the hot list has the rows 1000 to 2999, and the new list the last 500. None of the hot ones is
    allowed, and 25 of the new ones; in the group that is liked, those allowed come last."""
    n, clicks = 5000, np.zeros(5000)
    clicks[1000:3000] = np.arange(2000) + 1
    lists = lists_of(n, heat_of(clicks, seen=np.where(np.arange(n) < 4500, 100, 99)))
    mask = (np.arange(n) < 900) | ((np.arange(n) >= 4500) & (np.arange(n) % 20 == 0))
    allowed = Allowed(mask, np.flatnonzero(mask).astype(np.int32))
    affinity = np.isin(lists.groups[0].example % 10, [0, 3]).astype(np.float64)
    shares = Shares.of({"vectors": 0.4, "liked": 0.2, "coclicked": 0.1, "hot": 0.1, "new": 0.1, "random": 0.1})
    found = recall(
        lists, shares, 100, 5,
        vectors=np.arange(300, 400), liked=[(lists.groups[0], affinity)], coclicked=np.arange(2990, 3000),
        allowed=allowed, born_ms=np.arange(1, n + 1),
    )  # fmt: skip
    by_source = {MIXED[code - 1]: set(found.rows[found.sources == code].tolist()) for code in set(found.sources)}
    assert mask[found.rows].all()
    assert len(found.rows) == len(set(found.rows.tolist())) == 100
    assert len(by_source["new"]) == 10
    assert by_source["new"] <= set(range(4500, 5000, 20))
    assert "coclicked" not in by_source, "all of these are left out"
    assert {row % 10 for row in by_source["liked"]} == {0, 3}
    assert len(by_source["liked"]) >= 20
    assert set(range(4800, 5000, 20)) <= by_source["hot"] <= set(range(4500, 5000, 20)), "those born last"
    assert len(by_source["random"]) == 10


def test_a_group_of_which_nothing_is_allowed_gives_way_to_the_next() -> None:
    n = 2600
    lists = lists_of(n, heat_of(np.arange(n)), categories=26)
    mask = np.arange(n) % 26 >= 13
    allowed = Allowed(mask, np.flatnonzero(mask).astype(np.int32))
    affinity = np.linspace(2, 1, 26)[np.argsort(np.argsort(lists.groups[0].example % 26))]
    found = recall(
        lists, Shares.of({"liked": 1}), 120, 5, liked=[(lists.groups[0], affinity)], allowed=allowed,
        born_ms=np.arange(n),
    )  # fmt: skip
    assert set((found.rows % 26).tolist()) == set(range(13, 25)), "the twelve best liked of those that have some"
    assert set(found.sources.tolist()) == {LIKED}


def test_a_small_rest_of_a_large_shop_is_ranked_whole() -> None:
    lists = lists_of(3000, heat_of(np.zeros(3000)))
    mask = np.arange(3000) % 100 == 7
    found = recall(
        lists, Shares.of({"hot": 1}), 50, 5, allowed=Allowed(mask, np.flatnonzero(mask).astype(np.int32)),
        bought=np.array([7, 107, 8]), least=28, born_ms=np.arange(3000),
    )  # fmt: skip
    assert found.rows.tolist() == list(range(207, 3000, 100)), "without what was bought, which is enough"
    assert set(found.sources.tolist()) == {WHOLE}


# -- from a message to a worker ---------------------------------------------------------------------------------------


def test_values_reach_a_worker_over_the_link_and_a_worker_that_starts_later() -> None:
    whole = Whole(Settings(), schema=FILTERED)
    whole.stock([item(i, attributes={"in_stock": i % 2 == 0, "region": "eu"}) for i in range(10)])
    whole.stock([item(3, attributes={"region": ["eu", "us", "asia"]}), item(4, attributes={"in_stock": "true"})])
    for _ in range(2):
        table = whole.serving.items
        region, stock = table.filter_values("region"), table.filter_values("in_stock")
        assert region[3].tolist() == [*map(value_hash, ("eu", "us", "asia")), 0]
        assert region[5].tolist() == [value_hash("eu"), 0, 0, 0]
        assert [int(stock[row, 0]) for row in (2, 3, 4, 5)] == [value_hash(1), 0, value_hash("true"), value_hash(0)]
        whole.replace_worker()


def test_without_filters_nothing_is_kept_and_nothing_crosses() -> None:
    index = ItemIndex(BUILDER)
    index.put([index.prepare(item(1, attributes={"in_stock": True}))])
    arrays = index.changes(NOW_MS)
    assert not [name for name in arrays if name.startswith("filter/")]
    assert not [name for name in index.image(0, 9).arrays if name.startswith("filter/")]


def test_slices_of_different_width_are_one_part_of_a_checkpoint() -> None:
    index = ItemIndex(Whole(Settings(), schema=FILTERED).primary.builder)
    index.put([index.prepare(item(0, attributes={"region": "eu"}))])
    narrow = index.image(0, 1)
    index.put([index.prepare(item(1, attributes={"region": list("abcde")}))])
    joined = ItemImage.joined([narrow, index.image(1, 2)])
    assert joined.arrays["filter/region"].shape == (2, 8)
    again = ItemIndex(index.builder)
    again.put([ItemImage.checked(joined.ids, joined.arrays)])
    for name in ("in_stock", "region", "tags"):
        assert np.array_equal(again.image(0, 2).arrays[f"filter/{name}"], index.image(0, 2).arrays[f"filter/{name}"])


def values(shop: Shop) -> dict[str, Any]:
    index = shop.scorer.index
    image = index.image(0, len(index))
    return {
        str(i): [sorted(set(image.arrays[f"filter/{name}"][row].tolist()) - {0}) for name in ALIKE.filters]
        for row, i in enumerate(image.ids)
    }


def test_a_checkpoint_brings_the_values_back(tmp_path: Path) -> None:
    shop = Shop(tmp_path, ALIKE)
    shop.items(*(item(i, attributes={"in_stock": i % 2 == 0, "region": ["eu", "us"][: i % 3]}) for i in range(20)))
    shop.read()
    assert shop.keep() is not None
    before = values(shop)
    assert before["4"] == [[value_hash(1)], [value_hash("eu")]]
    items = shop.broker.log(ITEMS)
    items.cut(items.end)  # only the checkpoint knows them
    shop.start()
    assert values(shop) == before


def test_a_checkpoint_without_an_attribute_has_items_read_again_and_its_counts_are_used(
    tmp_path: Path,
) -> None:
    shop = Shop(tmp_path)
    shop.items(*(item(i, attributes={"in_stock": i % 2 == 0}) for i in range(20)))
    shop.clicks([item(i) for i in range(20)], 3)
    shop.read()
    assert shop.keep() is not None
    keys = shop.scorer.index.counts.held

    counts = shop.broker.log(FEATURES_ITEMS)
    counts.cut(counts.end)  # only the checkpoint knows them
    shop.schema = ALIKE
    loaded = shop.start()
    assert values(shop)["4"] == [[value_hash(1)], []]
    assert shop.scorer.index.counts.held == keys
    assert shop.meters.errors == Counter()
    manifest = loaded.keep()
    assert manifest is not None, "the next one has the attributes, however young this one is"
    assert manifest.filters == ["in_stock", "region"]

    shop.schema = SCHEMA
    shop.start()
    assert shop.meters.errors == Counter(), "one that has more than is asked for is used"
    assert len(shop.scorer.index) == 20
