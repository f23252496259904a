"""What freshness is worth: models that follow one learner equal models apart; figures equal those of 'rounds'."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from experiments import experiment_models
from learner.role.model_factory import model_of
from millrace.basics.errors import LogError, SettingError
from millrace.basics.ranking_metrics import auc
from millrace.commands.freshness.freshnessrun import freshness
from millrace.commands.freshness.freshnesswords import FROZEN
from millrace.commands.offline import epochs
from millrace.commands.offline.dataset import Dataset, _day_starts, plain_schema, prepare
from millrace.commands.offline.epochs import learn, score
from millrace.commands.offline.synchronising import BATCH, DAILY, NEVER, SYNCS, period_ms, run_sync_plan, sync_plan
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, parse_schema, shop_schema
from simulator.daylog import write_days
from tests.architecture import ROOT

SPEC = {"model": "wide_deep", "hidden": [16], "averaging": 0.0}
TRAIN, TEST = (0,), (1, 2)
SCHEMA = ROOT / "millrace" / "contracts" / "shop.toml"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    write_days(folder / "log", days=3, seed=5, users=12)
    return folder / "log"


@pytest.fixture(scope="module")
def data(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("data")
    return prepare(log, plain_schema(shop_schema()), folder, day_old=True, slices=["hour", "weekday"])


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "BATCH_ROWS", 150)


def trained(data: Dataset) -> Any:
    model = model_of(data.schema, SPEC, 3)
    learn(model, data, data.rows(TRAIN), data.num)
    return model


def apart(data: Dataset, bounds: list[int], sync: str) -> NDArray[np.float32]:
    """One model that learns every batch, and a copy of it that scores, taken again whenever the model's time comes."""
    learner, server = trained(data), model_of(data.schema, SPEC, 3)
    period, p = period_ms(sync), []
    for k, (start, stop) in enumerate(pairwise(bounds)):
        now, before = int(data.ts_ms[start]), int(data.ts_ms[bounds[k - 1]]) if k else None
        new_day = before is None or data.day[start] != data.day[bounds[k - 1]]
        turn = period is not None and before is not None and now // period != before // period
        if sync == BATCH or before is None or (sync != NEVER and (new_day or turn)):
            server.resume(*learner.snapshot())
        p.append(score(server, data, slice(start, stop), data.num))
        learner.learn(data.batch(slice(start, stop), data.num))
    return np.concatenate(p)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [("hourly",), ()], ids=["hourly", "days alone"])
def test_models_that_follow_one_learner_score_as_models_apart(data: Dataset, cut: tuple[str, ...]) -> None:
    days = [data.rows((d,)) for d in TEST]
    syncs = (NEVER, DAILY, "6h", "hourly", BATCH)
    plan = sync_plan(days, data.ts_ms, syncs, cut, 0)
    found = run_sync_plan(trained(data), data, data.num, plan)
    for sync in syncs:
        alone = apart(data, plan.bounds.tolist(), sync)
        # Pieces differ in size between the two, so sums of products may differ in the last bit.
        np.testing.assert_allclose(found.scores[sync], alone, rtol=2e-5, err_msg=sync)
    assert len({found.scores[s].tobytes() for s in syncs}) == len(syncs), "two models are one"


