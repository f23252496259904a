"""One clock for the gate: most clients say what time it is, and none of them alone."""

from __future__ import annotations

import numpy as np

from learner.gate.median_clock import ALONE, MedianClock
from millrace.contracts.samples import SampleBatch
from tests.learner.gate.plain_model import MINUTE_MS, START_MS

AHEAD_MS = 59 * MINUTE_MS


def page(ts_ms: int, user: int) -> SampleBatch:
    n = 10
    cat, num = np.ones((n, 1), np.int64), np.ones((n, 1), np.float32)
    return SampleBatch.of_rows(
        np.zeros(n, np.uint8), np.full(n, ts_ms, np.int64), cat, num, user=np.full(n, user, np.uint64)
    )


def met(pages: int = 40, step_ms: int = 3000) -> tuple[MedianClock, int]:
    """A clock of a shop with six visitors at a time, and the time of its newest page."""
    clock = MedianClock()
    for number in range(pages):
        clock.meet(page(START_MS + number * step_ms, 1 + number % 6))
    return clock, START_MS + (pages - 1) * step_ms


def test_it_is_the_median_of_the_newest_pages() -> None:
    assert MedianClock().now_ms == 0
    clock, newest_ms = met()
    assert clock.now_ms == newest_ms - 7 * 3000


def test_a_client_59_minutes_ahead_does_not_move_it_however_many_pages_it_has() -> None:
    clock, newest_ms = met()
    for number in range(1, 60):  # three pages of it between two of others
        newest_ms += 3000
        clock.meet(page(newest_ms, 100 + number))
        for _ in range(3):
            clock.meet(page(newest_ms + AHEAD_MS, 99))
        assert newest_ms - 60_000 <= clock.now_ms <= newest_ms


def test_pages_without_a_user_are_of_many() -> None:
    clock, newest_ms = met()
    for number in range(1, 30):
        clock.meet(page(newest_ms + number * 3000, 0))
    assert clock.now_ms == newest_ms + 22 * 3000


def test_who_is_alone_for_long_is_believed() -> None:
    clock, newest_ms = met()
    for number in range(1, 8 + ALONE):
        clock.meet(page(newest_ms + number * MINUTE_MS, 99))
    assert clock.now_ms > newest_ms + ALONE * MINUTE_MS


def test_samples_that_are_read_again_take_it_back() -> None:
    clock, newest_ms = met()
    for number in range(20):
        clock.meet(page(START_MS + number * 3000, 1 + number % 6))
    assert clock.now_ms == START_MS + 12 * 3000 < newest_ms


def test_it_goes_on_from_a_snapshot() -> None:
    clock, newest_ms = met()
    for number in range(10):
        clock.meet(page(newest_ms + number, 99))
    other = MedianClock()
    other.resume(clock.snapshot())
    for number in range(30):
        for each in (clock, other):
            each.meet(page(newest_ms + number * MINUTE_MS, 99 if number < 20 else number))
        assert clock.now_ms == other.now_ms
    other.resume({})
    assert other.now_ms == 0
