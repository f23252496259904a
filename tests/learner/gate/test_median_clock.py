"""One clock for the gate: most clients say what time it is, and none of them alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.gate.median_clock import ALONE, OF_ONE_USER, PAGES, MedianClock
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


class PlainClock:
    """The rule in lists."""

    def __init__(self) -> None:
        self.pages: list[tuple[int, int]] = []
        self.alone = 0

    def add(self, page: tuple[int, int]) -> None:
        own = [i for i, (_, user) in enumerate(self.pages) if user == page[1]]
        if page[1] == 0 or len(own) < OF_ONE_USER:
            self.alone = 0
        else:
            self.alone += 1
            del self.pages[own[0]]
            if self.alone >= ALONE:
                self.pages = [one for one in self.pages if one[1] == page[1]]
        self.pages = [*self.pages, page][-PAGES:]

    @property
    def now_ms(self) -> int:
        times = sorted(ms for ms, _ in self.pages)
        return times[(len(times) - 1) // 2]


@pytest.mark.parametrize("users", [1, 2, 4, 40])
def test_equals_the_rule_in_lists(users: int) -> None:
    rng = np.random.default_rng(users)
    clock, plain = MedianClock(), PlainClock()
    for _ in range(200):
        pages = int(rng.integers(1, 100 if rng.random() < 0.1 else 10))
        user, ts_ms = rng.integers(0, users + 1, pages), START_MS + rng.integers(0, 10**6, pages)
        each = rng.integers(1, 4, pages)
        batch = page(0, 0).take(np.zeros(each.sum(), np.intp))
        clock.meet(replace(batch, ts_ms=np.repeat(ts_ms, each), user=np.repeat(user, each).astype(np.uint64)))
        for one in list(zip(ts_ms.tolist(), user.tolist(), strict=True))[-64:]:
            plain.add(one)
        assert clock.now_ms == plain.now_ms
        assert clock.snapshot()["state"][1] == plain.alone
