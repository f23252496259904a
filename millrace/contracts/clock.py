# core
"""Event time against wall time.

Cores read no clock. Shells get an :class:`EventClock` to recognise events from the future and to move idle
partitions on. In production it is the wall clock. In a demo event time runs faster, and every role must agree on the
speed, so the clock is a setting. :class:`Reached` says how far the events of a partition have come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.basics.errors import SettingError
from millrace.contracts.events import LAST_MS, Id

_FASTEST = 1e6  # seconds of event time in one: a month in three seconds

HEADER = "clock"
"""The Kafka header in which an event names the clock that it was sent by, if that is not the wall clock."""

MAX_AHEAD_MS = HOUR_MS
"""An event further ahead of the event clock than this is from the future, and becomes a dead letter. One less far ahead
waits for its time: a device's clock may be ahead."""

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

    def encode(self) -> str:
        """The form that settings carry: ``wall_zero:event_zero:speed``."""
        return f"{self.wall_zero_ms}:{self.event_zero_ms}:{self.speed:g}"

    @property
    def headers(self) -> list[tuple[str, bytes]]:
        """Kafka headers of an event that is sent by this clock; empty for wall time. A later reader, perhaps with
        another clock, learns from them what event time it was."""
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
    """The present time of the data: the event clock, or the newest event where the clock does not belong to this data.

    An old log is dated long ago. So a clock more than a day ahead of everything that has happened is not believed.
    All times are Unix ms of event time.

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


PAGES = 31
"""The newest pages, one a user: more than half of them take a partition's time ahead of the event clock."""


class Reached:
    """How far the events of a partition have come. One event alone cannot move this time ahead of the event clock.

    ::

                       newest_ms         clock + slack                          ts
        ───────────────────┴─────────────────┴──────────────────────────────────┴──►  event time
           has been reached     moves the time     is ahead, unless most of the newest pages are

    An event dated further ahead than the allowed disorder comes from a wrong clock. The time must not follow a
    single wrong client: all other events would be late. If most users' events are ahead, the event clock is behind,
    and the time goes as far as most of them have come. The result depends on the calls and their order alone.

    >>> reached = Reached(slack_ms=60_000)
    >>> reached.see(1_030_000, clock_ms=1_000_000), reached.see(1_200_000, clock_ms=1_000_000), reached.newest_ms
    (True, False, 1030000)
    >>> any(reached.see(1_200_000 + user, 1_000_000, user) for user in range(15)), reached.newest_ms
    (False, 1030000)
    >>> reached.see(1_200_015, 1_000_000, 15), reached.newest_ms  # as far as all of these sixteen have come
    (False, 1200000)

    Args:
        slack_ms: how far ahead of the clock an event may be dated and be believed.

    Attributes:
        newest_ms: this time, Unix ms; 0 before the first event.
    """

    def __init__(self, slack_ms: int) -> None:
        self._slack_ms = slack_ms
        self.newest_ms = 0
        self._pages: dict[Id, int] = {}  # time of the newest page by user; the user who came last is the last

    def see(self, ts_ms: int, clock_ms: int, user: Id | None = None) -> bool:
        """Takes an event's time. Returns whether this time is reached (else the event is ahead).

        Args:
            clock_ms: the event clock when the event came.
            user: of an exposure; None: another event.
        """
        if user is not None:
            pages = self._pages
            pages.pop(user, None)
            pages[user] = ts_ms
            if len(pages) > PAGES:
                del pages[next(iter(pages))]
        if ts_ms > self.newest_ms:
            if ts_ms <= clock_ms + self._slack_ms:
                self.newest_ms = ts_ms
            elif len(self._pages) > PAGES // 2:
                most_ms = sorted(self._pages.values())[-(PAGES // 2 + 1)]
                self.newest_ms = max(self.newest_ms, most_ms)
        return ts_ms <= self.newest_ms

    def snapshot(self) -> list[tuple[Id, int]]:
        return list(self._pages.items())

    def resume(self, newest_ms: int, pages: Iterable[tuple[Id, int]]) -> None:
        self.newest_ms, self._pages = newest_ms, dict(map(tuple, pages))  # type: ignore[arg-type]


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
