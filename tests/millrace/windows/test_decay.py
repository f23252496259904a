"""Decayed counts and means: their definition, their bound against each event's own weight, and no dependence on how the
tiles came about."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from millrace.basics.errors import SchemaError
from millrace.contracts.schema import Schema, parse_schema, shop_schema
from millrace.windows.features import FeatureBuilder, steps
from millrace.windows.tile_memory import UNIT
from millrace.windows.tiles import TileStore, counts_of
from tests.scenes.exploring import examples
from tests.scenes.schemas import mistake, named, of_item, of_user, windows_of
from tests.scenes.tile_changes import grain_hours
from tests.scenes.tile_streams import (
    DAY,
    DAYS,
    HOUR,
    T0,
    A,
    Event,
    by_definition,
    columns,
    decayed,
    streams,
)

HALF_LIVES = (0.25, 1.0, 7.0)
lives_ = st.sampled_from([HALF_LIVES, (0.25,), (0.3, 60.0)])  # weights that end before the windows, and far after
days_ = st.sampled_from([DAYS, (1,), (2, 5), (30,), (1, 30), (3, 40)])


def weighed(values: np.ndarray, ts: int, lives: tuple[float, ...] = HALF_LIVES) -> np.ndarray:
    """Decayed counts (H, A) at ``ts`` itself."""
    life_ms = np.array(lives) * DAY
    faded: np.ndarray = values / UNIT * 2 ** -(ts % HOUR / life_ms)[:, None]
    return faded


def limits(
    events: list[Event], key: int, ts: int, days: tuple[int, ...], lives: tuple[float, ...] = HALF_LIVES
) -> tuple[np.ndarray, np.ndarray]:
    """What a decayed count may be at least and at most (H, A): each event's exact weight, within half its tile's grain.

    The grain is that of the finest windows that an event as old as this may still be in. An event that the longest
    window may or may not reach, by its own grain, counts in the upper limit only.
    """
    low, high = np.zeros((len(lives), A)), np.zeros((len(lives), A))
    longest, last = days[-1] * DAY, grain_hours(days[-1]) * HOUR
    for k, t, a in events:
        if k != key or t >= ts or t < ts - longest - last:
            continue
        # The finest grain whose windows, a coarser tile longer, have not all passed.
        grains = sorted({1, *map(grain_hours, days)})
        wide = 1
        for fine, coarse in pairwise(grains):
            reach = max([d for d in days if grain_hours(d) <= fine], default=0)
            wide = coarse if ts - t >= reach * DAY else wide  # it may be merged from here on
        for i, half_life in enumerate(lives):
            exact, slack = 2 ** (-(ts - t) / (half_life * DAY)), 2 ** (wide / 24 / half_life / 2)
            rounding = 2.0**-25
            high[i, a] += exact * slack + rounding
            low[i, a] += max(0, exact / slack - rounding) if t >= ts - longest else 0
    return low, high


@examples(100)
@given(streams(), days_, lives_)
@example([(1, T0, 0), (1, T0 + 3 * DAY, 1), (1, T0 + 6 * DAY, 2), (1, T0 + 26 * DAY, 0)], DAYS, (0.25,))
@example([(1, T0, 0), (1, T0 + 24 * DAY, 1), (1, T0 + 31 * DAY - 1, 1), (1, T0 + 31 * DAY, 2)], DAYS, HALF_LIVES)
def test_decayed_counts_are_what_the_definition_says_and_within_the_bound(
    events: list[Event], days: tuple[int, ...], lives: tuple[float, ...]
) -> None:
    keys, ts, action = columns(events)
    pair = np.stack([keys, keys + np.uint64(100)], axis=1)
    got = TileStore(days, A, lives).run(pair, ts, action)
    for i, (key, t, _) in enumerate(events):
        assert got[i, 0, : len(days)].tolist() == by_definition(events, key, t, days)
        assert got[i, 0, len(days) :].tolist() == decayed(events, key, t, days, lives)
        low, high = limits(events, key, t, days, lives)
        value = weighed(got[i, 0, len(days) :], t, lives)
        assert (low <= value * (1 + 1e-12)).all()
        assert (value * (1 - 1e-12) <= high).all()
    assert (got[:, 0] == got[:, 1]).all()


def test_the_bound_is_tight_enough_to_notice_half_an_hour() -> None:
    """The check above can fail: at both edges of a tile an event's weight is all but at its limit."""
    for t, edge in ((T0, 0), (T0 + HOUR - 1, 1)):
        events = [(1, t, 0), (1, T0 + 5 * HOUR, 0)]
        keys, ts, action = columns(events)
        value = weighed(TileStore(DAYS, A, HALF_LIVES).run(keys[:, None], ts, action)[1, 0, len(DAYS) :], int(ts[1]))
        limit = limits(events, 1, int(ts[1]), DAYS)[1 - edge]
        np.testing.assert_allclose(value[:, 0], limit[:, 0], rtol=1e-5)


