"""Ranking: features equal those built from the same events directly, the page's positions are filled in
afterwards. Reasons of a rank."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.network.forward import PageInput
from learner.serving.model_form import NumberPlan
from millrace.basics.hashing import column_hash
from millrace.contracts.events import Attribute, Item
from millrace.contracts.online_layout import (
    NOTHING,
    PROFILE,
    RECENT,
    Past,
    Recent,
    pack_profile,
    pack_recent,
    window_field,
    window_fields,
)
from millrace.contracts.schema import Schema, parse_schema, shop_schema
from millrace.windows.features import FeatureBuilder
from millrace.windows.pagewide import page_wide
from millrace.windows.tiles import TileStore
from scorer.catalog.item_index import ItemIndex
from scorer.catalog.itemtable import ItemRows
from scorer.page.rank import Ranked, Ranker
from scorer.page.score_reasons import ROWS_AT_ONCE, Input, effects, inputs_of, strongest
from scorer.recall.candidate_lists import make_lists
from scorer.users.userrecord import KnownUser
from tests.scenes.exploring import examples
from tests.scenes.schemas import named, of_context, of_item, of_user, table, windows_of
from tests.scenes.scorer_shop import (
    BUILDER,
    CATEGORY,
    DAY_MS,
    ITEM,
    LAYOUT,
    NOW_MS,
    SCHEMA,
    SCHEMA_TOML,
    SLOT,
    TASTE,
    USER,
    index_of,
    item,
    record,
    table_of,
    tiles,
    window_keys,
)
from tests.scorer.page.plain_page import plain_features, plain_page

ITEMS = [item("a", "shoes"), item("b", "hats", attributes={"price": 2.0}), item("c", "shoes")]
HOUR_MS = 3_600_000


class Chance:
    """A model without a plan for numbers."""

    def score(self, cat: Any, num: Any) -> Any:
        return np.linspace(0.1, 0.9, len(cat), dtype=np.float32)


@dataclass
class Scaled:
    """A model with a plan for numbers, which keeps what it was given."""

    numbers: NumberPlan
    seen: list[Any] = field(default_factory=list)

    def score_page(self, cat: Any, fill: Any, outcomes: bool = False) -> Any:
        n, columns = len(cat), 5 + len(self.numbers.place)
        given = PageInput(np.full((n, columns), np.nan, np.float32), np.full((1, columns), np.nan, np.float32), n)
        fill(self.numbers, given)
        self.seen.append((cat.copy(), given))
        return np.zeros(n, np.float32)

    def score(self, cat: Any, num: Any) -> Any:
        raise AssertionError("a model with a plan is not given raw numbers")


def ranker_of(index: ItemIndex, now_ms: int = NOW_MS) -> Ranker:
    return Ranker(index.builder, table_of(index, now_ms))


def shopper(clicks: int = 2, name: str = "u") -> KnownUser:
    keys = window_keys(name, ITEMS)
    mine = np.unique(keys[:, [USER, TASTE]])
    return KnownUser.of(BUILDER, name, record(mine, tiles(mine, 8, clicks)))


def rank(ranker: Ranker, user: KnownUser, rows: ItemRows, context: dict[str, Any] | None = None) -> Ranked:
    return ranker.rank(user, rows, NOW_MS, context, Chance())


@pytest.mark.slow
def test_features_equal_those_of_the_events_themselves() -> None:
    """The oracle counts the same events in one store and builds the arrays in one go."""
    index = index_of(ITEMS)
    rng = np.random.default_rng(0)
    events = TileStore(SCHEMA.windows.days, 3)
    parts = [TileStore(events.lengths, 3) for _ in range(3)]
    who = rng.integers(0, 2, 500)
    what = rng.integers(0, 3, 500)
    when = np.sort(NOW_MS - rng.integers(1, 4 * 86_400_000, 500))
    act = rng.integers(0, 3, 500)
    keys = np.stack([window_keys(f"u{w}", [ITEMS[i]])[0] for w, i in zip(who, what, strict=True)])
    for store, of in [(events, np.ones(500, np.bool_)), *((s, who == p % 2) for p, s in enumerate(parts[:2]))]:
        store.add(keys[of], when[of], act[of])
    shared = np.unique(keys[:, [CATEGORY, ITEM]])
    for p, store in enumerate(parts):
        index.put_tiles(p, shared, store.export(shared))
    mine = np.unique(window_keys("u1", ITEMS)[:, [USER, TASTE]])
    user = KnownUser.of(BUILDER, "u1", record(mine, events))
    rows = np.array([2, 0, 1])

    got = rank(ranker_of(index), user, rows, {"tab": "home"})

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
    num = BUILDER.num(plain, counts, 3)
    BUILDER.compare(num, np.zeros(3, np.intp))
    np.testing.assert_array_equal(got.num, num)


def test_counts_that_a_guest_shares_with_the_user_count_once() -> None:
    """Of a key of the user's side without his id: both records hold the same."""
    schema = parse_schema(f'{SCHEMA_TOML.read_text()}[[windows.keys]]\ncolumns = ["kind", "category"]\n')
    builder = FeatureBuilder(schema)
    columns = {"kind": column_hash(["business"]), "category": column_hash([i.attributes["category"] for i in ITEMS])}
    keys = np.unique(builder.keys(columns, len(ITEMS))[:, -1])
    store = TileStore.of(schema.windows)
    store.add(keys, np.full(len(keys), NOW_MS - HOUR_MS), np.ones(len(keys), np.int64))
    user, guest, new = (
        KnownUser.of(builder, name, record(keys[:n], store)) for name, n in (("u", 9), ("s", 9), ("u", 0))
    )
    ranker, rows = ranker_of(index_of(ITEMS, builder)), np.arange(len(ITEMS))
    once, both, without = (rank(ranker, one, rows).num for one in (user, replace(user, guests=(guest,)), new))
    np.testing.assert_array_equal(both, once)
    assert (once != without).any()


