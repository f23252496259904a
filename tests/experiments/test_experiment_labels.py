"""Label policies compared: nobody learns what was not known, everybody lives through the same, and sums are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import outcome_labels
from experiments.experiment_labels import (
    BOUND,
    FIGURES,
    ORACLE,
    STARTS,
    Traffic,
    experiment_labels,
    figures,
    make_report,
)
from learner.training.trainer import BATCH_MS, BATCH_ROWS
from millrace.basics.errors import LogError, SettingError
from millrace.contracts.samples import NEGATIVE, POLICIES, SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.labels import REGISTRY, WITH_EXPOSURE
from millrace.logs import read_log
from simulator.daylog import write_traffic

SMALL = {"width": 4, "hidden": [8], "blocks": 1}
ROWS, HISTORY, RATE = 1600, 800, 2.0
WORLD = 7


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    folder = tmp_path_factory.mktemp("world")
    write_traffic(folder, WORLD, RATE, ROWS, HISTORY)
    log = read_log(folder, shop_schema())
    return Traffic(log, shop_schema(), log.table.num_rows - ROWS)


class Diary:
    """Stands in for a model: writes down what it is asked and taught."""

    def __init__(self) -> None:
        self.scored: list[np.ndarray] = []
        self.learnt: list[SampleBatch] = []
        self.seen_first: list[int] = []  # rows scored before each batch

    def score(self, cat: np.ndarray, num: np.ndarray) -> np.ndarray:
        self.scored.append(cat)
        return np.zeros(len(cat), np.float32)

    def learn(self, batch: SampleBatch) -> None:
        self.learnt.append(batch)
        self.seen_first.append(sum(map(len, self.scored)))


@pytest.mark.parametrize("name", [BOUND, *REGISTRY])
def test_each_exposure_is_scored_once_and_by_what_was_known(traffic: Traffic, name: str) -> None:
    first, samples = traffic.first, traffic.samples(name)
    diary = Diary()
    p = traffic.live(diary, name)
    assert len(p) == ROWS
    assert traffic.rows.n == sum(map(len, diary.scored))
    bias = [c for c, n in enumerate(shop_schema().layout.cat_names) if n == "position"]
    expected = np.array(traffic.cat)
    assert expected[:, bias].any()  # and learnt from, below
    expected[:, bias] = 0
    assert np.array_equal(np.concatenate(diary.scored), expected)
    assert np.array_equal(np.concatenate([b.cat for b in diary.learnt]), traffic.cat[samples.row])
    assert np.array_equal(np.concatenate([b.kind for b in diary.learnt]), samples.kind)
    ts_ms, at = traffic.rows.ts_ms, 0
    for batch, seen in zip(diary.learnt, diary.seen_first, strict=True):
        known_ms = samples.known_ms[at : at + len(batch)]
        at += len(batch)
        assert 0 < len(batch) <= BATCH_ROWS
        assert known_ms[-1] - known_ms[0] <= BATCH_MS
        assert seen == np.searchsorted(ts_ms, known_ms[-1], side="right") > first
    code = WITH_EXPOSURE if name == BOUND else POLICIES.index(name)
    assert {int(c) for b in diary.learnt for c in b.policy} == {code}


def test_samples_are_of_the_traffic_alone_and_each_row_gets_its_label(traffic: Traffic) -> None:
    first, label = traffic.first, traffic.rows.label
    for name in (BOUND, *REGISTRY):
        samples = traffic.samples(name)
        newest: dict[int, int] = {}
        for row, kind in zip(samples.row.tolist(), samples.kind.tolist(), strict=True):
            newest[row] = max(kind, newest.get(row, 0))
        assert sorted(newest) == list(range(first, traffic.rows.n))
        assert [newest[row] != NEGATIVE for row in sorted(newest)] == (label[first:] == 1).tolist()


def test_the_history_is_learnt_settled_and_in_full_batches(traffic: Traffic) -> None:
    first, diary = traffic.first, Diary()
    traffic.learn_history(diary)
    assert [len(b) for b in diary.learnt[:-1]] == [BATCH_ROWS] * (len(diary.learnt) - 1)
    assert np.array_equal(np.concatenate([b.label for b in diary.learnt]), traffic.rows.label[:first])
    assert np.array_equal(np.concatenate([b.ts_ms for b in diary.learnt]), traffic.rows.ts_ms[:first])
    assert traffic.rows.ts_ms[first - 1] < traffic.rows.ts_ms[first]


# -- the whole -----------------------------------------------------------------------------------------------


def run(out: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"worlds": [WORLD, 3], "rates": [RATE], "seeds": 1, "rows": ROWS, "history_rows": HISTORY}
    given |= {"policies": ["wait", "prompt"], "spec": SMALL, "workers": 0, "progress": False}
    return experiment_labels(out, **(given | options))


@pytest.mark.slow
def test_the_whole_experiment(tmp_path: Path) -> None:
    report = run(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len(runs) == len(STARTS) * 2 * 4
    assert {r["policy"] for r in runs} == {BOUND, "wait", "prompt", ORACLE}
    own = [r["late_auc"] for r in runs if r["policy"] != ORACLE]
    assert len(set(own)) == len(own), "each run is another"
    assert {(row["policy"], row["start"]) for row in report["cells"]} == {
        (policy, start) for policy in (BOUND, "wait", "prompt", ORACLE) for start in STARTS
    }
    assert len(report["verdicts"]) == (4 if report["default"] in ("wait", "prompt") else 0)
    assert "prompt" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_policies_of_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcome_labels, "DAYS", 9)
    report = run(tmp_path, outcome=True, users=20)
    table = {row["policy"]: row for row in report["policies"]}
    others = (outcome_labels.NEVER_TOLD, *outcome_labels.POLICIES)
    assert [*table] == [ORACLE, BOUND, *others]
    assert len({row["log_loss"] for row in table.values()}) == len(table), "each run is another"
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 2 * len(table)
    assert table["never"]["calibration"] < min(table[name]["calibration"] for name in (BOUND, *others[2:]))


def test_gaps_of_an_outcome_are_those_of_the_definition() -> None:
    made = (("bound", 0.8, 0.2), ("never", 0.6, 0.4), ("wait", 0.7, 0.25))
    runs: list[dict[str, Any]] = [
        {"world": world, "policy": name, "auc": auc - 0.1 * world, "log_loss": loss, "calibration": 1.02}
        for name, auc, loss in made
        for world in (0, 1)
    ]
    runs[-1]["auc"] -= 0.04
    report = outcome_labels.make_report(runs, "wait")
    wait = report["policies"][-1]
    assert wait["auc_gap_closed"] == pytest.approx(0.4, abs=1e-5)
    assert wait["auc_gap_closed_least"] == pytest.approx(0.3, abs=1e-5)
    assert wait["log_loss_gap_closed"] == pytest.approx(0.75, abs=1e-5)
    assert [v["reached"] for v in report["verdicts"]] == [False, True, True]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policies": ["hope"]}, "'hope'"),
        ({"policies": ["wait", "wait"]}, "wait, wait"),
        ({"worlds": []}, "0 worlds"),
        ({"rates": []}, "0 rates"),
        ({"worlds": [WORLD]}, "1 worlds"),
        ({"seeds": 0}, "0 seeds"),
        ({"rows": 15}, "15 rows"),
        ({"history_rows": 0}, "history of 0"),
        ({"rates": [-1.0]}, "-1 exposures a second"),
        ({"rates": [float("nan")]}, "nan exposures a second"),
    ],
)
def test_what_cannot_be_run_is_told(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises((SettingError, LogError), match=words) as caught:
        run(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(SettingError, match="taken"):
        run(tmp_path / "taken")


# -- sums ----------------------------------------------------------------------------------------------------


def made_runs(policies: Sequence[str]) -> list[dict[str, Any]]:
    """Two worlds, two seeds. AUC: bound .70 and .72, wait .60, prompt .69; log loss .30, .50, .303; calibration 1, 2,
    1.02; seeds differ by the same for all, and cancel in pairs."""
    base = {BOUND: (0.70, 0.30, 1.0), "wait": (0.60, 0.50, 2.0), "prompt": (0.69, 0.303, 1.02)}
    out = []
    for policy in policies:
        auc, loss, calibration = base[policy]
        for world in (1, 2):
            for seed in (0, 1):
                auc_here = auc + (0.02 if policy == BOUND and world == 2 else 0.0)
                values = (auc_here, loss + 0.01 * seed, *[calibration + 0.1 * seed] * 2)
                head = {"world": world, "rate": "20/s", "start": "cold", "policy": policy, "seed": seed}
                out.append(head | dict(zip(FIGURES, values, strict=True)))
    return out


def test_the_figures_are_those_of_the_definition() -> None:
    report = make_report(made_runs([BOUND, "wait", "prompt"]), ["wait", "prompt"], "prompt")
    whole = {row["policy"]: row for row in report["pooled"]}
    prompt = whole["prompt"]
    assert prompt["gap_closed"] == pytest.approx(0.09 / 0.11, abs=1e-5)
    # Both worlds drawn as the first gives .09 / .10, as the second .09 / .12: the ends of the bootstrap's interval.
    assert prompt["gap_closed_low"] == pytest.approx(0.09 / 0.12, abs=1e-5)
    assert prompt["gap_closed_high"] == pytest.approx(0.09 / 0.10, abs=1e-5)
    assert prompt["log_loss_ratio"] == pytest.approx(0.308 / 0.305, abs=1e-5)
    assert prompt["early_calibration_error"] == pytest.approx(0.02, abs=1e-5)
    assert prompt["late_calibration_error_ci"] == pytest.approx(0, abs=1e-9)  # paired: seeds cancel
    assert whole["wait"]["gap_closed"] == 0
    assert [v["reached"] for v in report["verdicts"]] == [True] * 4
    over = {row["policy"]: row for row in report["cells"]}
    # -.01 and -.03: Student's t of two worlds, t(.975, 1) = 12.7062
    assert over["prompt"]["late_auc_over_bound"] == pytest.approx(-0.02, abs=1e-5)
    assert over["prompt"]["late_auc_over_bound_ci"] == pytest.approx(12.7062 * 0.01, abs=1e-5)
    assert over[ORACLE]["late_auc"] is None


def test_verdicts_can_fail_and_none_is_given_without_the_default() -> None:
    runs = made_runs([BOUND, "wait", "prompt"])
    verdicts = make_report(runs, ["wait", "prompt"], "wait")["verdicts"]
    assert [v["reached"] for v in verdicts] == [False] * 4
    assert make_report(runs, ["wait", "prompt"], "es-dfm")["verdicts"] == []


@pytest.mark.parametrize(("policies", "bound"), [(["prompt"], {}), (["wait", "prompt"], {"late_auc": 0.5})])
def test_without_wait_and_where_waiting_reaches_the_bound_there_is_no_gap_to_close(
    policies: list[str], bound: dict[str, float]
) -> None:
    """A quotient of two negative numbers would look like a gap that was closed."""
    runs = [r | bound if r["policy"] == BOUND else r for r in made_runs([BOUND, *policies])]
    report = make_report(runs, policies, "prompt")
    for row in report["pooled"]:
        assert row["gap_closed"] is row["gap_closed_low"] is row["gap_closed_high"] is None
    assert report["verdicts"][0]["reached"] is None


def test_figures_are_of_the_first_and_the_last_quarter() -> None:
    p, y = np.full(64, 0.2, np.float32), np.zeros(64)
    y[[1, 62, 63]] = 1
    p[[1, 63]] = 0.4
    found = figures(p, y)
    assert found["early_log_loss"] == pytest.approx(-(15 * np.log(0.8) + np.log(0.4)) / 16, abs=1e-5)
    assert found["early_calibration"] == pytest.approx((15 * 0.2 + 0.4) / 1, abs=1e-5)
    assert found["late_calibration"] == pytest.approx((15 * 0.2 + 0.4) / 2, abs=1e-5)
    assert found["late_auc"] == pytest.approx((1 + 0.5) / 2)


def test_figures_of_one_class_have_no_value_and_what_is_not_finite_is_wrong() -> None:
    p, y = np.full(64, 0.2, np.float32), np.zeros(64)
    found = figures(p, y)
    assert found["late_auc"] is found["late_calibration"] is None
    assert found["early_log_loss"] == pytest.approx(-np.log(0.8), abs=1e-5)
    p[0] = np.nan
    worse = figures(p, y)["early_log_loss"]
    assert worse is not None
    assert found["early_log_loss"] is not None
    assert np.isfinite(worse)
    assert worse > found["early_log_loss"]
