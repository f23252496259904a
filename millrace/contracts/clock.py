# core
"""Event time against wall time.

No core of Millrace reads a clock. The shells need "now in event time": to recognise events from the future, and to
move idle partitions on. They are given an :class:`EventClock`. In production it is the wall clock. In a demo event time
runs faster, and every role must agree on how fast, so the clock travels in the settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from millrace.contracts.errors import SettingError
from millrace.contracts.events import LAST_MS

_FASTEST = 1e6  # seconds of event time in one: a month in three seconds
DAY_MS = 86_400_000

HEADER = "clock"
"""The Kafka header in which an event names the clock that it was sent by, if that is not the wall clock."""

Headers = Mapping[str, bytes | None] | Iterable[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class EventClock:
    """Maps wall time to event time: ``event = event_zero + (wall - wall_zero) * speed``, both in Unix ms.

    ``EventClock()`` is the identity: event time is wall time.
    """

    wall_zero_ms: int = 0
    event_zero_ms: int = 0
    speed: float = 1.0

    def at(self, wall: int) -> int:
        """Event time (ms) at the wall time ``wall`` (ms)."""
        return self.event_zero_ms + round((wall - self.wall_zero_ms) * self.speed)

    def wall_at(self, event_ms: int) -> float:
        """Wall time (ms) at which event time reaches ``event_ms``."""
        return self.wall_zero_ms + (event_ms - self.event_zero_ms) / self.speed

    def encode(self) -> str:
        """The form that settings carry: ``wall_zero:event_zero:speed``."""
        return f"{self.wall_zero_ms}:{self.event_zero_ms}:{self.speed:g}"

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """Kafka headers of an event that is sent by this clock. A later reader, perhaps with another clock, learns from
        them what time it was. Empty for wall time."""
        return [] if self == EventClock() else [(HEADER, self.encode().encode())]

    @classmethod
    def decode(cls, text: str) -> EventClock:
        """The inverse of :meth:`encode`; an empty text is the identity."""
        if not text:
            return cls()
        try:
            wall, event, speed = text.split(":")
            clock = cls(int(wall), int(event), float(speed))
        except ValueError:
            raise SettingError(
                f"clock '{text}' is not WALL_MS:EVENT_MS:SPEED", "leave it unset, or give three numbers"
            ) from None
        if not 0 < clock.speed <= _FASTEST:
            raise SettingError(f"clock '{text}' has speed {clock.speed:g}", f"give one above 0, up to {_FASTEST:g}")
        for at_ms in (clock.wall_zero_ms, clock.event_zero_ms):
            if not 0 <= at_ms <= LAST_MS:
                raise SettingError(f"clock '{text}' begins at {at_ms}", "give Unix milliseconds, up to the year 3000")
        return clock


def data_now_ms(clock_ms: int, newest_ms: int, reached_ms: int = 0) -> int:
    """The present time of the data: the event clock, or the newest event where the clock is not the clock of this data.

    An old log that is played is dated long ago, and nobody told its clock. A clock more than a day ahead of everything
    that has happened is therefore not believed. All times are Unix ms of event time.

    Args:
        clock_ms: the event clock.
        newest_ms: the newest event that is known.
        reached_ms: a time that the data has reached without an event, such as a watermark; 0: none.

    >>> data_now_ms(clock_ms=90_000_000, newest_ms=80_000_000)
    90000000
    >>> data_now_ms(clock_ms=1_700_000_000_000, newest_ms=80_000_000)
    80000000
    """
    return clock_ms if clock_ms - max(newest_ms, reached_ms) <= DAY_MS else newest_ms


def sent_by(headers: Headers | None) -> EventClock | None:
    """The clock that a message's Kafka headers name; None if they name none, or none that can be read."""
    for name, value in headers.items() if isinstance(headers, Mapping) else headers or ():
        if name == HEADER:
            return _named(value or b"")
    return None


@lru_cache(maxsize=64)
def _named(text: bytes) -> EventClock | None:
    try:
        return EventClock.decode(text.decode()) if text else None
    except (SettingError, UnicodeDecodeError):
        return None