# -- the compiled pass against the plain way, over all that a schema can ask for ----------------------------------

FIELDS = (
    named("rich", utc_offset="+05:30")
    + (of_user("user_id") + of_user("kinds", slots=2) + of_user("wealth:numeric") + of_user("mood", bias=True))
    + (of_item("item_id") + of_item("tags", slots=3) + of_item("shelf", bias=True))
    + (of_item("price:numeric", "age_days:numeric") + of_context("hour", "tab", "bid:numeric"))
    + of_context("position", bias=True)
)
AGE = of_item("age_days:numeric").removeprefix("[[fields]]\n")
MEANS = ({"of": "price", "step": 0.01}, {"of": "bid", "step": 0.5, "action": "cart"})
KEYS = {
    "tab tags user_id": "tags",
    "tags": "hour",
    "item_id": "tags",
    "tags hour": "user_id",
    "user_id": "",
    "hour": "",
    "user_id item_id": "item_id",
    "item_id position": "item_id",
    "shelf mood": "",
    "user_id price": "",
}
"""Columns of each key, and what it shrinks towards."""


def windows(means: tuple[dict[str, Any], ...] = MEANS, keys: dict[str, str] = KEYS, **settings: Any) -> str:
    settings = {"prior_weight": 7.5, **({} if "lengths" in settings else {"days": [1, 4]}), **settings}
    text = windows_of(actions=("exposure", "cart", "click"), means=means, half_lives=[0.5, 2], **settings)
    for key, parent in keys.items():
        text += table("[[windows.keys]]", columns=key.split(), **({"parent": [parent]} if parent else {}))
    return text


def among(number: str, **forms: Any) -> str:
    return table("[[among]]", number=number, **forms)


