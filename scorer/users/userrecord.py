# core
"""What a scorer knows of a user: the record in the online store, its quality, ranking's view of it, and the cache for a
store that is slow or away."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Protocol

from msgspec import Struct

from millrace.basics.errors import StoreError
from millrace.basics.hashing import U64
from millrace.contracts.events import NOT_READ, PROFILE_MISSING, WINDOWS_MISSING, Id
from millrace.contracts.online_layout import (
    GUESTS,
    MOST_RECENT,
    PROFILE,
    RECENT,
    WINDOW_BYTES,
    Recent,
    unpack_guests,
    unpack_profile,
    unpack_recent,
)
from millrace.contracts.online_layout import NOTHING as NOTHING_DONE
from millrace.windows.features import FeatureBuilder

AWAY = "away"
SLOW = "slow"
BUSY = "busy"
"""Too many reads wait for the store, so no further one was begun."""
ERROR = "error"
"""The store answered with an error, or with an invalid answer."""

STORE, CACHE, UNKNOWN, NOTHING = READS = "store", "cache", "unknown", "nothing"
"""Where a user's record was found. ``unknown``: the store has none. ``nothing``: neither store nor cache gave one."""

_BECAUSE = {
    AWAY: "the online store is away",
    SLOW: "the online store is slow",
    BUSY: "the online store is slow and many requests wait for it",
    ERROR: "the online store gave no usable answer",
}


class UserRecord(Struct, frozen=True):
    """A user's hash in the online store.

    Args:
        fields: the hash; empty: nothing is known of the user.
        missing: why the store did not give it: :data:`AWAY`, :data:`SLOW`, :data:`BUSY`, :data:`ERROR`; or empty.
        age_ms: age of ``fields`` when they are from the cache.
    """

    fields: dict[bytes, bytes]
    missing: str = ""
    age_ms: int | None = None

    @property
    def found(self) -> str:
        if self.missing:
            return NOTHING if self.age_ms is None else CACHE
        return STORE if self.fields else UNKNOWN

    @property
    def lacking(self) -> int:
        """Bits of what is not there of the user, as page logs say it (:data:`millrace.contracts.events.Lacking`).

        >>> UserRecord({}).lacking, UserRecord({}, AWAY).lacking, UserRecord({b"profile": b"{}"}, SLOW, 2345).lacking
        (3, 7, 2)
        """
        unread = NOT_READ if self.found == NOTHING else 0
        profile = 0 if PROFILE in self.fields else PROFILE_MISSING
        windows = 0 if any(len(field) == WINDOW_BYTES for field in self.fields) else WINDOWS_MISSING
        return unread | profile | windows

    def note(self, user_id: Id) -> str | None:
        """What the page's answer says of it. None: the store gave the record.

        >>> UserRecord({}, AWAY).note(7)
        'the online store is away: served as a new user'
        >>> UserRecord({b"profile": b""}, SLOW, 2345).note(7)
        'the online store is slow: user 7 is served as known 2.3 s ago'
        """
        if not self.missing:
            return None if self.fields else f"user {user_id!r} is unknown: served as a new user"
        if self.age_ms is None:
            return f"{_BECAUSE[self.missing]}: served as a new user"
        return f"{_BECAUSE[self.missing]}: user {user_id!r} is served as known {self.age_ms / 1000:.1f} s ago"


@dataclass(frozen=True, slots=True)
class KnownUser:
    """A user at a request: attributes, a packed tile list per window key, and the last actions."""

    columns: dict[str, U64]
    plain: dict[str, float]
    tiles: Mapping[bytes, bytes]  # the online store's hash: window field -> tile list
    damaged: bool = False  # the stored profile was no JSON object; served without it
    recent: Recent = NOTHING_DONE
    forgotten: bool = False  # what is stored of the last clicks and purchases is damaged; served without it
    missing: int = 0  # bits of what was not there, see millrace.contracts.events.Lacking
    guests: tuple[KnownUser, ...] = ()  # what the user was before the login: counted as the user's

    @property
    def lately(self) -> Recent:
        """What the user did last, also as a guest."""
        if not self.guests:
            return self.recent
        each = zip(*(one.recent for one in (self, *self.guests)), strict=True)
        return Recent(*(sorted(chain(*parts), key=lambda past: -past.ts_ms)[:MOST_RECENT] for parts in each))

    @classmethod
    def of(cls, builder: FeatureBuilder, user_id: Id, record: Mapping[bytes, bytes], missing: int = 0) -> KnownUser:
        """A user from the online store's hash; an empty ``record`` is an unknown user."""
        attributes: dict[str, Any] = {}
        recent, damaged, forgotten = NOTHING_DONE, False, False
        try:
            attributes = unpack_profile(record.get(PROFILE))
        except StoreError:
            damaged = True
        try:
            recent = unpack_recent(record.get(RECENT))
        except StoreError:
            forgotten = True
        columns, plain = builder.attributes("user", {**attributes, builder.user_column: user_id})
        return cls(columns, plain, record, damaged, recent, forgotten, missing)


