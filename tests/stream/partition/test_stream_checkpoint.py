"""Checkpoints are bases and journals: whole or absent, in a folder and in an object store, and they heal."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from millrace.basics.errors import StoreError
from millrace.labels import policy_named
from stream.partition import partition_checkpoint
from stream.partition.journal import RULES, Journal
from stream.partition.partition import Partition
from stream.partition.partition_checkpoint import CheckpointLine, CheckpointStore, Name, Terms
from tests.scenes.arrivals import NOW, SETTLED
from tests.scenes.exploring import examples
from tests.scenes.partition_forms import form, out_of
from tests.scenes.stream_world import HOUR, MINUTE, SCHEMA, T0, Log, action, exposure, page_log


@pytest.fixture(params=["folder", "file url", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    where = {"folder": str(tmp_path / "deep" / "er"), "file url": f"file://{tmp_path}/c"}
    return where.get(request.param, f"memory://{tmp_path.name}")


def fresh(number: int = 0, policy: Any = SETTLED) -> Partition:
    return Partition(number, SCHEMA, policy, settles=True)


class Owner:
    """A worker's hands: it takes a partition over, feeds it pages, and writes checkpoints."""

    def __init__(self, url: str, number: int = 0, policy: Any = SETTLED) -> None:
        self.store = CheckpointStore(url)
        loaded = self.store.load(fresh(number, policy))
        self.partition, self.line = loaded.partition, loaded.line
        self.partition.journal = Journal()
        self.log = Log()
        for topic, offset in self.partition.offsets.items():
            self.log._next[topic] = offset
        self.forms: list[Any] = []

    def page(self, k: int) -> None:
        ts, name = T0 + k * MINUTE, f"p{k}"
        self.partition.take(self.log.page_logs(page_log(name, ts, [1, 2, k + 3])), NOW)
        self.partition.take(self.log.events(exposure(name, ts, [1, 2, k + 3])), NOW)
        if k % 3 == 0:
            self.partition.take(self.log.events(action("click", f"p{k // 2}", ts, 1, 2)), NOW)
        self.partition.changes()

    def save(self, base: bool = False, advance_ms: int | None = None) -> Any:
        journal = self.partition.journal
        assert journal is not None
        entries = journal.cut().entries
        state = self.partition.snapshot(advance_ms) if base else None
        self.line.write(entries, state, dict(self.partition.offsets), advance_ms)
        return form(self.partition)


def loaded(url: str, number: int = 0, policy: Any = SETTLED) -> Any:
    return form(CheckpointStore(url).load(fresh(number, policy)).partition)


