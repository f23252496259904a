"""Feature arrays: the schema's order, what is missing, rates by hand, and one row like a thousand."""

from __future__ import annotations

import numpy as np
import pytest

from millrace.basics.errors import SchemaError
from millrace.basics.hashing import combine, mix, value_hash
from millrace.contracts.schema import Schema, parse_schema, shop_schema
from millrace.windows.features import FeatureBuilder, whole_hours
from tests.scenes.plain_numbers import plain_num

SCHEMA = """
name = "t"
utc_offset = "+08:00"
[[fields]]
name = "price"
of = "item"
kind = "numeric"
[[fields]]
name = "tag"
of = "item"
slots = 3
[[fields]]
name = "user_id"
of = "user"
[[fields]]
name = "hour"
of = "context"
[[fields]]
name = "wealth"
of = "user"
kind = "numeric"
[windows]
days = [1, 7]
actions = ["exposure", "click", "cart"]
prior_rate = 0.2
prior_weight = 10
[[windows.keys]]
columns = ["user_id", "tag"]
parent = ["tag"]
[[windows.keys]]
columns = ["tag"]
"""


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
    age = FeatureBuilder.age_days(np.array([day * 3]), np.array([day, 0, day * 4]))
    assert age.tolist() == [2.0, 0.0, 0.0]


def test_ages_are_whole_hours_however_often_they_are_rounded() -> None:
    """To the minute they would be a clock where many goods came at one time."""
    hours = np.arange(3 * 365 * 24)
    for minutes in (0, 1, 59):
        age = FeatureBuilder.age_days(1 + hours * 3_600_000 + minutes * 60_000, np.ones(len(hours), np.int64))
        assert np.array_equal(age, (hours / np.float32(24)).astype(np.float32))
        assert np.array_equal(whole_hours(age), age)


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
