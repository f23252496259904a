"""Drift measured: a change planted where it is said to be, and a detector that is shown what the live one sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from experiments.alarms import EXPOSURE, LABEL, PAGES, SHUFFLED, WAYS, Judged, alarms
from experiments.experiment_drift import experiment_drift, judged
from experiments.planted import BLANK, CHANGES, FEWER, FLIPPED, MORE, NOTHING, PERMUTED, Fork, Recorder
from numpy.typing import NDArray

from commands.replay.known import Model
from commands.replay.logfeatures import Labels, LogRows
from commands.replay.run import run_log
from experiments import planted
from learner.ranker.model import OnlineModel
from millrace.basics.errors import SettingError
from millrace.contracts.schema import Schema, shop_schema
from millrace.logs import LogTable, read_log
from simulator.daylog import write_days

SMALL = {"width": 4, "hidden": [8], "blocks": 1}
BATCH = 64


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_days(folder, days=3, seed=7, users=60, quiet=True)
    return folder


@pytest.fixture(scope="module")
def schema() -> Schema:
    return shop_schema()


@pytest.fixture(scope="module")
def table(log: Path, schema: Schema) -> LogTable:
    return read_log(log, schema)


def run(
    table: LogTable, schema: Schema, model: Model, tick: Callable[[int], None] = lambda scored: None
) -> NDArray[np.float32]:
    return run_log(table, schema, model, BATCH, tick)


@pytest.mark.slow
def test_a_fork_without_a_change_goes_on_as_the_run_it_comes_from(table: LogTable, schema: Schema) -> None:
    middle = table.table.num_rows // 2
    recorder = Recorder(OnlineModel(schema, SMALL, 3), middle)
    p = run(table, schema, recorder, recorder.tick)
    assert np.array_equal(p, run(table, schema, OnlineModel(schema, SMALL, 3)))
    start = recorder.start
    assert start is not None
    assert start.row >= middle
    first_ms = table.table["ts_ms"][start.row].as_py()
    forks = []
    for blank in (np.empty(0, np.intp), np.empty(0, np.intp), planted.blank_columns(schema)):
        fork = Fork(OnlineModel(schema, SMALL, 0), start, first_ms, blank)
        forks.append(run(table, schema, fork, fork.tick))
    assert not forks[0][: start.row].any()
    assert np.array_equal(forks[0][start.row :], p[start.row :])
    assert np.array_equal(forks[1], forks[0])  # the snapshot served twice
    assert not np.array_equal(forks[2][start.row :], p[start.row :])


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_leaves_the_rows_before_it_as_they_were(table: LogTable, schema: Schema, kind: str) -> None:
    n = table.table.num_rows
    first, p = n // 2, np.full(n, 0.2, np.float32)
    changed = planted.change(table, schema, kind, first, p, np.random.default_rng(1))
    assert changed.table.schema.equals(table.table.schema)
    assert changed.table.slice(0, first).equals(table.table.slice(0, first))
    before, after = table.table["click"].to_numpy()[first:], changed.table["click"].to_numpy()[first:]
    rate = after.mean() / before.mean()
    items = [t.table["item_id"].to_numpy()[first:] for t in (table, changed)]
    if kind == FLIPPED:
        assert np.array_equal(after, 1 - before)
    elif kind == MORE:  # each with p / 2 (1 - p) = 1/8
        added = after[before == 0].sum()
        assert after[before == 1].all()
        assert abs(added - (before == 0).sum() / 8) < 4 * np.sqrt((before == 0).sum() * 7 / 64)
    elif kind == FEWER:
        assert not after[before == 0].any()
        assert abs(after.sum() - before.sum() / 2) < 4 * np.sqrt(before.sum() / 4)
    else:
        assert rate == 1
    if kind == PERMUTED:
        pairs = set(zip(*(i.tolist() for i in items), strict=True))
        assert len(pairs) == len(set(items[0].tolist())) == len(set(items[1].tolist()))
        assert not np.array_equal(items[0], items[1])
    else:
        assert np.array_equal(items[0], items[1])
    assert changed.table.equals(table.table) == (kind in (NOTHING, BLANK))


@pytest.mark.parametrize("kind", [FLIPPED, MORE, FEWER])
def test_actions_follow_their_clicks(table: LogTable, schema: Schema, kind: str) -> None:
    n = table.table.num_rows
    changed = planted.change(table, schema, kind, n // 2, np.full(n, 0.2, np.float32), np.random.default_rng(1)).table
    clicked = changed["click"].to_numpy() == 1
    for name in ("click_ms", "collect_ms", "cart_ms", "purchase_ms"):
        there = changed[name].is_valid().to_numpy()
        assert np.array_equal(there, clicked) if name == "click_ms" else not (there & ~clicked).any()
    delay = changed["click_ms"].fill_null(0).to_numpy()[clicked] - changed["ts_ms"].to_numpy()[clicked]
    known = table.table["click_ms"].drop_null().to_numpy()
    asked = table.table["ts_ms"].to_numpy()[table.table["click"].to_numpy() == 1]
    assert set(delay.tolist()) <= set((known - asked).tolist())


def test_the_blank_columns_are_the_windows_of_the_items_keys(schema: Schema) -> None:
    names = [schema.layout.num_names[i] for i in planted.blank_columns(schema)]
    assert names == [n for n in schema.layout.num_names if n.startswith("item_id.")]
    assert names


def stream(n: int, jump: int | None, seed: int = 0) -> Judged:
    """Pages of 20 rows a minute apart with clicks of probability .1, or .5 from page ``jump`` on, and scores of .1."""
    rng = np.random.default_rng(seed)
    page = np.arange(n) // 20
    rate = np.where(page >= (n if jump is None else jump), 0.5, 0.1)
    label = (rng.random(n) < rate).astype(np.int8)
    ts_ms = 1_700_000_000_000 + page * 60_000
    settled = ts_ms + 300_000
    return Judged(np.full(n, 0.1, np.float32), label, page, np.where(label, ts_ms + 5000, settled), settled)


def test_what_does_not_change_sets_nothing_off_and_waves_do_unless_they_are_shuffled() -> None:
    still = stream(20_000, None)
    assert not any(len(alarms(way, still, np.random.default_rng(0)).row) for way in WAYS)
    p = np.where(still.page % 500 < 250, 0.1, 0.8).astype(np.float32)  # wrong for four hours, and again
    waves = Judged(p, still.label, still.page, still.known_ms, still.settled_ms)
    found = {way: len(alarms(way, waves, np.random.default_rng(0)).row) for way in WAYS}
    assert found.pop(SHUFFLED) == 0
    assert all(found.values())


@pytest.mark.parametrize("way", [LABEL, EXPOSURE, PAGES])
def test_a_jump_is_found_after_it_came_and_no_sooner(way: str) -> None:
    rows, jump = stream(20_000, 600), 600
    found = alarms(way, rows, np.random.default_rng(0))
    assert len(found.row)
    changed_ms = rows.settled_ms[jump * 20] - 300_000
    assert found.at_ms[0] > changed_ms
    if way != LABEL:  # there, labels of rows before the change come after it, among those of rows that came later
        assert rows.page[found.row[0]] >= jump
    assert np.all(np.diff(found.at_ms) >= 0)


def test_labels_are_settled_as_the_live_loop_settles_them(table: LogTable, schema: Schema) -> None:
    rows = LogRows(table, schema)
    labels = Labels(table, schema, rows)
    found = judged(table, schema, np.zeros(rows.n, np.float32))
    assert schema.log is not None
    assert np.array_equal(found.settled_ms, rows.ts_ms + schema.log.attribution_minutes * 60_000)
    clicks = table.table["click_ms"].fill_null(np.iinfo(np.int64).max).to_numpy()
    assert np.array_equal(found.label == 1, clicks <= found.settled_ms)
    assert found.label.sum() + labels.late.sum() == table.table["click"].to_numpy().sum()
    assert len(np.unique(found.page)) == len(set(table.table["request_id"].to_pylist()))


@pytest.mark.slow
def test_the_whole_experiment_writes_its_report_and_writes_it_again(log: Path, schema: Schema, tmp_path: Path) -> None:
    reports = []
    for name in ("a", "b"):
        out = tmp_path / name
        report = experiment_drift([log, log], schema, out, horizon_rows=500, spec=SMALL, workers=0, progress=False)
        assert json.loads((out / "report.json").read_text()) == report
        reports.append((out / "report.json").read_bytes())
    assert reports[0] == reports[1]
    assert report["worlds"] == 2
    assert [row["way"] for row in report["clean"]] == list(WAYS)
    assert {row["days"] for row in report["clean"]} == {4}
    changes = {(row["change"], row["way"]): row for row in report["changes"]}
    assert set(changes) == {(kind, way) for kind in CHANGES for way in WAYS if way != SHUFFLED}
    control = changes[NOTHING, PAGES]["log_loss"]
    assert changes[FLIPPED, PAGES]["log_loss"] > control
    assert changes[MORE, PAGES]["log_loss"] > control > changes[FEWER, PAGES]["log_loss"]
    for row in report["changes"]:
        assert (row["median_minutes"] is None) == (row["detected"] == 0)
    for plot in ("false_alarms.png", "delay.png"):
        assert (tmp_path / "a" / plot).read_bytes().startswith(b"\x89PNG")
    assert "labels flipped" in (tmp_path / "a/report.html").read_text()
    lines = [json.loads(line) for line in (tmp_path / "a/runs.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * (len(WAYS) + len(changes))


@pytest.mark.parametrize(
    ("logs", "horizon", "words"), [(0, 10, "0 logs"), (1, 0, "horizon of 0"), (1, 10**9, "ends less than")]
)
def test_what_cannot_be_measured_is_refused(
    log: Path, schema: Schema, tmp_path: Path, logs: int, horizon: int, words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        experiment_drift([log] * logs, schema, tmp_path, horizon_rows=horizon, spec=SMALL, workers=0, progress=False)


def test_a_log_of_two_days_is_refused(schema: Schema, tmp_path: Path) -> None:
    write_days(tmp_path / "log", days=2, seed=7, users=20, quiet=True)
    with pytest.raises(SettingError, match="2 days"):
        experiment_drift([tmp_path / "log"], schema, tmp_path / "out", spec=SMALL, workers=0, progress=False)
