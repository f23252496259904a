# core
"""The changes of a partition since its last checkpoint, in order: little to write, and enough to do them again.

::

    base: the whole state ──► take ──► changes ──► take ──► advance ──► ...   the partition as it is
                              └────────── journal ─────────────┘

A partition is deterministic: no clock, no randomness, nothing read from elsewhere. So base and journal give the
state at any moment, and a checkpoint writes only the journal. The partition itself notes *everything* that changes
it (``Partition.journal``), so no caller can forget to; :class:`Did` lists the kinds.

A journal is valid for one policy, schema and number of partitions, named in its file
(:mod:`stream.partition.partition_checkpoint`), and for one version of the rules: a change of what a partition makes
of a message must raise :data:`RULES`.

The place of each window's key in memory is not kept, nor which slice of a sweep drops the key after its windows have
ended. So a restored partition may hold such a key a little longer or shorter, and tell the readers again that it
ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any, NamedTuple

import msgspec

from stream.join.joined_pages import InputMessage

RULES = 5
"""The version of the rules by which a partition handles messages."""

Entry = tuple[Any, ...]
"""A :class:`Did`, and its arguments."""


class Did(IntEnum):
    """Kinds of entries, with their arguments. Numbers never change: files hold them."""

    TAKE = 0  # the clock, messages with their offsets and the clock when each came to Kafka
    ADVANCE = 1  # event time: a silent partition's watermark, which no message records
    SET_BACK = 2  # for another clock
    RETURNED = 3  # page logs by request, read again for settled pages; None where one is gone
    RESET_OFFSETS = 4  # topics that are other logs
    CHANGES = 5  # what had changed was handed out
    WHOLE = 6  # and all there is, to a store that lost it
    CUT_BACK = 7  # next offset by topic, of topics that lost their ends


class JournalPart(NamedTuple):
    entries: list[Entry]
    arrived_bytes: int  # of the messages taken
    read_bytes: int  # of the page logs read again


class Journal:
    """The entries since the last :meth:`cut`. It holds the messages themselves, not copies."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._arrived = self._read = 0

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, did: Did, *what: Any) -> None:
        """Notes an entry before it is done."""
        if did == Did.CHANGES and self._entries and self._entries[-1][0] == Did.CHANGES:
            return  # a second entry changes nothing
        self._entries.append((did, *what))
        if did == Did.TAKE:
            self._arrived += sum([len(message.raw) for message in what[1]])
        elif did == Did.RETURNED:
            self._read += sum([len(raw) for raw in what[0].values() if raw is not None])

    def cut(self) -> JournalPart:
        """The entries so far. Later ones go into another list."""
        cut = JournalPart(self._entries, self._arrived, self._read)
        self._entries, self._arrived, self._read = [], 0, 0
        return cut


def to_bytes(entries: Iterable[Entry]) -> bytes:
    """Entries as msgpack."""
    return msgspec.msgpack.encode([(int(did), *what) for did, *what in entries])


def from_bytes(raw: bytes | memoryview) -> list[Entry]:
    """The inverse of :func:`to_bytes`. Raises ValueError (msgspec's errors are such)."""
    entries: list[Entry] = []
    for did, *what in msgspec.msgpack.decode(raw, type=list[list[Any]]):
        kind = Did(did)
        if kind == Did.TAKE:
            what[1] = [InputMessage(*message) for message in what[1]]
        entries.append((kind, *what))
    return entries
