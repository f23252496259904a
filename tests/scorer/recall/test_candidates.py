"""The candidates of a page: which source is asked for what, and what of it is logged, told and counted.
Vectors in a worker."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from numba import typeof
from prometheus_client import REGISTRY

from millrace.basics.errors import SettingError
from millrace.contracts.events import SOURCES
from millrace.contracts.online_layout import RECENT, Past, Recent, pack_recent
from scorer.catalog import pagekernels
from scorer.page import page_service
from scorer.page.candidates import Sources
from scorer.page.score_reasons import MOST_ITEMS, MOST_REASONS, inputs_of
from scorer.recall import approximate, recallkernels
from scorer.recall.candidate_lists import CandidateLists
from scorer.recall.nearest import SAMPLES, best, new_tiles
from scorer.recall.nearestkernels import fetch, lay
from scorer.users.userrecord import KnownUser
from scorer.worker.scorer_warmup import warm_up
from tests.scenes import filter_world
from tests.scenes.exploring import examples
from tests.scenes.nearest_items import W, plain_best, retrieval, rounded
from tests.scenes.page_sources import source_names
from tests.scenes.recall_sources import Along, Near
from tests.scenes.scorer_shop import (
    ITEM,
    ITEMS,
    NOW_MS,
    SCHEMA,
    TASTE,
    USER,
    OneWorker,
    call,
    item,
    record,
    stock,
    tiles,
    window_keys,
)

SHARES = {"vectors": 0.5, "liked": 0.15, "coclicked": 0.1, "hot": 0.1, "new": 0.1, "random": 0.05}
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Shop(OneWorker):
    """A worker with 200 items, of which the first 20 were seen and clicked; ``ann`` clicked and bought."""

    def __init__(self, folder: Path, **others: Any) -> None:
        super().__init__(folder, **{"candidates": 60, "recall": SHARES, **others})
        self.index = stock(self.scorer, ITEMS)
        keys = np.unique(window_keys("ann", ITEMS[:20])[:, ITEM])
        self.index.put_tiles(0, keys, tiles(keys, 200, 5).export(keys))
        stock(self.scorer, [], self.index)
        self.follow()
        self.scorer.retrieval, self.scorer.neighbours = Near(), Along()
        taste = np.unique(window_keys("ann", ITEMS[:1])[:, [USER, TASTE]])
        clicks = [Past("30", NOW_MS - 1000), Past("gone long ago", NOW_MS - 2000), Past(31, NOW_MS - 3 * DAY_MS)]
        purchases = [Past(110, NOW_MS - 2 * DAY_MS), Past(100, NOW_MS - 6 * DAY_MS), Past(105, NOW_MS - 8 * DAY_MS)]
        recent = {RECENT: pack_recent(Recent(clicks, purchases))}
        self.users.records["ann"] = record(taste, tiles(taste, 10, 4)) | recent

    @property
    def near(self) -> Near:
        assert isinstance(self.scorer.retrieval, Near)
        return self.scorer.retrieval

    @property
    def along(self) -> Along:
        assert isinstance(self.scorer.neighbours, Along)
        return self.scorer.neighbours


@pytest.fixture(autouse=True)
def pages_as_long_as_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may be as long as its candidates are many: what was tried is on it."""
    monkeypatch.setattr(page_service, "PAGE_LIMIT", 60)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def counted() -> dict[str, float]:
    return {s: REGISTRY.get_sample_value("millrace_scorer_items_total", {"source": s}) or 0.0 for s in SOURCES}


def test_each_source_is_asked_once_with_what_the_user_did_last(shop: Shop) -> None:
    answer = shop.ask(explain=True)
    ((own, rows, ages),) = shop.near.asked
    assert own == shop.scorer.ranker.user_ids(_user(shop)).tolist()
    assert rows == [30, -1, 31], "-1: an item that nobody knows any more"
    assert ages == [1000, 2000, 3 * DAY_MS]
    assert shop.along.asked == [[30, 31]]
    found = Counter(i["source"] for i in answer["items"])
    assert found == {"vectors": 30, "liked": 9, "coclicked": 6, "hot": 6, "new": 6, "random": 3}
    assert answer["retrieval_version"] == 41
    by_source = {s: {i["item_id"] for i in answer["items"] if i["source"] == s} for s in found}
    assert by_source["vectors"] == set(range(100, 132)) - {100, 110}, "what was bought within the week comes last"
    assert by_source["coclicked"] == {31, 32, 33, 34, 36, 37}, "35 is liked, which comes first"
    assert by_source["hot"] <= set(range(20))
    assert all(i % 5 == 0 for i in by_source["liked"]), "the category of item 0"
    assert not {100, 110} & {i["item_id"] for i in answer["items"]}


