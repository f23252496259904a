# core
"""How versions of a model are named, ordered and announced.

A learner that starts claims an *epoch*, and numbers its versions within it. (epoch, number) orders versions, never wall
time: a clock may go back, and of two learners only one is the learner. ::

    epoch 1                                epoch 2 (another learner, or the same one after a restart)
    v0 ──► v1 ──► ... ──► v57 ──► v58      v59 (root: content of v57) ──► v60 ──► ...
    hash h0  h1 = H(h0, d1)     h58        h59                            h60 = H(h59, d60)

Numbers rise over the whole life of a store. A root is a snapshot that follows no delta; a rollback is a new root. A
delta names its parent's hash, so followers recognise a gap, a repetition or a foreign delta.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from millrace.basics.errors import SnapshotError
from millrace.basics.store import ASIDE, Sealed
from millrace.contracts.events import BadEventError, TimeOrNever, read_json
from millrace.versions.clicks import ClickHistogram

MAX_NOTE_BYTES = 16 << 20
"""An announcement has some 20 KB, more where a wide schema gives the learner many columns."""

MAX_EPOCH = MAX_NUMBER = 2**53
"""More than 200 million years of a version a second; a file's name has room for it."""

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Epoch = Annotated[int, Meta(ge=0, le=MAX_EPOCH)]
Number = Annotated[int, Meta(ge=0, le=MAX_NUMBER)]

_PLAIN = re.compile(r"[\w-][\w.-]{0,199}", re.ASCII)


class Place(NamedTuple):
    """Where a version stands in the order of all versions."""

    epoch: int
    number: int


class Claim(Struct, frozen=True):
    """A message of ``model.deltas``: ``claimant`` wants to be the learner of ``epoch``, or still is."""

    epoch: Epoch
    claimant: Annotated[str, Meta(min_length=1, max_length=100)]


class DecisionNote(Struct, frozen=True):
    """A message of ``model.deltas``: decisions of a learner behind which no delta went out."""

    epoch: Epoch
    claimant: Annotated[str, Meta(min_length=1, max_length=100)]
    decisions: bytes


class Announcement(Struct, frozen=True):
    """How a version describes itself: a message of ``model.deltas``, and a snapshot's manifest in the store. A message
    leaves out what only a learner needs: ``training``, ``offset``, ``samples_log``, and ``extra`` but for its ``rows``.
    A delta has no ``spec``."""

    kind: Literal["snapshot", "delta"]
    epoch: Epoch
    version: Number  # within the order; it rises over epochs too
    claimant: str  # the learner that made it
    parent: str  # hash of the version before it; a snapshot's own hash for a snapshot
    hash: str
    digest: str  # SHA-256: of a delta's body; of the digests of a snapshot's parts
    size: Count  # of a delta's body, or of all parts, in bytes
    schema_id: str
    spec: dict[str, Any]  # what the model is, enough to build it
    event_ms: TimeOrNever  # newest exposure it has learnt from
    trained: Count  # samples learnt from, in total
    published_ms: TimeOrNever  # wall time, for tracing alone
    retrieval_clicks: Annotated[int, Meta(ge=-1, le=2**63 - 1)] = -1  # learnt by the head it carries; -1: carries none
    clicks: ClickHistogram = ClickHistogram()  # when the clicks first learnt in this version were sent, all of them
    decisions: bytes = b""  # delta: those since the one before (decisions.py); followers pass over them
    parts: list[Sealed] = []  # snapshot: what serves, in order
    training: list[Sealed] = []  # snapshot: what only training needs, one for each part
    held: bool = False  # snapshot: nobody may see it yet; a learner alone begins from it
    follows: Count = 0  # snapshot: offset of model.deltas behind the delta of this version
    log: str = ""  # snapshot: id of the topic that `follows` is an offset of; empty where the broker gives none
    offset: Count | None = None  # snapshot: next of `samples` to read; None: from the beginning
    samples_log: str = ""  # snapshot: id of the topic that `offset` is an offset of; empty as `log`
    extra: dict[str, Any] = {}  # snapshot: the learner's small state (counters), and `rows` of each table

    @property
    def place(self) -> Place:
        return Place(self.epoch, self.version)

    @property
    def is_root(self) -> bool:
        """Whether this snapshot starts a chain: it follows no delta."""
        return self.kind == "snapshot" and self.hash == chain("", self.digest)

    @property
    def files(self) -> list[Sealed]:
        return [*self.parts, *self.training]


class VersionClicks(NamedTuple):
    """The clicks first learnt in a version, and when it was published (Unix ms)."""

    published_ms: int
    clicks: ClickHistogram

    @classmethod
    def of(cls, note: Announcement) -> VersionClicks:
        return cls(note.published_ms, note.clicks)


_announcement = msgspec.json.Decoder(Announcement).decode
_claim = msgspec.json.Decoder(Claim).decode
_decision_note = msgspec.json.Decoder(DecisionNote).decode
_REMEDY = "only a learner of this version may write there"


def decode_announcement(raw: bytes | None) -> Announcement:
    """A version's announcement, with plain file names. Raises SnapshotError where it cannot be read as one."""
    try:
        note = read_json(_announcement, raw, MAX_NOTE_BYTES)
    except BadEventError as error:
        raise SnapshotError(f"an announcement is {error}", _REMEDY) from None
    for file in note.files:
        if not _PLAIN.fullmatch(file.name) or file.name.startswith(ASIDE) or file.size < 0:
            raise SnapshotError(f"an announcement names the file {file.name[:80]!r}", _REMEDY)
    if not note.clicks.is_valid:
        raise SnapshotError("an announcement has times of clicks that cannot be read", _REMEDY)
    if note.training and len(note.training) != len(note.parts):
        raise SnapshotError(
            f"an announcement has {len(note.parts)} parts and {len(note.training)} of training", _REMEDY
        )
    return note


def decode_claim(raw: bytes | None) -> Claim:
    """A claim of an epoch. Raises SnapshotError where it cannot be read as one."""
    try:
        return read_json(_claim, raw, 1000)
    except BadEventError as error:
        raise SnapshotError(f"a claim is {error}", _REMEDY) from None


def decode_decision_note(raw: bytes | None) -> DecisionNote:
    """Decisions in a message of their own. Raises SnapshotError where it cannot be read as one."""
    try:
        return read_json(_decision_note, raw, MAX_NOTE_BYTES)
    except BadEventError as error:
        raise SnapshotError(f"a message of decisions is {error}", _REMEDY) from None


def chain(parent: str, digest: str) -> str:
    """Hash of the version that a body with ``digest`` makes of its ``parent``."""
    return hashlib.sha256(f"{parent}:{digest}".encode()).hexdigest()


def digest_of(parts: Sequence[Sealed]) -> str:
    """The digest of a snapshot."""
    return hashlib.sha256(":".join(part.digest for part in parts).encode()).hexdigest()
