# core
"""The rows of an hour that wait for outcomes (:mod:`stream.join.outcome_book`): hashes in memory, 20 bytes a row, and
until it is sealed their features. An hour is shorter where windows are. R rows of an hour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.logforms import OutcomeRule
from millrace.contracts.samples import SampleBatch
from millrace.labels import policy_named
from millrace.labels.tellings import UNTOLD, ZERO, ages_ms, tell, turns
from stream.join.page_rows import Sampled, batch_of

FORGOTTEN = np.iinfo(np.int32).min
"""As ``base``: the row's user was deleted."""
DTYPES = ("<u8", "<u4", "<u4", "<i4")
"""Of who, what, place and base."""
_CHUNK = 128
_BUCKETS, _BUCKETS_A_ROW = 1024, 8

Hour = tuple[str, int]
"""What its rows are of, ``click`` or ``page``, and when it ends (ms)."""
Act = tuple[int, int]
"""When it was done (ms), and its offset in ``events``, or that it was taken back."""


@dataclass(slots=True)
class Aged:
    """An outcome of an hour's rows that is told by age."""

    policy: str
    ages_ms: list[int]
    told: int = 0  # tellings
    stands: dict[int, int] = field(default_factory=dict)
    """By row, what stands of its tellings; not of rows of which it follows from their turn alone."""

    @classmethod
    def of(cls, policy: str, within_ms: int) -> Aged:
        return cls(policy, ages_ms(policy_named(policy), within_ms))

    @property
    def is_over(self) -> bool:
        return self.told == len(self.ages_ms)

    def tell(self, came: NDArray[np.bool_], place: NDArray[np.uint32]) -> NDArray[np.float32]:
        """The values of the next telling. Of came (R,), and of place (R,) for the rows' turns. (R,)"""
        turn = turns(place)
        stands = np.where(turn <= self.told, ZERO, UNTOLD).astype(np.uint8)
        stands[list(self.stands)] = list(self.stands.values())
        self.told += 1
        value, stands = tell(stands, came, turn <= self.told)
        rows = np.flatnonzero(stands != np.where(turn <= self.told, ZERO, UNTOLD))
        self.stands = dict(zip(rows.tolist(), stands[rows].tolist(), strict=True))
        return value


