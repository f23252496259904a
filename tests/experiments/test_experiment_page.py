"""A model that sees its page, compared part by part: paired by seed, beside the item's rate and the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import experiment_page
from experiments.experiment_page import ALL, ORACLE, PARTS, RATE, TODAY, Plan, figures, make_report
from millrace.basics.errors import SettingError
from millrace.basics.ranking_metrics import auc, within


def run(arm: str, seed: int, page_auc: float, **more: Any) -> dict[str, Any]:
    return {"world": "feed", "arm": arm, "seed": seed, "page_auc": page_auc, "auc": 0.7} | more


def test_differences_are_paired_by_seed() -> None:
    rows = [run(TODAY, s, 0.6 + s / 10) for s in range(3)] + [run("one", s, 0.62 + s / 10) for s in range(3)]
    report = make_report(rows)
    one = report["order"][1]
    assert (one["page_auc_over_today"], one["page_auc_over_today_ci"]) == (0.02, 0.0)
    assert one["page_auc_ci"] > 0.1, "worlds differ more than arms do"
    assert "log_loss" not in one, "no run has it"
    assert "AUC of a page today is 0.7000; one +0.0200 ± 0.0000" in report["verdict"]


def test_the_way_is_from_a_half_to_the_oracle() -> None:
    long = {TODAY: 0.45, "one": 0.65, ORACLE: 0.8}
    rows = [run(arm, s, 0.6, long_page_auc=value) for arm, value in long.items() for s in range(2)]
    assert [row["way_closed"] for row in make_report(rows)["order"]] == pytest.approx([-1 / 6, 0.5, 1.0], abs=1e-5)


def test_figures_of_a_log_without_pages_are_pooled_and_a_rate_has_no_probabilities() -> None:
    rng = np.random.default_rng(0)
    page = np.repeat([0, 1, 2], [30, 10, 40])
    p, y = rng.random(80), rng.random(80) < 0.3
    assert set(figures(p, y, None)) == {"auc", "log_loss", "calibration"}
    found = figures(p, y, page, chances=False)
    assert found["auc"] == auc(p, y)
    long = page != 1
    assert found["long_page_auc"] == within(p[long], y[long], page[long])["page_auc"]
    assert not {"log_loss", "calibration"} & found.keys()


def test_arms_differ_by_their_parts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    field = '[[fields]]\nname = "{short}"\nof = "context"\n'
    monkeypatch.setattr(experiment_page, "PARTS", {"field": (field, {}), "wide": ("", {"width": 8})})
    arms = {name: (schema, spec) for name, schema, spec in Plan(parts=("field", "wide")).arms("feed")}
    assert list(arms) == [TODAY, "field", "wide", ALL]
    assert arms["wide"][0].id == arms[TODAY][0].id != arms["field"][0].id == arms[ALL][0].id
    assert [arm[1] for arm in arms.values()] == [{}, {}, {"width": 8}, {"width": 8}]
    assert "1h" in [f.name for f in arms[ALL][0].fields]
    names = [name for name, *_ in Plan(parts=()).arms("shop")]
    assert names == [TODAY]


@pytest.mark.parametrize("world", ["shop", "feed"])
def test_each_part_fits_each_world(world: str) -> None:
    arms = {name: schema for name, schema, _ in Plan().arms(world)}
    assert set(PARTS) <= set(arms)


@pytest.mark.parametrize("given", [{"worlds": ("moon",)}, {"parts": ("none",)}, {"seeds": 1}, {"log": Path("x")}])
def test_what_cannot_be_run_is_named_before_anything_begins(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        experiment_page.experiment_page(tmp_path, Plan(**given), progress=False)


@pytest.mark.slow
def test_a_small_experiment(tmp_path: Path) -> None:
    plan = Plan(worlds=("confounded",), parts=(), seeds=2, days=2, users=30)
    report = experiment_page.experiment_page(tmp_path, plan, workers=0, progress=False)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    rows = {row["arm"]: row for row in report["order"]}
    assert set(rows) == {TODAY, RATE, ORACLE}
    assert rows[ORACLE]["long_page_auc"] > rows[TODAY]["long_page_auc"] > 0.4
    assert rows[ORACLE]["way_closed"] == 1.0
