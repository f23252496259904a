# shell
"""The wall clock, for shells; :mod:`millrace.contracts.clock` maps it to event time."""

from __future__ import annotations

import time

from millrace.contracts.clock import EventClock


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def event_now_ms(clock: EventClock) -> int:
    return clock.at(wall_ms())