def test_each_row_is_learnt_once_for_all_models(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    learnt = np.zeros(len(data.label), int)
    original = Dataset.batch

    def spy(own: Dataset, part: slice, num: NDArray[np.float32]) -> SampleBatch:
        learnt[part] += 1
        return original(own, part, num)

    model = trained(data)
    monkeypatch.setattr(Dataset, "batch", spy)
    plan = sync_plan([data.rows((d,)) for d in TEST], data.ts_ms, SYNCS, SYNCS, 0)
    run_sync_plan(model, data, data.num, plan)
    assert set(learnt[plan.rows].tolist()) == {1}


def test_batches_are_cut_at_the_times_of_synchronising(data: Dataset) -> None:
    days = [data.rows((d,)) for d in TEST]
    plan = sync_plan(days, data.ts_ms, SYNCS, SYNCS, 0)
    minute = data.ts_ms // 60_000
    for start, stop in pairwise(plan.bounds.tolist()):
        assert minute[start] == minute[stop - 1]
        assert stop - start <= 150
    assert plan.bounds[plan.starts].tolist() == [d.start for d in days]
    for rare, often in pairwise(SYNCS):
        assert set(plan.syncs[rare].tolist()) <= set(plan.syncs[often].tolist())
    # On so thin a log a minute has one batch: both models are one, and the staleness says so too.
    assert plan.syncs["minute"].tolist() == plan.syncs[BATCH].tolist()
    ages = [plan.staleness_ms(s, data.ts_ms).mean() for s in SYNCS]
    assert all(a >= b for a, b in pairwise(ages))
    assert (plan.staleness_ms(NEVER, data.ts_ms) == data.ts_ms[plan.rows] - data.ts_ms[plan.rows.start - 1]).all()


def test_no_page_is_split_between_two_versions(data: Dataset) -> None:
    """AUC within pages compares a page's rows as scored by one state, so no version may begin within a page."""
    plan = sync_plan([data.rows((d,)) for d in TEST], data.ts_ms, SYNCS, (DAILY,), 0)
    group = np.asarray(data.group[plan.rows])
    pages, first = np.unique(group, return_index=True)
    assert len(pages) > 3 * len(plan.bounds), "pages are no larger than batches"
    for sync in SYNCS:
        version = plan.per_row(plan.version(sync))
        assert (version == version[first][np.searchsorted(pages, group)]).all(), sync
    assert np.diff(plan.bounds).max() <= epochs.BATCH_ROWS
    assert np.median(np.diff(plan.bounds)) > 0.8 * epochs.BATCH_ROWS, "batches are no smaller than they must be"


def test_a_time_of_more_rows_than_a_batch_is_learnt_in_several_and_scored_by_one_version() -> None:
    ts_ms = np.repeat(np.array([0, 1, 2, 3, 60_000]), [100, 400, 60, 60, 20])
    plan = sync_plan([slice(0, len(ts_ms))], ts_ms, (NEVER, "minute", BATCH), (), 0)
    assert plan.bounds.tolist() == [0, 100, 250, 400, 500, 640]
    assert plan.syncs[BATCH].tolist() == [0, 1, 4], "batches 2 and 3 begin within a time"
    assert plan.syncs["minute"].tolist() == [0], "no batch begins after the minute"
    cut = sync_plan([slice(0, len(ts_ms))], ts_ms, ("minute", BATCH), ("minute",), 0)
    assert cut.bounds.tolist() == [0, 100, 250, 400, 500, 620, 640]
    assert cut.syncs["minute"].tolist() == [0, 5]
    assert cut.syncs[BATCH].tolist() == [0, 1, 4, 5]


def test_day_old_features_know_nothing_of_their_day_and_live_ones_do(data: Dataset) -> None:
    """Of one user and day, all rows have one value of the user's own counts; and no label of the day is in it."""
    assert data.day_old is not None
    names = data.schema.layout.num_names
    longest = f"user_id.exposure.{data.schema.windows.days[-1]}d"  # longer than the log: of it nothing ends
    column = names.index(longest)
    live, old = np.asarray(data.num[:, column]), np.asarray(data.day_old[:, column])
    moved = 0
    for d in (1, 2):
        rows = data.rows((d,))
        for user in np.unique(data.user[rows])[:20]:
            own = np.flatnonzero(data.user[rows] == user) + rows.start
            assert len(np.unique(old[own])) == 1
            moved += len(np.unique(live[own])) > 1
    assert moved > 5
    assert (old[data.rows((0,))] == 0).all(), "before the log's first day there is nothing"
    assert (old <= live).all()


@pytest.mark.slow
def test_it_writes_one_sentence_tables_and_plots_and_twice_the_same(log: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"train_days": 1, "sync": (NEVER, DAILY, "6h", BATCH), "cut": (DAILY,)}
    given |= {"model": "logistic", "workers": 0, "progress": False, "slices": ["weekday"], "retrain": True}
    report = freshness(log, SCHEMA, tmp_path / "a", **given)
    freshness(log, SCHEMA, tmp_path / "b", **given)
    assert (tmp_path / "a" / "report.json").read_bytes() == (tmp_path / "b" / "report.json").read_bytes()
    page = (tmp_path / "a" / "report.html").read_text()
    assert report["verdict"].startswith("On this log")
    assert "with every micro-batch instead of every day" in report["verdict"]
    assert report["verdict"].split(";")[0] in page
    assert report["comparisons"][0]["comparison"] == "batch over daily, day-old features"
    whole = report["features_and_weights"][-1]["auc_gain"]
    assert report["comparisons"][0]["auc_gain"] == whole
    assert (
        f"instead of a nightly job (learning every day, {FROZEN}) {'gains' if whole > 0 else 'loses'}"
        in (report["verdict"])
        or "no difference could be shown for a live loop" in report["verdict"]
    )
    assert all("whole_gain" in row for row in (*report["gains_by_day"], *report["gains_by_hour"], *report["slices"]))
    assert "learning and features together" in page
    for name in ("staleness", "auc_by_day", "gain_by_hour", "gain_by_day"):
        assert (tmp_path / "a" / f"{name}.png").stat().st_size > 5000
    names = [r["model"] for r in report["models"]]
    assert names[:4] == ["never", "daily", "6h", "batch"]
    assert names[4:7] == [f"{s}, day-old features" for s in ("never", "daily", "batch")]
    assert names[7:] == ["retrained daily", "item's smoothed rate"]
    ages = [r["staleness_minutes"] for r in report["models"][:4]]
    assert ages == sorted(ages, reverse=True)
    assert {(r["column"], r["value"]) for r in report["slices"]} >= {("user", "known"), ("item", "known")}
    assert sum(r["rows"] for r in report["slices"] if r["column"] == "user") == report["test_rows"]
    assert sum(r["rows"] for r in report["slices"] if r["column"] == "weekday") == report["test_rows"]
    assert sum(r["rows"] for r in report["gains_by_hour"]) == report["test_rows"]
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert run["models_together_over_one"] >= 1
    assert len(run["passes"]) == 3, "live features, day-old ones, and a nightly job"


def test_figures_equal_those_of_rounds_on_the_same_setup(log: Path, tmp_path: Path) -> None:
    """Two commands, one learner: the same days, batches, inputs and seeds give the same figures."""
    mine = freshness(
        log,
        SCHEMA,
        tmp_path / "f",
        train_days=1,
        sync=(NEVER, DAILY, BATCH),
        cut=("6h",),
        seeds=2,
        model="logistic",
        inputs="raw",
        features="live",
        retrain=True,
        workers=0,
        progress=False,
    )
    theirs = experiment_models.experiment(
        "rounds",
        log,
        shop_schema(),
        tmp_path / "r",
        experiment_models.OnLog(seeds=2, test_days=2, models=("logistic",), inputs=("raw",)),
        cut=("6h",),
        workers=0,
        progress=False,
    )
    names = {"never": "frozen", "daily": "daily rounds", "batch": "micro-batches", "retrained daily": "retrained daily"}
    ways = {r["way"]: r for r in theirs["ways"]}
    own = {r["model"]: r for r in mine["models"]}
    for name, way in names.items():
        for measure in ("auc", "log_loss"):
            assert round(own[name][measure], 5) == pytest.approx(ways[way][measure], abs=1.1e-5), (name, measure)
    days = {(r["way"], r["day"]): r["auc"] for r in theirs["by_day"]}
    for row in mine["by_day"]:
        assert row["auc"] == pytest.approx(days[names[row["model"]], row["day"]], abs=1.1e-5)
    assert len({round(own[n]["auc"], 5) for n in names}) == len(names), "two ways are one"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"train_days": 3}, "--train-days 3 of a log with 3 days"),
        ({"train_days": 0}, "--train-days 0"),
        ({"sync": ("daily", "7h")}, "--sync '7h'"),
        ({"sync": ("daily",)}, "--sync daily"),
        ({"slices": ["nonesuch"]}, "'nonesuch' names no column"),
        ({"model": "nonesuch"}, "nonesuch"),
        ({"seeds": 0}, "0 seeds"),
    ],
    ids=[
        "no test days",
        "no training days",
        "a part of no day",
        "one model",
        "no such slice",
        "no such model",
        "no seeds",
    ],
)
def test_what_cannot_be_done_is_named(log: Path, tmp_path: Path, given: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError, match=named):
        freshness(log, SCHEMA, tmp_path / "out", progress=False, workers=0, **given)


