"""A user's messages in a partition that is not the user's: dead letters at once, with the partition that is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import DefaultPartitioner
from kafka.partitioner.default import murmur2 as theirs

from millrace.basics.hashing import kafka_partition, murmur2
from millrace.commands.demo.conservation import Ledger
from millrace.contracts.events import User, dead_letter_bytes, key_of, to_json
from millrace.contracts.samples import NEGATIVE, POSITIVE
from stream.partition import decoder as module
from stream.partition.partition import InputMessage, Partition
from tests.scenes.stream_world import HOUR, POLICY, SCHEMA, T0, Log, action, exposure, page_log, resumed

PARTITIONS = 4
HOME = kafka_partition(b"7", PARTITIONS)
WRONG = (HOME + 1) % PARTITIONS


@given(st.binary(max_size=64))
def test_murmur2_is_that_of_kafka(data: bytes) -> None:
    assert murmur2(data) == theirs(data)


@given(st.binary(min_size=1, max_size=40), st.integers(1, 1024))
def test_the_partition_of_a_key_is_that_of_the_default_partitioner(key: bytes, partitions: int) -> None:
    every = set(range(partitions))
    cluster = SimpleNamespace(
        topics=lambda: {"t"}, partitions_for_topic=lambda _: every, available_partitions_for_topic=lambda _: every
    )
    assert kafka_partition(key, partitions) == DefaultPartitioner().partition("t", key, key, None, None, cluster)


def messages(log: Log, request: str = "r", **who: Any) -> list[InputMessage]:
    """A page of two, seen and clicked, and its user's profile."""
    user = who.get("user_id", 7)
    return [
        *log.page_logs(page_log(request, T0, [1, 2], user)),
        *log.events(exposure(request, T0 + 1, [1, 2], **who), action("click", request, T0 + 2, 1, 2, **who)),
        log("users", to_json(User(user, {}))),
    ]


def test_everything_about_a_user_of_another_partition_is_a_dead_letter_and_nothing_of_it_stays() -> None:
    part = Partition(WRONG, SCHEMA, POLICY, PARTITIONS)
    out = part.take(messages(Log()), T0)
    assert [(d.topic, d.offset, d.reason, d.exposures) for d in out.dead] == [
        ("page_logs", 0, "wrong-partition", 0),
        ("events", 0, "wrong-partition", 2),
        ("events", 1, "wrong-partition", 0),
        ("users", 0, "wrong-partition", 0),
    ]
    for dead_letter in out.dead:
        assert f"came in partition {WRONG}, but belongs to partition {HOME} of {PARTITIONS}" in dead_letter.detail
        assert "key '7'" in dead_letter.detail
    assert out.counts == {"exposures": 2}
    assert (part.pending, part.watermark_ms, part.newest_ms, len(part.windows)) == (0, 0, 0, 0)
    assert part.offsets == {"page_logs": 1, "events": 2, "users": 1}
    changes = part.changes()
    assert (changes.users, changes.profiles, len(changes.item_keys)) == ([], [], 0)


@pytest.mark.parametrize("who", [7, "7", "ann", 10**12], ids=repr)
def test_in_the_partition_that_is_the_users_nothing_changes(who: int | str) -> None:
    for number in range(PARTITIONS):
        checked, plain = Partition(number, SCHEMA, POLICY, PARTITIONS), Partition(number, SCHEMA, POLICY)
        ours, theirs = (part.take(messages(Log(), user_id=who), T0) for part in (checked, plain))
        assert not theirs.dead, "unless it is told how many there are, a partition asks nothing"
        assert ours.samples is None or ours.samples.kind.tolist() == [POSITIVE]
        home = number == kafka_partition(key_of(who), PARTITIONS)
        assert [d.reason for d in ours.dead] == ([] if home else ["wrong-partition"] * 4)
        assert (ours.counts == theirs.counts) == home


def test_one_partition_is_everybodys() -> None:
    assert not Partition(0, SCHEMA, POLICY, 1).take(messages(Log()), T0).dead


def test_what_a_partition_remembers_of_users_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KNOWN", 5)
    part, log = Partition(0, SCHEMA, POLICY, 1), Log()
    for user in range(40):
        assert not part.take(messages(log, f"r{user}", user_id=user), T0).dead
        assert len(part._decoder.own) <= 6


def test_from_the_future_comes_first() -> None:
    """An event that is both is told as what it is for whoever reads it."""
    ahead = exposure("r", T0 + 2 * HOUR, [1, 2])
    out = Partition(WRONG, SCHEMA, POLICY, PARTITIONS).take(Log().events(ahead), T0)
    assert [d.reason for d in out.dead] == ["future"]


def test_what_a_checkpoint_without_the_rule_holds_is_kept() -> None:
    """Taken in by a version that did not look: it ends as it was promised, and what is new is refused."""
    before, log = Partition(WRONG, SCHEMA, POLICY), Log()
    before.take(log.events(exposure("old", T0, [1, 2])), T0)
    part = Partition(WRONG, SCHEMA, POLICY, PARTITIONS)
    part.resume(before.snapshot().to_bytes())
    assert part.pending == 2
    assert [d.reason for d in part.take(log.events(exposure("new", T0, [1, 2])), T0).dead] == ["wrong-partition"]
    dead_letters = part.advance(T0 + POLICY.life_ms + POLICY.disorder_ms).dead
    assert [(d.reason, d.exposures) for d in dead_letters] == [("no-page-log", 2)]
    assert resumed(part.snapshot().to_bytes(), number=WRONG).pending == 0


def test_the_books_balance_when_it_is_sent_again_to_the_right_partition() -> None:
    parts = {number: Partition(number, SCHEMA, POLICY, PARTITIONS) for number in (WRONG, HOME)}
    seen, served = exposure("r", T0, [1, 2]), page_log("r", T0, [1, 2])
    ledger = Ledger()
    dead_letters = parts[WRONG].take([InputMessage("events", 0, seen)], T0).dead
    parts[HOME].take([InputMessage("page_logs", 0, served), InputMessage("events", 0, seen)], T0)
    out = parts[HOME].advance(T0 + HOUR)
    assert out.samples is not None
    for dead_letter in dead_letters:
        ledger.dead_letter_message(SimpleNamespace(value=dead_letter_bytes(dead_letter)))
    for number in parts:
        ledger.event_message(SimpleNamespace(partition=number, offset=0, value=seen, timestamp=T0))
    ledger.sample_message(SimpleNamespace(partition=HOME, value=out.samples.to_bytes()))
    assert ledger.dead == {"wrong-partition": 1}
    assert (ledger.exposures, ledger.count("negative"), ledger.dead_only, ledger.both) == (2, 2, 0, [])
    assert out.samples.kind.tolist() == [NEGATIVE, NEGATIVE]