@examples(60)
@given(
    streams(60),
    st.lists(st.sampled_from([0, 1, 999, 65_535, 1 << 20, (1 << 24) - 1]), min_size=60, max_size=60),
    st.sampled_from([2, 4, 5]),  # columns before the sums: those lie in one word with the counts, in two, in the next
)
def test_sums_are_kept_beside_counts(events: list[Event], values: list[int], before: int) -> None:
    keys, ts, action = columns(events)
    action = action % 2
    added = np.array([[v * (a == 1), v * (a == 0)] for v, a in zip(values, action, strict=False)], np.uint32)
    store = TileStore((1, 7), before + 2, (1.0,), 2)
    got = store.run(keys[:, None], ts, action, added)
    for i, (key, t, _) in enumerate(events):
        for w, (days, grain) in enumerate(((1, HOUR), (7, 6 * HOUR))):
            mine = [
                j for j in range(i) if events[j][0] == key and ts[j] < t and ts[j] // grain >= (t - days * DAY) // grain
            ]
            counts = [sum(int(action[j]) == a for j in mine) for a in range(before)]
            sums = [sum(int(added[j, m]) for j in mine) for m in range(2)]
            assert got[i, 0, w].tolist() == counts + sums
    one_by_one = TileStore((1, 7), before + 2, (1.0,), 2)
    for m, column in ((None, action), (0, before), (1, before + 1)):
        one_by_one.add(keys, ts, np.broadcast_to(column, len(ts)), 1 if m is None else added[:, m])
    at = int(ts[-1]) + 1
    every = np.arange(1, 5, dtype=np.uint64)
    assert store.counts(every, at).tolist() == one_by_one.counts(every, at).tolist()
    assert (
        counts_of(store.export(every), at, (1, 7), before + 2, (1.0,), 2).tolist() == store.counts(every, at).tolist()
    )


@pytest.mark.parametrize("n", [300, 200])  # too great for an hour; only for the hours together
def test_a_sum_too_great_for_a_tile_stays_great(n: int) -> None:
    store = TileStore((1, 7), 2, (), 1)
    key, most = np.ones(n, np.uint64), (1 << 24) - 1
    for hour in range(3):  # which then merge
        store.add(key, np.full(n, T0 + hour * HOUR), np.ones(n, np.uint8), np.full(n, most))
        store.add(key[:7], np.full(7, T0 + hour * HOUR), np.zeros(7, np.uint8))
    store.expire(T0 + 3 * DAY)
    count, total = store.counts(key[:1], T0 + 3 * DAY)[0, 1].tolist()
    assert count == 21
    assert 255 << 24 <= total < 1 << 32


