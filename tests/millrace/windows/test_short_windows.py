"""Windows by duration, minutes and hours beside days: a recount in plain Python, and the stated bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from millrace.basics.durations import (
    DAY_MIN,
    LONGEST_DAYS,
    grain_minutes,
    lengths_in_minutes,
    minutes_of,
    text_of,
    unit_minutes,
)
from millrace.basics.errors import StoreError
from millrace.contracts.schema import Schema, Windows, parse_schema
from millrace.windows.affinity import clicks_a_day, smoothed_rate
from millrace.windows.features import FeatureBuilder
from millrace.windows.tile_kernels import UNITS
from millrace.windows.tile_memory import SLACK_H, UNIT
from millrace.windows.tiles import TileStore, counts_of
from tests.scenes.exploring import examples
from tests.scenes.schemas import mistake, named, of_item, of_user, windows_of
from tests.scenes.tile_streams import (
    DAY,
    FEED,
    HOUR,
    MINUTE,
    T0,
    A,
    Event,
    Lengths,
    by_definition,
    columns,
    streams,
)


@examples(60)
@given(streams(), st.sampled_from([((*FEED, "30d"), 30.0 / 1440), (FEED, 0.25), (("6h", "7d"), 1.5 / 24)]))
@example([(1, T0, 0), (1, T0 + 65 * MINUTE, 0), (1, T0 + 70 * MINUTE, 0)], (FEED, 30.0 / 1440))
def test_a_fresh_events_weight_is_within_its_bound(events: list[Event], what: tuple[Lengths, float]) -> None:
    """Within 2^(+-unit / 2h), 6 percent, up to an age of the half-life; within half of its tile's grain beyond it."""
    lengths, life = what
    minutes = lengths_in_minutes(lengths)
    keys, ts, action = columns(events)
    got = TileStore(lengths, A, (life,)).run(keys[:, None], ts, action)[:, 0, -1]
    unit = unit_minutes(minutes)
    for i, (key, t, _) in enumerate(events):
        value = got[i] / UNIT * 2 ** -(t % (unit * MINUTE) / (life * DAY))
        low, high = np.zeros(A), np.zeros(A)
        for k, then, a in events:
            if k != key or not t - (minutes[-1] + grain_minutes(minutes[-1])) * MINUTE <= then < t:
                continue
            weight = 2 ** (-(t - then) / (life * DAY))
            fine = [m for m in minutes if m * MINUTE > t - then]  # windows that may still read its tile
            wide = grain_minutes(fine[0] if fine else minutes[-1])
            if t - then < life * DAY:
                assert wide * 6 <= life * DAY_MIN
            slack = 2 ** (wide / (2 * life * DAY_MIN))
            high[a] += weight * slack + 2.0**-25
            low[a] += weight / slack - 2.0**-25 if t - then <= minutes[-1] * MINUTE else 0
        assert (low <= value * (1 + 1e-12)).all()
        assert (value * (1 - 1e-12) <= high).all()


# -- what a store can name ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [FEED, ("6h", "1800d")])
def test_a_store_of_fine_tiles_names_any_year_and_lasts_longer_than_its_words(lengths: Lengths) -> None:
    """From 1970 to 2088, in steps that go past what 20 bits of 5 or 15 minutes can name."""
    stops = [0, 9 * 365, 17_000, 20_000, 20_001, 21_815, 25_000, 43_000]
    events = [(1 + i % 2, day * DAY + i * MINUTE, 0) for i, day in enumerate(stops)]
    store, resumed = TileStore(lengths, A), TileStore(lengths, A)
    keys, ts, action = columns(events)
    at_once = TileStore(lengths, A).run(keys[:, None], ts, action)[:, 0]
    for i, event in enumerate(events):
        at = event[1] + HOUR
        store.add(*columns([event]))
        resumed.add(*columns([event]))
        for one in (store, resumed):
            got = one.counts(np.array([1, 2, 3], np.uint64), at)
            assert got.tolist() == [by_definition(events[: i + 1], key, at, lengths) for key in (1, 2, 3)], event
        assert at_once[i].tolist() == by_definition(events, event[0], event[1], lengths)
        arrays = resumed.snapshot().arrays()
        assert {k: v.tolist() for k, v in arrays.items()} == {
            k: v.tolist() for k, v in store.snapshot().arrays().items()
        }
        resumed = TileStore(lengths, A)
        resumed.resume(arrays)
        reader = TileStore(lengths, A)
        reader.put(store.keys(), store.export(store.keys()))
        assert (reader.counts(np.array([1, 2], np.uint64), at) == got[:2]).all()
    store.expire(events[-1][1])
    assert len(store) == 1, "the keys of years ago have ended"


