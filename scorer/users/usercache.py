# core
"""What was read of users before, for when the online store is slow or away: a bounded number of bytes, the newest.

Nothing is served that is older than an hour: a user who was deleted since is in here still, unless asked for again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from millrace.contracts.events import Id

MOST_BYTES = 16 * 1024 * 1024
MOST_SECONDS = 3600.0
_FIELD_BYTES = 150  # what Python takes for a field beside its bytes


class UserCache:
    """Users' hashes by id; whoever was read longest ago goes first.

    Args:
        most_bytes: about so many are held.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._bytes = most_bytes, 0
        self._held: OrderedDict[str, tuple[dict[bytes, bytes], float, int]] = OrderedDict()

    def put(self, user_id: Id, fields: dict[bytes, bytes], now_s: float) -> None:
        """Notes what was read at ``now_s``. A user of whom nothing is known is not held: there is no end of these."""
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
        """What was read of a user, and its age in ms. None: nothing is held that is young enough."""
        self._forget(now_s)
        held = self._held.get(str(user_id))
        return None if held is None else (held[0], round(1000 * (now_s - held[1])))

    def __len__(self) -> int:
        return len(self._held)

    def _forget(self, now_s: float) -> None:
        """Drops what is too old. Users stand in the order in which they were read."""
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
