"""Logged odds against what is drawn, bands against what is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.judge import draw_costs, figures
from experiments import experiment_judge
from experiments.experiment_judge import LEARNERS, SLOTS, bands, cells, odds, orders
from millrace.basics.errors import SettingError
from millrace.evidence.exploration import RULES, Exploration, Rule
from tests.scenes.waiting import LONG


@pytest.mark.parametrize("rule", RULES)
def test_drawn_pages_are_within_the_bounds_of_their_odds_and_wrong_odds_are_found(rule: Rule) -> None:
    rng, how = np.random.default_rng(3), Exploration(0.5, rule, 0.7)
    scores = np.sort(rng.beta(1, 8, 6).astype(np.float32))[::-1]
    drawn = [how.draw(scores, SLOTS, SLOTS, rng) for _ in range(8000)]
    found = cells([(tuple(page.order.tolist()), page.odds.tolist()) for page in drawn])
    assert found["within"] > 0.9
    assert found["squared_error"] < 1.5
    assert found["p"] > 0.001
    wrong = cells([(tuple(page.order.tolist()), (page.odds * 0.8).tolist()) for page in drawn])
    assert wrong["squared_error"] > 2, "odds that are a fifth too low are found"
    assert wrong["within"] < 0.9
    assert wrong["p"] < 1e-6


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(LONG)
def test_pages_of_a_live_scorer_are_drawn_by_their_odds() -> None:
    rows = odds(200)
    assert [(row["rule"], row["pages"]) for row in rows] == [(rule, 200) for rule in RULES]
    assert all(row["cells"] and row["p"] > 1e-6 for row in rows), rows


def test_a_better_arm_is_decided_and_the_truth_stays_within() -> None:
    rows = [row for seed in range(6) for lift in (0.0, 1.0) for row in bands(seed, lift, 3000)]
    assert sum(row["covered"] for row in rows) >= 11
    assert [row["decided"] for row in rows if row["lift"]] == [True] * 6
    assert sum(row["decided"] for row in rows if not row["lift"]) <= 1


def test_learners_are_told_from_each_other_and_the_truth_stays_within() -> None:
    rows = {name: [orders(seed, name, 15_000)[0] for seed in range(3)] for name in LEARNERS}
    assert all(row["more"] for row in rows["better"])
    assert all(row["less"] for row in rows["worse"])
    assert not any(row["more"] for row in (*rows["equal"], *rows["worse"]))
    assert not any(row["less"] for row in rows["better"])
    assert sum(row["covered"] for own in rows.values() for row in own) >= 8
    assert orders(0, "better", 300)[0]["refused"]


def test_the_report_says_what_was_tried(tmp_path: Path) -> None:
    little: dict[str, Any] = {"tests": 2, "users": 400, "pages": 0, "worlds": 0, "equal": 0}
    report = experiment_judge.experiment_judge(tmp_path / "out", **little, workers=0, progress=False)
    assert report["twins"] == report["learners"] == []
    assert report["odds"] == []
    assert [row["tests"] for row in report["bands"]] == [2, 2]
    assert [(row["learner"], row["tests"]) for row in report["orders"]] == [(name, 2) for name in LEARNERS]
    assert all(row["truth"] * (1.0 if row["learner"] == "better" else -1) > 0 for row in report["orders"][::2])
    assert "lift 0.3: " in report["verdict"]
    names = [figure["name"] for figure in figures(report)]
    assert names[:2] == ["covered lift 0", "covered lift 0.3"]
    assert names[-1] == "estimate_error worse"
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report


def test_the_cost_of_a_draw_is_measured_beside_the_page_as_ranked() -> None:
    found = {figure["name"]: figure for figure in draw_costs(5)}
    assert list(found) == [*(f"draw_ms {rule}" for rule in RULES), "draw_page_ms"]
    assert all(one["value"] > 0 and one["against"] == "as ranked" for one in found.values())


def test_one_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no interval"):
        experiment_judge.experiment_judge(tmp_path, worlds=1, progress=False)
