"""Label policies compared: nobody learns what was not known, everybody lives through the same, and sums are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import realspeed
from experiments.experiment_labels import STARTS, experiment_labels
from experiments.labels_report import BOUND, MEASURES, ORACLE, Parts, figures, make_report
from learner.training.trainer import BATCH_MS, BATCH_ROWS
from millrace.basics.errors import LogError, SettingError
from millrace.contracts.samples import NEGATIVE, POLICIES, SampleBatch
from millrace.contracts.schema import Schema, shop_schema
from millrace.labels import REGISTRY
from millrace.logs import LogTable, read_log
from simulator.daylog import write_traffic

SMALL = {"width": 4, "hidden": [8], "blocks": 1}
ROWS, HISTORY, RATE = 1600, 800, 2.0
WORLD = 7


@pytest.fixture(scope="module")
def schema() -> Schema:
    return shop_schema()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory, schema: Schema) -> LogTable:
    folder = tmp_path_factory.mktemp("world")
    write_traffic(folder, WORLD, RATE, ROWS, HISTORY)
    return read_log(folder, schema)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, log: LogTable, schema: Schema) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    realspeed.prepare(log, log.table.num_rows - ROWS, schema, folder, {BOUND: None, **REGISTRY}, 30_000)
    return folder


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
def test_each_exposure_is_scored_once_and_by_what_was_known(
    prepared: Path, schema: Schema, log: LogTable, name: str
) -> None:
    first = log.table.num_rows - ROWS
    stretch, samples = realspeed.open_stretch(prepared, schema, first), realspeed.open_samples(prepared, name)
    diary = Diary()
    p = realspeed.live(diary, stretch, samples)
    assert len(p) == ROWS == sum(map(len, diary.scored))
    bias = [c for c, n in enumerate(schema.layout.cat_names) if n == "position"]
    expected = np.array(stretch.cat[first:])
    assert expected[:, bias].any()  # and learnt from, below
    expected[:, bias] = 0
    assert np.array_equal(np.concatenate(diary.scored), expected)
    assert np.array_equal(np.concatenate([b.cat for b in diary.learnt]), stretch.cat[samples.row])
    assert np.array_equal(np.concatenate([b.kind for b in diary.learnt]), samples.kind)
    ts_ms, at = stretch.ts_ms[first:], 0
    for batch, seen in zip(diary.learnt, diary.seen_first, strict=True):
        known_ms = samples.known_ms[at : at + len(batch)]
        at += len(batch)
        assert 0 < len(batch) <= BATCH_ROWS
        assert known_ms[-1] - known_ms[0] <= BATCH_MS
        assert seen == np.searchsorted(ts_ms, known_ms[-1], side="right")
    code = 0 if name == BOUND else POLICIES.index(name)
    assert {int(c) for b in diary.learnt for c in b.policy} == {code}


def test_samples_are_of_the_traffic_alone_and_each_row_gets_its_label(
    prepared: Path, schema: Schema, log: LogTable
) -> None:
    first = log.table.num_rows - ROWS
    label = realspeed.open_stretch(prepared, schema, first).label
    for name in (BOUND, *REGISTRY):
        samples = realspeed.open_samples(prepared, name)
        newest: dict[int, int] = {}
        for row, kind in zip(samples.row.tolist(), samples.kind.tolist(), strict=True):
            newest[row] = max(kind, newest.get(row, 0))
        assert sorted(newest) == list(range(first, log.table.num_rows))
        assert [newest[row] != NEGATIVE for row in sorted(newest)] == (label[first:] == 1).tolist()


def test_the_history_is_learnt_settled_and_in_full_batches(prepared: Path, schema: Schema, log: LogTable) -> None:
    first = log.table.num_rows - ROWS
    stretch, diary = realspeed.open_stretch(prepared, schema, first), Diary()
    realspeed.learn_history(diary, stretch)
    assert [len(b) for b in diary.learnt[:-1]] == [BATCH_ROWS] * (len(diary.learnt) - 1)
    assert np.array_equal(np.concatenate([b.label for b in diary.learnt]), stretch.label[:first])
    assert stretch.ts_ms[first - 1] < stretch.ts_ms[first]


# -- the whole -----------------------------------------------------------------------------------------------


def run(out: Path, **options: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"worlds": [WORLD], "rates": [RATE], "seeds": 2, "rows": ROWS, "history_rows": HISTORY}
    given |= {"policies": ["wait", "prompt"], "spec": SMALL, "workers": 0, "progress": False}
    return experiment_labels(out, **(given | options))


@pytest.mark.slow
def test_the_whole_experiment_and_its_resumption(tmp_path: Path) -> None:
    report = run(tmp_path)
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text) == report
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]
    assert len(runs) == len(STARTS) * 2 * 3
    assert {r["policy"] for r in runs} == {BOUND, "wait", "prompt"}
    late = f"auc_{Parts.of(ROWS).late[0]}"
    assert len({r[late] for r in runs}) == len(runs), "each run is another"
    assert {(row["policy"], row["start"]) for row in report["auc"]} == {
        (policy, start) for policy in (BOUND, "wait", "prompt", ORACLE) for start in STARTS
    }
    assert len(report["verdicts"]) == (4 if report["default"] in ("wait", "prompt") else 0)
    assert (tmp_path / "auc.png").read_bytes().startswith(b"\x89PNG")
    assert "prompt" in (tmp_path / "report.html").read_text()
    # Half of the runs are lost, one of them in the middle of its line.
    half = len(lines) // 2
    (tmp_path / "runs.jsonl").write_text("\n".join([*lines[:half], lines[half][:40]]) + "\n")
    run(tmp_path, resume=True)
    assert (tmp_path / "report.json").read_text() == text
    # Runs that are kept are not made again: their figures are taken as they stand.
    marked = [json.dumps({**r, late: 0.25}) for r in runs]
    (tmp_path / "runs.jsonl").write_text("\n".join(marked) + "\n")
    kept = run(tmp_path, resume=True)
    assert {row[late] for row in kept["auc"] if row["policy"] != ORACLE} == {0.25}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policies": ["hope"]}, "'hope'"),
        ({"policies": ["wait", "wait"]}, "wait, wait"),
        ({"worlds": []}, "0 worlds"),
        ({"rates": []}, "0 rates"),
        ({"seeds": 1}, "1 seeds give no interval"),
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


def made_run(policy: str, world: int, seed: int, auc: float, loss: float, calibration: float) -> dict[str, Any]:
    values = dict(zip(MEASURES, (auc, loss, calibration), strict=True))
    own = {f"{measure}_{name}": values[measure] for measure in MEASURES for name, _ in Parts.of(80_000)}
    head = {"world": world, "rate": "20/s", "start": "cold", "policy": policy, "seed": seed}
    return head | own


def made_runs(policies: Sequence[str]) -> list[dict[str, Any]]:
    """Two worlds, two seeds. AUC: bound .70 and .72, wait .60, prompt .69; log loss .30, .50, .303; calibration 1, 2,
    1.02; seeds differ by the same for all, and cancel in pairs."""
    base = {BOUND: (0.70, 0.30, 1.0), "wait": (0.60, 0.50, 2.0), "prompt": (0.69, 0.303, 1.02)}
    out = []
    for policy in policies:
        auc, loss, calibration = base[policy]
        for world in (1, 2):
            for seed in (0, 1):
                more = 0.02 if policy == BOUND and world == 2 else 0.0
                out.append(made_run(policy, world, seed, auc + more, loss + 0.01 * seed, calibration + 0.1 * seed))
    return out


def test_the_figures_are_those_of_the_definition() -> None:
    report = make_report(made_runs([BOUND, "wait", "prompt"]), ["wait", "prompt"], 80_000, "prompt")
    whole = {row["policy"]: row for row in report["pooled"]}
    prompt = whole["prompt"]
    assert prompt["gap_closed"] == pytest.approx(0.09 / 0.11, abs=1e-5)
    # Both worlds drawn as the first gives .09 / .10, as the second .09 / .12: the ends of the bootstrap's interval.
    assert prompt["gap_closed_low"] == pytest.approx(0.09 / 0.12, abs=1e-5)
    assert prompt["gap_closed_high"] == pytest.approx(0.09 / 0.10, abs=1e-5)
    assert prompt["log_loss_ratio_20k"] == pytest.approx(0.308 / 0.305, abs=1e-5)
    assert prompt["calibration_error_0-20k"] == pytest.approx(0.02, abs=1e-5)
    assert prompt["calibration_error_60k+_ci"] == pytest.approx(0, abs=1e-9)  # paired: seeds cancel
    assert whole["wait"]["gap_closed"] == 0
    assert [v["reached"] for v in report["verdicts"]] == [True] * 4
    over = {(row["policy"], row["rate"]): row for row in report["auc_over_bound"]}
    # -.01 and -.03: Student's t of two worlds, t(.975, 1) = 12.7062
    assert over["prompt", "20/s"]["auc_60k+"] == pytest.approx(-0.02, abs=1e-5)
    assert over["prompt", "20/s"]["auc_60k+_ci"] == pytest.approx(12.7062 * 0.01, abs=1e-5)


def test_verdicts_can_fail_and_none_is_given_without_the_default() -> None:
    runs = made_runs([BOUND, "wait", "prompt"])
    verdicts = make_report(runs, ["wait", "prompt"], 80_000, "wait")["verdicts"]
    assert [v["reached"] for v in verdicts] == [False] * 4
    assert make_report(runs, ["wait", "prompt"], 80_000, "es-dfm")["verdicts"] == []


def test_without_wait_there_is_no_gap() -> None:
    report = make_report(made_runs([BOUND, "prompt"]), ["prompt"], 80_000, "prompt")
    assert {row["gap_closed"] for row in report["pooled"]} == {None}
    assert report["verdicts"][0]["reached"] is None


def test_where_waiting_reaches_the_bound_there_is_no_gap_to_close() -> None:
    """A quotient of two negative numbers would look like a gap that was closed."""
    name = f"auc_{Parts.of(80_000).late[0]}"
    runs = [r | {name: 0.5} if r["policy"] == BOUND else r for r in made_runs([BOUND, "wait", "prompt"])]
    report = make_report(runs, ["wait", "prompt"], 80_000, "prompt")
    for row in report["pooled"]:
        assert row["gap_closed"] is row["gap_closed_low"] is row["gap_closed_high"] is None
    assert report["verdicts"][0]["reached"] is None


def test_figures_of_one_class_have_no_value_and_what_is_not_finite_is_wrong() -> None:
    p, y = np.full(64, 0.2, np.float32), np.zeros(64)
    late = Parts.of(64).late[0]
    found = figures(p, y)
    assert found[f"auc_{late}"] is None
    assert found[f"calibration_{late}"] is None
    assert found[f"log_loss_{late}"] == pytest.approx(-np.log(0.8), abs=1e-5)
    p[-1] = np.nan
    worse = figures(p, y)[f"log_loss_{late}"]
    assert np.isfinite(worse)
    assert worse > found[f"log_loss_{late}"]
    assert [part for _, part in Parts.of(80_000)] == [
        slice(0, 5_000),
        slice(0, 20_000),
        slice(20_000, 60_000),
        slice(60_000, 80_000),
    ]
    assert [name for name, _ in Parts.of(80_000)] == ["0-5k", "0-20k", "20k-60k", "60k+"]