BARE = FIELDS + windows((), {})
AMONG = (
    among("price")
    + among("tags.cart_rate.h2d", forms=["of_mean", "count"])
    + among("item_id.price_mean_click.4d", forms=["of_max", "rank"])
    + among("user_id*item_id.exposure.1d")
)
SCHEMAS: dict[str, Schema] = {
    "test shop": SCHEMA,
    "shop": shop_schema(),
    "rich": parse_schema(FIELDS + windows()),
    "short windows": parse_schema(FIELDS + windows(lengths=["15min", "2h", "1d", "4d"])),
    "without windows": parse_schema(BARE),
    "among": parse_schema(FIELDS + windows() + AMONG),
    "among without windows": parse_schema(BARE + among("price")),
    "age since the first exposure": parse_schema(
        FIELDS + windows() + of_item("exposure_age_days:numeric") + among("exposure_age_days")
    ),
    "ages in minutes": parse_schema(
        'age = "5min"\n'
        + FIELDS.replace(AGE, f'{AGE}transform = "bucket"\n')
        + windows(lengths=["15min", "1h", "1d", "4d"])
        + of_item("exposure_age_days:numeric", transform="bucket")
    ),
    "without a prior": parse_schema(FIELDS + windows(prior_weight=0)),
}
BUILDERS = {name: FeatureBuilder(schema) for name, schema in SCHEMAS.items()}


