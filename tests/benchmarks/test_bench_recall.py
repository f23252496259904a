"""``millrace bench recall``, small: its figures are there, and what it measures is what it says."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import recall
from benchmarks.recall import Size
from benchmarks.recallcost import learner_cost
from benchmarks.recallmerit import BEFORE, NEW, POPULAR, Merit, best_items, by_source, measure, paired_ratio
from benchmarks.runner import BENCHMARKS, table
from experiments.recallhistory import log_of, samples_of
from experiments.recallshop import RecallShop
from millrace.contracts.events import SOURCES
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import shop_schema
from scorer.catalog.shelf import ItemRows
from scorer.users.userrecord import User
from simulator.daylog import day_table, parse_day
from simulator.world import World

TINY = Size(
    seed=101, items=1000, users=120, days=2, candidates=100, stages=4, timed=20, cost_rows=1500, searched=5, deaths=0
)
SHARES = ("clicked_recall_known", "clicked_recall_new", "oracle_recall_known", "oracle_recall_new")


def test_the_figures_are_there(tmp_path: Path) -> None:
    assert "recall" in BENCHMARKS
    figures = {f["name"]: f for f in recall.run(tmp_path, lambda _: None, TINY)}
    assert {*SHARES, "recall_ms", "learner_cost"} <= set(figures)
    assert all(np.isfinite(f["value"]) for f in figures.values())
    for name in SHARES:
        found = figures[name]
        assert 0 < found["value"] <= 1
        assert found["against"] == "the mixture before"
        assert found["ratio"] is not None
        assert 0 < found["ratio_low"] <= found["ratio"]
    assert figures["recall_ms"]["ratio"] is not None
    details = json.loads((tmp_path / "details.json").read_text())
    assert 900 < details["living"] < 1100
    given = {row["source"]: row["candidates"] for row in details["sources_known"]}
    assert sum(given.values()) == pytest.approx(100, abs=1)
    assert given["vectors"] > 20
    lines = table(list(figures.values())).splitlines()
    assert sum("at least" in line for line in lines) == len(SHARES)


# -- what is measured --------------------------------------------------------------------------------------------------


class Oracle(RecallShop):
    """The best items that there are, as if some source had them."""

    def recall_new(self, user: User, ts_ms: int, size: int, seed: int) -> tuple[ItemRows, NDArray[np.uint8]]:
        number = int(user.plain["number"])
        rows = self.rows_of(best_items(self.world.day(DAY), number, ts_ms, size))
        return rows[rows >= 0], np.full(int((rows >= 0).sum()), 3, np.uint8)

    def user(self, user: int) -> User:
        found = super().user(user)
        found.plain["number"] = float(user)
        return found


DAY = parse_day("2026-03-02") + TINY.days


@cache
def merit_of_oracle() -> tuple[Merit, NDArray[np.bool_], NDArray[np.bool_], RecallShop]:
    shop, held_out, known = recall.build(TINY, lambda _: None)
    shop.__class__ = Oracle
    found = measure(shop, day_table(shop.world, DAY), DAY, held_out, known, 100, 4, lambda _: None)
    return found, held_out, known, shop


def test_what_finds_the_best_has_all_of_them() -> None:
    """But for items that were born since the state was brought up to date."""
    merit = merit_of_oracle()[0]
    assert len(merit.user) > 20
    assert merit.oracle[NEW].min() > 0.9
    assert merit.oracle[BEFORE].mean() < 0.8
    assert (merit.found_best.sum(axis=1) == merit.oracle[NEW]).all()
    (row,) = by_source(merit, SOURCES, new_users=False)
    assert row["source"] == SOURCES[3]
    assert row["oracle_recall"] == pytest.approx(merit.of(merit.oracle, NEW, False).mean())


def test_who_is_known_and_who_is_new() -> None:
    merit, held_out, known, shop = merit_of_oracle()
    assert not (held_out & known).any(), "who is held out did nothing in the history"
    assert (held_out | known)[merit.user].all()
    assert merit.held_out.any()
    assert (merit.held_out == held_out[merit.user]).all()
    assert 0.1 < held_out.mean() < 0.3
    log = day_table(shop.world, DAY)
    clicked = set(log["user_id"].to_numpy()[log["click"].to_numpy() == 1] - 1)
    assert set(merit.user.tolist()) == {u for u in clicked if held_out[u] or known[u]}


def test_clicked_shares_are_of_the_days_clicks() -> None:
    merit, _, _, shop = merit_of_oracle()
    log = day_table(shop.world, DAY)
    user, item = log["user_id"].to_numpy() - 1, log["item_id"].to_numpy()
    clicked = log["click"].to_numpy() == 1
    for u, share in zip(merit.user.tolist(), merit.clicked[POPULAR].tolist(), strict=True):
        wanted = len(set(item[clicked & (user == u)].tolist()))
        assert share * wanted == pytest.approx(round(share * wanted))
    assert 0.05 < merit.clicked[POPULAR].mean() < 0.9


def test_a_ratio_and_its_interval() -> None:
    """Against the delta method: the interval of a ratio of means of many pairs."""
    rng = np.random.default_rng(3)
    n = 4000
    other = rng.gamma(2.0, 1.0, n)
    value = 1.5 * other * rng.uniform(0.5, 1.5, n)
    found = paired_ratio(value, other, np.random.default_rng(1))
    ratio = value.mean() / other.mean()
    spread = (value - ratio * other).std() / other.mean() / np.sqrt(n)
    assert found.ratio == pytest.approx(ratio)
    assert found.low == pytest.approx(ratio - 1.96 * spread, abs=0.2 * spread)
    assert found.high == pytest.approx(ratio + 1.96 * spread, abs=0.2 * spread)
    same = paired_ratio(other, other, np.random.default_rng(1))
    assert (same.low, same.ratio, same.high) == (1, 1, 1), "pairs stay pairs"
    assert np.isnan(paired_ratio(value[:0], other[:0], rng).ratio)


# -- what the head costs ----------------------------------------------------------------------------------------------


def test_the_cost_is_of_the_same_rows_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that each batch moves: a model with the head takes four thirds of the time."""
    schema = shop_schema()
    now = [0.0]
    learnt: list[tuple[bool, int]] = []

    class Model:
        def __init__(self, _: object, spec: dict[str, object], __: int) -> None:
            self.head = bool(spec.get("retrieval_width"))

        def learn(self, batch: SampleBatch) -> None:
            learnt.append((self.head, len(batch)))
            now[0] += len(batch) * (4 if self.head else 3)

        def changes(self) -> None:
            pass

    monkeypatch.setattr("benchmarks.recallcost.OnlineModel", Model)
    shop = World(101, 100)
    batches = list(samples_of(log_of([day_table(shop, DAY).slice(0, 1000)], schema), schema))
    cost = learner_cost(schema, batches, lambda: now[0], turn=2, warm=1)
    assert cost.cost == pytest.approx(0.25)
    assert cost.with_head == pytest.approx(0.25)
    assert cost.without == pytest.approx(1 / 3)
    assert len(cost.turns) == (len(batches) + 1) // 2 - 1
    for head in (True, False):
        assert sum(n for h, n in learnt if h == head) == 1000
    assert [h for h, _ in learnt[:8]] == [True, True, False, False, False, False, True, True], "who is first alternates"
