"""The tile store against a recount in plain Python, event by event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.durations import grain_minutes, lengths_in_minutes, unit_minutes
from millrace.basics.errors import StoreError
from millrace.windows.tile_kernels import UNITS
from millrace.windows.tile_memory import SLACK_H
from millrace.windows.tiles import TileStore, counts_of
from tests.scenes.exploring import examples
from tests.scenes.tile_changes import changes, grain_hours
from tests.scenes.tile_streams import (
    DAY,
    DAYS,
    HOUR,
    MINUTE,
    T0,
    A,
    Event,
    Lengths,
    by_definition,
    columns,
    decayed,
    exact,
    mixtures,
    resumed,
    streams,
    twin,
)


@pytest.mark.parametrize("start", [0, (UNITS - 60) * HOUR])
def test_windows_hold_at_both_ends_of_nameable_time(start: int) -> None:
    """From 1970, before which windows reach, to the last hour that a tile can name, and read after it."""
    events = [(1 + i % 2, start + i * HOUR // 3, i % A) for i in range(180)]
    store = TileStore(DAYS, A)
    store.add(*columns(events))
    for ts in (start + 59 * HOUR, start + 60 * HOUR, start + 70 * HOUR, start + 40 * DAY):
        got = store.counts(np.array([1, 2], np.uint64), ts)
        assert got.tolist() == [by_definition(events, key, ts) for key in (1, 2)], ts


def test_rows_of_one_moment_that_share_a_key_read_the_same() -> None:
    """A page's rows: what one reads is copied to the next, and none of them counts before all have read."""
    keys = np.array([[1, 2], [1, 3], [1, 3], [0, 3], [1, 2]], np.uint64)
    ts = np.array([T0, T0, T0, T0, T0 + 1])
    store = TileStore(DAYS, A)
    store.add(np.array([1, 2, 3], np.uint64), np.full(3, T0 - HOUR), np.array([0, 1, 2]))
    read = store.run(keys, ts, np.zeros(5, np.uint8))[:, :, 0].tolist()
    assert read[:4] == [[[1, 0, 0], [0, 1, 0]], *[[[1, 0, 0], [0, 0, 1]]] * 2, [[0, 0, 0], [0, 0, 1]]]
    assert read[4] == [[4, 0, 0], [1, 1, 0]]


@examples(250)
@given(streams(), mixtures)
def test_run_counts_what_the_definition_says_and_lies_within_one_grain(events: list[Event], lengths: Lengths) -> None:
    keys, ts, action = columns(events)
    pair = np.stack([keys, keys + np.uint64(100)], axis=1)
    got = TileStore(lengths, A).run(pair, ts, action)
    for i, (key, t, _) in enumerate(events):
        assert got[i, 0].tolist() == by_definition(events, key, t, lengths)
        for w, minutes in enumerate(lengths_in_minutes(lengths)):
            assert 3 * grain_minutes(minutes) <= minutes
            assert (exact(events, key, t, minutes * MINUTE) <= got[i, 0, w]).all()
            assert (got[i, 0, w] <= exact(events, key, t, (minutes + grain_minutes(minutes)) * MINUTE)).all()
    assert (got[:, 0] == got[:, 1]).all()


