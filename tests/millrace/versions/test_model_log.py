"""Messages of model.deltas: chunks in any order, twice, between others' and damaged; claims and who is admitted."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.errors import SnapshotError
from millrace.basics.store import Sealed
from millrace.versions.clicks import ClickHistogram
from millrace.versions.modellog import (
    MESSAGE_BYTES,
    PIECE_BYTES,
    Assembler,
    Bad,
    Claimed,
    Delta,
    Entry,
    Fence,
    Snapshot,
    encode_claim,
    encode_delta,
    encode_snapshot,
)
from millrace.versions.versioning import Announcement, Claim, Place, chain


def note(body: bytes | None, version: int = 5, epoch: int = 1, claimant: str = "a", **more: Any) -> Announcement:
    digest = hashlib.sha256(body or b"").hexdigest()
    fields: dict[str, Any] = {
        "kind": "delta", "epoch": epoch, "version": version, "claimant": claimant, "parent": "p",
        "hash": chain("p", digest), "digest": digest, "size": len(body or b""), "schema_id": "s", "spec": {},
        "event_ms": 1, "trained": 2, "published_ms": 4, "clicks": ClickHistogram.of([3]),
    }  # fmt: skip
    return Announcement(**{**fields, **more})


def read(messages: list[bytes | None], assembler: Assembler | None = None) -> list[Entry]:
    reader = assembler or Assembler()
    return [entry for raw in messages for entry in reader.take(raw)]


BODY = bytes(range(256)) * (3 * PIECE_BYTES // 256)
MESSAGES = encode_delta(note(BODY), BODY)


def test_a_body_travels_in_chunks_that_a_broker_takes() -> None:
    assert len(MESSAGES) == 3
    assert max(map(len, MESSAGES)) <= MESSAGE_BYTES
    (entry,) = read([None, *MESSAGES])[1:]
    assert isinstance(entry, Delta)
    assert (entry.note, entry.body) == (note(BODY), BODY)


@given(st.permutations(MESSAGES * 2))
def test_chunks_twice_and_in_any_order_are_one_delta(messages: list[bytes]) -> None:
    (entry,) = read(list(messages))
    assert isinstance(entry, Delta)
    assert entry.body == BODY


def test_chunks_of_two_learners_between_each_other() -> None:
    mine, theirs = encode_delta(note(BODY), BODY), encode_delta(note(BODY[1:], claimant="b"), BODY[1:])
    entries = read([m for pair in zip(mine, theirs, strict=True) for m in pair])
    assert [(e.note.claimant, e.body) for e in entries if isinstance(e, Delta)] == [("a", BODY), ("b", BODY[1:])]


@pytest.mark.parametrize("lost", range(3))
def test_a_delta_of_which_a_chunk_is_lost_is_bad_when_the_next_is_whole(lost: int) -> None:
    after = encode_delta(note(b"x", 6), b"x")
    found = read([*(m for i, m in enumerate(MESSAGES) if i != lost), *after])
    assert isinstance(found[0], Bad)
    assert found[0].place == Place(1, 5)
    assert isinstance(found[1], Delta)


@given(st.integers(0, 2), st.integers(0, 10**9), st.integers(0, 7))
def test_a_flipped_bit_costs_its_delta_and_no_other(which: int, at: int, bit: int) -> None:
    messages: list[bytes | None] = list(MESSAGES)
    broken = bytearray(MESSAGES[which])
    broken[at % len(broken)] ^= 1 << bit
    messages[which] = bytes(broken)
    found = read([*messages, *encode_delta(note(b"x", 6), b"x")])
    assert [type(e) for e in found] == [Bad, Bad, Delta]
    assert [e.place for e in found if isinstance(e, Bad)] == [None, Place(1, 5)]


@given(st.lists(st.one_of(st.none(), st.binary(max_size=60), st.sampled_from(MESSAGES)), max_size=12))
def test_any_messages_give_entries_and_the_next_delta_is_whole(messages: list[bytes | None]) -> None:
    reader = Assembler()
    read(messages, reader)
    last = reader.take(encode_delta(note(b"x", 6), b"x")[0])[-1]
    assert isinstance(last, Delta)


@given(st.sampled_from(b"CSDX"), st.binary(max_size=80))
def test_rubbish_with_a_right_checksum_is_bad(kind: int, rest: bytes) -> None:
    from millrace.versions.modellog import _sealed

    assert all(isinstance(entry, Bad) for entry in read([_sealed(bytes([kind]), rest)]))


def test_what_never_becomes_whole_is_given_up() -> None:
    firsts = [encode_delta(note(BODY, version), BODY)[0] for version in (2**52, 7, 8, 9, 10)]
    (bad,) = read(list(firsts))
    assert bad == Bad(f"delta {2**52} of epoch 1 has 1 of 3 chunks", Place(1, 2**52))


def test_a_note_that_lies_is_found() -> None:
    body = b"body"
    for wrong in (
        note(body, digest="0" * 64),
        note(body, size=3),
        note(body, kind="snapshot"),
    ):
        (bad,) = read(list(encode_delta(wrong, body)))
        assert isinstance(bad, Bad)
        assert bad.place == Place(1, 5)
    with pytest.raises(SnapshotError, match="bytes"):
        encode_delta(note(body, spec={"model": "x" * 300_000}), body)


def test_no_file_name_leads_out_of_the_store() -> None:
    for name in ("../x", ".hidden", "a/b", "damaged-x", "", "x" * 201, "ä"):
        parts = [Sealed(name, "00", 7)]
        (bad,) = read([encode_snapshot(note(None, kind="snapshot", parts=parts, training=parts))])
        assert isinstance(bad, Bad)


def test_claims_and_snapshots() -> None:
    part = Sealed("part-1.serving", "11", 9)
    snapshot = note(
        None,
        kind="snapshot",
        parts=[part],
        training=[part],
        extra={"x": 1, "rows": {"w": 2}},
        offsets={"0": 3},
        follows=4,
    )
    claimed, announced = read([encode_claim(Claim(3, "me")), encode_snapshot(snapshot)])
    assert claimed == Claimed(Claim(3, "me"))
    assert isinstance(announced, Snapshot)
    assert announced.note == msgspec.structs.replace(snapshot, training=[], extra={"rows": {"w": 2}}, offsets={})
    many = msgspec.structs.replace(
        snapshot, parts=[Sealed(f"part-{i}", "0" * 64, 1) for i in range(20_000)], training=[]
    )
    message = encode_snapshot(many)
    assert len(message) <= MESSAGE_BYTES
    assert isinstance(read([message])[0], Snapshot)


def test_the_first_claim_of_the_highest_epoch_wins() -> None:
    fence = Fence()
    assert fence.claims(Claim(7, "a"))
    assert not fence.claims(Claim(7, "b"))
    assert fence.claims(Claim(7, "a")), "it says that it is still there"
    assert fence.admits(7, "a")
    assert not fence.admits(7, "b")
    assert not fence.admits(6, "c")
    assert fence.claims(Claim(8, "b"))
    assert not fence.admits(7, "a")
    assert not fence.claims(Claim(7, "a"))
    assert fence.admits(8, "b")


def test_where_the_log_begins_between_two_claims_what_is_published_tells_who_won() -> None:
    """The winner's claim was removed by retention; the loser's came after it and is the first that is read."""
    fence = Fence()
    assert fence.claims(Claim(7, "loser"))
    assert fence.admits(7, "winner")
    assert not fence.admits(7, "loser")
    assert not fence.claims(Claim(7, "loser"))
    fresh = Fence()
    assert fresh.admits(9, "of a snapshot")
    assert not fresh.claims(Claim(9, "late"))
