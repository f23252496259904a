"""What the intake remembers, and what waits in it: each event is kept once, in order, and everybody is told."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.contracts.events import BadEventError
from millrace.processes.resident_memory import measured_bytes
from stream.intake.intake_queue import Keeper, Parcel, WaitingMessage
from stream.intake.intake_wire import DUPLICATE, KEPT, OutMessage, Verdict
from stream.intake.recent_ids import IdMemory
from tests.scenes.intake_desk import DISORDER_MS, LIFE_MS, keeper

LANE = ("events", 0)


def event(n: object, ts_ms: int = 1, exposure: bool = False) -> OutMessage:
    return OutMessage("events", b"user", str(n).encode(), f"e{n}", ts_ms, exposure)


def statuses(parcel: Parcel) -> list[str | None]:
    return [None if verdict is None else verdict.status for verdict in parcel.verdicts]


class Scene:
    """A keeper with one lane, and the parcels that were done, in order."""

    def __init__(self, limit: int = 1000) -> None:
        self.keeper = Keeper(lambda topic, key: LANE, hash, limit, LIFE_MS, DISORDER_MS)
        self.done: list[Parcel] = []

    def send(self, *lines: OutMessage | Verdict) -> Parcel:
        parcel = Parcel(lambda: self.done.append(parcel))
        self.keeper.admit(parcel, lines)
        return parcel

    def take(self, most_bytes: int = 1 << 20) -> list[WaitingMessage]:
        return self.keeper.take(LANE, most_bytes)


def scattered(n: int) -> int:
    return n * 0x9E3779B97F4A7C15 % 2**64


# -- memory of ids ----------------------------------------------------------------------------------------------------


@given(st.integers(1, 20), st.lists(st.integers(1, 60), max_size=200))
def test_the_newest_ids_are_known_and_none_that_never_came(capacity: int, ids: list[int]) -> None:
    memory, newest, ever = IdMemory(capacity), deque[int](maxlen=capacity), set[int]()
    for n in ids:
        hashed = scattered(n)
        if hashed in newest:
            newest.remove(hashed)
        newest.append(hashed)
        memory.add(hashed)
        ever.add(hashed)
        assert all(known in memory for known in newest)
        assert not any(scattered(other) in memory for other in range(1, 61) if scattered(other) not in ever)


def test_a_memory_for_many_ids_takes_little_while_there_are_few() -> None:
    before = measured_bytes()
    memory = IdMemory(10_000_000)  # 512 MB of slots
    for n in range(1, 100):
        memory.add(n << 40 | n)
    assert measured_bytes() - before < 64 << 20


def test_the_memory_is_bounded_and_forgets_the_oldest() -> None:
    memory = IdMemory(100)
    for one in range(1, 1001):
        memory.add(one)
    known = [one for one in range(1, 1001) if one in memory]
    assert set(range(901, 1001)) <= set(known)
    assert len(known) <= 200


def test_ids_that_fall_into_one_slot_are_distinguished() -> None:
    memory = IdMemory(4)
    memory.add(16)
    memory.add(32)
    assert [one in memory for one in (16, 32, 48)] == [True, True, False]


# -- keeper -----------------------------------------------------------------------------------------------------------


def test_a_request_is_answered_when_all_its_lines_are_kept() -> None:
    scene = Scene()
    bad = Verdict("refused", "wrong-type", "why")
    parcel = scene.send(event(1), bad, event(2))
    assert (statuses(parcel), parcel.left) == ([None, "refused", None], 2)
    first = scene.take(1)
    scene.keeper.kept(LANE, first)
    assert (statuses(parcel), scene.done) == (["kept", "refused", None], [])
    scene.keeper.kept(LANE, scene.take())
    assert parcel.verdicts == [KEPT, bad, KEPT]
    assert scene.done == [parcel]
    assert scene.keeper.waiting == 0
    assert scene.send(bad).left == 0


def test_the_same_event_again_is_a_duplicate_once_it_is_kept_and_waits_with_it_before() -> None:
    scene = Scene()
    first, second = scene.send(event(1), event(1)), scene.send(event(1))
    batch = scene.take()
    assert len(batch) == 1
    assert scene.send(event(1)).left == 1  # also while it is under way
    scene.keeper.kept(LANE, batch)
    assert (statuses(first), statuses(second)) == (["kept", "duplicate"], ["duplicate"])
    third = scene.send(event(1))
    assert (third.verdicts, third.left, scene.take()) == ([DUPLICATE], 0, [])


def test_an_event_that_was_not_kept_is_no_duplicate() -> None:
    scene = Scene()
    first, second = scene.send(event(1)), scene.send(event(1))
    scene.keeper.refuse(scene.take()[0], BadEventError("oversized", "too large"))
    assert (statuses(first), statuses(second)) == (["refused"], ["refused"])
    third = scene.send(event(1))
    scene.keeper.kept(LANE, scene.take())
    assert statuses(third) == ["kept"]


def test_users_and_items_are_never_duplicates() -> None:
    scene = Scene()
    user = OutMessage("users", b"7", b"{}")
    scene.send(user, user)
    assert len(scene.take()) == 2


def test_what_is_put_back_comes_first_again_in_its_order() -> None:
    scene = Scene()
    scene.send(*(event(n) for n in range(5)))
    batch = scene.take(2 * len(event(0).key) + 300)
    assert [one.value for one in batch] == [b"0", b"1"]
    scene.keeper.put_back(LANE, batch)
    assert [one.value for one in scene.take()] == [b"0", b"1", b"2", b"3", b"4"]


def test_a_message_larger_than_a_batch_travels_alone() -> None:
    scene = Scene()
    scene.send(OutMessage("users", b"1", b"x" * 5000), OutMessage("users", b"2", b"y"))
    assert [one.key for one in scene.take(300)] == [b"1"]
    assert [one.key for one in scene.take(300)] == [b"2"]


def test_so_many_messages_wait_and_no_more() -> None:
    scene = Scene(limit=3)
    assert scene.keeper.has_room(1000)  # whoever comes alone can be served
    scene.send(event(1), event(2))
    assert scene.keeper.has_room(1)
    assert not scene.keeper.has_room(2)
    scene.keeper.kept(LANE, scene.take())
    assert scene.keeper.has_room(3)


def test_large_messages_wait_up_to_so_many_bytes_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.intake.intake_queue.MOST_BYTES", 4000)
    scene = Scene()
    while scene.keeper.has_room(1):
        scene.send(OutMessage("events", b"user", b"x" * 1000, f"e{scene.keeper.waiting}", 1))
    assert scene.keeper.waiting == 4
    batch = scene.take(1500)
    assert not scene.keeper.has_room(1), "what is under way is still in memory"
    scene.keeper.kept(LANE, batch)
    assert scene.keeper.has_room(1)
    (refused,) = scene.take(1500)
    scene.keeper.refuse(refused, BadEventError("oversized", ""))
    scene.keeper.kept(LANE, scene.take(10_000))
    assert scene.keeper.bytes == scene.keeper.waiting == 0


def test_what_is_sent_again_and_given_up_again_takes_no_more_room() -> None:
    scene = Scene()
    for _ in range(200):
        scene.send(event(1), event(2)).gone = True
    waits = scene.send(event(2), event(1))
    batch = scene.take()
    assert len(batch) == 2
    assert all(len(one.lines) < 20 for one in batch)
    scene.keeper.kept(LANE, batch)
    assert statuses(waits) == ["duplicate", "duplicate"]
    assert scene.done[-1] is waits


def test_one_event_dated_ahead_makes_no_exposure_late() -> None:
    scene, now_ms = Scene(), 2 * (LIFE_MS + DISORDER_MS)
    scene.send(event("ahead", now_ms + LIFE_MS + DISORDER_MS)._replace(came_ms=now_ms))
    scene.keeper.kept(LANE, scene.take())
    assert statuses(scene.send(event("now", now_ms, exposure=True))) == [None]


def test_an_exposure_far_behind_one_that_is_kept_is_late() -> None:
    scene = Scene()
    newest = LIFE_MS + DISORDER_MS + 1000
    scene.send(event("newest", newest))
    waits = scene.send(event("old", 1000, exposure=True))
    assert statuses(waits) == [None]  # the newest may still be lost
    scene.keeper.kept(LANE, scene.take())
    assert scene.send(event("older", 1000, exposure=True)).verdicts[0].reason == "late"  # type: ignore[union-attr]
    assert statuses(scene.send(event("action", 1000))) == [None]
    assert statuses(scene.send(event("young", 1001, exposure=True))) == [None]


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_whatever_happens_each_event_is_kept_once_in_order_and_every_request_is_answered(seed: int, ids: int) -> None:
    """Requests, batches, failures and what is sent again, in any order, against a log."""
    draw = random.Random(seed)
    keep = keeper(10**6, IdMemory(1000))
    log: dict[tuple[str, int], list[bytes]] = {}
    under_way: dict[tuple[str, int], list[WaitingMessage]] = {}
    parcels: list[tuple[Parcel, list[OutMessage]]] = []
    done: list[int] = []
    touched: set[tuple[str, int]] = set()
    sent = 0

    def end(lane: tuple[str, int]) -> None:
        batch = under_way.pop(lane)
        if draw.random() < 0.4:
            keep.put_back(lane, batch)
            return
        log.setdefault(lane, []).extend(one.value or b"" for one in batch)
        keep.kept(lane, batch)

    for _ in range(60):
        step = draw.random()
        if step < 0.5:
            lines = []
            for _ in range(draw.randint(1, 4)):
                sent += 1
                n = draw.randint(1, ids)
                lines.append(OutMessage("events", str(n % 5).encode(), str(sent).encode(), f"e{n}", 1))
            number = len(parcels)
            parcel = Parcel(lambda number=number: done.append(number))  # type: ignore[misc]
            parcels.append((parcel, lines))
            touched |= keep.admit(parcel, lines)
            if not parcel.left:
                done.append(number)
        elif touched:
            lane = draw.choice(sorted(touched))
            if lane in under_way:
                end(lane)
            elif batch := keep.take(lane, draw.randint(1, 800)):
                under_way[lane] = batch
    for lane in sorted(touched):
        while lane in under_way or keep.depth(lane):
            if lane not in under_way:
                under_way[lane] = keep.take(lane, 500)
            end(lane)
    assert sorted(done) == list(range(len(parcels)))
    assert keep.waiting == 0
    kept = [line for parcel, lines in parcels for v, line in zip(parcel.verdicts, lines, strict=True) if v == KEPT]
    assert sorted(value for values in log.values() for value in values) == sorted(line.value or b"" for line in kept)
    assert len({line.event_id for line in kept}) == len(kept) == len({m.event_id for _, ms in parcels for m in ms})
    for values in log.values():
        numbers = [int(value) for value in values]
        assert numbers == sorted(numbers)
