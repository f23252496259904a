"""Ranking: features equal those built from the same events directly, the page's positions are filled in afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from millrace.contracts.hashing import column_hash
from millrace.contracts.online import window_field
from millrace.windows.tiles import TileStore
from scorer.index import ItemIndex
from scorer.rank import Ranker, User
from scorer.recall import make_lists
from tests.scorer_shop import (
    BUILDER,
    CATEGORY,
    ITEM,
    LAYOUT,
    NOW_MS,
    SLOT,
    TASTE,
    USER,
    item,
    record,
    tiles,
    window_keys,
)

ITEMS = [item("a", "shoes"), item("b", "hats", attributes={"price": 2.0}), item("c", "shoes")]


@pytest.fixture
def ranker() -> Ranker:
    index = ItemIndex(BUILDER)
    index.put([index.prepare(i) for i in ITEMS])
    return Ranker(BUILDER, index)


def shopper(ranker: Ranker, clicks: int = 2, name: str = "u") -> User:
    keys = window_keys(name, ITEMS)
    mine = np.unique(keys[:, [USER, TASTE]])
    return User.of(BUILDER, name, record(mine, tiles(mine, 8, clicks)))


def test_features_equal_those_of_the_events_themselves(ranker: Ranker) -> None:
    """The oracle counts the same events in one store and builds the arrays in one go."""
    rng = np.random.default_rng(0)
    events = TileStore(ranker.builder.schema.windows.days, 3)
    parts = [TileStore(events.days, 3) for _ in range(3)]
    who = rng.integers(0, 2, 500)
    what = rng.integers(0, 3, 500)
    when = np.sort(NOW_MS - rng.integers(1, 4 * 86_400_000, 500))
    act = rng.integers(0, 3, 500)
    keys = np.stack([window_keys(f"u{w}", [ITEMS[i]])[0] for w, i in zip(who, what, strict=True)])
    for store, of in [(events, np.ones(500, np.bool_)), *((s, who == p % 2) for p, s in enumerate(parts[:2]))]:
        store.add(keys[of], when[of], act[of])
    shared = np.unique(keys[:, [CATEGORY, ITEM]])
    for p, store in enumerate(parts):
        ranker.index.put_tiles(p, shared, store.export(shared))
    mine = np.unique(window_keys("u1", ITEMS)[:, [USER, TASTE]])
    user = User.of(BUILDER, "u1", record(mine, events))
    rows = np.array([2, 0, 1])

    got = ranker.features(user, rows, NOW_MS, {"tab": "home"})

    chosen = [ITEMS[r] for r in rows]
    columns = {
        "user_id": column_hash(["u1"]),
        "kind": column_hash(["business"]),
        "item_id": column_hash([i.item_id for i in chosen]),
        "category": column_hash([i.attributes["category"] for i in chosen]),
        "tags": np.tile(column_hash(["red", "new"]), (3, 1)),
        "tab": column_hash(["home"]),
        **BUILDER.context(np.array([NOW_MS])),
    }
    expected_keys = BUILDER.keys(columns, 3)
    counts = np.stack([events.counts(expected_keys[:, k], NOW_MS) for k in range(LAYOUT.K)], axis=1)
    plain = {"price": np.array([5.0, 5.0, 2.0]), "age_days": np.ones(3)}
    assert counts.sum() > 0
    np.testing.assert_array_equal(got.keys, expected_keys)
    np.testing.assert_array_equal(got.cat, BUILDER.cat(columns, 3))
    np.testing.assert_array_equal(got.num, BUILDER.num(plain, counts, 3))


def test_a_position_is_missing_when_ranked_and_filled_in_the_page(ranker: Ranker) -> None:
    user, rows = shopper(ranker), np.array([0, 1, 2])
    features = ranker.features(user, rows, NOW_MS)
    at = LAYOUT.cat_names.index("position")
    assert not features.cat[:, at].any()
    assert not features.keys[:, SLOT].any()
    order = np.array([2, 0])
    page = ranker.placed(features, order, user, rows, NOW_MS, offset=40)
    columns = {"position": column_hash([40, 41]), "item_id": column_hash(["c", "a"])}
    assert page.cat[:, at].tolist() == BUILDER.cat(columns, 2)[:, at].tolist()
    assert page.keys[:, SLOT].tolist() == BUILDER.keys(columns, 2)[:, SLOT].tolist()
    others = np.arange(LAYOUT.F) != at
    np.testing.assert_array_equal(page.cat[:, others], features.cat[order][:, others])
    np.testing.assert_array_equal(page.num, features.num[order])


def test_liking_is_by_clicks_in_the_group(ranker: Ranker) -> None:
    index = ranker.index
    rows = np.arange(3)
    lists = make_lists(BUILDER, index.columns(rows), index.alive, index.born_ms, index.clicks_a_day)
    hats = window_keys("u", [ITEMS[1]])[:, [TASTE]].ravel()
    user = User.of(BUILDER, "u", record(hats, tiles(hats, 30, 3)))
    ((groups, liking),) = ranker.likings(lists.groups, user, NOW_MS)
    liked = {ITEMS[row].attributes["category"]: float(v) for row, v in zip(groups.example, liking, strict=True)}
    assert liked == {"shoes": 0.0, "hats": 2.0}  # (3 / 1 day + 3 / 3 days) / 2
    assert ranker.likings(lists.groups, User.of(BUILDER, "new", {}), NOW_MS) == []


def test_an_unknown_user_and_a_damaged_record_read_as_missing() -> None:
    index = ItemIndex(BUILDER)
    index.put([index.prepare(i) for i in ITEMS])
    errors: list[str] = []
    ranker = Ranker(BUILDER, index, errors.append)
    rows = np.array([0, 1])
    stranger = User.of(BUILDER, "u", {})
    assert not stranger.known
    keys = np.unique(window_keys("u", ITEMS)[:, [USER, TASTE]])
    good = record(keys, tiles(keys, 8, 2), b"not json")
    good[window_field(window_keys("u", ITEMS)[0, USER])] = b"\x01\x63damaged"
    user = User.of(BUILDER, "u", good)
    assert user.known
    assert user.damaged
    features = ranker.features(user, rows, NOW_MS)
    assert errors == ["tiles"]
    taste = LAYOUT.num_names.index("user_id*category.click.1d")
    mine = LAYOUT.num_names.index("user_id.click.1d")
    assert features.num[:, taste].tolist() == [2, 2], "the undamaged lists are used"
    assert features.num[:, mine].tolist() == [0, 0]
