"""``millrace dev bench recall``, small: its figures are there, and what it measures is what it says."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import recall
from benchmarks.recall import SHORT, Found, best_items, measure
from benchmarks.runner import BENCHMARKS, table
from experiments.recall.recallloop import FIRST_DAY
from experiments.recall.recallshop import RecallShop
from experiments.runs import paired_ratio
from scorer.catalog.itemtable import ItemRows
from scorer.users.userrecord import KnownUser
from simulator.daylog import day_table

SHARES = ("clicked_recall_known", "clicked_recall_new", "oracle_recall_known", "oracle_recall_new")


def test_the_figures_are_there(tmp_path: Path) -> None:
    assert "recall" in BENCHMARKS
    figures = {f["name"]: f for f in recall.run(tmp_path, lambda _: None, SHORT)}
    assert set(figures) == set(SHARES)
    assert all(np.isfinite(f["value"]) for f in figures.values())
    for name in SHARES:
        found = figures[name]
        assert 0 < found["value"] <= 1
        assert found["against"] == "the most clicked items"
        assert found["ratio"] is not None
        assert 0 < found["ratio_low"] <= found["ratio"]
    lines = table(list(figures.values())).splitlines()
    assert sum("at least" in line for line in lines) == len(SHARES)


# -- what is measured --------------------------------------------------------------------------------------------------


class Oracle(RecallShop):
    """The best items that there are, as if some source had them."""

    def recall(self, user: KnownUser, ts_ms: int, size: int, seed: int) -> ItemRows:
        number = int(user.plain["number"])
        rows = self.rows_of(best_items(self.world.day(DAY), number, ts_ms, size))
        return rows[rows >= 0]

    def user(self, user: int) -> KnownUser:
        found = super().user(user)
        found.plain["number"] = float(user)
        return found


DAY = FIRST_DAY + SHORT.days


@cache
def found_by_oracle() -> tuple[Found, NDArray[np.bool_], NDArray[np.bool_], RecallShop]:
    shop, pupil, held_out, known = recall.build(SHORT, lambda _: None)
    assert 900 < shop.index.alive.sum() < 1100
    shop.__class__ = Oracle
    found = measure(shop, pupil, SHORT, held_out, known, lambda _: None)
    assert pupil.model.head is not None
    assert pupil.model.head.clicks > 20
    return found, held_out, known, shop


def test_what_finds_the_best_has_all_of_them() -> None:
    """But for items that were born since the state was brought up to date."""
    found = found_by_oracle()[0]
    assert len(found.user) > 20
    assert found.best[:, 0].min() > 0.9
    assert found.best[:, 1].mean() < 0.8


def test_who_is_known_and_who_is_new() -> None:
    found, held_out, known, shop = found_by_oracle()
    assert not (held_out & known).any(), "who is held out did nothing in the history"
    assert (held_out | known)[found.user].all()
    assert found.new.any()
    assert (found.new == held_out[found.user]).all()
    assert 0.1 < held_out.mean() < 0.3
    log = day_table(shop.world, DAY)
    clicked = set(log["user_id"].to_numpy()[log["click"].to_numpy() == 1] - 1)
    assert set(found.user.tolist()) == {u for u in clicked if held_out[u] or known[u]}


def test_clicked_shares_are_of_the_days_clicks() -> None:
    found, _, _, shop = found_by_oracle()
    log = day_table(shop.world, DAY)
    user, item = log["user_id"].to_numpy() - 1, log["item_id"].to_numpy()
    clicked = log["click"].to_numpy() == 1
    for u, share in zip(found.user.tolist(), found.clicked[:, 1].tolist(), strict=True):
        wanted = len(set(item[clicked & (user == u)].tolist()))
        assert share * wanted == pytest.approx(round(share * wanted))
    assert 0.05 < found.clicked[:, 1].mean() < 0.9


def test_a_ratio_and_its_interval() -> None:
    """Against the delta method: the interval of a ratio of means of many pairs."""
    rng = np.random.default_rng(3)
    n = 4000
    other = rng.gamma(2.0, 1.0, n)
    value = 1.5 * other * rng.uniform(0.5, 1.5, n)
    middle, low, high = paired_ratio(value, other, 4000, 1)
    ratio = value.mean() / other.mean()
    spread = (value - ratio * other).std() / other.mean() / np.sqrt(n)
    assert middle == pytest.approx(ratio)
    assert low == pytest.approx(ratio - 1.96 * spread, abs=0.2 * spread)
    assert high == pytest.approx(ratio + 1.96 * spread, abs=0.2 * spread)
    same = paired_ratio(other, other, 100, 1)
    assert list(same) == [1.0, 1.0, 1.0], "pairs stay pairs"
    assert np.isnan(paired_ratio(value[:0], other[:0], 100)[0])
