# core
"""The messages of ``model.deltas``: claims, snapshots' announcements, deltas in chunks, and decisions.

::

    "MRL1" | CRC-32 of the rest | kind, a byte │ C  claim, JSON
                                               │ S  announcement of a snapshot, JSON
                                               │ L  decisions behind which no delta went out, JSON
                                               │ D  epoch | version | claimant's mark | index | chunks | piece

    a delta's pieces:   0: length of its note | note, JSON | body[0 : PIECE]      1: body[PIECE : 2 PIECE]      2: ...

A broker limits the size of a message, so a delta's body travels in chunks. Chunks may arrive twice, in any order, and
between those of another learner: a producer that retries does that. A delta is either whole, with the digest that its
note names, or a :class:`Bad`.

No message raises, and none takes more memory than its own length. The checksum keeps a flipped bit from becoming an
epoch that nobody has claimed.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections import deque
from dataclasses import dataclass, field

import msgspec

from millrace.basics.errors import SnapshotError
from millrace.versions.clicks import ClickHistogram
from millrace.versions.decisions import LogPart, encode_decisions
from millrace.versions.versioning import (
    MAX_EPOCH,
    MAX_NUMBER,
    Announcement,
    Claim,
    DecisionNote,
    Place,
    decode_announcement,
    decode_claim,
    decode_decision_note,
)

PIECE_BYTES = 500_000
MESSAGE_BYTES = 750_000
"""The most bytes of a message. Brokers accept 1,048,588 by default."""
DECISION_BYTES = 300_000
"""The most bytes of several decisions in a message of their own."""

_MAGIC = b"MRL1"
_ENVELOPE = struct.Struct("<4sIc")
_PIECE = struct.Struct("<QQ8sII")
_LENGTH = struct.Struct("<I")
_MAX_CHUNKS = 2_200  # a gigabyte
_OPEN = 4
_DONE = 64


@dataclass(frozen=True, slots=True)
class Claimed:
    """A learner claims an epoch, or reports that it still has it."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot lies in the store."""

    note: Announcement


@dataclass(frozen=True, slots=True)
class Delta:
    """A delta, whole and with the right digest."""

    note: Announcement
    body: bytes


@dataclass(frozen=True, slots=True)
class Decisions:
    """Decisions of a learner in a message of their own."""

    note: DecisionNote


@dataclass(frozen=True, slots=True)
class Bad:
    """A message that cannot be used. ``place``: of its version, where that is known."""

    why: str
    place: Place | None


Entry = Claimed | Snapshot | Delta | Decisions | Bad


# -- writing -----------------------------------------------------------------------------------------------------------


def encode_claim(claim: Claim) -> bytes:
    return _sealed(b"C", msgspec.json.encode(claim))


def encode_decision_notes(epoch: int, claimant: str, part: LogPart) -> list[bytes]:
    """The messages of decisions that no delta carries, to be sent in order."""
    body, half = encode_decisions(*part), len(part.decided) // 2
    if len(body) > DECISION_BYTES and half:
        parts = [LogPart(part.log, some) for some in (part.decided[:half], part.decided[half:])]
        return [message for some in parts for message in encode_decision_notes(epoch, claimant, some)]
    return [_sealed(b"L", msgspec.json.encode(DecisionNote(epoch, claimant, body)))]


def encode_snapshot(note: Announcement) -> bytes:
    """The message of a snapshot, without what only a learner needs: a learner reads the manifest."""
    extra = {name: value for name, value in note.extra.items() if name == "rows"}
    lean = msgspec.structs.replace(note, training=[], offset=None, samples_log="", extra=extra)
    message = _sealed(b"S", msgspec.json.encode(lean))
    if len(message) > MESSAGE_BYTES:  # some thousand parts: a reader finds them in the manifest
        message = _sealed(b"S", msgspec.json.encode(msgspec.structs.replace(lean, parts=[], clicks=ClickHistogram())))
    return message


