"""The report of a replay: the baseline beside the model, and a verdict that says what the figures say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learner.evaluation.progressive import baseline_column
from learner.ranker.model import OnlineModel
from millrace.basics.ranking_metrics import auc, within
from millrace.commands.replay.grouped import GroupedRows
from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.commands.replay.replayreport import Baseline, make_report, print_report, verdict_of
from millrace.commands.replay.replayrun import replay, run_log
from millrace.commands.replay.stretches import Stretches
from millrace.contracts.schema import Schema, parse_schema, shop_schema
from millrace.logs import LogTable, read_log
from millrace.reports import day_plot
from simulator.daylog import write_days
from tests.commands.replay.plain_replay import LogFeatures

SMALL = {"width": 4, "hidden": [8], "blocks": 1}


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_days(folder, days=2, seed=7, users=60)
    return folder


def without_pages() -> Schema:
    """The shop's schema without pages: its AUC within pages compares frozen scores of a user's day."""
    text = Path("millrace/contracts/shop.toml").read_text(encoding="utf-8")
    return parse_schema("\n".join(line for line in text.splitlines() if not line.startswith("request")))


def run(log: LogTable, schema: Schema) -> tuple[GroupedRows, Baseline, np.ndarray]:
    groups, baseline = GroupedRows(log, schema), Baseline(schema, log.table.num_rows)
    groups.watch(baseline.column)
    model = OnlineModel(schema, SMALL, 0)
    p = run_log(log, schema, model, 64, lambda done: None, groups, None, baseline)
    return groups, baseline, p


def test_the_baseline_is_the_items_rate_as_it_was_known_at_the_exposure(day: Path) -> None:
    schema = shop_schema()
    log = read_log(day, schema)
    groups, baseline, p = run(log, schema)
    _, num = Stretches(log, schema).of(np.arange(log.table.num_rows))
    column = baseline_column(schema)
    assert column is not None
    assert np.array_equal(baseline.scores, num[:, column])
    report = make_report(log, schema, p, groups, baseline)
    y = log.table[log.label].to_numpy()
    total = report["total"]
    assert total["baseline_auc"] == pytest.approx(auc(num[:, column], y), abs=1e-6)
    assert total["baseline_grouped_auc"] == pytest.approx(
        within(num[:, column], y, groups.group)["grouped_auc"], abs=1e-6
    )
    assert total["auc_over_baseline"] == pytest.approx(total["auc"] - total["baseline_auc"], abs=2e-6)
    assert np.array_equal(p, run_log(log, schema, OnlineModel(schema, SMALL, 0), 64, lambda done: None)), (
        "it only looks"
    )


def test_where_the_models_scores_are_frozen_the_baseline_is_too(day: Path) -> None:
    schema = without_pages()
    log = read_log(day, schema)
    groups, baseline, p = run(log, schema)
    frozen = groups.watched(baseline.scores)
    rows = LogRows(log, schema)
    features = LogFeatures(rows, Labels(log, schema, rows), schema, groups.cuts)
    for cut in groups.cuts.tolist():
        own = np.flatnonzero(groups.day == groups.day[cut])
        assert np.array_equal(frozen[own], features.frozen(cut, own)[1][:, baseline.column])
    assert not np.array_equal(frozen, baseline.scores)
    y = log.table[log.label].to_numpy()
    total = make_report(log, schema, p, groups, baseline)["total"]
    assert total["baseline_grouped_auc"] == pytest.approx(within(frozen, y, groups.group)["grouped_auc"], abs=1e-6)


def test_the_verdict_says_when_the_items_rate_orders_pages_better(day: Path) -> None:
    schema = shop_schema()
    log = read_log(day, schema)
    groups, baseline, _ = run(log, schema)
    y = log.table[log.label].to_numpy()
    noise = np.random.default_rng(0).random(len(y), np.float32)
    worse = make_report(log, schema, ((noise + 1 - y) / 2).astype(np.float32), groups, baseline)
    total = worse["total"]
    reported = f"Within pages it ranks worse than the item's rate alone: {total['page_auc']:.4f} against"
    assert reported in worse["verdict"]
    for key in ("grouped_auc", "page_auc", "ndcg"):
        apart = total[key] - total[f"baseline_{key}"]
        assert total[f"{key}_over_baseline"] == pytest.approx(apart, abs=2e-6)
        assert 0 < total[f"{key}_over_baseline_ci"] < -apart
    for fair, how in ((baseline.scores, "neither better nor worse"), (((noise + y) / 2).astype(np.float32), "better")):
        assert f"it ranks {how} than" in make_report(log, schema, fair, groups, baseline)["verdict"]


def test_a_log_without_pages_has_no_figures_of_a_page_and_says_so(
    day: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = without_pages()
    log = read_log(day, schema)
    groups, baseline, p = run(log, schema)
    report = make_report(log, schema, p, groups, baseline)
    assert "The log has no pages, so nothing is said of their order." in report["verdict"]
    for row in (report["total"], *report["days"]):
        assert not [key for key in row if "page_auc" in key or "ndcg" in key]
        assert "grouped_auc" in row
    print_report(report, {"rows_per_second": 1})
    said = capsys.readouterr().out
    assert "calibration" in said
    assert "within" not in said
    (axes,) = day_plot(report["days"]).figure.axes
    assert axes.get_legend_handles_labels()[1] == ["AUC", "baseline's AUC"]


def test_the_verdict_is_at_the_top_of_the_page_and_in_the_terminal(
    tmp_path: Path, day: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = replay(day, Path("millrace/contracts/shop.toml"), out, spec=SMALL)
    report.print()
    verdict = report["verdict"]
    assert json.loads((out / "report.json").read_text())["verdict"] == verdict
    page = (out / "report.html").read_text()
    assert page.index('class="verdict"') < page.index('class="lead"') < page.index("<table")
    assert page.count("Scoring each exposure before its label is learnt") == 1, "not among the plain values too"
    said = " ".join(capsys.readouterr().out.split())
    assert verdict in said
    for words in ("AUC within pages", "baseline&#x27;s AUC"):
        assert words in page
    for words in ("within", "baseline's", "calibration", "loss"):
        assert words in said, "headings wrap between words, and none is cut off at 80 columns"


def figures(value: float | None, half: float | None) -> dict[str, object]:
    return {"auc": 0.7, "calibration": 1.1, "baseline_auc": 0.65} | {
        "auc_over_baseline": value,
        "auc_over_baseline_ci": half,
    }


def test_a_verdict_says_which_way_and_owns_up_where_nothing_can_be_said() -> None:
    better = verdict_of(figures(0.05, 0.01), 2, 900)
    assert "AUC of 0.7000 over 2 days, 0.0500 ± 0.0100 more than ranking by" in better
    assert "95% over 900 users" in better
    assert "It predicts 1.100 clicks for each click seen." in better
    assert "0.0500 ± 0.0100 less than" in verdict_of(figures(-0.05, 0.01), 1, 900)
    for value in (0.009, -0.009, 0.0):
        assert "cannot be told apart from" in verdict_of(figures(value, 0.01), 1, 900)
    assert "fewer than 5 users have clicked, or have not: no interval" in verdict_of(figures(0.05, None), 1, 1)
    assert "no click rate of an item to compare" in verdict_of({"auc": 0.7, "calibration": None}, 1, 0)
    assert verdict_of({"auc": None}, 1, 0) == (
        "The log's labels are all alike, so nobody can tell how well the model ranks."
    )


def test_labels_that_nothing_explains_give_no_gain_over_the_baseline(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    n = 4000
    table = {
        "ts": 1_700_000_000_000 + np.arange(n) * 5_000,
        "u": rng.integers(200, size=n),
        "i": rng.integers(30, size=n),
        "y": (rng.random(n) < 0.3).astype(np.int8),
    }
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    schema = tmp_path / "schema.toml"
    schema.write_text(
        'name = "noise"\n[log]\ntime = "ts"\nuser = "u"\nitem = "i"\nlabel = "y"\n'
        '[[fields]]\nname = "u"\nof = "user"\n[[fields]]\nname = "i"\nof = "item"\n'
        '[windows]\ndays = [1]\nactions = ["exposure", "click"]\n[[windows.keys]]\ncolumns = ["i"]\n'
    )
    report = replay(tmp_path / "log.parquet", schema, tmp_path / "out", spec=SMALL, progress=False)
    assert "cannot be told apart from" in report["verdict"], report["verdict"]