@pytest.mark.parametrize(
    ("values", "step", "adds", "unfit"),
    [
        ([0.0, 0.126, 2.0, 7.5], 0.05, [0, 3, 40, 150], 0),
        ([-0.4, -0.6, -5.0], 1.0, [0, 0, 0], 2),  # what rounds to 0 is 0
        ([np.nan, np.inf, -np.inf], 1.0, [0, 0, 0], 3),
        ([16_777_215.0, 16_777_216.0, 1e300], 1.0, [16_777_215, 16_777_215, 0], 2),  # 1e300 is no float32
        ([], 1.0, [], 0),
    ],
)
def test_values_become_steps_and_the_unfit_are_counted(
    values: list[float], step: float, adds: list[int], unfit: int
) -> None:
    got, bad = steps(np.array(values), step)
    assert got.dtype == np.uint32
    assert (got.tolist(), bad) == (adds, unfit)


FIELDS = named("t") + of_user("u") + of_item("i", "price:numeric")
WINDOWS: dict[str, Any] = {"days": [1, 7], "prior_rate": 0.2, "prior_weight": 10, "parent": ("i",)}
SCHEMA = FIELDS + windows_of("i", "u i", half_lives=[0.5, 7], means=({"of": "price", "step": 0.05},), **WINDOWS)