@examples(250)
@given(streams(), mixtures, st.integers(1, 2), st.randoms(use_true_random=False), st.data())
def test_disorder_merging_batching_and_round_trips_change_no_count(
    events: list[Event], lengths: Lengths, partitions: int, rng: Any, data: st.DataObject
) -> None:
    """Events come up to two hours out of order, in batches, into one store or two; sweeps, packed lists, checkpoints
    and copies of the first store come between them. Counts that decay change as little."""
    shuffled = sorted(events, key=lambda e: e[1] + rng.randrange(2 * HOUR))
    lives = data.draw(st.sampled_from([(0.25, 1.0, 7.0), (0.25, 3.0), (0.3, 60.0)]))
    stores, at, seen_ms = [TileStore(lengths, A, lives) for _ in range(partitions)], 0, 0
    while at < len(shuffled):
        batch = shuffled[at : at + data.draw(st.integers(1, 40))]
        at += len(batch)
        for p, store in enumerate(stores):
            store.add(*columns(batch[p::partitions]))
        seen_ms = max(seen_ms, *(t for _, t, _ in batch))
        first = stores[0]
        match data.draw(st.sampled_from(["go on", "expire", "sweep", "arrays", "copy", "packed"])):
            case "expire":
                first.expire(seen_ms)
            case "sweep":
                for part in range(4):
                    first.sweep(seen_ms, part / 4, (part + 1) / 4)
            case "arrays":
                stores[0] = resumed(first)
            case "copy":
                stores[0] = twin(first)
            case "packed":
                stores[0] = TileStore(lengths, A, lives)
                stores[0].put(first.keys(), first.export(first.keys()))
                stores[0].add(np.zeros(1, np.uint64), np.array([seen_ms]), np.zeros(1, np.uint8))
    newest, every = max(t for _, t, _ in events), np.arange(6, dtype=np.uint64)
    unit = unit_minutes(lengths_in_minutes(lengths)) * MINUTE
    full = (newest // unit + 1) * unit
    later = (1, 13 * MINUTE, HOUR, 5 * HOUR, 3 * DAY + 7, 20 * DAY + 7, 31 * DAY)
    for ts in (full - unit, newest + 1, full, *(full + more for more in later)):
        want = [
            by_definition(events, int(key), ts, lengths) + decayed(events, int(key), ts, lengths, lives)
            for key in every
        ]
        assert np.sum([store.counts(every, ts) for store in stores], axis=0).tolist() == want, ts
        lists = [counts_of(store.export(every), ts, lengths, A, lives) for store in stores]
        assert np.sum(lists, axis=0).tolist() == want, ts
    # A clock that is behind the newest event still gets its tail right; of its own unit it has every event.
    for behind in (full - unit - (SLACK_H - 1) * HOUR, full - unit - (SLACK_H - 1) * HOUR + 1):
        head = behind + (-behind) % unit
        want = [by_definition(events, int(key), behind, lengths, head) for key in every]
        late = np.sum([store.counts(every, behind)[:, : len(lengths)] for store in stores], axis=0)
        assert late.tolist() == want


@examples(80)
@given(streams(60), st.integers(1, 16), st.data())
def test_counts_of_any_size_overflow_into_further_words(events: list[Event], actions: int, data: st.DataObject) -> None:
    """Amounts about the edges of a byte, any number of actions, merging and round trips in between."""
    size = st.sampled_from([1, 1, 2, 100, 254, 255, 256, 257, 65_280, 65_535, 65_536, 1 << 20, 1 << 24])
    amounts = np.array(data.draw(st.lists(size, min_size=len(events), max_size=len(events))), np.int64)
    columns_ = np.array(
        data.draw(st.lists(st.integers(0, actions - 1), min_size=len(events), max_size=len(events))), np.int64
    )
    keys, ts, _ = columns(events)
    store = TileStore(DAYS, actions)
    cut = data.draw(st.integers(0, len(events)))
    for part in (slice(0, cut), slice(cut, None)):
        store.add(keys[part], ts[part], columns_[part], amounts[part])
        if data.draw(st.booleans()):
            store = resumed(store)
    every = np.arange(1, 5, dtype=np.uint64)
    for later in (1, 3 * DAY, 20 * DAY):
        at = int(ts[-1]) + later
        want = np.zeros((4, len(DAYS), actions), np.int64)
        for i, (key, t, _) in enumerate(events):
            for w, days in enumerate(DAYS):
                g = grain_hours(days) * HOUR
                if t // g >= (at - days * DAY) // g:
                    want[key - 1, w, columns_[i]] += amounts[i]
        assert store.counts(every, at).tolist() == want.tolist()
        assert counts_of(store.export(every), at, DAYS, actions).tolist() == want.tolist()
        store.expire(at)


def test_a_key_with_every_action_in_every_hour_takes_less_than_a_kibibyte() -> None:
    store = TileStore(DAYS, 5)
    keys = np.arange(1, 3001, dtype=np.uint64)
    for hour in range(24 * 32):
        for action in range(5):
            store.add(keys, np.full(3000, T0 + hour * HOUR), np.full(3000, action))
    assert store.nbytes / len(store) < 1024


def test_equal_contents_give_equal_arrays_and_bytes() -> None:
    rng = np.random.default_rng(0)
    n = 3000
    keys = rng.integers(1, 200, n).astype(np.uint64)
    ts = T0 + rng.integers(0, 20 * DAY, n)
    action = rng.integers(0, A, n).astype(np.uint8)
    # One pass in order with sweeps between; one in a single disordered batch, whose order drops nothing either.
    first, second = TileStore(DAYS, A), TileStore(DAYS, A)
    order = np.argsort(ts)
    for part in np.array_split(order, 17):
        first.add(keys[part], ts[part], action[part])
        first.expire(int(ts[part].max()))
    second.add(keys, ts, action)
    one, two = first.snapshot().arrays(), second.snapshot().arrays()
    assert {k: v.tolist() for k, v in one.items()} == {k: v.tolist() for k, v in two.items()}
    assert first.export(first.keys()[:5]) == second.export(first.keys()[:5])


def test_reads_allocate_nothing_and_key_zero_is_nobody() -> None:
    store = TileStore(DAYS, A)
    store.add(np.array([0, 7], np.uint64), np.array([T0, T0]), np.array([0, 0]))
    before = (len(store), store.nbytes, store.snapshot().arrays()["packed"].tolist())
    assert store.counts(np.arange(1000, dtype=np.uint64), T0 + 1)[:, 0, 0].sum() == 1
    assert store.export(np.arange(3, dtype=np.uint64)) == [bytes([1, A, 0, 0])] * 3
    assert (len(store), store.nbytes, store.snapshot().arrays()["packed"].tolist()) == before
    assert len(store) == 1


def test_keys_are_dropped_when_all_their_windows_are_empty_and_their_memory_is_used_again() -> None:
    store = TileStore(DAYS, A)
    n = 5000
    sizes = []
    for round_ in range(12):
        t = T0 + round_ * 40 * DAY
        for hour in range(4):
            keys = np.arange(1 + round_ * n, 1 + (round_ + 1) * n, dtype=np.uint64)
            store.add(keys, np.full(n, t + hour * HOUR), np.zeros(n, np.uint8))
        assert store.expire(t + 29 * DAY) == 0
        assert store.counts(keys, t + 29 * DAY)[:, -1, 0].tolist() == [4] * n
        assert store.expire(t + 32 * DAY) == n
        assert len(store) == 0
        sizes.append(store.nbytes)
    assert max(sizes[3:]) <= 1.2 * max(sizes[:3])


def test_a_key_with_an_event_every_hour_keeps_a_bounded_list() -> None:
    store = TileStore(DAYS, A)
    hours = np.arange(24 * 90)
    store.add(np.full(len(hours), 9, np.uint64), T0 + hours * HOUR, np.zeros(len(hours), np.uint8))
    tiles = int.from_bytes(store.export(store.keys())[0][2:4], "little")
    assert tiles <= (24 + SLACK_H + 6) + (6 * 4 + 4) + 24 + 1
    last = T0 + int(hours[-1]) * HOUR + 1
    assert store.counts(np.array([9], np.uint64), last)[0, :, 0].tolist() == [
        by_definition([(9, T0 + int(h) * HOUR, 0) for h in hours], 9, last)[w][0] for w in range(len(DAYS))
    ]


def test_blocks_that_lists_have_grown_out_of_are_used_again() -> None:
    store = TileStore(DAYS, A)
    keys = np.arange(1, 3001, dtype=np.uint64)
    for hour in range(24 * 12):
        store.add(keys, np.full(3000, T0 + hour * HOUR), np.zeros(3000, np.uint8))
    tiles = 24 + SLACK_H + 6 * 4 + 6 + 12
    assert store.nbytes / 3000 < 2.5 * tiles * 8
    last = T0 + 24 * 12 * HOUR
    want = by_definition([(1, T0 + hour * HOUR, 0) for hour in range(24 * 12)], 1, last)
    assert (store.counts(keys, last) == np.array(want, np.uint32)).all()


def test_add_tells_each_changed_key_once_until_it_is_settled() -> None:
    store = TileStore(DAYS, A)
    keys = np.array([[1, 2], [1, 0], [3, 2]], np.uint64)
    ts, action = np.full(3, T0), np.zeros(3, np.uint8)
    assert store.add(keys, ts, action).tolist() == [0, 1, 4]
    assert store.add(keys, ts, action).tolist() == []
    store = resumed(store)
    assert store.add(keys, ts, action).tolist() == []
    store.export(np.array([3], np.uint64))
    store.export(np.array([2], np.uint64), settle=True)
    assert store.add(keys, ts, action).tolist() == [1]
    assert store.counts(np.array([1, 2, 3], np.uint64), T0 + 1)[:, 0, 0].tolist() == [8, 8, 4]


def test_packed_form_is_as_documented() -> None:
    store = TileStore(DAYS, 2)
    t = 500_000 * HOUR
    store.add(np.array([1, 1], np.uint64), np.array([t, t + 2 * HOUR]), np.array([1, 0]), np.array([300, 1]))
    #                                                        500000 = 0xa0 0xc2 0x1e, 300 = 0xac 0x02
    want = bytes([1, 2, 2, 0, 0xA0, 0xC2, 0x1E, 0, 0xAC, 0x02, 2, 1, 0])
    assert store.export(np.array([1], np.uint64)) == [want]
    assert counts_of([want, None, b""], t + 3 * HOUR, DAYS, 2)[:, 0].tolist() == [[1, 300], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    "blob",
    [
        b"\x04\x03\x00\x00",
        b"\x01\x04\x00\x00",
        b"\x01",
        b"\x01\x03\xff\xff" + b"\x01" * 40,
        b"\x01\x03\x01\x00\x05\x01\x01",
        b"\x01\x03\x01\x00\x05\x01\x01\x80",
        b"\x01\x03\x01\x00\x05\x01\x01\x01\x01",
        b"\x01\x03\x02\x00\x05\x01\x01\x01\x00\x01\x01\x01",
        b"\x01\x03\x01\x00" + b"\xff" * 12,
    ],
    ids=["form", "actions", "short", "lying", "cut", "unfinished", "tail", "same hour", "huge"],
)
def test_damaged_tile_lists_are_refused_by_name_and_change_nothing(blob: bytes) -> None:
    store = TileStore(DAYS, A)
    store.add(np.array([1], np.uint64), np.array([T0]), np.array([0]))
    good = store.export(np.array([1], np.uint64))[0]
    with pytest.raises(StoreError, match="no tile list of 3 columns; let the stream role"):
        store.put(np.array([1, 2], np.uint64), [good, blob])
    with pytest.raises(StoreError):
        counts_of([blob], T0, DAYS, A)
    assert len(store) == 1
    assert store.export(np.array([1], np.uint64)) == [good]


def test_put_replaces_and_an_empty_list_takes_the_key_out() -> None:
    """And makes room for more keys than the store has seen."""
    store, source = TileStore(DAYS, A), TileStore(DAYS, A)
    keys = np.arange(1, 4001, dtype=np.uint64)
    for hour in range(30):
        source.add(keys, np.full(4000, T0 + hour * HOUR), np.zeros(4000, np.uint8))
        store.put(keys, source.export(keys))
    assert store.counts(keys, T0 + 31 * HOUR)[:, 1, 0].tolist() == [30] * 4000
    store.put(keys[:3998], [b"", *[bytes([1, A, 0, 0])] * 3997])
    assert sorted(store.keys().tolist()) == [3999, 4000]


def test_changes_are_what_changed_since_the_last_call() -> None:
    store, follower = TileStore(DAYS, A), TileStore(DAYS, A)
    for hour, keys in enumerate(([5, 2, 9], [9], [], [2, 7])):
        at = np.full(len(keys), T0 + hour * HOUR)
        store.add(np.array(keys, np.uint64), at, np.zeros(len(keys), np.uint8))
        changed, lists = changes(store)
        assert changed.tolist() == sorted(keys)
        follower.put(changed, lists)
    assert changes(store)[1] == []
    every = np.sort(store.keys())
    assert follower.export(every) == store.export(every)


@pytest.mark.parametrize("again", [twin, resumed])
def test_a_snapshot_is_apart_from_what_happens_later(again: Callable[[TileStore], TileStore]) -> None:
    store = TileStore(DAYS, A)
    keys = np.arange(1, 3001, dtype=np.uint64)
    for hour in range(40):
        store.add(
            keys[: 75 * (hour + 1)], np.full(75 * (hour + 1), T0 + hour * HOUR), np.zeros(75 * (hour + 1), np.uint8)
        )
    store.export(keys[:10], settle=True)
    at = T0 + 40 * HOUR
    snapshot, counts, packed = store.snapshot(), store.counts(keys, at), store.export(keys)
    other = again(store)
    store.add(keys, np.full(3000, at), np.ones(3000, np.uint8))
    other.add(keys[:5], np.full(5, at), np.ones(5, np.uint8))
    late = TileStore(DAYS, A)
    late.resume(snapshot)
    assert late.counts(keys, at).tolist() == counts.tolist()
    assert late.export(keys) == packed
    assert late.newest_unit == T0 // HOUR + 39
    assert changes(late)[0].tolist() == keys[10:].tolist()
    assert other.counts(keys, at)[5:].tolist() == counts[5:].tolist()
    assert changes(other)[0].tolist() == [*keys[:5].tolist(), *keys[10:].tolist()]


def test_only_a_fresh_store_of_the_same_windows_resumes() -> None:
    store = TileStore(DAYS, A)
    store.add(np.array([1], np.uint64), np.array([T0]), np.array([0]))
    with pytest.raises(ValueError, match="a store with 1 keys cannot resume; resume a fresh one"):
        store.resume(store.snapshot())
    for other in (TileStore(DAYS, A + 1), TileStore(DAYS[:1], A), TileStore(DAYS, A, (1.0,))):
        with pytest.raises(ValueError, match="make it alike"):
            other.resume(store.snapshot())
    with pytest.raises(StoreError, match="no tile list of 4 columns"):
        TileStore(DAYS, A + 1).resume(store.snapshot().arrays())


@pytest.mark.parametrize("action", [-1, A, 200])
def test_an_action_that_the_store_does_not_have_and_a_run_that_descends_are_refused(action: int) -> None:
    with pytest.raises(ValueError, match="3 columns"):
        TileStore(DAYS, A).add(np.array([1], np.uint64), np.array([T0]), np.array([action]))
    with pytest.raises(ValueError, match="sort"):
        TileStore(DAYS, A).run(np.ones((2, 1), np.uint64), np.array([T0, T0 - 1]), np.zeros(2, np.uint8))


def words_held(store: TileStore) -> dict[int, int]:
    """How many words each key's list has, unmerged tiles among them."""
    used = store._memory.arena.table[store._memory.arena.table[:, 0] != 0]
    return dict(zip(used[:, 0].tolist(), (used[:, 1] >> np.uint64(16) & np.uint64(0xFFFF)).tolist(), strict=True))


@pytest.mark.parametrize("lengths", [(1,), DAYS, (2, 40)])
@pytest.mark.parametrize("seed", range(3))
def test_a_sweep_of_what_is_due_does_what_a_look_at_every_list_does(lengths: Lengths, seed: int) -> None:
    rng = np.random.default_rng(seed)
    due, every = TileStore(lengths, A), TileStore(lengths, A)
    hour, swept, some, ended = T0 // HOUR, 0, 0, 0
    for _ in range(400):
        hour += int(rng.choice([1, 2, 5, 30, 24 * 9], p=[0.6, 0.2, 0.1, 0.09, 0.01]))
        keys = rng.integers(1, 300, 40).astype(np.uint64)
        ts = hour * HOUR + np.sort(rng.integers(0, HOUR, 40))
        for store in (due, every):
            store.add(keys, ts, np.zeros(40, np.uint8))
        turn = (hour - SLACK_H) // due.sweep_hours
        if turn > swept:
            swept = turn
            before = len(due)
            for part in range(4):
                due.sweep(hour * HOUR, part / 4, (part + 1) / 4)
            every.expire(hour * HOUR)
            assert words_held(due) == words_held(every)
            some, ended = some + 1, ended + before - len(due)
    assert some > 50
    assert ended > 0 or lengths != (1,)
    assert due.export(due.keys()) == every.export(due.keys())


def test_after_a_long_sleep_a_sweep_looks_at_everything() -> None:
    store = TileStore(DAYS, A)
    keys = np.arange(1, 100, dtype=np.uint64)
    store.add(keys, np.full(99, T0), np.zeros(99, np.uint8))
    store.sweep(T0 + 3 * HOUR, 0.0, 1.0)
    for months in range(2, 9):
        other = twin(store)
        assert other.sweep(T0 + months * 31 * DAY + months * 17 * HOUR, 0.0, 1.0) == 99
        assert len(other) == 0
