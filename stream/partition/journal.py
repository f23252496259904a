# core
"""What was done to a partition since its last checkpoint, in order: little to write, and enough to do it again.

::

    base: the whole state ──► take ──► changes ──► take ──► advance ──► ...   the partition as it is
                              └────────── journal ─────────────┘

A partition is deterministic: no clock, no randomness, nothing read from elsewhere. So the state at any moment is that
of the base and what was done since, and a checkpoint writes only the latter. This holds as long as *everything* that
changes a partition is noted. Therefore the partition itself notes it (``Partition.journal``), at the beginning of each
method that changes it, and nobody else can forget to:

===============  =================================  ==================================================================
``TAKE``         the clock, the messages            with their offsets, and the clock when each came to Kafka
``ADVANCE``      the event time                     a silent partition's watermark, which no message records
``SET_BACK``                                        another clock
``RETURNED``     impressions by request             read again for a settled page; None where it is gone
``RESET_OFFSETS``   topics                             whose offsets begin again: they are other logs
``CUT_BACK``     next offset by topic               of topics that lost their ends
``CHANGES``                                         what had changed was handed out
``WHOLE``                                           and all there is, to a store that lost it
===============  =================================  ==================================================================

It holds for one policy, schema and number of partitions, so the file names them
(:mod:`stream.partition.checkpoint`). It does not hold from one version of these rules to another: whoever changes
what a partition makes of a message raises
:data:`RULES`.

What is not kept is the place of each window's key in memory, and so in which slice of a sweep it is dropped once all
its windows have ended. So a partition that went on from a journal may hold such a key a little longer, or not as long.
It tells their readers again that they ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any, NamedTuple

import msgspec

from stream.join.pages import Message

RULES = 5
"""The version of what a partition makes of what is done to it."""

Entry = tuple[Any, ...]
"""A :class:`Did`, and what it was done with."""


class Did(IntEnum):
    """Kinds of entries. Numbers are for ever: files hold them."""

    TAKE = 0
    ADVANCE = 1
    SET_BACK = 2
    RETURNED = 3
    RESET_OFFSETS = 4
    CHANGES = 5
    WHOLE = 6
    CUT_BACK = 7


class Cut(NamedTuple):
    """A stretch of a journal."""

    entries: list[Entry]
    arrived_bytes: int  # of the messages taken
    read_bytes: int  # of the impressions read again


class Journal:
    """The entries since the last :meth:`cut`. It holds the messages themselves, not copies."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._arrived = self._read = 0

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, did: Did, *what: Any) -> None:
        """Something is about to be done."""
        if did == Did.CHANGES and self._entries and self._entries[-1][0] == Did.CHANGES:
            return  # twice is as good as once
        self._entries.append((did, *what))
        if did == Did.TAKE:
            self._arrived += sum([len(message.raw) for message in what[1]])
        elif did == Did.RETURNED:
            self._read += sum([len(raw) for raw in what[0].values() if raw is not None])

    def cut(self) -> Cut:
        """What was noted so far; what is noted from now on is another list's."""
        cut = Cut(self._entries, self._arrived, self._read)
        self._entries, self._arrived, self._read = [], 0, 0
        return cut


def to_bytes(entries: Iterable[Entry]) -> bytes:
    """Entries as msgpack."""
    return msgspec.msgpack.encode([(int(did), *what) for did, *what in entries])


def from_bytes(raw: bytes | memoryview) -> list[Entry]:
    """What :func:`to_bytes` was given.

    Raises:
        ValueError: the bytes are no entries (msgspec's errors are such).
    """
    entries: list[Entry] = []
    for did, *what in msgspec.msgpack.decode(raw, type=list[list[Any]]):
        kind = Did(did)
        if kind == Did.TAKE:
            what[1] = [Message(*message) for message in what[1]]
        entries.append((kind, *what))
    return entries