def _user(shop: Shop) -> KnownUser:
    return KnownUser.of(shop.scorer.builder, "ann", shop.users.records["ann"])


def test_a_page_of_an_earlier_time_knows_no_later_click_and_no_later_purchase(shop: Shop) -> None:
    at_ms = NOW_MS - HOUR_MS
    page = shop.scorer.arms.named("model").recaller.page(
        Sources(shop.scorer.lists, shop.near, shop.along), _user(shop), at_ms, 60, 60, 1
    )
    assert shop.near.asked[0][1:] == ([31], [3 * DAY_MS - HOUR_MS])
    early = shop.scorer.arms.named("model").recaller.page(
        Sources(shop.scorer.lists, shop.near, shop.along), _user(shop), NOW_MS - 3 * DAY_MS, 60, 60, 1
    )
    rows = page.rows[page.sources == SOURCES.index("vectors")]
    assert not {100, 110} & set(rows.tolist())
    assert {105, 110} & set(early.rows.tolist()) == {110}, "110 was bought later, 105 five days before"


def test_a_log_an_answer_and_a_counter_agree_on_the_sources(shop: Shop) -> None:
    before = counted()
    answer = shop.ask(explain=True, size=40)
    sources = [i["source"] for i in answer["items"]]
    assert source_names(shop.sent[-1]) == sources
    after = counted()
    assert {s: after[s] - before[s] for s in SOURCES if after[s] != before[s]} == Counter(sources)


def test_an_answer_that_is_not_explained_says_nothing_of_it_and_is_logged_alike(shop: Shop) -> None:
    plain, explained = shop.ask(request_id="r"), shop.ask(request_id="r", explain=True)
    assert set(plain["items"][0]) == {"item_id", "position", "score"}
    assert "retrieval_version" not in plain
    assert [i["item_id"] for i in plain["items"]] == [i["item_id"] for i in explained["items"]]
    assert shop.sent[0] == shop.sent[1]
    assert plain["notes"] == explained["notes"] == []


def test_the_first_items_of_an_explained_page_have_reasons(shop: Shop) -> None:
    items = shop.ask(explain=True, size=30)["items"]
    known = {i.name for i in inputs_of(shop.scorer.schema)}
    assert all("reasons" not in i for i in items[MOST_ITEMS:])
    reasons = [i["reasons"] for i in items[:MOST_ITEMS]]
    assert any(reasons), "no input had an effect on any score"
    assert {r["input"] for those in reasons for r in those} <= known
    assert all(len(those) <= MOST_REASONS for those in reasons)


@pytest.mark.parametrize("how", ["none", "young", "no share"])
def test_without_vectors_the_others_fill_the_page(tmp_path: Path, how: str) -> None:
    shares = {"liked": 0.3, "coclicked": 0.2, "hot": 0.2, "new": 0.2, "random": 0.1}
    shop = Shop(tmp_path, **({"recall": shares} if how == "no share" else {}))
    if how == "none":
        shop.scorer.retrieval = None
    if how == "young":
        shop.scorer.retrieval = Near(clicks=999)
    answer = shop.ask(explain=True)
    found = Counter(i["source"] for i in answer["items"])
    assert answer["retrieval_version"] == -1
    assert sum(found.values()) == 60
    assert "vectors" not in found
    assert how != "young" or shop.near.asked == []
    assert answer["notes"] == [], "normal for a young shop"


def test_a_new_user_gets_vectors_and_no_neighbours(shop: Shop) -> None:
    answer = shop.ask(user_id="stranger", explain=True)
    found = Counter(i["source"] for i in answer["items"])
    assert found.keys() == {"vectors", "hot", "new", "random"}
    assert shop.near.asked[0][1:] == ([], [])
    assert shop.along.asked == []


