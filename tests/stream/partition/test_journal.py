"""A base and the journals after it give the state again, to the bit; whatever happened, wherever it is cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.contracts.events import User, to_json
from millrace.contracts.samples import POLICIES
from millrace.labels import policy_named
from stream.join.join import InputMessage
from stream.partition.journal import Did, Journal, from_bytes, to_bytes
from stream.partition.partition import Partition
from tests.scenes.arrivals import NOW, SETTLED, arrivals
from tests.scenes.exploring import examples
from tests.scenes.partition_forms import form, out_of
from tests.scenes.stream_world import DAY, HOUR, SCHEMA, T0, Log, action, exposure, page_log


class Life:
    """A partition that lives: everything that a worker may do to it is done, in an order of chance."""

    def __init__(self, messages: list[InputMessage], rng: random.Random, label: str, settles: bool) -> None:
        self.rng, self.messages = rng, messages
        policy = replace(SETTLED, label=policy_named(label))
        self.partition = Partition(0, SCHEMA, policy, 1, settles)
        self.partition.journal = self.journal = Journal()
        self.topic = {m.offset: m.raw for m in messages if m.topic == "page_logs"}
        self.at = 0

    def step(self) -> None:
        part, rng = self.partition, self.rng
        match rng.choice(
            ("take",) * 6 + ("wanted", "wanted", "gone", "changes", "whole", "advance", "back", "remade", "cut")
        ):
            case "take":
                batch = self.messages[self.at : self.at + rng.randrange(1, 6)]
                self.at += len(batch)
                part.take(batch, NOW + rng.randrange(1000))
            case "wanted":
                part.returned({request: self.topic.get(at) for request, at in part.wanted.items()})
            case "gone":
                part.returned(dict.fromkeys(list(part.wanted)[:1]))
            case "changes":
                part.changes()
            case "whole":
                list(part.whole())
            case "advance" if part.newest_ms:
                part.advance(part.newest_ms + rng.choice((1, HOUR // 2, 3 * HOUR)))
            case "back":
                part.set_back()
            case "cut" if part.offsets.get("events"):
                part.cut_back({"events": part.offsets["events"] - 1})
            case "remade" if rng.random() < 0.3:
                part.reset_offsets(rng.choice((["events"], ["page_logs"], ["users", "page_logs"])))
                self.messages = self.messages[: self.at] + [
                    m._replace(offset=m.offset + 1000) for m in self.messages[self.at :]
                ]

    def again(self, base: bytes, segments: list[bytes]) -> Partition:
        one = self.partition
        part = Partition(0, SCHEMA, one.policy, one.partitions, one.settles)
        part.resume(base)
        for segment in segments:
            part.replay(from_bytes(segment))
        return part


@examples(150)
@given(arrivals(wild=True), st.integers(0, 2**32), st.sampled_from(POLICIES), st.booleans())
def test_a_base_and_its_journals_are_the_state_wherever_they_are_cut(
    messages: list[InputMessage], seed: int, label: str, settles: bool
) -> None:
    rng = random.Random(seed)
    life = Life(messages, rng, label, settles)
    base, segments = life.partition.snapshot().to_bytes(), list[bytes]()
    for _ in range(rng.randrange(1, 60)):
        life.step()
        if rng.random() < 0.3:  # a checkpoint, now and then with a base
            segments.append(to_bytes(life.journal.cut().entries))
            if rng.random() < 0.3:
                base, segments = life.partition.snapshot().to_bytes(), []
    segments.append(to_bytes(life.journal.cut().entries))
    again = life.again(base, segments)
    assert form(again) == form(life.partition)
    # And both go on alike.
    rest = life.messages[life.at :]
    for one, other in zip(out_of(life.partition, rest), out_of(again, rest), strict=True):
        assert one == other


def test_every_way_to_change_a_partition_is_noted() -> None:
    """A method that changes the state and notes nothing would be lost in a crash."""
    log = Log()
    page = [*log.page_logs(page_log("a", T0, [1])), *log.events(exposure("a", T0, [1]))]
    done: dict[Did, Callable[[Partition], Any]] = {
        Did.TAKE: lambda p: p.take(page, NOW),
        Did.ADVANCE: lambda p: p.advance(T0 + HOUR),
        Did.SET_BACK: lambda p: p.set_back(),
        Did.RETURNED: lambda p: p.returned({"a": None}),
        Did.RESET_OFFSETS: lambda p: p.reset_offsets(["events"]),
        Did.CUT_BACK: lambda p: p.cut_back({"events": 0}),
        Did.CHANGES: lambda p: p.changes(),
        Did.WHOLE: lambda p: list(p.whole()),
    }
    assert set(done) == set(Did)
    public = {name for name in vars(Partition) if not name.startswith("_")}
    reads = {
        "newest_ms",
        "ahead_ms",
        "watermark_ms",
        "pending",
        "unserved",
        "wanted",
        "settled",
        "window_keys",
        "windows",
        "waits_for",
        "coclicks",
        "item_keys",
    }
    # A history is taken in before there is a journal, and refused where there is one.
    assert public - reads - {"snapshot", "resume", "replay", "lived"} == {did.name.lower() for did in Did}
    keeping = Partition(0, SCHEMA, SETTLED)
    keeping.journal = Journal()
    with pytest.raises(ValueError, match="cannot be given a history"):
        keeping.lived([], T0)
    for did, do in done.items():
        partition = Partition(0, SCHEMA, SETTLED, settles=True)
        partition.journal = journal = Journal()
        do(partition)
        ((noted, *_),) = journal.cut().entries
        assert noted == did


def test_a_replay_notes_nothing_and_tells_again_of_keys_that_may_have_ended() -> None:
    log, life = Log(), Partition(0, SCHEMA, SETTLED)
    life.journal = journal = Journal()
    base = life.snapshot().to_bytes()
    day = [*log.page_logs(page_log("a", T0, [1])), *log.events(exposure("a", T0, [1]))]
    life.take(day, NOW)
    life.changes()
    again = Partition(0, SCHEMA, SETTLED)
    again.resume(base)
    again.replay(from_bytes(to_bytes(journal.cut().entries)))
    assert again.journal is None
    gone: dict[int, bytes] = {}
    for k in range(140):  # a sweep goes in 64 slices, and one is under way
        at = T0 + 9 * DAY + k
        again.take(log.events(action("click", "x", at, 0, 1)), NOW)
        gone |= {key: blob for _, lists in again.changes().users for key, blob in lists}
    assert list(gone.values()) == [b""]


def test_bytes_that_came_are_counted() -> None:
    log, partition = Log(), Partition(0, SCHEMA, SETTLED, settles=True)
    partition.journal = journal = Journal()
    served, user = page_log("a", T0, [1, 2]), to_json(User(7, {}))
    partition.take([*log.page_logs(served), InputMessage("users", 0, user)], NOW)
    partition.returned({"b": b"12345", "c": None})
    cut = journal.cut()
    assert (len(cut.entries), *cut[1:]) == (2, len(served) + len(user), 5)
    assert journal.cut() == ([], 0, 0)


@pytest.mark.parametrize(
    "raw", [b"", b"\xc1", msgspec.msgpack.encode([[99, 1]]), msgspec.msgpack.encode([[0, 1, [[]]]])]
)
def test_what_is_no_journal_is_a_named_error(raw: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        from_bytes(raw)
