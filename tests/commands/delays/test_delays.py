"""``millrace log delays``: trials are replays with other labels, judged by the final ones; a log's lack is named."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learner.ranker.model import OnlineModel
from millrace.basics.clustered import Gap
from millrace.basics.errors import LogError, SettingError
from millrace.commands.delays.completeness import Curve, DelayedClicks
from millrace.commands.delays.delaysreport import Trial, rows_of, trials_plot, verdict_of
from millrace.commands.delays.delaysrun import delays
from millrace.commands.delays.trials import (
    IMMEDIATE,
    Setting,
    digest,
    final_labels,
    open_features,
    samples_of,
    with_window,
)
from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.commands.replay.logsamples import LabelSettings, learn_through
from millrace.commands.replay.replayrun import run_log
from millrace.commands.replay.stretches import Stretches, write_features
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.logs import LogTable, read_log
from simulator.daylog import write_days

SMALL = {"width": 4, "hidden": [8], "blocks": 1}
SHOP = Path("millrace/contracts/shop.toml")
MINUTE, DAY = 60_000, 86_400_000


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_days(folder, days=1, seed=7, users=80)
    return folder


@pytest.fixture(scope="module")
def log(day: Path) -> LogTable:
    return read_log(day, shop_schema())


# -- trials ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["wait", "equal-wait", "prompt", IMMEDIATE])
def test_a_trial_is_a_replay_with_that_window_and_policy(log: LogTable, policy: str, tmp_path: Path) -> None:
    schema = with_window(shop_schema(), MINUTE)
    rows = LogRows(log, schema)
    labels = Labels(log, schema, rows)
    samples, lost = samples_of(Setting(policy, MINUTE), labels, rows.ts_ms, DAY, 7_200_000, 10_000)
    assert lost == 0
    write_features(Stretches(log, schema), tmp_path)
    cat, num = open_features(tmp_path)
    p = learn_through(OnlineModel(schema, SMALL, 3), rows, cat, num, samples, 64)
    how = LabelSettings(None if policy == IMMEDIATE else policy, 10_000)
    plain = run_log(log, schema, OnlineModel(schema, SMALL, 3), 64, lambda done: None, None, how)
    assert np.array_equal(p, plain)


class Made(Labels):
    """Exposures a second apart, clicked after these seconds (None: never)."""

    def __init__(self, delays: Sequence[float | None]) -> None:
        n = len(delays)
        self.ts_ms = np.arange(n, dtype=np.int64) * 1000
        self.clicked = np.array([d is not None for d in delays])
        self.acted_ms = self.ts_ms + np.array([round(1000 * (d or 0)) for d in delays], np.int64)
        self.wait_ms = 5 * MINUTE
        self.outcomes, self.outcome_ms = np.zeros((n, 0), np.float32), np.zeros((n, 0), np.int64)
        self.on_click = np.zeros(0, np.bool_)
        self.of_events = []


def test_a_click_later_than_window_and_lateness_never_comes_and_one_before_it_corrects() -> None:
    labels = Made([1, 30, 100, 500, None])
    setting = Setting("wait", 10_000)
    samples, lost = samples_of(setting, labels, labels.ts_ms, DAY, lateness_ms=100_000, observation_ms=0)
    kinds = {row: samples.kind[samples.row == row].tolist() for row in range(5)}
    assert kinds == {
        0: [POSITIVE],
        1: [NEGATIVE, CORRECTION],
        2: [NEGATIVE, CORRECTION],
        3: [NEGATIVE],  # 500 s is beyond 10 s + 100 s
        4: [NEGATIVE],
    }
    assert lost == 1
    late = samples.known_ms[(samples.row == 1) & (samples.kind == CORRECTION)]
    assert late.tolist() == [1000 + 30_000]


def test_the_oracle_has_every_final_label_at_its_exposure_and_later_clicks_count_as_none() -> None:
    labels = Made([1, 30, 100, 500, None])
    samples, lost = samples_of(Setting(IMMEDIATE, 100_000), labels, labels.ts_ms, 100_000, 0, 0)
    assert (lost, samples.kind.tolist()) == (0, [POSITIVE, POSITIVE, POSITIVE, NEGATIVE, NEGATIVE])
    assert samples.known_ms.tolist() == labels.ts_ms.tolist()
    assert final_labels(labels, labels.ts_ms, 100_000).tolist() == [True, True, True, False, False]
    assert labels.clicked.tolist() == [True, True, True, True, False], "the log's own are left alone"


def test_settings_whose_labels_come_alike_are_identified_by_their_digest() -> None:
    labels = Made([1, 30, 100, None])
    made = {
        (policy, window): digest(samples_of(Setting(policy, window), labels, labels.ts_ms, DAY, DAY, 10_000)[0])
        for policy in ("wait", "fake-negative-weighted")
        for window in (10_000, MINUTE)
    }
    assert made["fake-negative-weighted", 10_000] == made["fake-negative-weighted", MINUTE]
    assert len(set(made.values())) == 3


# -- the whole ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(day: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], Path]:
    out = tmp_path_factory.mktemp("out")
    found = delays(
        day,
        SHOP,
        out,
        windows=(10_000, MINUTE),
        policies=("wait", "prompt"),
        segments=("kind",),
        spec=SMALL,
        workers=0,
        progress=False,
    )
    return found.report, out


def test_the_report_has_all_settings_and_its_figures_are_the_logs(
    report: tuple[dict[str, object], Path], log: LogTable
) -> None:
    found, out = report
    assert json.loads((out / "report.json").read_text())["verdict"] == found["verdict"]
    rows = found["settings"]
    assert isinstance(rows, list)
    assert [(r["policy"], r["window"]) for r in rows] == [
        ("prompt", "5 min"),  # the present one, first
        *[("wait", w) for w in ("10 s", "1 min", "5 min")],
        *[("prompt", w) for w in ("10 s", "1 min")],
        (IMMEDIATE, "–"),
    ]
    assert [r["auc_over_present"] is None for r in rows] == [True] + [False] * 6
    assert rows[0]["auc_over_present"] is None
    for row in rows[1:]:
        assert row["auc_over_present"] == pytest.approx(row["auc"] - rows[0]["auc"], abs=2e-5)
        assert row["auc_over_present_ci"] > 0
    assert rows[-1]["seconds_to_label"] == 0 < rows[4]["seconds_to_label"] < rows[3]["seconds_to_label"]
    clicked = log.table[log.label].to_numpy() == 1
    delay = (log.table["click_ms"].fill_null(0).to_numpy() - log.table["ts_ms"].to_numpy())[clicked]
    shares = {r["waiting_time"]: r["completeness"] for r in found["completeness"]}  # type: ignore[attr-defined]
    within = (delay <= 5 * MINUTE).sum()
    assert found["positives"] == clicked.sum()
    # The last minutes of the log were watched for less, which moves the plain share by less than this.
    assert shares["1 min"] == pytest.approx((delay <= MINUTE).sum() / within, abs=0.01)
    assert shares["5 min"] == 1
    assert sum(r["positives"] for r in found["by_slot"]) == within  # type: ignore[attr-defined]
    assert {r["kind"] for r in found["by_kind"]} == {"business", "consumer"}  # type: ignore[attr-defined]
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert page.index('class="verdict"') < page.index("<table")


@pytest.mark.slow
def test_two_runs_are_the_same(report: tuple[dict[str, object], Path], day: Path, tmp_path: Path) -> None:
    delays(
        day, SHOP, tmp_path, windows=(10_000, MINUTE), policies=("wait", "prompt"), segments=("kind",),
        spec=SMALL, workers=0, progress=False,
    )  # fmt: skip
    assert (tmp_path / "report.json").read_bytes() == (report[1] / "report.json").read_bytes()


def test_a_log_without_times_of_the_clicks_is_refused_with_what_it_needs(day: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.toml"
    lines = SHOP.read_text(encoding="utf-8").splitlines()
    schema.write_text("\n".join(line for line in lines if not line.startswith("action_times")))
    with pytest.raises(LogError, match=r"no time for the label's action 'click'.*action_times = \{ click = "):
        delays(day, schema, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists(), "before anything long begins"


def test_mistakes_are_named(day: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="label policy 'hope'"):
        delays(day, SHOP, tmp_path, policies=("hope",), progress=False)
    with pytest.raises(SettingError, match="'colour' names no column"):
        delays(day, SHOP, tmp_path, segments=("colour",), spec=SMALL, progress=False)
    with pytest.raises(SettingError, match="no attribution window"):
        delays(day, SHOP, tmp_path, windows=(), progress=False)


# -- the verdict -------------------------------------------------------------------------------------------------

PRESENT = Setting("prompt", 5 * MINUTE)
FLAT = Curve(DelayedClicks(np.array([1000] * 50 + [20_000] * 50 + [-1] * 100), np.full(200, DAY)), DAY)


def trial(setting: Setting, value: float, half: float, loss: float = 0.0) -> Trial:
    figures = {"auc": 0.7 + value, "log_loss": 0.3 + loss, "calibration": 1.0}
    return Trial(setting, figures, {"auc": Gap(value, half), "log_loss": Gap(loss, half)}, 0, 1.0)


def said(*others: Trial) -> str:
    return verdict_of(FLAT, DAY, [10_000, DAY], [trial(PRESENT, 0, 0), *others], PRESENT)


def test_the_verdict_tells_a_gain_only_where_the_best_of_many_leaves_out_nothing() -> None:
    other = Setting("wait", MINUTE)
    assert "By AUC, wait, 1 min gains 0.0030 ± 0.0010 over the present setting" in said(trial(other, 0.003, 0.001))
    many = [trial(Setting("wait", k * 1000), 0.0011 if k == 3 else -0.01 - k / 1e4, 0.001) for k in range(1, 11)]
    assert "no setting tried can be told apart" in said(*many), "clear alone, but not as the best of ten"
    assert "for the best of 10" in said(*many)
    same = [trial(Setting("es-dfm", k * 1000), -0.02, 0.001) for k in range(1, 5)]
    assert "for the best of 11" in said(*many, *same), "four whose labels come alike are one"
    assert "no setting tried is better" in said(trial(other, -0.003, 0.001))
    saves = said(trial(other, -0.001, 0.0001, loss=-0.002))
    assert "By log loss, wait, 1 min saves 0.0020 ± 0.0001" in saves
    few = said(trial(other, 0.003, math.nan), trial(Setting(IMMEDIATE, DAY), 0.01, math.nan))
    assert few.count("fewer than 5 users have clicked, or have not") == 3, "each figure, and the bound"
    assert "nan" not in few


def test_a_point_of_the_plot_names_a_span_only_of_settings_that_are_neighbours() -> None:
    def shown(*values: float) -> list[str]:
        trials = [trial(PRESENT, 0, 0)]
        trials += [trial(Setting("wait", ms), v, 0.001) for ms, v in zip((10_000, MINUTE, DAY), values, strict=True)]
        (axes,) = trials_plot(trials, PRESENT).figure.axes
        return [label.get_text() for label in axes.get_yticklabels()]

    assert shown(-0.02, -0.02, -0.02) == ["wait, 10 s to 1 day"]
    assert shown(-0.02, -0.01, -0.02) == ["wait, 10 s and 1 day", "wait, 1 min"]
    assert shown(-0.02, -0.02, -0.01) == ["wait, 10 s to 1 min", "wait, 1 day"]
    around = [trial(Setting("prompt", ms), -0.02, 0.001) for ms in (10_000, DAY)]
    (axes,) = trials_plot([trial(PRESENT, 0, 0), *around], PRESENT).figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["prompt, 10 s and 1 day"], (
        "the present is between"
    )


def test_the_verdict_on_labels_without_delay_goes_either_way() -> None:
    bound = Setting(IMMEDIATE, DAY)
    assert "would gain 0.0030 ± 0.0010 AUC" in said(trial(bound, 0.003, 0.001))
    assert "would lose 0.0030 ± 0.0010 AUC" in said(trial(bound, -0.003, 0.001))
    assert "would make no difference that can be told" in said(trial(bound, 0.0005, 0.001))


def test_the_verdict_begins_with_how_late_labels_come() -> None:
    assert said().startswith("Of the clicks within 1 day, half come within 1 s, 50.0% within 10 s.")
    short = Curve(DelayedClicks(np.array([1000] * 150), np.full(150, 30_000)), DAY)
    text = verdict_of(short, DAY, [10_000, DAY], [], PRESENT)
    assert "exposures were watched for 1 day" in text
    none = Curve(DelayedClicks(np.full(200, -1), np.full(200, DAY)), DAY)
    assert "no click with a time" in verdict_of(none, DAY, [DAY], [], PRESENT)


def test_the_table_has_no_gap_for_the_present_setting() -> None:
    rows = rows_of([trial(PRESENT, 0, 0), trial(Setting(IMMEDIATE, DAY), 0.01, 0.001)], PRESENT)
    assert rows[0]["auc_over_present"] is None
    assert (rows[1]["auc_over_present"], rows[1]["auc_over_present_ci"], rows[1]["window"]) == (0.01, 0.001, "–")
    assert Settings().label_policy == PRESENT.policy


def test_a_frame_and_processes_give_the_report_of_the_file(day: Path, report: tuple[dict[str, object], Path]) -> None:
    more: dict[str, Any] = {"policies": "wait,prompt", "segments": "kind", "spec": SMALL, "progress": False}
    found = delays(pq.read_table(day), SHOP, windows="10s,1min", workers=2, **more)
    assert found.report == dict(report[0])
    assert pa.table(found.settings).num_rows == len(found["settings"])