def test_a_small_shop_a_control_page_and_a_page_that_was_asked_for_say_so(tmp_path: Path) -> None:
    shop = Shop(tmp_path, candidates=200)
    answer = shop.ask(explain=True)
    assert {i["source"] for i in answer["items"]} == {"whole"}
    assert not {100, 110} & {i["item_id"] for i in answer["items"]}, "there are enough others"
    shop.ask(path="/score", items=[1, 2], log=True)
    assert source_names(shop.sent[-1]) == ["asked", "asked"]
    control = Shop(tmp_path / "other", control_share=1)
    answer = control.ask(explain=True)
    assert {i["source"] for i in answer["items"]} == set(source_names(control.sent[-1])) == {"control"}
    assert len(control.near.asked) == 1, "what the model's page recalls is the set of its numbers among candidates"


@pytest.mark.parametrize(("control_share", "recalls"), [(0, 1), (1, 0)])
def test_a_control_page_that_compares_no_candidates_recalls_nothing(control_share: float, recalls: int) -> None:
    schema = replace(filter_world.SCHEMA, among=())
    shop = filter_world.Shop(ITEMS, schema=schema, control_share=control_share)
    shop.scorer.retrieval = near = Near()
    shop.ask()
    assert shop.sent[0].arm == ("control" if control_share else "model")
    assert len(near.asked) == recalls


def test_an_item_that_has_just_died_is_on_no_page_and_another_is_there_for_it(shop: Shop) -> None:
    lists = shop.scorer.lists
    stock(shop.scorer, [item(i, gone=True) for i in (32, 101, 102, 19)], shop.index)
    shop.scorer.lists = lists
    answer = shop.ask(explain=True)
    assert not {32, 101, 102, 19} & {i["item_id"] for i in answer["items"]}
    assert len(answer["items"]) == 60
    assert Counter(i["source"] for i in answer["items"])["vectors"] == 30


def test_damaged_last_clicks_are_survived_and_counted(shop: Shop) -> None:
    shop.users.records["ann"][RECENT] = b"\xc1"
    answer = shop.ask()
    assert answer["notes"] == ["the stored last clicks of user 'ann' are damaged: served without them"]
    assert shop.meters.errors == {"recent": 1}
    assert len(answer["items"]) == 60