@pytest.mark.parametrize(("column", "value", "named"), [("click", 0, "no clicks"), ("user_id", "one", "of 1 user")])
def test_a_log_that_cannot_answer_is_named(log: Path, tmp_path: Path, column: str, value: object, named: str) -> None:
    schema = shop_schema()
    assert schema.log is not None
    column = schema.log.label if column == "click" else schema.log.user
    (tmp_path / "log").mkdir()
    for file in sorted(log.glob("*.parquet")):
        table = pq.read_table(file)
        at = table.column_names.index(column)
        same = np.full(table.num_rows, value)
        kept = table.slice(0, 200)
        kept = kept.set_column(at, column, [same[: kept.num_rows].tolist()])
        pq.write_table(kept, tmp_path / "log" / file.name)
    with pytest.raises(LogError, match=named):
        freshness(tmp_path / "log", SCHEMA, tmp_path / "out", progress=False, workers=0)


def test_without_windows_nothing_is_said_of_a_nightly_job(tmp_path: Path) -> None:
    news(tmp_path / "log.parquet", 1, False, days=2, pages=60)
    fields = NEWS[: NEWS.index("[windows]")].replace("exposure_age_days", "item").replace('kind = "numeric"', "")
    (tmp_path / "news.toml").write_text(fields.replace('[[fields]]\nname = "item"\nof = "item"\n', "", 1))
    given: dict[str, Any] = {"sync": (NEVER, DAILY), "model": "logistic", "workers": 0, "progress": False}
    report = freshness([tmp_path / "log.parquet"], tmp_path / "news.toml", tmp_path / "out", **given)
    assert [row["model"] for row in report["models"]] == [NEVER, DAILY]
    assert "frozen" not in report["verdict"]