@pytest.mark.parametrize(("lengths", "unit", "form"), [(FEED, 5 * MINUTE, 3), ((1, 30), HOUR, 1)])
def test_times_that_cannot_be_named_or_are_long_gone_are_ignored(lengths: Lengths, unit: int, form: int) -> None:
    store = TileStore(lengths, A)
    store.add(np.array([1], np.uint64), np.array([T0]), np.zeros(1, np.uint8))
    odd = np.array([1 << 60, -HOUR, 0, T0 - UNITS * 5 * MINUTE, T0 - 60 * DAY], np.int64)
    store.add(np.array([1, 1, 1, 1, 9], np.uint64), odd, np.zeros(5, np.uint8))
    assert store.newest_unit == T0 // unit
    assert store.keys().tolist() == [1]
    assert store.counts(np.array([1], np.uint64), T0 + 1)[0, :, 0].tolist() == [1] * len(lengths)
    old = TileStore(lengths, A)  # published years ago
    old.add(np.array([2, 3], np.uint64), np.array([0, T0]), np.zeros(2, np.uint8))
    early = TileStore(lengths, A)
    early.add(np.array([2], np.uint64), np.array([0]), np.zeros(1, np.uint8))
    every = np.array([2, 3], np.uint64)
    store.put(every, [early.export(every)[0], old.export(every)[1]])
    assert store.counts(every, T0 + 1)[:, 0, 0].tolist() == [0, 1]
    assert store.export(every[:1]) == [bytes([form, A, 0, 0])]
    assert (2 in store.keys().tolist()) == (unit == HOUR), "an hour of 1970 can be named still"


def test_a_key_does_not_end_before_a_clock_that_is_behind_has_read_it() -> None:
    store, key = TileStore(("15min",), A), np.array([1], np.uint64)
    store.add(key, np.array([T0]), np.zeros(1, np.uint8))
    assert store.expire(T0 + SLACK_H * HOUR) == 0
    assert store.counts(key, T0 + 1)[0, 0].tolist() == [1, 0, 0]
    for turn in range(4):
        store.sweep(T0 + (SLACK_H + turn) * HOUR, 0, 1)
    assert len(store) == 0


def test_a_busy_key_keeps_a_bounded_list() -> None:
    store = TileStore(("15min", "1h", "6h", "1d", "7d", "30d"), A)
    ts = T0 + np.arange(12 * 24 * 45) * 5 * MINUTE
    store.add(np.full(len(ts), 9, np.uint64), ts, np.zeros(len(ts), np.uint8))
    tiles = int.from_bytes(store.export(store.keys())[0][2:4], "little")
    assert tiles <= (12 + 12 * SLACK_H + 3) + (24 + 4) + (24 + 6) + (28 + 4) + 31
    last = int(ts[-1]) + 1
    events = [(9, int(t), 0) for t in ts]
    got = store.counts(np.array([9], np.uint64), last)[0].tolist()
    assert got == by_definition(events, 9, last, ("15min", "1h", "6h", "1d", "7d", "30d"))
    size = store.nbytes
    for hour in range(1, 24 * 40):
        store.sweep(last + hour * HOUR, 0, 1)
    assert (len(store), store.nbytes) == (0, size), "a list that is left alone ends with its windows"


def test_sweeps_that_look_only_at_what_is_due_leave_what_a_whole_sweep_leaves() -> None:
    due, every = TileStore(FEED, A), TileStore(FEED, A)
    rng = np.random.default_rng(3)
    for turn in range(200):
        at = T0 + turn * 47 * MINUTE
        keys, ts = rng.integers(1, 60, 20).astype(np.uint64), at + rng.integers(0, 40 * MINUTE, 20)
        for store in (due, every):
            store.add(keys, ts, np.zeros(20, np.uint8))
        due.sweep(at + 40 * MINUTE, 0, 1)
        every.expire(at + 40 * MINUTE)
        assert sorted(due.keys().tolist()) == sorted(every.keys().tolist())


