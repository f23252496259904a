# core
"""What the online store says of a user, and how good that answer is."""

from __future__ import annotations

from msgspec import Struct

from millrace.contracts.events import NOT_READ, PROFILE_MISSING, WINDOWS_MISSING, Id
from millrace.contracts.online import PROFILE, WINDOW_BYTES

AWAY = "away"
"""The store does not answer."""
SLOW = "slow"
"""The store did not answer in time."""
BUSY = "busy"
"""So many reads wait for the store that no further one was begun."""
ERROR = "error"
"""The store answered with an error, or with what is no answer."""

STORE, CACHE, UNKNOWN, NOTHING = READS = "store", "cache", "unknown", "nothing"
"""Where a user's record was found. ``unknown``: the store answered, and has none. ``nothing``: it was not read, and no
earlier one is held."""

_BECAUSE = {
    AWAY: "the online store is away",
    SLOW: "the online store is slow",
    BUSY: "the online store is slow and many requests wait for it",
    ERROR: "the online store gave no usable answer",
}


class Record(Struct, frozen=True):
    """A user's hash in the online store.

    Args:
        fields: the hash; empty: nothing is known of the user.
        missing: why the store did not give it: one of :data:`AWAY`, :data:`SLOW`, :data:`BUSY`, :data:`ERROR`. Empty:
            it did.
        age_ms: how old ``fields`` are, where they are from an earlier read in place of the one that failed.
    """

    fields: dict[bytes, bytes]
    missing: str = ""
    age_ms: int | None = None

    @property
    def found(self) -> str:
        """Where it was found: one of :data:`READS`."""
        if self.missing:
            return NOTHING if self.age_ms is None else CACHE
        return STORE if self.fields else UNKNOWN

    @property
    def lacking(self) -> int:
        """Bits of what is not there of the user, as page logs say it (:data:`millrace.contracts.events.Lacking`).

        >>> Record({}).lacking, Record({}, AWAY).lacking, Record({b"profile": b"{}"}, SLOW, 2345).lacking
        (3, 7, 2)
        """
        unread = NOT_READ if self.found == NOTHING else 0
        profile = 0 if PROFILE in self.fields else PROFILE_MISSING
        windows = 0 if any(len(field) == WINDOW_BYTES for field in self.fields) else WINDOWS_MISSING
        return unread | profile | windows

    def note(self, user_id: Id) -> str | None:
        """What the page's answer says of it. None: the store gave the record.

        >>> Record({}, AWAY).note(7)
        'the online store is away: served as a new user'
        >>> Record({b"profile": b""}, SLOW, 2345).note(7)
        'the online store is slow: user 7 is served as known 2.3 s ago'
        """
        if not self.missing:
            return None if self.fields else f"user {user_id!r} is unknown: served as a new user"
        if self.age_ms is None:
            return f"{_BECAUSE[self.missing]}: served as a new user"
        return f"{_BECAUSE[self.missing]}: user {user_id!r} is served as known {self.age_ms / 1000:.1f} s ago"