def test_without_pages_there_is_no_figure_of_their_order(log: Path, tmp_path: Path) -> None:
    """All models that learn through the day would have the same one: a user's day is scored by the models at its
    start."""
    lines = [line for line in SCHEMA.read_text().splitlines() if not line.startswith("request")]
    (tmp_path / "s.toml").write_text("\n".join(lines))
    given: dict[str, Any] = {"sync": (DAILY, BATCH), "model": "logistic", "workers": 0, "progress": False}
    report = freshness(log, tmp_path / "s.toml", tmp_path / "out", train_days=1, features="live", **given)
    assert report["grouped_auc_compares"] == "nothing: the log has no pages"
    rows = [*report["models"], *report["comparisons"], *report["by_day"]]
    assert all("auc_gain" in row for row in rows)
    assert not [key for row in rows for key in row if key.startswith(("grouped", "page", "ndcg"))]
    assert "within pages" not in (tmp_path / "out" / "report.html").read_text()


def test_one_day_is_too_few(log: Path, tmp_path: Path) -> None:
    day = sorted(log.glob("*.parquet"))[0]
    with pytest.raises((SettingError, LogError)):
        freshness(day, SCHEMA, tmp_path / "out", progress=False, workers=0, train_days=1)


def test_a_slice_is_of_frequent_values_or_of_quarters(data: Dataset) -> None:
    schema: Schema = data.schema
    assert schema.log is not None
    hour = data.slices["hour"]
    local = data.ts_ms[0] + schema.utc_offset_ms
    assert hour.values[int(hour.code[0])] == f"{int(local // 3_600_000 % 24):02d} h"
    weekday = data.slices["weekday"]
    names = {weekday.values[c] for c in np.unique(weekday.code).tolist()}
    days = [np.datetime64(d).astype(object).strftime("%A") for d in data.days]
    assert names == set(days)