def test_keys_that_ended_before_the_base_moved_go_with_the_next_sweep() -> None:
    """Also where the new base makes the sweep's turn about what it was at the last one."""
    store, later = TileStore(FEED, A), T0 + 4096 * DAY
    store.add(np.arange(1, 201, dtype=np.uint64), T0 + np.arange(200) * 5 * MINUTE, np.zeros(200, np.uint8))
    store.sweep(T0 + DAY, 0, 1)
    store.add(np.array([999], np.uint64), np.array([later]), np.zeros(1, np.uint8))
    store.sweep(later, 0, 1)
    assert store.keys().tolist() == [999]


@pytest.mark.parametrize(("lengths", "form", "unit"), [((1,), 1, 60), (("6h", "1d"), 2, 15), (FEED, 3, 5)])
def test_the_packed_form_says_its_unit_and_another_units_list_is_refused_by_name(
    lengths: Lengths, form: int, unit: int
) -> None:
    key = np.array([1], np.uint64)
    store = TileStore(lengths, 2)
    store.add(key, np.array([127 * unit * MINUTE]), np.array([1]))
    packed = store.export(key)[0]
    assert packed == bytes([form, 2, 1, 0, 127, 0, 1])
    assert counts_of([packed], 128 * unit * MINUTE, lengths, 2)[0, 0].tolist() == [0, 1]
    for other in ((7,), ("2h",), ("30min", "2d")):
        elsewhere = TileStore(other, 2)
        mine = unit_minutes(lengths_in_minutes(other))
        if mine == unit:
            continue
        elsewhere.add(key, np.array([T0]), np.array([0]))
        before = elsewhere.export(key)
        said = f"a tile list of {unit} minutes, where this schema's windows have tiles of {mine}; let the stream role"
        with pytest.raises(StoreError, match=said):
            elsewhere.put(key, [packed])
        with pytest.raises(StoreError, match=said):
            counts_of([packed], T0, other, 2)
        with pytest.raises(StoreError, match=said):
            TileStore(other, 2).resume(store.snapshot().arrays())
        assert elsewhere.export(key) == before


# -- what is read from them -----------------------------------------------------------------------------------


def text_of_schema(entries: str) -> str:
    fields = named("t") + of_user("user_id") + of_item("item_id")
    return fields + windows_of("item_id").replace("[windows]\n", f"[windows]\n{entries}\n")


def schema_of(entries: str) -> Schema:
    return parse_schema(text_of_schema(entries))


def test_hotness_goes_by_windows_of_a_day_and_more_where_there_are_any() -> None:
    actions = ("exposure", "click")
    short, days = Windows(lengths=FEED, actions=actions), Windows(days=(1, 7), actions=actions)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (9, 5, 2))
    assert clicks_a_day(counts, short).tolist() == clicks_a_day(counts[:, 3:], days).tolist()
    clicks, seen = rng.random((2, 9))
    rates = [smoothed_rate(clicks, seen, 0.1, 20, windows).tolist() for windows in (short, days)]
    assert rates[0] == rates[1]
    minutes = Windows(lengths=("15min", "1h"), actions=actions)
    assert clicks_a_day(np.array([[[4, 1], [9, 3]]]), minutes).tolist() == [(1 * 96 + 3 * 24) / 2]


def test_a_decayed_count_fades_from_the_full_five_minutes_to_the_readers_time() -> None:
    builder = FeatureBuilder(schema_of('lengths = ["1h", "1d"]\nhalf_lives = ["30min"]'))
    counts, at = np.zeros((1, 1, 3, 2), np.int64), T0 + 23 * MINUTE
    counts[0, 0, 2] = [4 * UNIT, UNIT]
    named = dict(zip(builder.layout.num_names, builder.num({}, counts, 1, at)[0].tolist(), strict=True))
    assert named["item_id.exposure.h30min"] == pytest.approx(4 * 2 ** -(3 / 30), rel=1e-6)
    assert named["item_id.click.h30min"] == pytest.approx(2 ** -(3 / 30), rel=1e-6)


# -- schemas --------------------------------------------------------------------------------------------------


