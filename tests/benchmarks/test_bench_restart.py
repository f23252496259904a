"""The measurement of a scorer's start, small: it runs, and what it measures is what it says."""

from __future__ import annotations

import pytest

from benchmarks.parts.restart import scorer_restart
from tests.scenes.waiting import LONG

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]


@pytest.mark.slow
def test_a_start_is_measured_with_all_that_there_is_to_read() -> None:
    said: list[str] = []
    found = scorer_restart(rows=3000, items=50, starts=1, progress=said.append)
    assert (found["rows"], found["items"]) == (3000, 50)
    assert 0 < found["scorer_restart_seconds"] == found["scorer_restart_longest_seconds"]
    assert found["scorer_restart_without_index_seconds"] > 0
    assert len(said) == 3