def test_day_old_features_are_read_at_midnight(tmp_path: Path) -> None:
    """A window that ends between midnight and the day's first exposure tells the two apart: the first day's clicks are
    within a day of the second midnight, and not of its first exposure at ten."""
    hour, midnight = 3_600_000, int(np.datetime64("2026-03-03", "ms").astype(np.int64)) - 8 * 3_600_000
    clicks = [midnight - 23 * hour + k for k in range(3)]
    later = [midnight + 10 * hour + k * 60_000 for k in range(3)]
    table = pa.table({"t": [*clicks, *later], "u": ["a"] * 6, "i": [str(k) for k in range(6)], "y": [1, 1, 1, 0, 0, 1]})
    pq.write_table(table, tmp_path / "log.parquet")
    schema = parse_schema(
        'name = "x"\nutc_offset = "+08:00"\n[log]\ntime = "t"\nuser = "u"\nitem = "i"\nlabel = "y"\n'
        '[[fields]]\nname = "u"\nof = "user"\n[[fields]]\nname = "i"\nof = "item"\n'
        '[windows]\ndays = [1]\n[[windows.keys]]\ncolumns = ["u"]\n'
    )
    data = prepare(tmp_path / "log.parquet", plain_schema(schema), tmp_path / "data", day_old=True)
    column = data.schema.layout.num_names.index("u.click.1d")
    assert data.day_old is not None
    assert data.days == ("2026-03-02", "2026-03-03")
    assert data.day_old[:, column].tolist() == [0, 0, 0, 3, 3, 3]
    assert data.num[3, column] == 0
    assert data.delay_ms is None, "the log has no times of clicks"


def test_days_that_do_not_begin_at_midnight_are_read_at_their_first_row() -> None:
    hour = 3_600_000
    ts_ms = np.array([22, 23, 25, 26, 30], np.int64) * hour
    starts = list(_day_starts(np.array([0, 0, 0, 1, 1], np.int32), ("1970-01-01", "1970-01-02"), ts_ms, 0))
    assert [(cut, at, own.tolist()) for cut, at, own in starts] == [(0, 0, [0, 1, 2]), (3, 26 * hour, [3, 4])]
    starts = list(_day_starts(np.array([0, 0, 1, 1, 1], np.int32), ("1970-01-01", "1970-01-02"), ts_ms, 0))
    assert [(cut, at) for cut, at, _ in starts] == [(0, 0), (2, 24 * hour)]


def test_clicks_that_come_late_make_the_gain_an_upper_bound(log: Path, data: Dataset, tmp_path: Path) -> None:
    given: dict[str, Any] = {"train_days": 1, "cut": (DAILY,), "model": "logistic", "features": "live"}
    given |= {"workers": 0, "progress": False}
    minute = freshness([log], SCHEMA, tmp_path / "a", sync=(DAILY, "minute"), **given)
    assert data.delay_ms is not None
    rows = data.rows(TEST)
    came = data.delay_ms[rows][data.label[rows] > 0]
    assert minute["clicks_later_than_it"] == pytest.approx((came > 60_000).mean(), abs=1e-6)
    assert 0 < minute["clicks_later_than_it"] < 1
    said = f"{100 * (came > 60_000).mean():.1f}% of the clicks came later than 1 min"
    assert minute["verdict"].endswith(f"upper bound: labels are taken as known right after the exposure, but {said}.")
    hours = freshness(log, SCHEMA, tmp_path / "b", sync=(DAILY, "6h"), **given)
    assert hours["clicks_later_than_it"] == pytest.approx((came > 6 * 3_600_000).mean(), abs=1e-6)
    assert ("upper bound" in hours["verdict"]) == ((came > 6 * 3_600_000).any())
    assert "Freshness on log" in (tmp_path / "a" / "report.html").read_text()