def damage(url: str, name: str, how: str) -> None:
    fs, root = fsspec.core.url_to_fs(url)
    path = f"{root}/{name}"
    raw = bytearray(fs.cat_file(path))
    if how == "torn":
        raw = raw[: len(raw) // 2]
    elif how == "flipped" and raw:
        raw[len(raw) // 2] ^= 1
    elif how == "gone":
        fs.rm_file(path)
        return
    else:
        raw = bytearray()
    fs.pipe_file(path, bytes(raw))


def files(url: str, kind: str, number: int = 0) -> list[str]:
    return [n.text(number) for n in CheckpointStore(url).names(number) if n.kind == kind]


HOW = ["torn", "flipped", "empty", "gone"]


def test_partitions_are_apart_and_each_goes_on_from_its_newest(url: str) -> None:
    owners = [Owner(url, number) for number in (0, 11)]
    for k in range(6):
        for owner in owners:
            owner.page(k)
            owner.save(base=k == 3)
    owners[1].page(9)
    states = [owner.save() for owner in owners]
    assert [loaded(url, 0), loaded(url, 11)] == states
    assert states[0] != states[1]


def test_a_checkpoint_costs_what_came_not_what_there_is(url: str) -> None:
    owner = Owner(url)
    for k in range(40):
        owner.page(k)
    owner.save(base=True)
    before = owner.line.written_bytes
    owner.page(40)
    owner.save()
    assert owner.line.written_bytes - before < 4000 < owner.line.base_bytes


def test_two_bases_and_what_follows_the_older_are_kept(url: str) -> None:
    owner = Owner(url)
    for k in range(12):
        owner.page(k)
        owner.save(base=k % 3 == 2)
    names = CheckpointStore(url).names(0)
    assert [n.number for n in names if n.kind == "base"] == [9, 12]
    assert [n.number for n in names if n.kind == "journal"] == [10, 11, 12]


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_base_costs_nothing(url: str, how: str) -> None:
    owner = Owner(url)
    for k in range(7):
        owner.page(k)
        state = owner.save(base=k in (2, 4))
    damage(url, files(url, "base")[-1], how)
    with capture_logs() as logs:
        assert loaded(url) == state
    assert how == "gone" or [e["log_level"] for e in logs] == ["warning", "error"]  # passed over, renamed
    after = Owner(url)
    after.page(8)
    state = after.save(base=True)
    assert loaded(url) == state


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_journal_ends_the_replay_aloud_and_the_offsets_tell_where_to_read_on(url: str, how: str) -> None:
    owner = Owner(url)
    states = []
    for k in range(6):
        owner.page(k)
        states.append(owner.save(base=k == 2))
    damage(url, files(url, "journal")[-2], how)
    with capture_logs() as logs:
        again = Owner(url)
    assert form(again.partition) == states[3]
    (line,) = [e for e in logs if "Kafka is read again" in e["event"]]
    assert line["offsets"] == states[3]["offsets"]
    # What it gave up is read again, and its checkpoints are the ones that count from now on.
    for k in (4, 5, 6):
        again.page(k)
        state = again.save()
    with capture_logs() as logs:
        assert loaded(url) == state
    assert not logs


def test_nothing_but_damage_is_an_error_not_a_fresh_start_and_stays_one(url: str) -> None:
    owner = Owner(url, 5)
    owner.page(0)
    owner.save()
    for name in files(url, "base", 5):
        damage(url, name, "torn")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"all 2 checkpoints of partition 5"):
            loaded(url, 5)


@pytest.mark.parametrize("base", [False, True])
def test_a_late_checkpoint_of_a_worker_that_lost_its_partition_replaces_none(url: str, base: bool) -> None:
    before = Owner(url)
    before.page(0)
    before.save()
    owner = Owner(url)
    owner.page(1)
    owner.save()
    before.page(7)
    before.save(base)  # it does not know yet
    owner.page(2)
    state = owner.save()
    assert loaded(url) == state


def test_a_worker_that_lost_its_partition_while_it_read_the_state_replaces_none(url: str) -> None:
    """It reads for long. Another one is given the partition meanwhile, reads it and works."""
    before = Owner(url)
    before.page(0)
    before.save()
    slow = CheckpointStore(url)
    line = slow.claim(0)
    owner = Owner(url)
    owner.page(1)
    owner.save()
    late = slow.load(fresh(), line=line)
    late.line.write([], None, {"events": 99})  # it does not know yet
    owner.page(2)
    state = owner.save(base=True)
    assert slow.claim(0, line) > owner.line.line, "what it has read is old"
    assert loaded(url) == state


def test_who_has_had_no_successor_keeps_its_line(url: str) -> None:
    owner = Owner(url)
    mine = owner.line.line
    assert owner.store.claim(0, mine) == mine
    owner.page(0)
    owner.save(base=True)
    assert owner.store.claim(0, mine) == mine
    successor = CheckpointStore(url).claim(0)
    for k in range(1, 4):  # it does not know yet, and removes what it needs no more
        owner.page(k)
        owner.save(base=True)
    assert owner.store.claim(0, mine) > successor > mine, "also if the successor died before it had read anything"
    assert files(url, "claim")
    Owner(url)
    assert not files(url, "claim"), "the files of a line show it as well"


def test_a_claim_alone_is_no_state(url: str) -> None:
    store = CheckpointStore(url)
    line = store.load(fresh(), line=store.claim(0)).line.line
    assert (store.claim(7), line) == (1, 1)
    assert not store.load(fresh(7)).partition.offsets


def test_an_announced_advance_is_the_next_thing(url: str) -> None:
    owner = Owner(url)
    owner.page(0)
    owner.save(advance_ms=T0 + 3 * HOUR)
    partition = CheckpointStore(url).load(fresh()).partition
    assert partition.advance_ms == T0 + 3 * HOUR
    other = CheckpointStore(url).load(fresh()).partition  # who took over said nothing else
    assert other.advance_ms == T0 + 3 * HOUR
    owner = Owner(url)
    owner.partition.advance(T0 + 3 * HOUR)
    state = owner.save()
    assert state["advance_ms"] is None
    assert loaded(url) == state


def test_a_journal_is_replayed_under_its_own_policy(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings were changed twice; each stretch is done again under the terms of its own time."""
    terms = [
        SETTLED,
        replace(SETTLED, label=policy_named("es-dfm"), attribution_ms=9 * MINUTE),
        replace(SETTLED, lateness_ms=20 * MINUTE, ahead_ms=HOUR, disorder_ms=2 * MINUTE),
    ]
    for n, policy in enumerate(terms):
        owner = Owner(url, policy=policy)
        for k in range(10 * n, 10 * n + 10):
            owner.page(k)
            state = owner.save(base=k == 4)
    assert loaded(url, policy=terms[-1]) == state
    # And it matters: all of it under the terms of now comes to another state.
    monkeypatch.setattr(Terms, "partition", lambda _, like: fresh(policy=like.policy))
    assert loaded(url, policy=terms[-1]) != state


def test_a_journal_of_other_rules_is_read_from_kafka_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner(url)
    owner.page(0)
    state = owner.save(base=True)
    owner.page(1)
    owner.save()
    monkeypatch.setattr(partition_checkpoint, "RULES", RULES + 1)
    with capture_logs() as logs:
        assert loaded(url) == state
    assert next(e["why"] for e in logs if "why" in e) == f"it is of rules {RULES}"


def test_when_a_base_is_due() -> None:
    line = CheckpointLine(None, 0, None, 1)  # type: ignore[arg-type]
    line.base_bytes = 1_000_000
    line.journal_bytes = round(partition_checkpoint.GROWN * line.base_bytes)
    assert not line.wants_base(1000, stops=True)
    line.journal_bytes += 1
    assert line.wants_base(1000, stops=False)
    line.journal_bytes = 0
    line.replay_bytes = partition_checkpoint.CLEAN_BYTES
    assert line.wants_base(1, stops=True)
    assert not line.wants_base(1, stops=False)
    assert line.wants_base(partition_checkpoint.REPLAY_BYTES, stops=False)
    line.base_bytes = line.replay_bytes = 0
    line.journal_bytes = partition_checkpoint.LEAST_BYTES
    assert not line.wants_base(0, stops=False)


def test_a_crash_while_writing_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner(str(tmp_path))
    owner.page(0)
    state = owner.save()
    owner.page(1)

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(StoreError, match="No space left on device"):
            owner.save()
    assert loaded(str(tmp_path)) == state


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (str(tmp_path / "file" / "x"), "nosuch://x"):
        with pytest.raises(StoreError, match="cannot be opened"):
            CheckpointStore(place)


STORIES = count()
story = st.lists(
    st.one_of(
        st.sampled_from(["page", "page", "page", "save", "save", "base", "restart", "advance"]),
        st.tuples(st.sampled_from(HOW[:3]), st.integers(0, 50)),
    ),
    max_size=40,
)


@examples(100)
@given(story)
def test_whatever_is_damaged_whenever_what_is_resumed_was_once_the_state(story: list[Any]) -> None:
    """Files are damaged at any moment, with compaction and restarts between. What a start finds is a state that was
    saved, or a named error; it never loops, and what is written afterwards is found again."""
    url = f"memory://story-{next(STORIES)}"
    fs, root = fsspec.core.url_to_fs(url)
    owner, k = Owner(url), 0
    saved, intact = [form(owner.partition)], True
    for item in story:
        match item:
            case "page":
                owner.page(k)
                k += 1
            case "advance" if owner.partition.newest_ms:
                owner.partition.advance(owner.partition.newest_ms + HOUR)
            case "save" | "base":
                saved.append(owner.save(base=item == "base"))
                if item == "base":
                    intact = True
            case "restart":
                try:
                    owner = Owner(url)
                except StoreError:
                    assert not intact, "every base is damaged"
                    break
                found = form(owner.partition)
                assert found in saved
                assert not intact or found == saved[-1]
                saved.append(found)
                intact = intact or found == saved[-1]
            case (how, which):
                names = [Name.text(n, 0) for n in owner.store.names(0)]
                damage(url, names[which % len(names)], how)
                intact = False
    fs.rm(root, recursive=True)


def test_a_line_goes_on_as_the_one_before_would_have(url: str) -> None:
    owner = Owner(url)
    for k in range(20):
        owner.page(k)
    owner.save()
    again = CheckpointStore(url).load(fresh()).partition
    rest = [*owner.log.events(action("click", "p3", T0 + 20 * MINUTE, 0, 1), action("click", "p19", NOW - 1, 0, 1))]
    assert out_of(again, rest) == out_of(owner.partition, rest)
