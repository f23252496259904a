"""The measurement of a scorer's start, small: it runs, and what it measures is what it says."""

from __future__ import annotations

import pytest

from benchmarks.restart import scorer_restart
from tests.scenes.waiting import LONG

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]


@pytest.mark.long
def test_a_start_is_measured_with_all_that_there_is_to_read() -> None:
    said: list[str] = []
    found = scorer_restart(rows=3000, items=50, history=20, starts=1, progress=said.append)
    assert (found["rows"], found["items"], found["keys"]) == (3000, 50, 4 * (50 + 50))
    assert found["messages_of_history"] == 20 + 4
    assert found["messages_since"] == 60 + 60 + 60, "an item, some counts and a delta for each second"
    assert 0 < found["scorer_listens_seconds"] <= found["scorer_restart_seconds"]
    assert found["scorer_restart_without_index_seconds"] > 0
    assert len(said) == 4
