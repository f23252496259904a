"""The benchmark of dead items, small: a scorer in processes of its own, whose pages a dead item leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import deaditem
from benchmarks.runner import BenchError
from tests.scenes.waiting import LONG

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ITEMS_ON_SALE", 2000), ("USERS", 60), ("ROWS", 20_000), ("DELTA_ROWS_A_SECOND", 500)):
        monkeypatch.setattr(deaditem, name, value)


def test_an_item_that_stays_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaditem, "PATIENCE_S", 0.2)
    pages = deaditem._Pages(0, 0)
    pages.seen = [(0.0, frozenset({1, 2}), 7)] * 20
    deaditem._await_without([pages], 3)
    with pytest.raises(BenchError, match="item 2 is still on pages"):
        deaditem._await_without([pages], 2)


@pytest.mark.slow
def test_a_dead_item_leaves_the_pages_of_a_real_scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    said: list[str] = []
    longest, median = deaditem.dead_item_seconds(said.append, tmp_path, rounds=2)
    assert (longest["name"], median["name"]) == ("dead_item_seconds", "dead_item_median_seconds")
    assert 0 <= median["value"] <= longest["value"]
    assert "retrieval versions" in said[-1]
