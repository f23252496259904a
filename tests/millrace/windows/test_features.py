"""Feature arrays: the schema's order, what is missing, rates by hand, and one row like a thousand; how long ago the
first exposure was; numbers among candidates, with the kernel against a plain reference."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from millrace.basics.durations import lengths_in_minutes, unit_minutes
from millrace.basics.errors import SchemaError
from millrace.basics.hashing import combine, mix, value_hash
from millrace.contracts.schema import COUNTED, Schema, parse_schema, shop_schema
from millrace.windows import among_kernels
from millrace.windows.among_kernels import COUNT, OF_MAX, OF_MEAN, RANK
from millrace.windows.features import FeatureBuilder
from millrace.windows.pagewide import page_wide
from millrace.windows.tiles import TileStore
from tests.scenes.exploring import examples
from tests.scenes.parity_shop import BUCKETS, EXPOSURE_AGE, FIELDS, SHORT_FIELDS
from tests.scenes.plain_numbers import plain_num
from tests.scenes.schemas import named, of_context, of_item, of_user, table, windows_of
from tests.scenes.tile_streams import DAY, DAYS, HOUR, T0, A, Event, columns, first_exposed, resumed, streams

SCHEMA = (
    named("t", utc_offset="+08:00")
    + (of_item("price:numeric") + of_item("tag", slots=3))
    + (of_user("user_id") + of_context("hour") + of_user("wealth:numeric"))
    + windows_of(days=[1, 7], actions=("exposure", "click", "cart"), prior_rate=0.2, prior_weight=10)
    + table("[[windows.keys]]", columns=["user_id", "tag"], parent=["tag"])
    + table("[[windows.keys]]", columns=["tag"])
)


@pytest.fixture
def schema() -> Schema:
    return parse_schema(SCHEMA)


def h(*values: object) -> np.ndarray:
    return np.array([value_hash(v) for v in values], np.uint64)


def test_cat_has_the_layouts_columns_each_under_its_own_salt(schema: Schema) -> None:
    builder = FeatureBuilder(schema)
    assert schema.layout.cat_names == ("user_id", "tag", "tag", "tag", "hour")
    tags = np.stack([h("a", "b", None), h("b", None, None)])
    cat = builder.cat({"user_id": h("u"), "tag": tags, "hour": h(3, None)}, 2)
    fields = {f.name: f for f in schema.fields}
    user, tag, hour = (schema.layout.field_salt(fields[n]) for n in ("user_id", "tag", "hour"))
    expected = [
        [mix(user, h("u"))[0], mix(tag, h("a"))[0], mix(tag, h("b"))[0], 0, mix(hour, h(3))[0]],
        [mix(user, h("u"))[0], mix(tag, h("b"))[0], 0, 0, 0],
    ]
    assert cat.dtype == np.int64
    assert np.array_equal(cat.view(np.uint64), np.array(expected, np.uint64))


def test_what_is_absent_reads_as_zero(schema: Schema) -> None:
    builder = FeatureBuilder(schema)
    assert not builder.cat({}, 3).any()
    assert not builder.keys({"user_id": h("u")}, 3)[:, 1].any()
    assert not builder.keys({"user_id": h(None), "tag": h("a")[None]}, 2)[:, 0].any()
    counts = np.zeros((2, 2, 2, 3), np.uint32)
    plain = {"price": np.array([np.nan, np.inf]), "wealth": np.array([-np.inf])}
    assert not builder.num(plain, counts, 2)[:, :2].any()
    assert builder.num({"price": np.array([1e300, 2.0])}, counts, 2)[:, 1].tolist() == [0.0, 2.0]


def test_keys_combine_their_columns_in_order_and_take_a_multi_fields_first_value(schema: Schema) -> None:
    builder = FeatureBuilder(schema)
    tags = np.stack([h("a", "b", None), h("b", None, None)])
    keys = builder.keys({"user_id": h("u"), "tag": tags}, 2)
    assert np.array_equal(keys[:, 0], combine(schema.layout.key_salt("user_id*tag"), h("u"), h("a", "b")))
    assert np.array_equal(keys[:, 1], combine(schema.layout.key_salt("tag"), h("a", "b")))


def test_num_follows_the_layouts_names_with_rates_by_hand(schema: Schema) -> None:
    builder = FeatureBuilder(schema)
    counts = np.array([[[[4, 1, 0], [8, 6, 2]], [[40, 10, 1], [0, 0, 0]]]], np.uint32)  # (1, K, W, A)
    num = builder.num({"price": np.array([9.5]), "wealth": np.array([7.0])}, counts, 1)
    tag_click_1d, tag_cart_1d = (10 + 10 * 0.2) / 50, (1 + 10 * 0.02) / 50
    expected = {
        "wealth": 7.0,
        "price": 9.5,
        "user_id*tag.exposure.1d": 4,
        "user_id*tag.click.1d": 1,
        "user_id*tag.cart.1d": 0,
        "user_id*tag.click_rate.1d": (1 + 10 * tag_click_1d) / 14,
        "user_id*tag.cart_rate.1d": (0 + 10 * tag_cart_1d) / 14,
        "user_id*tag.exposure.7d": 8,
        "user_id*tag.click.7d": 6,
        "user_id*tag.cart.7d": 2,
        "user_id*tag.click_rate.7d": (6 + 10 * 0.2) / 18,
        "user_id*tag.cart_rate.7d": (2 + 10 * 0.02) / 18,
        "tag.exposure.1d": 40,
        "tag.click.1d": 10,
        "tag.cart.1d": 1,
        "tag.click_rate.1d": tag_click_1d,
        "tag.cart_rate.1d": tag_cart_1d,
        "tag.exposure.7d": 0,
        "tag.click.7d": 0,
        "tag.cart.7d": 0,
        "tag.click_rate.7d": 0.2,
        "tag.cart_rate.7d": 0.02,
    }
    assert tuple(expected) == schema.layout.num_names
    assert num[0] == pytest.approx(list(expected.values()), rel=1e-6)


def test_without_prior_weight_an_unseen_key_has_its_parents_rate() -> None:
    builder = FeatureBuilder(parse_schema(SCHEMA.replace("prior_weight = 10", "prior_weight = 0")))
    counts = np.zeros((1, 2, 2, 3), np.uint32)
    counts[0, 1, 0] = [4, 2, 1]
    names = builder.layout.num_names
    num = dict(zip(names, builder.num({}, counts, 1)[0].tolist(), strict=True))
    assert num["tag.click_rate.1d"] == num["user_id*tag.click_rate.1d"] == 0.5
    assert num["user_id*tag.click_rate.7d"] == pytest.approx(0.2)


MEAN = '[[windows.means]]\nof = "price"\naction = "click"\nstep = 0.1\n[[windows.keys]]\ncolumns = ["tag"]'
SCHEMAS = {
    "shop": shop_schema(),
    "days": parse_schema(SCHEMA),
    "without a prior": parse_schema(SCHEMA.replace("prior_weight = 10", "prior_weight = 0")),
    "half-lives": parse_schema(SCHEMA.replace("days = [1, 7]", 'lengths = ["15min", "6h"]\nhalf_lives = [0.5, 4.0]')),
    "means": parse_schema(SCHEMA.replace('[[windows.keys]]\ncolumns = ["tag"]', MEAN)),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_numbers_equal_those_of_array_operations_to_the_bit(name: str) -> None:
    schema = SCHEMAS[name]
    builder, rng, n = FeatureBuilder(schema), np.random.default_rng(7), 300
    spans = len(schema.windows.spans) + (builder.exposed is not None)
    counts = rng.integers(0, 9000, (n, schema.layout.K, spans, schema.windows.columns)).astype(np.uint32)
    counts[rng.random(counts.shape) < 0.3] = 0
    plain = {name: rng.random(n) * 1000 for name in ("price", "age_days", "wealth")}
    ts_ms = 1_650_812_741_436 + rng.integers(0, 10**9, n)
    made, expected = builder.num(plain, counts, n, ts_ms), plain_num(builder, plain, counts, n, ts_ms)
    assert made.any()
    assert made.tobytes() == expected.tobytes()
    nobody = {name: values[:0] for name, values in plain.items()}
    assert builder.num(nobody, counts[:0], 0, ts_ms[:0]).shape == (0, schema.layout.N)


def test_a_row_is_the_same_to_the_bit_alone_and_among_a_thousand() -> None:
    schema = shop_schema()
    builder = FeatureBuilder(schema)
    rng = np.random.default_rng(5)
    n = 1000
    columns = {
        f.name: rng.integers(1, 2**63, 1 if f.of == "user" else n).astype(np.uint64)
        for f in schema.fields
        if f.kind == "categorical"
    }
    plain = {"price": rng.random(n) * 1000, "min_order": rng.random(n)}
    counts = rng.integers(0, 10_000, (n, schema.layout.K, 6, 5)).astype(np.uint32)
    whole: tuple[np.ndarray, ...] = builder.cat(columns, n), builder.keys(columns, n), builder.num(plain, counts, n)
    for i in (0, 7, n - 1):
        mine = {k: v if len(v) == 1 else v[i : i + 1] for k, v in columns.items()}
        one: tuple[np.ndarray, ...] = (
            builder.cat(mine, 1),
            builder.keys(mine, 1),
            builder.num({k: v[i : i + 1] for k, v in plain.items()}, counts[i : i + 1], 1),
        )
        for a, b in zip(whole, one, strict=True):
            assert a[i].tobytes() == b[0].tobytes()


def test_context_is_local_time(schema: Schema) -> None:
    # 1650812741436 is Sunday 24 April 2022, 15:05 UTC; 23:05 at +08:00; an hour later it is Monday there
    context = FeatureBuilder(schema).context(np.array([1650812741436, 1650812741436 + 3_600_000]))
    assert np.array_equal(context["hour"], h(23, 0))
    assert np.array_equal(context["weekday"], h(6, 0))


def test_positions_hash_like_their_numbers_and_negative_ones_are_missing(schema: Schema) -> None:
    position = FeatureBuilder(schema).position
    assert np.array_equal(position(np.array([0, 5, -1])), h(0, 5, None))
    assert np.array_equal(position(np.array([99_999, -1, 3])), h(99_999, None, 3))


def test_age_counts_from_birth_and_never_below_zero() -> None:
    day = 86_400_000
    age = FeatureBuilder(shop_schema()).age_days(np.array([day * 3]), np.array([day, 0, day * 4]))
    assert age.tolist() == [2.0, 0.0, 0.0]


AGED = of_item("age_days:numeric", transform="bucket")


@pytest.mark.parametrize("age", ["1h", "1min", "5min", "20min", "6h", "1d"])
def test_ages_are_whole_steps_however_often_they_are_rounded(age: str) -> None:
    """To the minute they would be a clock where many goods came at one time. From a day on they are whole hours."""
    builder = FeatureBuilder(parse_schema(named("t", age=age) + AGED))
    every, nothing = np.arange(3 * 365 * 1440), np.zeros((0, 0, 0), np.uint32)
    minutes = np.concatenate([every[:4320], every[4320::59]])
    step = np.where(minutes < 1440, builder.schema.age_minutes, max(builder.schema.age_minutes, 60))
    for ms in (0, 1, 30_000):
        whole = (minutes * 60_000 + ms + step * 60) // (step * 60_000) * step  # a thousandth of a step is lent
        made = builder.age_days(1 + minutes * 60_000 + ms, np.ones(len(minutes), np.int64))
        assert np.allclose(made, whole / 1440, rtol=1e-6)
        again = builder.num({"age_days": made}, np.repeat(nothing[None], len(made), 0), len(made))
        assert np.array_equal(again[:, 0], made)


def test_ages_in_hours_are_the_same_schema() -> None:
    plain = parse_schema(named("t") + AGED)
    assert parse_schema(named("t", age="60min") + AGED).id == plain.id
    fine = parse_schema(named("t", age="5min") + AGED)
    assert fine.id != plain.id
    assert fine.edit(age=None).id == plain.id
    assert fine.edit(name="u").age == "5min"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (named("t", age="7min") + AGED, "age = '7min' is no whole part of a day"),
        (named("t", age="2d") + AGED, "age = '2d' is no whole part of a day"),
        (named("t", age="soon") + AGED, "'soon' is no duration"),
        (named("t", age="5min") + of_item("price:numeric"), "no field is an age"),
        (named("t", age="5min") + of_item("age_days:numeric"), 'age_days.*transform = "bucket"'),
        ('age = "5min"\n' + FIELDS + BUCKETS, "finer than 'exposure_age_days', which counts in 1h"),
        ('age = "1min"\n' + SHORT_FIELDS + BUCKETS, "which counts in 5min"),
    ],
)
def test_an_age_that_cannot_be_is_refused_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(SchemaError, match=problem) as told:
        parse_schema(text)
    assert "\n" not in str(told.value)


def test_an_age_since_the_first_exposure_is_as_fine_as_the_windows_at_best() -> None:
    text = 'age = "5min"\n' + SHORT_FIELDS + BUCKETS
    assert parse_schema(text).age_minutes == 5


def test_attributes_equal_whole_columns(schema: Schema) -> None:
    builder = FeatureBuilder(schema)
    columns, plain = builder.attributes("item", {"tag": "a, b,,a", "price": 3, "unheard": 1})
    assert np.array_equal(columns["tag"], builder.column("tag", ["a, b,,a"]))
    assert np.array_equal(columns["tag"], np.stack([h("a", "b", None)]))
    assert np.array_equal(builder.attributes("item", {"tag": ["a", "b"]})[0]["tag"], columns["tag"])
    assert np.array_equal(builder.attributes("item", {"tag": [1, 2, 3, 4]})[0]["tag"], np.stack([h(1, 2, 3)]))
    assert plain == {"price": 3.0}
    assert np.array_equal(builder.attributes("user", {"user_id": 7})[0]["user_id"], builder.column("user_id", ["7"]))


@pytest.mark.parametrize("value", ["dear", float("nan"), float("inf"), [1, 2], {"a": 1}, 10**400])
def test_an_attribute_of_an_unfitting_type_is_missing_not_an_error(schema: Schema, value: object) -> None:
    columns, plain = FeatureBuilder(schema).attributes("item", {"price": value, "tag": value})
    assert plain == {"price": 0.0}
    assert columns["tag"].shape == (1, 3)


def test_needs_lists_each_sides_columns(schema: Schema) -> None:
    builder = FeatureBuilder(schema)
    assert builder.needs("user") == ("user_id", "wealth")
    assert builder.needs("item") == ("price", "tag")
    assert builder.needs("context") == ("hour",)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('name = "hour"', 'name = "hour"\nkind = "numeric"', "hour"),
        ('columns = ["tag"]', 'columns = ["tag"]\nparent = ["user_id", "tag"]', "tag"),
    ],
)
def test_a_schema_that_cannot_be_built_is_refused_by_name(old: str, new: str, named: str) -> None:
    with pytest.raises(SchemaError, match=named):
        FeatureBuilder(parse_schema(SCHEMA.replace(old, new)))


# -- The first exposure that windows know: its definition, and no dependence on how the tiles came about ---------------


lengths_ = st.sampled_from([DAYS, (1,), (2, 5), (1, 30), ("15min", "1h", "6h", "1d", "7d")])
lives_ = st.sampled_from([(), (0.25,)])


@examples(100)
@given(streams(), lengths_, lives_)
@example([(1, T0, 1), (1, T0 + HOUR, 0), (1, T0 + 8 * DAY, 0), (1, T0 + 40 * DAY, 1), (1, T0 + 41 * DAY, 0)], DAYS, ())
def test_the_first_exposure_is_where_its_tile_begins(
    events: list[Event], lengths: tuple[int | str, ...], lives: tuple[float, ...]
) -> None:
    keys, ts, action = columns(events)
    minutes = lengths_in_minutes(lengths)
    whole = TileStore(lengths, A, lives)
    got = whole.run(keys[:, None], ts, action, first=True)[:, 0]
    assert got[:, -1, 0].tolist() == [first_exposed(events, k, t, minutes) for k, t, _ in events]
    plain = TileStore(lengths, A, lives).run(keys[:, None], ts, action)[:, 0]
    assert got[:, :-1].tolist() == plain.tolist(), "the other rows stay as they are"
    asked = np.arange(6, dtype=np.uint64)
    merged, packed = resumed(whole), TileStore(lengths, A, lives)
    packed.put(asked, merged.export(asked))
    for later in (1, HOUR, 5 * HOUR + 1, 3 * DAY, 29 * DAY, 60 * DAY):
        now = int(ts[-1]) + later
        merged.expire(now)
        expected = [first_exposed(events, key, now, minutes) for key in range(6)]
        for store in (whole, merged, packed):
            counts = store.counts(asked, now, first=True)
            assert counts[:, -1, 0].tolist() == expected
            assert not counts[:, -1, 1:].any()
            assert counts[:, :-1].tolist() == store.counts(asked, now).tolist()


def test_more_exposures_than_a_word_holds_are_exposures() -> None:
    """256 of them are a word without a digit at its lowest level."""
    store, key = TileStore((1,), 2), np.array([7], np.uint64)
    store.add(np.repeat(key, 256), np.full(256, T0), np.zeros(256, np.int64))
    assert store.counts(key, T0 + HOUR, first=True)[0].tolist() == [[256, 0], [T0 // HOUR, 0]]


def test_a_number_says_how_many_days_ago_it_was() -> None:
    schema = parse_schema(FIELDS + EXPOSURE_AGE)
    builder = FeatureBuilder(schema)
    store, layout = TileStore.of(schema.windows), schema.layout
    keys = np.array([[5, 6], [7, 8]], np.uint64)
    store.add(keys[:1], np.array([T0 + 1]), np.array([0]))
    store.add(keys[1:], np.array([T0 + 1]), np.array([1]))  # a click alone
    counts = store.counts(keys.ravel(), T0 + 36 * HOUR, first=True).reshape(2, 2, -1, store.columns)
    num = builder.num({"exposure_age_days": np.array([9.0, 9.0])}, counts, 2, T0 + 36 * HOUR)
    assert num[:, layout.num_names.index("exposure_age_days")].tolist() == [1.5, 0.0]
    assert unit_minutes(schema.windows.minutes) == 60


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name = "exposure_age_days"\nof = "item"', 'name = "exposure_age_days"\nof = "user"', "is derived"),
        ('kind = "numeric"\n[windows]', "[windows]", "is derived"),
        ('kind = "numeric"\n[windows]', 'kind = "numeric"\nbias = true\n[windows]', "is derived"),
        ('columns = ["item_id"]\n[[', 'columns = ["user_id"]\n[[', "which there is not"),
        ('name = "item_id"', 'name = "item_id"\nbias = true', "which is a bias"),
        ('of = "price"\nstep', 'of = "exposure_age_days"\nstep', "which follows from counts"),
    ],
)
def test_a_schema_that_cannot_be_is_refused(old: str, new: str, problem: str) -> None:
    text = FIELDS.replace("[windows]", EXPOSURE_AGE.strip() + "\n[windows]", 1).replace('parent = ["item_id"]', "")
    assert parse_schema(text).layout.num_names[1] == "exposure_age_days"
    assert old in text
    with pytest.raises(SchemaError, match=problem):
        parse_schema(text.replace(old, new, 1))


# -- Numbers among candidates ------------------------------------------------------------------------------------------


Floats = NDArray[np.float32]
EVERY = np.array([(0, RANK), (0, OF_MEAN), (0, OF_MAX), (0, COUNT)], np.int64)
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, 2.0, 0.1]),
    st.floats(0, 1e6, width=32),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
)


def plain(values: Floats, members: Floats) -> Floats:
    """The forms of (n,) values by the definition, one value at a time; those among ``members`` (m,) have the mean of
    the places of their equals. (n, 4)"""
    m = len(members)
    out = np.empty((len(values), 4), np.float32)
    for i, v in enumerate(values):
        below, equal = sum(bool(s < v) for s in members), sum(bool(s == v) for s in members)
        place = np.mean(range(below, below + equal)) if equal else below - 0.5
        rank = min(1.0, max(0.0, place / (m - 1))) if m > 1 else 0.5
        total = 0.0
        for s in sorted(members):
            total += max(float(s), 0.0)
        mean, largest = total / m, max(0.0, *map(float, members))
        of_mean = min(max(float(v), 0.0) / mean, m) if mean > 0 else 1.0
        of_max = min(max(float(v), 0.0) / largest, 1.0) if largest > 0 else 1.0
        out[i] = rank, of_mean, of_max, m
    return out


def measured(values: Floats, members: Floats) -> Floats:
    out = np.empty((len(values), 4), np.float32)
    among_kernels.measure(values[:, None], among_kernels.ascending(members[:, None]), EVERY, out)
    return out


@examples(200)
@given(
    members=st.lists(VALUES, min_size=1, max_size=40), others=st.lists(VALUES, max_size=10), seed=st.integers(0, 999)
)
def test_forms_are_those_of_the_definition(members: list[float], others: list[float], seed: int) -> None:
    kept, asked = np.array(members, np.float32), np.array(members + others, np.float32)
    got = measured(asked, kept)
    assert got.tobytes() == plain(asked, kept).tobytes()
    assert np.isfinite(got).all()
    shuffled = np.random.default_rng(seed).permutation(len(kept))
    assert measured(asked, kept[shuffled]).tobytes() == got.tobytes(), "the order of candidates changes no bit"
    assert measured(kept[shuffled], kept).tobytes() == got[shuffled].tobytes()


def test_one_item_equal_items_and_nothing_but_zeros() -> None:
    assert measured(np.array([7], np.float32), np.array([7], np.float32)).tolist() == [[0.5, 1, 1, 1]]
    assert measured(np.array([3, 3], np.float32), np.array([3, 3], np.float32)).tolist() == [[0.5, 1, 1, 2]] * 2
    assert measured(np.array([0, 0], np.float32), np.array([0, 0], np.float32)).tolist() == [[0.5, 1, 1, 2]] * 2
    below = measured(np.array([-4, 2], np.float32), np.array([-4, 2], np.float32))
    assert below.tolist() == [[0, 0, 0, 2], [1, 2, 1, 2]], "a negative value counts as 0 in ratios"


def test_a_value_from_elsewhere_lies_between_its_neighbours_and_never_beyond_the_ends() -> None:
    members = np.array([1, 2, 4], np.float32)
    rank, of_mean, of_max, _ = measured(np.array([3, 9, 0.5], np.float32), members).T.tolist()
    assert rank == [0.75, 1, 0]
    assert of_mean[1] == 3, "at most what one member can have"
    assert of_max[1] == 1


TEXT = (
    named("compared")
    + (of_user("user_id") + of_item("item_id") + of_user("wealth:numeric") + of_item("price:numeric", transform="log"))
    + windows_of("item_id", days=[1, 7])
    + table("[[windows.keys]]", columns=["user_id"], parent=["item_id"])
    + table("[[windows.keys]]", columns=["item_id", "position"])
)
AMONG = table("[[among]]", number="item_id.click_rate.1d") + table("[[among]]", number="price", forms=["of_max"])


def test_columns_stand_last_under_the_numbers_name() -> None:
    without, schema = parse_schema(TEXT), parse_schema(TEXT + AMONG)
    layout = schema.layout
    assert layout.num_names[: layout.among_start] == without.layout.num_names
    assert layout.num_names[layout.among_start :] == (
        "item_id.click_rate.1d.rank",
        "item_id.click_rate.1d.of_mean",
        "item_id.click_rate.1d.of_max",
        "price.of_max",
    )
    assert without.layout.among_start == without.layout.N
    assert without.id == parse_schema(TEXT.replace("compared", "other")).id != schema.id
    assert schema.id != parse_schema(TEXT + AMONG.replace("of_max", "rank")).id
    assert not page_wide(FeatureBuilder(schema)).num[layout.among_start :].any()


def test_an_id_of_before_numbers_among_candidates_is_kept() -> None:
    """The hash of a schema without [[among]] as it was made before there was such an entry."""
    assert parse_schema(TEXT).id == "ed32ff944d1d7747"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('number = "item_id.click_rate.2d"', "among names 'item_id.click_rate.2d', which is no number of this schema"),
        ('number = "item_id"', "among names 'item_id', which is no number"),
        ('number = "price.rank"', "among names 'price.rank', which is no number"),
        ('number = "wealth"', "among names 'wealth', which is the same for all candidates of a page"),
        ('number = "user_id.click.1d"', "among names 'user_id.click.1d', which is the same for all"),
        ('number = "item_id*position.click.1d"', "among names 'item_id*position.click.1d', which is the same for all"),
        ('number = "price"\n[[among]]\nnumber = "price"', "among names 'price' twice"),
        ('number = "price"\nforms = []', "among has the forms [] of 'price'"),
        ('number = "price"\nforms = ["rank", "rank"]', "among has the forms ['rank', 'rank'] of 'price'"),
        ('number = "price"\nforms = ["place"]', "place"),
        (
            'number = "price"\nforms = ["count"]\n[[among]]\nnumber = "item_id.click.1d"\nforms = ["count"]',
            "among counts candidates twice, at 'price' and 'item_id.click.1d'",
        ),
    ],
)
def test_a_number_that_cannot_be_compared_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(SchemaError) as caught:
        parse_schema(f"{TEXT}[[among]]\n{text}\n")
    assert problem in str(caught.value)


def test_a_rate_that_is_smoothed_towards_an_items_varies() -> None:
    schema = parse_schema(TEXT + '[[among]]\nnumber = "user_id.click_rate.1d"\n')
    assert schema.layout.num_names[-1] == "user_id.click_rate.1d.of_max"


def test_a_log_without_pages_is_refused_with_a_way_to_make_them() -> None:
    log = '[log]\ntime = "at"\nuser = "user_id"\nitem = "item_id"\nlabel = "label"\n'
    with pytest.raises(SchemaError) as caught:
        parse_schema(TEXT + AMONG + log)
    assert "the log does not say which rows are one" in str(caught.value)
    assert 'log.combine = { page = ["user_id", "at"] }' in str(caught.value)
    parse_schema(TEXT + AMONG + log + 'request = "page"\ncombine = { page = ["user_id", "at"] }\n')
    parse_schema(TEXT + log)


def test_the_count_of_candidates_is_told_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        schema = parse_schema(TEXT + '[[among]]\nnumber = "price"\nforms = ["rank", "count"]\n', "counting.toml")
    assert caplog.messages == [f"counting.toml: {COUNTED}"]
    assert page_wide(FeatureBuilder(schema)).num[schema.layout.among_start :].tolist() == [False, True]
    caplog.clear()
    parse_schema(TEXT + AMONG)
    assert caplog.messages == []


@examples(40)
@given(n=st.integers(0, 60), pages=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_rows_of_pages_that_are_mixed_are_compared_page_by_page(n: int, pages: int, seed: int) -> None:
    builder = FeatureBuilder(parse_schema(TEXT + AMONG))
    layout = builder.layout
    rng = np.random.default_rng(seed)
    num = rng.choice([0.0, 0.5, 3.0, 7.25], (n, layout.N)).astype(np.float32)
    page, ts_ms = rng.integers(0, pages, n), rng.integers(0, 2, n)
    before = num.copy()
    builder.compare(num, page, ts_ms)
    assert num[:, : layout.among_start].tobytes() == before[:, : layout.among_start].tobytes()
    rate, price = (layout.num_names.index(name) for name in ("item_id.click_rate.1d", "price"))
    for i in range(n):
        mine = before[(page == page[i]) & (ts_ms == ts_ms[i])]
        expected = plain(before[i : i + 1, rate], mine[:, rate])[0, :3]
        assert num[i, layout.among_start : layout.among_start + 3].tobytes() == expected.tobytes()
        assert num[i, -1] == plain(before[i : i + 1, price], mine[:, price])[0, OF_MAX]
