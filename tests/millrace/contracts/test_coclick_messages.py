"""What crosses of users' last clicks and of co-clicks: bytes that come back as they were, and bytes that are none."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.errors import StoreError
from millrace.contracts.coclick_message import DAYS, MOST, WINDOWS, Lists, pack, unpack
from millrace.contracts.events import MESSAGE_BYTES, BadEventError
from millrace.contracts.online_layout import MOST_RECENT, NOTHING, Past, Recent, pack_recent, unpack_recent
from millrace.contracts.schema import Windows
from millrace.windows.affinity import clicks_a_day
from tests.scenes.coclick_worth import UNIT, worth

IDS = st.integers(-(2**63), 2**63 - 1) | st.text(min_size=1, max_size=20)
PASTS = st.lists(st.builds(Past, IDS, st.integers(1, 2**45)), max_size=MOST_RECENT)


def lists(sizes: list[int], seed: int = 0) -> Lists:
    rng, m = np.random.default_rng(seed), sum(sizes)
    hashes = rng.integers(0, 2**64, len(sizes) + m, np.uint64)
    counts = rng.integers(0, 2**16, (m, DAYS)).astype(np.uint16)
    return Lists(20_000, hashes[: len(sizes)], np.array(sizes, np.uint8), hashes[len(sizes) :], counts)


def same(one: Lists, other: Lists) -> bool:
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True))


@given(PASTS, PASTS)
def test_last_clicks_come_back_with_ids_as_they_were_written(clicks: list[Past], purchases: list[Past]) -> None:
    found = unpack_recent(pack_recent(Recent(clicks, purchases)))
    assert found == Recent(clicks, purchases)
    assert [type(past.item_id) for past in found.clicks] == [type(past.item_id) for past in clicks]


@pytest.mark.parametrize(
    "raw",
    [
        b"\xc1",
        b"{}",
        msgspec.msgpack.encode([[], []])[:-1],
        *map(msgspec.msgpack.encode, ([], [[]], [[1], []], [[1, "t"], []], [[1, 2.5], []], [[1, 2] * 17, []], [1, 2])),
    ],
)
def test_damaged_last_clicks_are_a_named_error(raw: bytes) -> None:
    with pytest.raises(StoreError, match="last clicks"):
        unpack_recent(raw)


def test_a_user_without_the_field_did_nothing() -> None:
    assert unpack_recent(None) == NOTHING == Recent((), ())


@given(st.lists(st.integers(0, MOST), max_size=30), st.integers(20, 2000), st.integers(0, 1023))
def test_lists_come_back_whole_and_in_order_in_messages_that_are_bounded(
    sizes: list[int], most_bytes: int, partition: int
) -> None:
    said = lists(sizes)
    messages = list(pack(partition, said, most_bytes))
    found = [unpack(raw) for raw in messages]
    assert {number for number, _ in found} <= {partition}
    assert all(len(raw) <= most_bytes or len(one.items) == 1 for raw, (_, one) in zip(messages, found, strict=True))
    parts = [one for _, one in found]
    assert [one.day for one in parts] == [said.day] * len(parts)
    for name in ("items", "sizes", "near", "counts"):
        whole = np.concatenate([getattr(said, name)[:0], *(getattr(one, name) for one in parts)])
        assert np.array_equal(whole, getattr(said, name)), name


def test_the_largest_message_is_within_what_a_broker_takes() -> None:
    messages = list(pack(0, lists([MOST] * 4000)))
    assert len(messages) > 1
    assert max(map(len, messages)) <= MESSAGE_BYTES


@given(st.binary(max_size=80))
def test_bytes_that_are_no_message_are_a_named_error_or_lists(raw: bytes) -> None:
    with contextlib.suppress(BadEventError):
        assert isinstance(unpack(raw)[1], Lists)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_a_named_error_or_gives_lists_that_fit(at: int, value: int) -> None:
    (raw,) = pack(3, lists([2, 0, 16]))
    changed = bytearray(raw)
    changed[at % len(raw)] = value
    try:
        _, found = unpack(bytes(changed))
    except BadEventError:
        return
    assert len(found.items) == len(found.sizes)
    assert len(found.near) == len(found.counts) == found.sizes.sum()


@pytest.mark.parametrize(
    "changed",
    [
        lambda raw: None,
        lambda raw: b"",
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: b"\2" + raw[1:],  # another form
        lambda raw: raw[:1] + b"\xff\xff" + raw[3:],  # no partition
        lambda raw: raw[:3] + b"\xff\xff\xff\xff" + raw[7:],  # a day before the first
    ],
)
def test_what_is_no_message_is_refused(changed: Any) -> None:
    (raw,) = pack(3, lists([2, 0, 16]))
    assert same(unpack(raw)[1], lists([2, 0, 16]))
    with pytest.raises(BadEventError, match="malformed"):
        unpack(changed(raw))


@given(st.lists(st.lists(st.integers(0, 60_000), min_size=DAYS, max_size=DAYS), min_size=1, max_size=5))
def test_a_neighbour_is_worth_the_clicks_a_day_of_the_windows(days: list[list[int]]) -> None:
    """The formula by which hot items are ordered and affinities read."""
    counts = np.array(days)
    by_window = np.stack([counts[:, :window].sum(1) for window in WINDOWS], 1)[:, :, None]
    expected = clicks_a_day(by_window, Windows(days=WINDOWS, actions=("click",)))
    assert np.allclose(worth(counts) * UNIT, expected, rtol=1e-12)
    for age in (1, 3, 6, 7, 100):
        later = np.concatenate([np.zeros((len(counts), min(age, DAYS)), np.int64), counts], 1)[:, :DAYS]
        assert worth(counts, age).tolist() == worth(later).tolist()
        assert worth(counts, np.full(len(counts), age)).tolist() == worth(later).tolist()