def encode_delta(note: Announcement, body: bytes) -> list[bytes]:
    """The messages of a delta, to be sent in order. Raises SnapshotError where its note is too large for a message."""
    said = msgspec.json.encode(note)
    if len(said) > MESSAGE_BYTES - PIECE_BYTES - 100:
        raise SnapshotError(f"the note of delta {note.place} has {len(said)} bytes", "give it a smaller spec")
    count, mark = max(1, -(-len(body) // PIECE_BYTES)), _mark(note.claimant)
    messages = []
    for index in range(count):
        head = _PIECE.pack(note.epoch, note.version, mark, index, count)
        lead = (_LENGTH.pack(len(said)), said) if index == 0 else ()
        messages.append(_sealed(b"D", head, *lead, body[index * PIECE_BYTES : (index + 1) * PIECE_BYTES]))
    return messages


def _sealed(kind: bytes, *rest: bytes) -> bytes:
    whole = b"".join(rest)
    return _ENVELOPE.pack(_MAGIC, zlib.crc32(whole, zlib.crc32(kind)), kind) + whole


def _mark(claimant: str) -> bytes:
    return hashlib.sha256(claimant.encode()).digest()[:8]


# -- reading -----------------------------------------------------------------------------------------------------------

_Key = tuple[int, int, bytes]
"""Epoch, version and claimant's mark of a delta."""


@dataclass(slots=True)
class _Open:
    """A delta that still lacks chunks."""

    count: int
    pieces: dict[int, bytes] = field(default_factory=dict)


class Assembler:
    """Turns the messages of ``model.deltas``, in the order of the topic, into entries. It holds at most four incomplete
    deltas. It gives one up, as a :class:`Bad`, when a later one of the same learner is whole, or a fifth begins."""

    def __init__(self) -> None:
        self._open: dict[_Key, _Open] = {}
        self._done: deque[_Key] = deque(maxlen=_DONE)

    def take(self, raw: bytes | None) -> list[Entry]:
        """The entries that a message completes: none, one, or a delta and those that it shows to be lost."""
        view = memoryview(raw or b"")
        if len(view) < _ENVELOPE.size:
            return [Bad(f"a message of {len(view)} bytes is none of a learner", None)]
        magic, crc, kind = _ENVELOPE.unpack(view[: _ENVELOPE.size])
        rest = view[_ENVELOPE.size :]
        if magic != _MAGIC or zlib.crc32(rest, zlib.crc32(kind)) != crc:
            return [Bad(f"a message of {len(view)} bytes is damaged, or none of a learner", None)]
        try:
            if kind == b"C":
                return [Claimed(decode_claim(bytes(rest)))]
            if kind == b"S":
                note = decode_announcement(bytes(rest))
                return (
                    [Snapshot(note)] if note.kind == "snapshot" else [Bad("a delta says that it is a snapshot", None)]
                )
            if kind == b"L":
                return [Decisions(decode_decision_note(bytes(rest)))]
            if kind == b"D":
                return self._piece(rest)
        except SnapshotError as error:
            return [Bad(error.problem, None)]
        return [Bad(f"a message of the kind {kind!r}, which only a newer learner knows", None)]

    def _piece(self, rest: memoryview) -> list[Entry]:
        if len(rest) < _PIECE.size:
            return [Bad("a piece of a delta has no head", None)]
        epoch, version, mark, index, count = _PIECE.unpack(rest[: _PIECE.size])
        if epoch > MAX_EPOCH or version > MAX_NUMBER or not 0 <= index < count <= _MAX_CHUNKS:
            return [Bad(f"piece {index} of {count} of a delta", None)]
        key = (epoch, version, mark)
        if key in self._done:
            return []  # a producer has tried again
        found: list[Entry] = []
        opened = self._open.get(key)
        if opened is None or opened.count != count:
            opened = self._open[key] = _Open(count)
            while len(self._open) > _OPEN:
                found.append(self._give_up(next(iter(self._open))))
        opened.pieces.setdefault(index, bytes(rest[_PIECE.size :]))
        if len(opened.pieces) < count:
            return found
        del self._open[key]
        self._done.append(key)
        found += [self._give_up(other) for other in list(self._open) if other[::2] == key[::2] and other[1] < version]
        return [*found, _whole(key, opened)]

    def _give_up(self, key: _Key) -> Bad:
        lost = self._open.pop(key)
        return Bad(f"delta {key[1]} of epoch {key[0]} has {len(lost.pieces)} of {lost.count} chunks", Place(*key[:2]))


def _whole(key: _Key, opened: _Open) -> Delta | Bad:
    place = Place(*key[:2])
    pieces = [opened.pieces[index] for index in range(opened.count)]
    try:
        (length,) = _LENGTH.unpack(pieces[0][: _LENGTH.size])
        note = decode_announcement(pieces[0][_LENGTH.size : _LENGTH.size + length])
    except struct.error:
        return Bad(f"delta {place.number} of epoch {place.epoch} has no note", place)
    except SnapshotError as error:
        return Bad(error.problem, place)
    if note.kind != "delta" or note.place != place or _mark(note.claimant) != key[2]:
        return Bad(f"delta {place.number} of epoch {place.epoch} has the note of another version", place)
    body = b"".join([pieces[0][_LENGTH.size + length :], *pieces[1:]])
    if len(body) != note.size or hashlib.sha256(body).hexdigest() != note.digest:
        return Bad(f"the body of delta {place.number} of epoch {place.epoch} is damaged", place)
    return Delta(note, body)


class Fence:
    """Decides whose versions count: those of the highest epoch, and of the one learner that has it.

    The first claim of an epoch wins. A learner publishes only after it has read that its own claim is the first. So
    where the log was cut between two claims, the first publication shows who has won. ::

        claim 7 by a ─► a has it     claim 7 by b ─► no     delta of 7 by a ─► yes     claim 8 by c ─► c; a has lost

    Attributes:
        epoch: the highest epoch seen; -1: none.
        claimant: who has it.
    """

    def __init__(self) -> None:
        self.epoch, self.claimant = -1, ""
        self._published = False

    def claims(self, claim: Claim) -> bool:
        """Whether the claim is of the learner that has the highest epoch. The first claim of a higher epoch gets it."""
        if claim.epoch > self.epoch:
            self.epoch, self.claimant, self._published = claim.epoch, claim.claimant, False
        return (claim.epoch, claim.claimant) == (self.epoch, self.claimant)

    def admits(self, epoch: int, claimant: str) -> bool:
        """Whether a published version counts: a delta, or a snapshot on the topic or in the store."""
        if epoch > self.epoch or (epoch == self.epoch and not self._published):
            self.epoch, self.claimant, self._published = epoch, claimant, True
        return (epoch, claimant) == (self.epoch, self.claimant)
