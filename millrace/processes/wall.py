# shell
"""The wall clock, for shells; :mod:`millrace.contracts.clock` maps it to event time."""

from __future__ import annotations

import time

from millrace.contracts.clock import EventClock


def wall_ms() -> int:
    """Wall time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def event_now_ms(clock: EventClock) -> int:
    """Event time now, in Unix milliseconds."""
    return clock.at(wall_ms())