def test_lengths_name_their_statistics_and_whole_days_are_the_same_schema_as_days() -> None:
    schema = schema_of('lengths = ["15min", "60min", "1d", "7d"]\nhalf_lives = ["30min", "6h", 2]')
    assert schema.windows.durations == ("15min", "1h", "1d", "7d")
    assert schema.windows.spans == ("15min", "1h", "1d", "7d", "h30min", "h0.25d", "h2d")
    assert schema.layout.num_names[:3] == ("item_id.exposure.15min", "item_id.click.15min", "item_id.click_rate.15min")
    assert schema.windows.unit_ms == 5 * MINUTE
    assert schema.windows.days == ()
    same = schema_of('lengths = ["15min", "1h", "24h", "7d"]\nhalf_lives = ["30min", 0.25, "2d"]')
    assert same == schema
    assert same.id == schema.id
    days, named = schema_of("days = [1, 7]"), schema_of('lengths = ["24h", "7d"]')
    assert days == named
    assert days.id == named.id
    assert days.windows.unit_ms == HOUR
    assert len({schema.id, days.id, schema_of('lengths = ["15min", "1h", "7d"]').id}) == 3
    assert schema_of('lengths = ["12h", "1d"]').windows.unit_ms == HOUR


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        ('lengths = ["15min", "1 week"]', "'1 week' is no duration"),
        ('lengths = ["15min", "1.5h"]', "'1.5h' is no duration"),
        ('lengths = ["0min", "1h"]', "'0min' is no duration"),
        ('lengths = ["15min", 1]', "lengths"),
        ('lengths = ["1h", "15min"]', "['1h', '15min'] is not ascending"),
        ('lengths = ["1h", "60min"]', "['1h', '1h'] is not ascending"),
        ('lengths = ["10min", "1h"]', "has 10min; the shortest window is 15min"),
        ('lengths = ["17min", "1h"]', "has 17min; name a multiple of 5min"),
        ('lengths = ["70min"]', "has 70min; name a multiple of 15min"),
        ('lengths = ["1h", "390min"]', "has 390min; name a multiple of 1h"),
        ('lengths = ["6h", "1801d"]', "has 1801d beside 6h; name at most 1800d"),
        ('lengths = ["3651d"]', "3651d; name at most 3650d"),
        ('lengths = ["15min"]\ndays = [1]', "windows.days and windows.lengths are both named"),
        ('lengths = ["15min", "1d"]\nhalf_lives = ["20min"]', "half_lives has '20min'"),
        ('lengths = ["15min", "1d"]\nhalf_lives = ["30min"]', "add a window to windows.lengths"),
        ('lengths = ["15min", "6h", "1d"]\nhalf_lives = ["75min"]', "name '1h' or less, or '90min' or more"),
        ('lengths = ["6h", "1d"]\nhalf_lives = ["60min"]', "name '90min' or more"),
        ('days = [1, 7]\nhalf_lives = ["5h"]', "name '6h' or more; windows.lengths with a short window"),
        ('days = [1, 7]\nhalf_lives = ["soon"]', "windows.half_lives: 'soon' is no duration"),
    ],
)
def test_a_wrong_schema_is_named_in_one_line(entries: str, names: str) -> None:
    assert names in mistake(text_of_schema(entries))


def test_the_remedies_help() -> None:
    for entries in (
        'lengths = ["15min", "1h", "1d"]\nhalf_lives = ["30min"]',
        'lengths = ["6h", "1d"]\nhalf_lives = ["90min"]',
        'lengths = ["15min", "6h", "1d"]\nhalf_lives = ["5h"]',
        'days = [1, 7]\nhalf_lives = ["6h"]',
        f'lengths = ["6h", "{LONGEST_DAYS}d"]',
        'lengths = ["3650d"]',
    ):
        TileStore.of(schema_of(entries).windows)


@given(st.integers(1, 10**6))
def test_a_duration_is_read_as_it_is_written(minutes: int) -> None:
    assert minutes_of(text_of(minutes)) == minutes


@pytest.mark.parametrize("lengths", [(), (7, 1), ("15min", "15min"), (0,), ("5min",)])
def test_a_store_refuses_lengths_that_are_none(lengths: Lengths) -> None:
    with pytest.raises(ValueError, match="ascending lengths"):
        TileStore(lengths, A)