def test_a_page_calls_nothing_that_the_warm_up_did_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kinds of the arguments, whatever other tests of this process have compiled."""
    seen: set[Any] = set()

    def noting(name: str, kernel: Any) -> Any:
        def called(*given: Any) -> Any:
            seen.add((name, tuple(map(typeof, given))))
            return kernel(*given)

        return called

    for module, names in ((recallkernels, ("merge", "interleave", "shuffled")), (pagekernels, ("affinities",))):
        for name in names:
            monkeypatch.setattr(module, name, noting(name, getattr(module, name)))
    warm_up(SCHEMA)
    warm = set(seen)
    assert {name for name, _ in warm} == {"merge", "interleave", "shuffled", "affinities"}
    seen.clear()
    shop = Shop(tmp_path)
    lists = shop.scorer.lists
    for made in (lists, CandidateLists.of_arrays(lists.arrays())):
        shop.scorer.lists = made
        shop.ask()
        shop.ask(user_id="stranger")
    shop.scorer.retrieval = shop.scorer.neighbours = None
    shop.ask()
    assert {name for name, _ in seen} == {name for name, _ in warm}
    assert seen <= warm


def test_the_model_route_says_which_retrieval_version_there_is(shop: Shop) -> None:
    _, facts = asyncio.run(call(shop.app, "GET", "/model"))
    assert facts["retrieval"] == {"epoch": 2, "version": 41, "clicks": 5000}


# -- Vectors in a worker -----------------------------------------------------------------------------------------------
# What is nearest, held against plain sorting of plain products, whatever came and went since.


# -- the pick ---------------------------------------------------------------------------------------------------------


@given(
    n=st.integers(0, 3 * SAMPLES),
    k=st.integers(0, 700),
    seed=st.integers(0, 99),
    some=st.sampled_from(["normal", "few values", "rising", "nothing counts"]),
)
@examples(60)
def test_the_pick_is_what_sorting_gives(n: int, k: int, seed: int, some: str) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal(n).astype(np.float32)
    if some == "few values":
        scores = np.round(scores)
    elif some == "rising":
        scores = np.sort(scores)
    elif some == "nothing counts":
        scores[:] = -np.inf
    scores[rng.random(n) < 0.05] = -np.inf
    scores[rng.random(n) < 0.05] = np.nan
    found = best(scores, k)
    assert len(set(found.tolist())) == len(found)
    np.testing.assert_array_equal(scores[found], scores[plain_best(scores, k)])


def test_a_sample_that_is_not_like_the_rest_changes_nothing_but_the_time() -> None:
    n, k = 20 * SAMPLES, 50
    step = (n // SAMPLES) | 1
    for high in (slice(None, None, step), slice(1, None, step)):  # the sample has all high scores, or none of them
        scores = np.linspace(0, 1, n, dtype=np.float32)
        scores[high] += 5
        np.testing.assert_array_equal(scores[best(scores, k)], scores[plain_best(scores, k)])


def test_a_large_pick_out_of_many_is_found_by_the_sample() -> None:
    scores = np.random.default_rng(3).standard_normal(100_000).astype(np.float32)
    np.testing.assert_array_equal(best(scores, 500), plain_best(scores, 500))


# -- a version --------------------------------------------------------------------------------------------------------


def test_vectors_are_kept_in_bfloat16_as_torch_rounds() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.standard_normal((130, W)) * 10.0 ** rng.integers(-20, 20, (130, W))).astype(np.float32)
    vectors[7] = np.nan
    tiles, places, out = new_tiles(130, W), rng.permutation(130), np.empty_like(vectors)
    lay(vectors, places, tiles)
    fetch(tiles, places, out)
    np.testing.assert_array_equal(out, rounded(vectors))


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000])
def test_the_nearest_are_those_with_the_largest_products(n: int) -> None:
    rng = np.random.default_rng(n)
    vectors, query = rng.standard_normal((n, W)).astype(np.float32), rng.standard_normal(W).astype(np.float32)
    rows = rng.choice(3 * n, n, replace=False)
    found = retrieval(-np.abs(vectors), rows).nearest(np.abs(query), 40)  # all below 0: an empty lane would come first
    np.testing.assert_array_equal(found, rows[plain_best(rounded(-np.abs(vectors)) @ np.abs(query), 40)])
    assert found.dtype == np.intp


def test_an_item_whose_vector_is_no_number_is_never_found() -> None:
    vectors = np.ones((5, W), np.float32)
    vectors[2] = np.nan
    assert sorted(retrieval(vectors).nearest(np.ones(W, np.float32), 5).tolist()) == [0, 1, 3, 4]


def test_a_query_is_made_of_the_clicks_that_have_vectors() -> None:
    vectors = np.arange(4 * W, dtype=np.float32).reshape(4, W)
    version = retrieval(vectors, rows=[4, 2, 9, 0])
    version.take(np.array([2], np.int32), np.full((1, W), 100, np.float32), np.array([9], np.int32))
    clicks, ages = np.array([0, -1, 2, 9, 3, 77]), np.array([1, 10, 100, 1000, 10_000, 100_000])
    query = version.query(np.arange(3), clicks, ages)
    np.testing.assert_array_equal(query[:-1], ((vectors[3] + 100) / 2)[:-1])
    assert query[-1] == 3 + 1000 * 101  # the ages of those two alone


@given(st.data())
@examples(40)
def test_whatever_comes_and_goes_each_item_counts_once_and_as_it_is_now(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    held = data.draw(st.integers(1, 200))
    first = rng.standard_normal((held, W)).astype(np.float32)
    rows = rng.choice(400, held, replace=False)
    version = retrieval(first, rows)
    known = dict(zip(rows.tolist(), rounded(first), strict=True))
    for _ in range(data.draw(st.integers(0, 8))):
        touched = rng.choice(600, rng.integers(0, 90), replace=False).astype(np.int32)
        gone = touched[rng.random(len(touched)) < 0.3]
        come = np.setdiff1d(touched, gone).astype(np.int32)
        vectors = rng.standard_normal((len(come), W)).astype(np.float32)
        version.take(come, vectors, gone)
        known |= dict(zip(come.tolist(), rounded(vectors), strict=True))
        for row in gone.tolist():
            known.pop(row, None)
        assert len(version) == len(known)
        query = rng.standard_normal(W).astype(np.float32)
        plain = np.array(list(known)), np.array(list(known.values())).reshape(-1, W) @ query
        k = int(rng.integers(1, 300))
        found = version.nearest(query, k)
        expected = plain_best(plain[1], k)
        assert len(set(found.tolist())) == len(found) == len(expected)
        score = dict(zip(plain[0].tolist(), plain[1].tolist(), strict=True))
        np.testing.assert_allclose([score[r] for r in found.tolist()], plain[1][expected], rtol=1e-5, atol=1e-5)


def test_an_item_that_came_and_went_in_one_message_is_gone_and_counts_once() -> None:
    """As a worker is told that joins."""
    version = retrieval(np.ones((5, W), np.float32))
    version.take(np.array([2, 3, 7], np.int32), np.ones((3, W), np.float32), np.array([3, 7], np.int32))
    assert sorted(version.nearest(np.ones(W, np.float32), 9).tolist()) == [0, 1, 2, 4]
    assert len(version) == 4


# -- an approximate index ---------------------------------------------------------------------------------------------


@pytest.fixture
def usearch() -> Any:
    return pytest.importorskip("usearch", reason="usearch is not installed (extra 'ann')")


def indexed(vectors: Any) -> approximate.Approximate:
    builder = approximate.Builder(vectors.shape[1], float(np.linalg.norm(vectors, axis=1).max()))
    for first in range(0, len(vectors), 300):
        builder.add(first, vectors[first : first + 300])
    return approximate.Approximate(vectors.shape[1], builder.saved().copy())


@pytest.mark.usefixtures("usearch")
def test_an_approximate_index_finds_most_and_orders_them_exactly() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((2000, W)).astype(np.float32) * rng.gamma(1, 1, (2000, 1)).astype(np.float32)
    version, exact = retrieval(vectors, finder=indexed(vectors)), retrieval(vectors)
    shares = []
    for _ in range(10):
        query = rng.standard_normal(W).astype(np.float32)
        found = version.nearest(query, 100)
        assert len(set(found.tolist())) == len(found) == 100
        products = rounded(vectors)[found] @ query
        assert (np.diff(products) <= 1e-5).all()
        shares.append(np.isin(found, exact.nearest(query, 100)).mean())
    assert np.mean(shares) > 0.9


@pytest.mark.usefixtures("usearch")
def test_with_an_approximate_index_what_changed_is_exact() -> None:
    rng = np.random.default_rng(6)
    vectors = rng.standard_normal((500, W)).astype(np.float32)
    version, query = retrieval(vectors, finder=indexed(vectors)), np.ones(W, np.float32)
    before = version.nearest(query, 500)
    gone, changed = before[:10].astype(np.int32), before[10:20].astype(np.int32)
    best_now = np.arange(490, 500, dtype=np.int32) + 100  # new items, ahead of all
    come = np.concatenate([changed, best_now])
    vectors = np.concatenate([np.full((10, W), -50), np.full((10, W), 50)]).astype(np.float32)
    version.take(come, vectors, gone)
    after = version.nearest(query, 30)
    assert set(after[:10].tolist()) == set(best_now.tolist())
    assert not np.isin(gone, after).any()
    assert not np.isin(changed, after).any()
    assert len(set(after.tolist())) == 30
    everything = version.nearest(query, 1000)
    assert len(everything) == len(version) == 500 - 10 + 10 - len(np.intersect1d(best_now, before))


def test_without_usearch_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch", None)
    with pytest.raises(SettingError) as caught:
        approximate.check_usearch()
    text = str(caught.value)
    assert "'.[ann]'" in text
    assert "usearch" in text
    assert "\n" not in text
