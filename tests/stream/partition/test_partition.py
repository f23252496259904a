"""A partition's edges: bad messages with their reasons, what readers are told, checkpoints of its state."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from millrace.basics.errors import StoreError
from millrace.contracts.clock import MAX_AHEAD_MS
from millrace.contracts.events import MAX_EVENT_BYTES, PageLog, User, to_json, to_msgpack
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, POSITIVE
from millrace.contracts.schema import parse_schema
from millrace.contracts.settings import Settings
from millrace.labels import REGISTRY
from millrace.windows.tiles import counts_of
from stream.join.join import InputMessage
from stream.partition.partition import Partition, Policy
from tests.scenes.stream_world import (
    DAY,
    HOUR,
    MINUTE,
    POLICY,
    SCHEMA,
    T0,
    Log,
    World,
    action,
    exposure,
    keys_of,
    page_log,
    resumed,
    rows,
)

NOW = T0 + 10 * HOUR


def world(policy: Policy = POLICY) -> World:
    return World(policy, number=3, now_ms=NOW)


def altered(**values: Any) -> bytes:
    return to_msgpack(msgspec.structs.replace(decode_page_log(page_log("a", T0, [1, 2])), **values))


@pytest.mark.parametrize(
    ("raw", "reason", "lost"),
    [
        (b'{"type":"exposure"', "malformed", 0),
        (b"\xff\xfe", "malformed", 0),
        (b'{"type":"view","ts_ms":1}', "unknown-type", 0),
        (exposure("a", T0, []), "wrong-type", 0),
        (exposure("a", -1, [1]), "wrong-type", 0),
        (b'{"type":"click","event_id":"e","request_id":"a","ts_ms":1e400,"user_id":1}', "wrong-type", 0),
        (exposure("a", NOW + POLICY.ahead_ms + 1, [1, 2, 3]), "future", 3),
        (action("click", "a", NOW + POLICY.ahead_ms + 1, 0, 1), "future", 0),
        (exposure("a", T0, [1], pad="x" * MAX_EVENT_BYTES), "oversized", 0),
    ],
)
def test_bad_events_are_kept_with_their_reason_and_move_nothing(raw: bytes, reason: str, lost: int) -> None:
    shop = world().events(raw)
    assert shop.dead == [(reason, lost)]
    assert shop.partition.watermark_ms == 0
    assert shop.partition.pending == 0
    dead_letter = shop.total.dead[0]
    assert (dead_letter.topic, dead_letter.partition, dead_letter.offset) == ("events", 3, 0)
    assert dead_letter.raw == raw[: len(dead_letter.raw)]
    assert dead_letter.truncated == (len(raw) > len(dead_letter.raw))
    assert shop.partition.offsets == {"events": 1}


def test_a_message_of_ten_megabytes_is_kept_in_part() -> None:
    dead_letter = world().events(b"x" * 10_000_000).total.dead[0]
    assert dead_letter.truncated
    assert len(dead_letter.raw) < 1_000_000


@pytest.mark.parametrize(
    "raw",
    [
        b"\xc1",
        b"",
        altered(schema_id="other"),
        altered(items=[1, 2, 3]),
        altered(keys=b"\0" * 31),
        altered(num=b""),
    ],
    ids=["not msgpack", "empty", "schema", "rows", "keys", "num"],
)
def test_an_unfitting_page_log_is_a_dead_letter_and_its_exposures_follow(raw: bytes) -> None:
    shop = world().page_logs(raw).events(exposure("a", T0, [1, 2])).until(T0 + 2 * HOUR)
    assert shop.dead == [("bad-page-log", 0), ("no-page-log", 2)]


def test_an_unreadable_user_is_a_dead_letter() -> None:
    shop = world()
    shop.total += shop.partition.take(
        [InputMessage("users", 0, b"{}"), InputMessage("users", 1, b'{"user_id":1}')], NOW
    )
    assert shop.dead == [("bad-user", 0)] * 2


def test_actions_wait_for_their_exposure_and_exposures_for_their_page_log() -> None:
    shop = world()
    shop.events(action("click", "a", T0 + 5, 1, 2), action("purchase", "a", T0 + 9, 1, 2))
    shop.events(exposure("a", T0, [1, 2, 3]))
    assert shop.samples == []
    assert shop.partition.pending == 3
    shop.page_logs(page_log("a", T0, [1, 2, 3]))
    assert shop.samples == [(1, POSITIVE), (1, FOLLOW_UP)]
    assert [row.actions for row in shop.total.samples] == [0b11, 0b10001]
    assert [row.origin_ms for row in shop.total.samples] == [T0 + 10, T0 + 14]
    shop.until(T0 + HOUR)
    assert shop.samples[2:] == [(0, NEGATIVE), (2, NEGATIVE)]
    assert shop.partition.pending == 0


def test_actions_alone_end_as_dead_letters() -> None:
    shop = world().page_logs(page_log("a", T0, [1, 2])).events(exposure("a", T0, [1]))
    shop.events(
        action("click", "nobody", T0 + 5, 0, 1),  # a page that there is not
        action("click", "a", T0 + 5, 1, 2),  # a position that was not exposed
        action("click", "a", T0 + 5, 0, 9),  # another item than at that position
    )
    assert shop.dead == [("wrong-item", 0)]
    shop.until(T0 + POLICY.lateness_ms + POLICY.disorder_ms + 5)
    assert shop.dead == [("wrong-item", 0)]
    shop.until(T0 + POLICY.lateness_ms + POLICY.disorder_ms + 6)
    assert sorted(shop.dead) == [("no-exposure", 0), ("no-exposure", 0), ("wrong-item", 0)]


def test_an_exposure_of_another_item_than_was_served_is_lost_alone() -> None:
    shop = world().page_logs(page_log("a", T0, [1, 2])).events(exposure("a", T0, [1, 9, 3])).until(T0 + HOUR)
    assert shop.dead == [("wrong-item", 2)]
    assert shop.samples == [(0, NEGATIVE)]


def test_ids_are_the_same_as_numbers_and_as_text() -> None:
    shop = world().page_logs(page_log("a", T0, [1, 2]))
    raw = exposure("a", T0, []).replace(b'"items":[]', b'"items":["1",2]')
    shop.events(raw, action("click", "a", T0 + 1, 0, "1"))  # type: ignore[arg-type]
    assert shop.samples == [(0, POSITIVE)]
    assert shop.dead == []


def test_a_page_in_parts_and_its_overlap() -> None:
    shop = world().page_logs(page_log("a", T0, [1, 2, 3, 4]))
    shop.events(exposure("a", T0, [1, 2]), exposure("a", T0 + MINUTE, [2, 3, 4], 1), exposure("a", T0, [1, 2]))
    assert shop.total.counts["exposures"] == 4
    assert shop.total.counts["duplicates"] == 1
    shop.until(T0 + 30 * MINUTE + POLICY.disorder_ms)
    assert shop.samples == [(0, NEGATIVE), (1, NEGATIVE)]
    shop.until(T0 + 31 * MINUTE + POLICY.disorder_ms)
    assert shop.samples[2:] == [(2, NEGATIVE), (3, NEGATIVE)]


def test_the_attribution_window_is_closed_below_and_open_above() -> None:
    at = POLICY.attribution_ms
    shop = world().page_logs(page_log("a", T0, [1, 2])).events(exposure("a", T0, [1, 2]))
    shop.events(action("click", "a", T0 + at - 1, 0, 1), action("click", "a", T0 + at, 1, 2))
    assert shop.samples == [(0, POSITIVE), (1, NEGATIVE), (1, CORRECTION)]


def test_after_the_page_is_dropped_everything_of_it_is_late_and_counts_no_exposure_twice() -> None:
    shop = world().page_logs(page_log("a", T0, [1, 2, 3])).events(exposure("a", T0, [1, 2]))
    shop.until(T0 + POLICY.life_ms + POLICY.disorder_ms)
    assert shop.partition.pending == 0
    shop.events(exposure("a", T0, [1, 2]), exposure("a", T0, [3], 2), action("click", "a", T0 + 1, 0, 1))
    shop.events(exposure("a", T0, [3], 2))
    assert shop.dead == [("late", 0), ("late", 1), ("late", 0), ("late", 0)]
    assert shop.total.dead[1].detail == "50 min behind the watermark"
    assert shop.total.counts["exposures"] == 3
    assert shop.samples == [(0, NEGATIVE), (1, NEGATIVE)]


def test_a_redelivered_message_is_skipped() -> None:
    shop = world()
    messages = shop.log.events(exposure("a", T0, [1]), exposure("b", T0, [2]))
    shop.total += shop.partition.take(messages, NOW)
    shop.total += shop.partition.take(messages, NOW)
    assert shop.total.counts["skipped"] == 2
    assert shop.total.counts["exposures"] == 2
    assert shop.total.counts["duplicates"] == 0


def test_readers_are_given_absolute_states_by_side_and_owner() -> None:
    shop = world()
    shop.page_logs(page_log("a", T0, [1], user=7), page_log("b", T0, [2], user=8))
    shop.page_logs(page_log("c", T0, [2], user=7))
    user = User(7, {"kind": "business"})
    shop.total += shop.partition.take([InputMessage("users", 0, to_json(user))], NOW)
    shop.events(exposure("a", T0, [1]), exposure("b", T0, [2], user_id=8), exposure("c", T0, [2]))
    shop.events(action("click", "b", T0 + 5, 0, 2, user_id=8))
    changes = shop.partition.changes()
    assert changes.profiles == [user]
    assert changes.event_ms == T0 + 5
    at = T0 + HOUR

    def window(blob: bytes) -> list[int]:
        counts: list[int] = counts_of([blob], at, SCHEMA.windows.days, 3)[0, 0].tolist()
        return counts

    items = dict(zip(changes.item_keys.tolist(), map(window, changes.item_tiles), strict=True))
    keys = keys_of(7, [1, 2])
    assert items == {int(keys[0, 0]): [1, 0, 0], int(keys[1, 0]): [2, 1, 0]}
    users = {user: {key: window(blob) for key, blob in lists} for user, lists in changes.users}
    assert users == {
        7: {int(keys[0, 1]): [1, 0, 0], int(keys[1, 1]): [1, 0, 0]},
        8: {int(keys_of(8, [2])[0, 1]): [1, 1, 0]},
    }
    again = shop.partition.changes()
    assert (again.users, again.profiles, again.item_tiles) == ([], [], [])
    shop.events(action("click", "a", T0 + 9, 0, 1))
    later = shop.partition.changes()
    assert [window(blob) for blob in later.item_tiles] == [[1, 1, 0]]
    assert [(u, [window(b) for _, b in lists]) for u, lists in later.users] == [(7, [[1, 1, 0]])]


def test_what_was_not_published_survives_a_crash() -> None:
    shop = world().page_logs(page_log("a", T0, [1, 2])).events(exposure("a", T0, [1, 2]))
    shop.total += shop.partition.take([InputMessage("users", 0, to_json(User(7, {})))], NOW)
    copy = resumed(shop.partition.snapshot().to_bytes(), SCHEMA, POLICY, 3)
    mine, theirs = shop.partition.changes(), copy.changes()
    assert (mine.users, mine.profiles, mine.item_tiles) == (theirs.users, theirs.profiles, theirs.item_tiles)
    assert mine.item_keys.tolist() == theirs.item_keys.tolist()
    assert len(mine.item_keys) == 2
    again = resumed(shop.partition.snapshot().to_bytes(), SCHEMA, POLICY, 3).changes()
    assert (again.users, again.profiles, again.item_tiles) == ([], [], [])


def test_a_frozen_state_does_not_see_what_comes_later() -> None:
    shop = world().page_logs(page_log("a", T0, [1, 2])).events(exposure("a", T0, [1, 2]))
    frozen, expected = shop.partition.snapshot(), shop.partition.snapshot().to_bytes()
    shop.events(action("click", "a", T0 + 5, 0, 1), exposure("b", T0, [1])).until(T0 + 5 * HOUR)
    shop.partition.changes()
    assert frozen.to_bytes() == expected


def test_equal_states_have_equal_bytes_after_a_round_trip() -> None:
    rng = random.Random(4)
    shop = world()
    for i in range(50):
        t = T0 + i * MINUTE
        shop.page_logs(page_log(f"r{i}", t, [1, 2, 3], user=i % 5))
        clicked = rng.randrange(i + 1)
        shop.events(exposure(f"r{i}", t, [1, 2, 3], user_id=i % 5))
        shop.events(action("click", f"r{clicked}", t, 1, 2, user_id=clicked % 5))
    raw = shop.partition.snapshot().to_bytes()
    copy = resumed(raw, SCHEMA, POLICY, 3)
    assert copy.snapshot().to_bytes() == raw
    assert (copy.offsets, copy.pending, copy.watermark_ms, copy.newest_ms, len(copy.windows)) == (
        shop.partition.offsets,
        shop.partition.pending,
        shop.partition.watermark_ms,
        shop.partition.newest_ms,
        len(shop.partition.windows),
    )


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def other_form(raw: bytes) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.decode(raw) | {"form": 99})


def no_tiles(raw: bytes) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.decode(raw) | {"tiles": {}})


@pytest.mark.parametrize(("damage", "said"), [(cut, "no checkpoint"), (other_form, "form 99"), (no_tiles, "damaged")])
def test_a_state_that_cannot_be_read_is_refused_by_name(damage: Callable[[bytes], bytes], said: str) -> None:
    raw = world().events(exposure("a", T0, [1])).partition.snapshot().to_bytes()
    with pytest.raises(StoreError, match=said):
        resumed(damage(raw), SCHEMA, POLICY, 3)


def test_a_state_of_another_schema_is_refused_by_name() -> None:
    other = parse_schema('name = "other"\n[[fields]]\nname = "user_id"\nof = "user"')
    with pytest.raises(StoreError, match=f"schema {SCHEMA.id}, the settings name {other.id}"):
        resumed(world().partition.snapshot().to_bytes(), other, POLICY, 3)


def test_a_state_of_another_partition_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match="partition 3 in the place of 0's"):
        resumed(world().partition.snapshot().to_bytes())


def test_windows_of_pages_long_gone_are_dropped() -> None:
    shop = world()
    keys = []
    for day in range(0, 30, 2):
        items = list(range(day * 100, day * 100 + 50))
        t = T0 + day * DAY
        log = (shop.log.page_logs(page_log(f"d{day}", t, items)), shop.log.events(exposure(f"d{day}", t, items)))
        for messages in log:
            shop.total += shop.partition.take(messages, t)
        for hour in range(70):  # the sweep comes in slices
            shop.total += shop.partition.advance(t + hour)
        keys.append(len(shop.partition.windows))
    assert keys[4:] == [keys[4]] * len(keys[4:])


def test_pages_do_not_pile_up() -> None:
    shop = world()
    sizes = []
    for i in range(400):
        t = T0 + i * MINUTE
        shop.total += shop.partition.take(shop.log.page_logs(page_log(f"r{i}", t, [1, 2])), t)
        events = [exposure(f"r{i}", t, [1, 2]), action("click", f"r{i}", t, 5, 2), action("click", f"x{i}", t, 0, 2)]
        shop.total += shop.partition.take(shop.log.events(*events), t)
        sizes.append(len(shop.partition.snapshot().to_bytes()))
    assert max(sizes[200:]) < 1.05 * max(sizes[:200])


def test_policy_follows_the_settings() -> None:
    settings = Settings(attribution_minutes=10, disorder_seconds=2, lateness_minutes=3)
    assert Policy.of(settings) == Policy(600_000, 2000, 180_000, MAX_AHEAD_MS, REGISTRY["prompt"], 10_000)


def test_the_arrays_of_a_page_log_are_not_copied_until_they_are_sampled() -> None:
    raw = page_log("a", T0, [1, 2])
    shop = world().page_logs(raw)
    page = shop.partition.join.pages["a"]
    assert page.page_log is not None
    assert np.shares_memory(page.page_log.num, np.frombuffer(page.page_log.raw, np.uint8))
    assert isinstance(decode_page_log(raw), PageLog)


def test_a_message_read_again_is_judged_by_the_clock_of_its_coming() -> None:
    """From the future then, and of the past by now: used now, it would move the watermark past its neighbours."""
    early = exposure("a", T0 + HOUR + POLICY.ahead_ms + 1, [1])
    for clock_ms, reasons in ((T0 + HOUR, ["future"]), (T0 + 2 * HOUR, []), (None, []), (T0 + 900 * HOUR, [])):
        partition = Partition(0, SCHEMA, POLICY)
        out = partition.take([InputMessage("events", 0, early, clock_ms)], T0 + 50 * HOUR)
        assert [d.reason for d in out.dead] == reasons
    # A time stamp of Kafka's that is ahead of the clock (producers may set it) does not excuse a message.
    out = Partition(0, SCHEMA, POLICY).take([InputMessage("events", 0, early, T0 + 900 * HOUR)], T0 + HOUR)
    assert [d.reason for d in out.dead] == ["future"]


def test_an_advance_that_a_checkpoint_announces_is_made_by_whoever_recovers() -> None:
    log, first = Log(), Partition(0, SCHEMA, POLICY)
    seen = [*log.page_logs(page_log("a", T0, [1, 2])), *log.events(exposure("a", T0 + 1, [1, 2]))]
    first.take(seen, NOW)
    until = T0 + POLICY.attribution_ms + POLICY.disorder_ms + 2
    assert first.waits_for(until)
    assert not first.waits_for(T0 + 2)
    body = first.snapshot(advance_ms=until).to_bytes()
    given = rows(first.advance(until).samples)
    assert [row.kind for row in given] == [NEGATIVE, NEGATIVE]

    second = resumed(body)
    announced = second.advance_ms
    assert announced == until
    assert rows(second.advance(announced).samples) == given
    click = log.events(action("click", "a", T0 + MINUTE, 1, 2))
    again = [rows(partition.take(click, NOW).samples) for partition in (first, second)]
    assert [row.kind for row in again[0]] == [CORRECTION]
    assert again[0] == again[1]
    assert first.snapshot().to_bytes() == second.snapshot().to_bytes()