@dataclass
class World:
    """A made-up shop: its index, and users with their records."""

    index: ItemIndex
    users: list[KnownUser]
    now_ms: int

    @classmethod
    def of(cls, schema: str, seed: int, events: int) -> World:
        builder = BUILDERS[schema]
        rng = np.random.default_rng(seed)

        def pick(name: str, most: int) -> Any:
            return None if rng.random() < 0.15 else f"{name}{rng.integers(0, most)}"

        items = [
            Item(
                f"i{i}",
                {
                    "category": pick("c", 4),
                    "tags": [pick("t", 4), pick("t", 4)],
                    "shelf": pick("s", 3),
                    "price": float(rng.choice([0.0, 9.99, 1e300, -3.5])),
                },
                int(rng.choice([0, NOW_MS - 3 * DAY_MS, NOW_MS - 17 * HOUR_MS // 60, NOW_MS + DAY_MS])),
            )
            for i in range(12)
        ]
        index = index_of(items, builder)
        profiles: list[dict[str, Attribute]] = [
            {},
            {"kinds": ["a", "b"], "wealth": 1e6, "mood": "low", "kind": "business", "region": "r"},
        ]
        now_ms = NOW_MS + int(rng.integers(0, 2)) * (HOUR_MS - 1)
        people = [KnownUser.of(builder, f"u{u}", {PROFILE: pack_profile(p)}) for u, p in enumerate(profiles)]
        store = TileStore.of(builder.schema.windows)
        windows = builder.schema.windows
        amount = rng.integers(1, 40, events)
        for e in range(events):
            who, row = people[rng.integers(0, 2)], np.array([rng.integers(0, 12)])
            ts_ms = now_ms - 1 - int(rng.integers(0, 6 * DAY_MS) // rng.choice([1, 40]))
            columns = {**index.columns(row), **who.columns, **builder.context(np.array([ts_ms]))}
            columns |= {"tab": column_hash(["home"]), "position": builder.position(np.array([3]))}
            keys = builder.keys(columns, 1)
            keys = keys[:, keys[0] != 0]
            store.add(keys, np.array([ts_ms]), np.array([rng.integers(0, windows.columns)]), int(amount[e]))
        every = store.keys()
        for p, some in enumerate((every[::2], every[1::2])):
            index.put_tiles(p, some, store.export(some))
        tiles_of = dict(zip(window_fields(every), store.export(every), strict=True))
        users = [KnownUser(u.columns, u.plain, {**u.tiles, **tiles_of}) for u in people]
        stranger = KnownUser.of(builder, "nobody", {})
        return cls(index, [*users, stranger], now_ms)


@pytest.mark.slow
@examples(60)
@given(
    schema=st.sampled_from(sorted(SCHEMAS)),
    seed=st.integers(0, 2**32 - 1),
    events=st.integers(0, 60),
    rows=st.lists(st.integers(0, 11), min_size=0, max_size=30),
    who=st.integers(0, 2),
    context=st.sampled_from([{}, {"tab": "home", "bid": 1.5}, {"tab": "home", "hour": 9, "bid": "much"}]),
    exact=st.booleans(),
)
def test_a_page_is_the_plain_ways_bit_for_bit(
    schema: str, seed: int, events: int, rows: list[int], who: int, context: dict[str, Any], exact: bool
) -> None:
    world = World.of(schema, seed, events)
    index, user, now_ms = world.index, world.users[who], world.now_ms
    chosen = np.array(rows, np.intp)
    ranker = ranker_of(index, now_ms)
    counts = index.counts_at(chosen, now_ms) if exact else None
    got = ranker.rank(user, chosen, now_ms, context, Chance(), counts)
    expected = plain_features(index, user, chosen, now_ms, context)
    assert got.cat.tobytes() == expected.cat.tobytes()
    assert got.keys.tobytes() == expected.keys.tobytes()
    assert got.num.tobytes() == expected.num.tobytes()
    order = np.random.default_rng(seed).permutation(len(rows))[: len(rows) // 2 + 1]
    page = ranker.placed(got, order, user, chosen, now_ms, context, 7)
    plain = plain_page(index, expected, order, user, chosen, now_ms, context, 7)
    assert page.cat.tobytes() == plain.cat.tobytes()
    assert page.keys.tobytes() == plain.keys.tobytes()
    assert page.num.tobytes() == plain.num.tobytes()


@examples(30)
@given(schema=st.sampled_from(sorted(SCHEMAS)), seed=st.integers(0, 2**32 - 1), all_log=st.booleans())
def test_what_the_model_sees_are_the_logged_numbers_squashed_and_scaled(schema: str, seed: int, all_log: bool) -> None:
    world = World.of(schema, seed, 40)
    rng, width = np.random.default_rng(seed), SCHEMAS[schema].layout.N
    log = np.ones(width, np.bool_) if all_log else rng.random(width) < 0.5
    mean, factor = rng.normal(0, 1, width).astype(np.float32), rng.lognormal(0, 2, width).astype(np.float32)
    wide = page_wide(world.index.builder)
    place = np.arange(width, dtype=np.int32) + 5
    place[wide.num] = -1 - place[wide.num]
    model = Scaled(NumberPlan(np.arange(width, dtype=np.int32), log, mean, factor, np.float32(4), place))
    rows = rng.integers(0, 12, 40)
    got = ranker_of(world.index, world.now_ms).rank(world.users[1], rows, world.now_ms, None, model)
    ((cat, given),) = model.seen
    x = np.where(wide.num, given.same[:, 5:], given.own[:, 5:])  # what is the same in all rows is there one time
    num = got.num
    squashed = np.where(log, np.copysign(np.log1p(np.abs(num)), num), num)
    expected = np.clip((squashed - mean) * factor, -4, 4)
    rounding = 3e-7 * (np.abs(squashed) + np.abs(mean)) * factor  # of the logarithm and the difference
    assert (np.abs(x - expected) <= rounding + 1e-6).all()
    for part in (given.own, given.same):
        assert np.isnan(part[:, :5]).all(), "the embeddings' place is the model's"
    assert np.isnan(given.own[:, 5:][:, wide.num]).all()
    np.testing.assert_array_equal(cat, got.cat)
    for told, column in ((wide.cat, cat), (wide.num, num)):
        assert (column[:, told] == column[:1, told]).all(), "columns that are told to be equal are"
    assert wide.cat.sum() >= 2


def test_clicks_and_outcomes_are_predicted_in_one_pass_where_the_model_has_one() -> None:
    """Of raw numbers one time where it has none, and without outcomes where it predicts none."""
    world = World.of("rich", 3, 40)
    width, rows = world.index.builder.layout.N, np.arange(12)
    plan = NumberPlan(
        np.arange(width, dtype=np.int32),
        np.zeros(width, np.bool_),
        np.zeros(width, np.float32),
        np.ones(width, np.float32),
        np.float32(9),
        np.arange(width, dtype=np.int32),
    )
    told = np.random.default_rng(0).random((12, 3), np.float32)

    class Paged(Scaled):
        def score_page(self, cat: Any, fill: Any, outcomes: bool = False) -> Any:
            super().score_page(cat, fill)
            return told if outcomes else told[:, 0]

        def predict(self, cat: Any, num: Any) -> Any:
            raise AssertionError("a page is not scored again")

    class Plain(Chance):
        calls = 0

        def predict(self, cat: Any, num: Any) -> Any:
            self.calls += 1
            return told

    ranker, paged, plain = ranker_of(world.index, world.now_ms), Paged(plan), Plain()
    for model in (paged, plain):
        got = ranker.rank(world.users[1], rows, world.now_ms, None, model, outcomes=True)
        assert np.array_equal(got.scores, told[:, 0])
        assert got.outcomes is not None
        assert np.array_equal(got.outcomes, told[:, 1:])
    assert (len(paged.seen), plain.calls) == (1, 1)
    for other, wanted in ((paged, False), (Chance(), True)):
        assert ranker.rank(world.users[1], rows, world.now_ms, None, other, outcomes=wanted).outcomes is None


def test_a_position_is_missing_when_ranked_and_filled_in_the_page() -> None:
    ranker, user, rows = ranker_of(index_of(ITEMS)), shopper(), np.array([0, 1, 2])
    ranked = rank(ranker, user, rows)
    at = LAYOUT.cat_names.index("position")
    assert not ranked.cat[:, at].any()
    assert not ranked.keys[:, SLOT].any()
    order = np.array([2, 0])
    page = ranker.placed(ranked, order, user, rows, NOW_MS, offset=40)
    columns = {"position": column_hash([40, 41]), "item_id": column_hash(["c", "a"])}
    assert page.cat[:, at].tolist() == BUILDER.cat(columns, 2)[:, at].tolist()
    assert page.keys[:, SLOT].tolist() == BUILDER.keys(columns, 2)[:, SLOT].tolist()
    others = np.arange(LAYOUT.F) != at
    np.testing.assert_array_equal(page.cat[:, others], ranked.cat[order][:, others])
    np.testing.assert_array_equal(page.num, ranked.num[order])


def test_numbers_of_a_page_asked_for_too_late_are_refused_not_those_of_another_page() -> None:
    ranker = ranker_of(index_of(ITEMS))
    first = rank(ranker, shopper(), np.array([0]))
    second = rank(ranker, shopper(), np.array([1]))
    assert second.num.shape == (1, LAYOUT.N)
    with pytest.raises(RuntimeError, match="after another page"):
        first.num  # noqa: B018


def test_more_candidates_than_ever_before_find_room() -> None:
    items = [item(i, f"c{i}") for i in range(3000)]
    index = index_of(items)
    ranker, rows = ranker_of(index), np.arange(3000)
    got, expected = rank(ranker, shopper(), rows), plain_features(index, shopper(), rows, NOW_MS)
    assert got.num.tobytes() == expected.num.tobytes()


def test_a_far_time_has_the_counts_of_that_time() -> None:
    index = index_of(ITEMS)
    key = window_keys("u", ITEMS[:1])[:, ITEM]
    index.put_tiles(0, key, tiles(key, 9, 3).export(key))
    ranker, rows, then = ranker_of(index), np.array([0, 1]), NOW_MS - DAY_MS
    user = KnownUser.of(BUILDER, "u", {})
    near = ranker.rank(user, rows, then, None, Chance()).num
    far = ranker.rank(user, rows, then, None, Chance(), index.counts_at(rows, then)).num
    at = LAYOUT.num_names.index("item_id.exposure.1d")
    assert near[:, at].tolist() == [9, 0], "the table's are of its own hour"
    assert far[:, at].tolist() == [0, 0]
    assert far.tobytes() == plain_features(index, user, rows, then).num.tobytes()


def test_a_user_is_read_again_at_another_time() -> None:
    index, user, rows = index_of(ITEMS), shopper(), np.array([0])
    ranker = ranker_of(index)
    for at_ms in (NOW_MS, NOW_MS + 2 * DAY_MS):
        got = ranker.rank(user, rows, at_ms, None, Chance())
        assert got.num.tobytes() == plain_features(index, user, rows, at_ms).num.tobytes()


def test_counts_of_other_items_are_refused() -> None:
    index = index_of(ITEMS)
    rows = np.arange(3)
    with pytest.raises(ValueError, match="of 2 items"):
        ranker_of(index).rank(shopper(), rows[:2], NOW_MS, None, Chance(), index.counts_at(rows, NOW_MS))


def test_affinity_is_by_clicks_in_the_group() -> None:
    index = index_of(ITEMS)
    ranker = ranker_of(index)
    lists = make_lists(BUILDER, index.columns(np.arange(3)), index.alive, index.born_ms, index.heat)
    hats = window_keys("u", [ITEMS[1]])[:, [TASTE]].ravel()
    user = KnownUser.of(BUILDER, "u", record(hats, tiles(hats, 30, 3)))
    ((groups, affinity),) = ranker.affinities(lists.groups, user, NOW_MS)
    liked = {ITEMS[row].attributes["category"]: float(v) for row, v in zip(groups.example, affinity, strict=True)}
    assert liked == {"shoes": 0.0, "hats": 2.0}  # (3 / 1 day + 3 / 3 days) / 2
    assert ranker.affinities(lists.groups, KnownUser.of(BUILDER, "new", {}), NOW_MS) == []


def test_a_users_own_feature_ids_are_the_columns_of_cat() -> None:
    ranker = ranker_of(index_of(ITEMS))
    of_user = [c for c, name in enumerate(LAYOUT.cat_names) if name in ("user_id", "kind")]
    for user in (shopper(), KnownUser.of(BUILDER, "new", {})):
        assert ranker.user_ids(user).tolist() == BUILDER.cat(user.columns, 1)[0, of_user].tolist()
    assert ranker.user_ids(KnownUser.of(BUILDER, "new", {}))[1] == 0, "a new user's kind is missing"


def test_what_a_user_did_last_is_read_and_may_be_damaged() -> None:
    recent = Recent([Past("a", 3), Past(7, 2)], [Past(7, 1)])
    assert KnownUser.of(BUILDER, "u", {RECENT: pack_recent(recent)}).recent == recent
    damaged = KnownUser.of(BUILDER, "u", {RECENT: b"\xc1"})
    assert (damaged.recent, damaged.forgotten, damaged.damaged) == (NOTHING, True, False)
    assert KnownUser.of(BUILDER, "u", {}).recent == NOTHING


def test_an_unknown_user_and_a_damaged_record_read_as_missing() -> None:
    errors: list[str] = []
    ranker = Ranker(BUILDER, table_of(index_of(ITEMS)), errors.append)
    rows = np.array([0, 1])
    stranger = KnownUser.of(BUILDER, "u", {})
    assert not stranger.tiles
    keys = np.unique(window_keys("u", ITEMS)[:, [USER, TASTE]])
    good = record(keys, tiles(keys, 8, 2), b"not json")
    good[window_field(window_keys("u", ITEMS)[0, USER])] = b"\x01\x63damaged"
    user = KnownUser.of(BUILDER, "u", good)
    assert user.damaged
    ranked = rank(ranker, user, rows)
    assert errors == ["tiles"]
    taste = LAYOUT.num_names.index("user_id*category.click.1d")
    mine = LAYOUT.num_names.index("user_id.click.1d")
    assert ranked.num[:, taste].tolist() == [2, 2], "the undamaged lists are used"
    assert ranked.num[:, mine].tolist() == [0, 0]


# -- Reasons: taking an input away changes the logit by what the input brought -----------------------------------------


class Additive:
    """The logit is a sum over the inputs, so that each one's share is known."""

    def __init__(self, of_id: dict[int, float], weights: Any) -> None:
        self.of_id, self.weights = of_id, weights
        self.asked: list[int] = []

    def score(self, cat: Any, num: Any) -> Any:
        self.asked.append(len(cat))
        ids = np.array([sum(self.of_id.get(i, 0.0) for i in row) for row in cat.tolist()])
        return (1 / (1 + np.exp(-(ids + num @ self.weights)))).astype(np.float32)


def test_inputs_cover_each_column_that_ranking_knows_exactly_once() -> None:
    for schema in (SCHEMA, shop_schema()):
        inputs, layout = inputs_of(schema), schema.layout
        late = {f.name for f in schema.fields if f.bias} | {"position"}
        cat = [c for i in inputs for c in i.cat]
        assert sorted(cat) == [c for c, name in enumerate(layout.cat_names) if name not in late]
        assert sorted(n for i in inputs for n in i.num) == list(range(layout.N))
        assert {layout.num_names[n].split(".")[0] for i in inputs for n in i.num} <= {i.name for i in inputs}
        names = [i.name for i in inputs]
        assert "position" not in names
        assert len(set(names)) == len(names), "a reason's name says which input is meant"


def test_the_effect_is_what_the_input_adds_to_the_logit() -> None:
    inputs = inputs_of(SCHEMA)
    random = np.random.default_rng(3)
    cat = random.integers(1, 50, (7, LAYOUT.F))
    num = random.normal(size=(7, LAYOUT.N)).astype(np.float32)
    model = Additive({i: random.normal() / 9 for i in range(1, 50)}, random.normal(size=LAYOUT.N) / 20)
    found = effects(model, cat, num, inputs)
    plain = np.zeros((7, len(inputs)))
    for i in range(7):
        for g, taken in enumerate(inputs):
            plain[i, g] += sum(model.of_id[int(cat[i, c])] for c in taken.cat)
            plain[i, g] += sum(model.weights[n] * (num[i, n] - num[:, n].mean()) for n in taken.num)
    np.testing.assert_allclose(found, plain, atol=2e-5)


def test_the_model_is_never_asked_for_more_rows_than_a_page_has() -> None:
    inputs = [Input(f"f{g}", (g % LAYOUT.F,), ()) for g in range(200)]
    model = Additive({}, np.zeros(LAYOUT.N))
    effects(model, np.ones((20, LAYOUT.F), np.int64), np.zeros((20, LAYOUT.N), np.float32), inputs)
    assert max(model.asked) <= ROWS_AT_ONCE
    assert sum(model.asked) == 20 * 201


def test_scores_of_0_and_1_have_effects_that_are_numbers() -> None:
    class Sure:
        def score(self, cat: Any, num: Any) -> Any:
            return (cat[:, 0] > 0).astype(np.float32)

    found = effects(Sure(), np.ones((2, 1), np.int64), np.zeros((2, 0), np.float32), [Input("id", (0,), ())])
    assert np.isfinite(found).all()
    assert (found > 10).all()


def test_an_input_without_effect_is_no_reason() -> None:
    inputs = [Input(n, (), ()) for n in "abcd"]
    found = np.array([[2.4e-7, np.nan, -0.2, 0.1], [0.0, 0.0, 0.0, 0.0]], np.float32)  # of p near .5, one bit is 2.4e-7
    assert [[name for name, _ in reasons] for reasons in strongest(found, inputs, 4)] == [["c", "d"], []]


def test_nothing_is_asked_of_an_empty_page() -> None:
    model = Additive({}, np.zeros(LAYOUT.N))
    nothing = effects(model, np.zeros((0, LAYOUT.F), np.int64), np.zeros((0, LAYOUT.N), np.float32), inputs_of(SCHEMA))
    assert nothing.shape == (0, len(inputs_of(SCHEMA)))
    assert not model.asked
