"""A stretch: due by rows, or by time where there are some."""

from __future__ import annotations

import pytest

from learner.gate.stretch import Stretch

START_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("rows", "minutes", "due"),
    [(2047, 4.9, False), (2048, 0, True), (255, 600, False), (256, 4.9, False), (256, 5, True)],
)
def test_due_by_rows_or_by_time_with_a_least_number_of_rows(rows: int, minutes: float, due: bool) -> None:
    stretch = Stretch()
    stretch.clock.now_ms = START_MS
    assert not stretch.due
    stretch.learnt(1)
    stretch.clock.now_ms += round(minutes * 60_000)
    stretch.learnt(rows - 1)
    again = Stretch(clock=stretch.clock)
    again.resume(stretch.snapshot())
    assert (stretch.due, again.due) == (due, due)
    stretch.begin()
    assert not stretch.due


def test_time_counts_from_the_first_row() -> None:
    """After a night without samples the first batch of the morning is no whole stretch."""
    stretch = Stretch()
    stretch.clock.now_ms = START_MS
    stretch.learnt(2048)
    stretch.begin()
    stretch.clock.now_ms += 8 * 3_600_000
    stretch.learnt(300)
    assert not stretch.due


def test_an_empty_state_leaves_it_fresh() -> None:
    stretch = Stretch()
    stretch.resume({})
    stretch.learnt(2048)
    assert stretch.due
