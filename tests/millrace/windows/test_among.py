"""Numbers among candidates: the kernel against a plain reference, order and edges; columns and errors of a schema."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from millrace.basics.errors import SchemaError
from millrace.contracts.schema import COUNTED, parse_schema
from millrace.windows import among_kernels
from millrace.windows.among_kernels import COUNT, OF_MAX, OF_MEAN, RANK
from millrace.windows.features import FeatureBuilder
from millrace.windows.pagewide import page_wide
from tests.scenes.exploring import examples

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


TEXT = """
name = "compared"
[[fields]]
name = "user_id"
of = "user"
[[fields]]
name = "item_id"
of = "item"
[[fields]]
name = "wealth"
of = "user"
kind = "numeric"
[[fields]]
name = "price"
of = "item"
kind = "numeric"
transform = "log"
[windows]
days = [1, 7]
actions = ["exposure", "click"]
[[windows.keys]]
columns = ["item_id"]
[[windows.keys]]
columns = ["user_id"]
parent = ["item_id"]
[[windows.keys]]
columns = ["item_id", "position"]
"""
AMONG = """
[[among]]
number = "item_id.click_rate.1d"
[[among]]
number = "price"
forms = ["of_max"]
"""


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