def test_features_have_names_and_values_by_hand() -> None:
    builder = FeatureBuilder(parse_schema(SCHEMA))
    # (1, K, W + H, A + M): windows of 1 and 7 days, half-lives of half a day and 7 days; exposures, clicks, steps
    counts = np.array(
        [
            [
                [[4, 2, 100], [8, 3, 200], [3 * UNIT, UNIT, 30 * UNIT], [4 * UNIT, 2 * UNIT, 50 * UNIT]],
                [[1, 0, 0], [2, 1, 40], [UNIT // 2, 0, 0], [UNIT, UNIT // 4, 10 * UNIT]],
            ]
        ],
        np.int64,
    )
    ts = T0 + HOUR // 2  # half an hour past the hour
    num = dict(
        zip(
            builder.layout.num_names,
            builder.num({"price": np.array([9.5])}, counts, 1, np.array([ts]))[0].tolist(),
            strict=True,
        )
    )
    quick, slow = 2 ** -(0.5 / 12), 2 ** -(0.5 / (7 * 24))
    expected = {"price": 9.5}
    rates: dict[str, float] = {}
    for span, fade, (item, both) in (
        ("1d", 1.0, ((4, 2, 50 * 0.05), (1, 0, 0))),
        ("7d", 1.0, ((8, 3, 200 / 3 * 0.05), (2, 1, 2.0))),
        ("h0.5d", quick, ((3, 1, 1.5), (0.5, 0, 0))),
        ("h7d", slow, ((4, 2, 1.25), (1, 0.25, 2.0))),
    ):
        for key, (shown, clicked, mean) in (("i", item), ("u*i", both)):
            rates[key] = (clicked * fade + 10 * (0.2 if key == "i" else rates["i"])) / (shown * fade + 10)
            expected |= {
                f"{key}.exposure.{span}": shown * fade,
                f"{key}.click.{span}": clicked * fade,
                f"{key}.click_rate.{span}": rates[key],
                f"{key}.price_mean_click.{span}": mean,
            }
    assert set(num) == set(expected)
    assert [n for n in num if n.startswith("i.")] == [
        f"i.{what}.{span}"
        for span in ("1d", "7d", "h0.5d", "h7d")
        for what in ("exposure", "click", "click_rate", "price_mean_click")
    ]
    for name, value in expected.items():
        assert num[name] == pytest.approx(value, rel=1e-6), name


def test_each_mean_has_its_own_sum_and_count() -> None:
    means = ({"of": "price", "step": 0.05}, {"of": "price", "step": 2, "action": "exposure"})
    builder = FeatureBuilder(parse_schema(FIELDS + windows_of("i", "u i", half_lives=[0.5, 7], means=means, **WINDOWS)))
    counts = np.zeros((1, 2, 4, 4), np.int64)
    counts[0, 1, 0] = [4, 2, 100, 30]
    num = dict(zip(builder.layout.num_names, builder.num({}, counts, 1)[0].tolist(), strict=True))
    assert num["u*i.price_mean_click.1d"] == pytest.approx(100 * 0.05 / 2)
    assert num["u*i.price_mean_exposure.1d"] == pytest.approx(30 * 2 / 4)
    assert num["u*i.price_mean_exposure.7d"] == num["i.price_mean_click.1d"] == 0


@given(st.integers(0, 1000), st.integers(T0, T0 + DAY))
@examples(20)
@example(7, T0 + HOUR - 1)
def test_a_decayed_row_is_the_same_to_the_bit_alone_and_among_others(seed: int, ts: int) -> None:
    schema = parse_schema(SCHEMA)
    builder, rng = FeatureBuilder(schema), np.random.default_rng(seed)
    counts = rng.integers(0, 50 * UNIT, (67, 2, 4, 3))
    times = np.append(rng.integers(T0, T0 + DAY, 66), ts)
    whole = builder.num({}, counts, 67, times)
    assert whole[-1].tobytes() == builder.num({}, counts[-1:], 1, ts)[0].tobytes()
    assert whole[-1].tobytes() == builder.num({}, counts[-5:], 5, ts)[-1].tobytes()


# -- schemas --------------------------------------------------------------------------------------------------


class OldWindows(msgspec.Struct):
    """The entries of ``[windows]`` before half-lives and means."""

    keys: Any
    days: Any
    actions: Any
    prior_rate: Any
    prior_weight: Any
    transform: Any


def identity(schema: Schema) -> str:
    old = OldWindows(*(getattr(schema.windows, name) for name in OldWindows.__struct_fields__))
    newer = ("pool", "bigrams", "size")
    fields = [{n: v for n, v in msgspec.to_builtins(field).items() if n not in newer} for field in schema.fields]
    text = msgspec.json.encode((fields, old, schema.crosses, schema.utc_offset))
    return hashlib.sha256(text).hexdigest()[:16]


def test_a_schema_without_either_keeps_its_identity() -> None:
    plain = FIELDS + windows_of("i", "u i", **WINDOWS)
    for schema in (shop_schema(), parse_schema(plain)):
        assert schema.id == identity(schema)
    ids = {parse_schema(text).id for text in (plain, SCHEMA, SCHEMA.replace("0.05", "0.1"), SCHEMA.replace("7]", "6]"))}
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("old", "new", "names"),
    [
        ("[0.5, 7]", "[-1.0, 7]", "'-1d'"),
        ("[0.5, 7]", "[0.0]", "'0d'"),
        ("[0.5, 7]", "[0.1]", "'144min'"),
        ("[0.5, 7]", "[nan]", "nan"),
        ("[0.5, 7]", "[inf]", "inf"),
        ("[0.5, 7]", "[7, 0.5]", "['7d', '12h']"),
        ("[0.5, 7]", "[7, 7]", "['7d', '7d']"),
        ("[0.5, 7]", '["7 weeks"]', "half_lives: '7 weeks'"),
        ('of = "price"\nstep', 'of = "weight"\nstep', "'weight'"),
        ('of = "price"\nstep', 'of = "i"\nstep', "'i'"),
        ("step = 0.05", 'step = 0.05\naction = "cart"', "'cart'"),
        ("step = 0.05", "step = 0", "0"),
        ("step = 0.05", "step = inf", "inf"),
        ("step = 0.05", "", "step"),
        ("step = 0.05", "step = 0.05\ncolour = 1", "colour"),
        ("step = 0.05", 'step = 0.05\n[[windows.means]]\nof = "price"\nstep = 1', "twice"),
    ],
)
def test_a_wrong_schema_is_named_in_one_line(old: str, new: str, names: str) -> None:
    assert old in SCHEMA
    assert names in mistake(SCHEMA.replace(old, new, 1))


def test_more_columns_than_a_tile_holds_are_refused() -> None:
    names = [f"n{i}" for i in range(16)]
    means = tuple({"of": name, "step": 1} for name in names)
    with pytest.raises(SchemaError, match="2 actions and 16 means"):
        parse_schema(FIELDS + of_item(*(f"{name}:numeric" for name in names)) + windows_of("i", means=means, days=[1]))