class UserStore(Protocol):
    """The online store; see :class:`scorer.users.user_reader.OnlineReader`. Away is no error: None, or nothing
    stored."""

    async def record(self, user_id: Id) -> UserRecord: ...

    async def list_keys(self) -> list[str] | None: ...

    async def lists(self, names: Sequence[str]) -> list[list[str]] | None: ...

    async def kept(self, key: str) -> bytes | None: ...

    async def keep(self, key: str, value: bytes, seconds: float) -> None: ...


class Meters(Protocol):
    """See :class:`scorer.ipc.meters.ScorerMeters`."""

    def error(self, what: str) -> None: ...

    def user_read(self, found: str) -> None: ...

    def list_page(self) -> None: ...

    def part(self, kind: str) -> None: ...

    def items(self, sources: bytes) -> None: ...

    def filtered(self, filled: str) -> None: ...


async def look_up(
    store: UserStore, builder: FeatureBuilder, meters: Meters, user_id: Id, session: Id | None = None
) -> tuple[KnownUser, list[str]]:
    """The user, and a note for the answer on what was missing. An unknown user is served as a new one. ``session``: an
    id that the user had as a guest, beside those that the stored user has."""
    record = await store.record(user_id)
    meters.user_read(record.found)
    user = KnownUser.of(builder, user_id, record.fields, record.lacking)
    sessions = [] if session is None else [session]
    sessions += unpack_guests(record.fields.get(GUESTS))
    if sessions:
        before = [(one, await store.record(one)) for one in {str(s): s for s in sessions if str(s) != str(user_id)}]
        user = replace(user, guests=tuple(KnownUser.of(builder, one, of.fields) for one, of in before if of.fields))
    said = record.note(user_id)
    notes = [said] if said else []
    if user.damaged:
        meters.error("profile")
        notes.append(f"the stored profile of user {user_id!r} is damaged: served without it")
    if user.forgotten:
        meters.error("recent")
        notes.append(f"the stored last clicks of user {user_id!r} are damaged: served without them")
    return user, notes


# Cached records live for at most an hour, because they may belong to a user who was deleted meanwhile.
MOST_BYTES = 16 * 1024 * 1024
MOST_SECONDS = 3600.0
_FIELD_BYTES = 150  # what Python takes for a field beside its bytes


class UserCache:
    """Users' hashes by id, about ``most_bytes`` in all; evicts the least recently read."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._bytes = most_bytes, 0
        self._held: OrderedDict[str, tuple[dict[bytes, bytes], float, int]] = OrderedDict()

    def put(self, user_id: Id, fields: dict[bytes, bytes], now_s: float) -> None:
        """Caches a read of ``now_s``, except an empty one: there is no limit to unknown users."""
        key = str(user_id)
        self._drop(key)
        if not fields:
            return
        size = _size(fields)
        self._held[key] = fields, now_s, size
        self._bytes += size
        while self._bytes > self._most:
            self._drop(next(iter(self._held)))
        self._forget(now_s)

    def get(self, user_id: Id, now_s: float) -> tuple[dict[bytes, bytes], int] | None:
        """A user's cached record and its age in ms. None: nothing young enough."""
        self._forget(now_s)
        held = self._held.get(str(user_id))
        return None if held is None else (held[0], round(1000 * (now_s - held[1])))

    def __len__(self) -> int:
        return len(self._held)

    def _forget(self, now_s: float) -> None:
        """Drops expired users, who stand in the order of their reads."""
        while self._held:
            key, (_, read_s, _) = next(iter(self._held.items()))
            if now_s - read_s <= MOST_SECONDS:
                break
            self._drop(key)

    def _drop(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._bytes -= held[2]


def _size(fields: Mapping[bytes, bytes]) -> int:
    return sum(map(len, fields)) + sum(map(len, fields.values())) + _FIELD_BYTES * (len(fields) + 2)