@dataclass(slots=True)
class HourRows:
    """The rows of one hour. ``who`` ascends once it is sealed."""

    who: Any  # (R,) uint64; a list until it is sealed, as the next three; when all is told, each user once
    what: Any  # (R,) uint32 of the item's hash
    place: Any  # (R,) uint32
    base: Any  # (R,) int32, ms after the hour's end, mostly below 0
    sealed: bool = False
    due_ms: int = 0  # the watermark at which something is to be done with it
    told: set[str] = field(default_factory=set)
    acts: dict[tuple[int, int], dict[int, Act]] = field(default_factory=dict)
    """By (row, kind), and by the event's hash."""
    ids: set[int] = field(default_factory=set)
    """Hashes of all events noted here, with refunds."""
    aged: dict[str, Aged] = field(default_factory=dict)
    by_user: dict[int, list[int]] = field(default_factory=dict)  # rows, until it is sealed
    chunks: list[SampleBatch] = field(default_factory=list)
    recent: list[Sampled] = field(default_factory=list)

    @classmethod
    def new(cls, aged: dict[str, Aged]) -> HourRows:
        return cls([], [], [], [], aged=aged)

    def add(self, who: int, what: Sequence[int], place: Sequence[int], base: int) -> None:
        """More rows of a user, before it is sealed."""
        rows = range(len(self.who), len(self.who) + len(what))
        self.by_user.setdefault(who, []).extend(rows)
        self.who += [who] * len(rows)
        self.what += what
        self.place += place
        self.base += [base] * len(rows)

    def of_user(self, who: int) -> Sequence[int]:
        """The rows of a user, with forgotten ones."""
        if not self.sealed:
            return self.by_user.get(who, ())
        low, high = self.who.searchsorted(np.uint64(who)), self.who.searchsorted(np.uint64(who), "right")
        return range(int(low), int(high))

    def mine(self, who: int, what: int) -> Iterator[int]:
        """The rows of a user and an item, without forgotten ones. Of an hour that is not all told."""
        return (row for row in self.of_user(who) if self.what[row] == what and self.base[row] != FORGOTTEN)

    def next_telling(self, one: OutcomeRule) -> tuple[int, int, str]:
        """(the age of the next telling of an outcome, its number, its policy). What has them equal is told together."""
        aged = self.aged.get(one.name)
        return (one.within_ms, 0, "wait") if aged is None else (aged.ages_ms[aged.told], aged.told + 1, aged.policy)

    def collect(self, shape: tuple[int, int, int], all_of_it: bool = False) -> None:
        """Copies rows out of their pages, which would stay in memory whole."""
        if self.recent and (all_of_it or len(self.recent) >= _CHUNK):
            self.chunks.append(batch_of(self.recent, shape))
            self.recent = []

    def rows(self, shape: tuple[int, int, int]) -> SampleBatch:
        self.collect(shape, True)
        self.chunks = [SampleBatch.concat(self.chunks)] if len(self.chunks) > 1 else self.chunks
        return self.chunks[0]

    def seal(self, shape: tuple[int, int, int]) -> SampleBatch:
        """The rows, in the order of their users."""
        batch = self.rows(shape)
        who, base = np.array(self.who, np.uint64), np.array(self.base, np.int32)
        order = np.argsort(who, kind="stable")
        order = order[base[order] != FORGOTTEN]
        self.who, self.base = who[order], base[order]
        self.what, self.place = np.array(self.what, np.uint32)[order], np.array(self.place, np.uint32)[order]
        now = {int(old): new for new, old in enumerate(order)}
        self.acts = {(now[row], kind): at for (row, kind), at in self.acts.items() if row in now}
        self.sealed, self.chunks, self.by_user = True, [], {}
        return batch.take(order)


class UserHours:
    """In which sealed hours a user may have rows: a Bloom filter with a bit for each hour in each bucket, so that one
    look-up does for a month. It names each hour in which he has some, and one in twenty others; a byte a row, or so.
    """

    def __init__(self) -> None:
        self._bits = np.zeros((_BUCKETS, 8), np.uint8)
        self._slots: dict[Hour, int] = {}
        self._hours: list[Hour | None] = [None] * 64  # by slot

    def add(self, hour: Hour, sealed: Mapping[Hour, HourRows]) -> None:
        """An hour was sealed. ``sealed``: has it, and all that were added before."""
        while len(sealed[hour].who) * _BUCKETS_A_ROW > len(self._bits):
            self._bits = np.zeros((2 * len(self._bits), self._bits.shape[1]), np.uint8)
            for one, slot in self._slots.items():
                self._enter(slot, sealed[one].who)
        if None not in self._hours:
            self._hours += [None] * len(self._hours)
            self._bits = np.hstack([self._bits, np.zeros_like(self._bits)])
        slot = self._slots[hour] = self._hours.index(None)
        self._hours[slot] = hour
        self._enter(slot, sealed[hour].who)

    def remove(self, hour: Hour) -> None:
        slot = self._slots.pop(hour)
        self._hours[slot] = None
        self._bits[:, slot // 8] &= np.uint8(0xFF ^ 1 << slot % 8)

    def of(self, who: int) -> list[Hour]:
        """The hours in which a user may have rows."""
        mask = len(self._bits) - 1
        both = self._bits[who & mask] & self._bits[who >> 32 & mask]
        slots = np.flatnonzero(np.unpackbits(both, bitorder="little")).tolist()
        return [hour for hour in (self._hours[slot] for slot in slots) if hour is not None]

    def _enter(self, slot: int, who: NDArray[np.uint64]) -> None:
        mask = np.uint64(len(self._bits) - 1)
        for bucket in (who & mask, who >> np.uint64(32) & mask):
            self._bits[bucket.astype(np.intp), slot // 8] |= np.uint8(1 << slot % 8)  # of the same again, the same
