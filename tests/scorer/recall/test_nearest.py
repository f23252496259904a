"""Vectors in a worker: what is nearest, held against plain sorting of plain products, whatever came and went since."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.errors import SettingError
from scorer.recall import approximate
from scorer.recall.nearest import SAMPLES, best, new_tiles
from scorer.recall.nearestkernels import fetch, lay
from tests.scenes.exploring import examples
from tests.scenes.nearest_items import W, plain_best, retrieval, rounded

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