DAY_MS, MINUTE_MS = 86_400_000, 60_000
NEWS = """
name = "news"
fields = [{name = "user", of = "user"}, {name = "item", of = "item"}, {name = "category", of = "item"},
          {name = "exposure_age_days", of = "item", kind = "numeric"}]
[log]
time = "t"
user = "user"
item = "item"
label = "y"
request = "page"
identity = ["page", "item"]
[windows]
lengths = ["15min", "1h", "6h", "1d"]
actions = ["exposure", "click"]
keys = [{columns = ["item"]}, {columns = ["user", "category"]}]
"""


def news(path: Path, seed: int, ages: bool, days: int = 6, pages: int = 3000) -> tuple[NDArray[np.float32], ...]:
    """Pages of eight of the newest 40 articles, of which twelve come in an hour; or of goods that were there from the
    first and never change. 60% of readers are guests. (rows,) each: clicks, their true chances, and the best chances by
    what is known at midnight, besides the age: of articles that came later not how good they are."""
    rng, start = np.random.default_rng(seed), int(np.datetime64("2026-03-02", "ms").astype(np.int64))
    ts_ms = np.repeat(np.sort(start + rng.integers(0, DAY_MS * days, pages * days)), 8)
    born_ms = start - 6 * 60 * MINUTE_MS + np.sort(rng.integers(0, DAY_MS * days + 6 * 60 * MINUTE_MS, 288 * days))
    newest = np.searchsorted(born_ms, ts_ms[::8]) if ages else np.full(pages * days, 40)
    shown = [rng.choice(40, 8, replace=False) for _ in newest]
    item = (newest[:, None] - 1 - np.array(shown)).reshape(-1)
    quality, category = 0.7 * rng.normal(size=len(born_ms)), rng.integers(0, 8, len(born_ms))
    guest, user = np.repeat(rng.random(pages * days) < 0.6, 8), np.repeat(rng.integers(0, 400, pages * days), 8)
    liked = 0.6 * rng.normal(size=(400, 1)) + 0.5 * rng.normal(size=(400, 8))
    odds = np.where(guest, 0.0, liked[user, category[item]]) - 2.5
    if ages:
        odds += 3.0 * 0.5 ** ((ts_ms - born_ms[item]) / (20 * MINUTE_MS))
    known = (born_ms[item] < ts_ms // DAY_MS * DAY_MS) | (not ages)
    truth, nightly = (1 / (1 + np.exp(-odds - quality[item] * k)) for k in (True, known))
    y = (rng.random(len(truth)) < truth).astype(np.int8)
    page = np.repeat(np.arange(pages * days), 8)
    columns = {"t": ts_ms, "page": page, "user": np.where(guest, 1000 + page, user), "item": item, "y": y}
    pq.write_table(pa.table(columns | {"category": category[item]}), path)
    test = ts_ms >= start + days // 2 * DAY_MS
    return y[test].astype(np.float32), truth[test].astype(np.float32), nightly[test].astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("ages", [True, False], ids=["news", "goods that never change"])
def test_no_more_is_gained_over_a_nightly_job_than_the_truth_allows(
    tmp_path: Path, ages: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nightly job knows how old an article is, and learns from what it will know. It can lack today's counts alone,
    and is no worse for learning each night."""
    monkeypatch.setattr(epochs, "BATCH_ROWS", 512)
    y, truth, nightly = news(tmp_path / "log.parquet", 2, ages)
    lost = auc(truth, y) - auc(nightly, y)
    (tmp_path / "news.toml").write_text(NEWS)
    given: dict[str, Any] = {"sync": (NEVER, DAILY, "hourly"), "workers": 0, "progress": False}
    report = freshness([tmp_path / "log.parquet"], tmp_path / "news.toml", tmp_path / "out", **given)
    whole = report["comparisons"][0]
    assert whole["comparison"] == "hourly over daily, day-old features"
    assert whole["auc_gain"] < lost + whole["auc_gain_ci"]
    assert (whole["shown"] == "yes") == ages
    models = {row["model"]: row["auc"] for row in report["models"]}
    assert models["daily, day-old features"] > models["never, day-old features"] - whole["auc_gain_ci"]
    assert f"instead of a nightly job (learning every day, {FROZEN})" in report["verdict"]
