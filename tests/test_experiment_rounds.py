"""Ways of keeping up: those of the shared start equal separate models that do as each way's name says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.model import OnlineModel
from learner.progressive import auc
from millrace.run import experiment, passes, rounds
from millrace.run.dataset import Dataset, plain_schema, prepare
from millrace.run.passes import Scores, learn, progress, score
from millrace.samples import SampleBatch
from millrace.schema import shop_schema
from simulator.daylog import write_days

SEED = 3
TRAIN, TEST = (0, 1), (2, 3, 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("log")
    write_days(folder / "log", days=5, seed=5, users=30, quiet=True)
    return prepare(folder / "log", plain_schema(shop_schema()), folder / "data")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def batches_that_days_do_not_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "BATCH_ROWS", 300)


def apart(way: str, data: Dataset, spec: dict[str, object]) -> list[Scores]:
    """What a way means, by models of its own that share nothing."""

    def trained(days: tuple[int, ...], epochs: int = 1) -> OnlineModel:
        model = OnlineModel(data.schema, spec, SEED)
        for _ in range(epochs):
            learn(model, data, data.rows(days), data.num)
        return model

    days = [data.rows((d,)) for d in TEST]
    if way == "retrained daily":
        return [score(trained((*TRAIN, *range(TEST[0], d))), data, data.rows((d,)), data.num) for d in TEST]
    model = trained(TRAIN, 3 if way == "more epochs" else 1)
    scored: list[Scores] = []
    for day in days:
        if way == "micro-batches":
            scored.append(progress(model, data, day, data.num))
        else:
            scored.append(score(model, data, day, data.num))
        if way == "daily rounds":
            learn(model, data, day, data.num)
    return scored


@pytest.mark.parametrize("spec", [{}, {"model": "wide_deep", "averaging": 0.0}], ids=["default", "wide_deep"])
def test_a_shared_start_gives_what_separate_runs_give(data: Dataset, spec: dict[str, object]) -> None:
    days = [data.rows((d,)) for d in TEST]
    assert all((s.stop - s.start) % passes.BATCH_ROWS for s in (data.rows(TRAIN), *days)), "no batch is cut short"
    together = rounds.keep_up(OnlineModel(data.schema, spec, SEED), data, data.num, data.rows(TRAIN), days)
    assert set(together) == set(rounds.WAYS)
    for way in rounds.WAYS:
        for mine, theirs in zip(together[way], apart(way, data, spec), strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=way)
    last = {way: p[-1].tobytes() for way, p in together.items()}
    assert len(set(last.values())) == len(rounds.WAYS), "two ways are one"


def test_the_start_is_trained_once_and_nothing_is_learnt_for_nobody(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt = np.zeros(len(data.label), int)
    original = OnlineModel.learn
    at = {int(ts): i for i, ts in reversed(list(enumerate(data.ts_ms)))}

    def spy(model: OnlineModel, batch: SampleBatch) -> object:
        first = at[int(batch.ts_ms[0])]
        learnt[first : first + len(batch)] += 1
        return original(model, batch)

    monkeypatch.setattr(OnlineModel, "learn", spy)
    days = [data.rows((d,)) for d in TEST]
    train = data.rows(TRAIN)
    rounds.keep_up(OnlineModel(data.schema, {"model": "logistic"}, SEED), data, data.num, train, days)
    per_row = {d: float(np.median(learnt[data.rows((d,))])) for d in (*TRAIN, *TEST)}
    # Training days: once, and twice more for "more epochs". Test days: daily rounds, micro-batches and retraining; the
    # last one by micro-batches alone.
    assert per_row == {0: 3, 1: 3, 2: 3, 3: 3, 4: 1}
    assert learnt[days[-1]].max() <= 2  # two batches may begin in one millisecond


def test_figures_are_of_their_day_and_of_all_days() -> None:
    y = [np.array([0, 1, 1, 0], np.float32), np.array([1, 0], np.float32)]
    right: list[Scores] = [np.array([0.1, 0.9, 0.8, 0.2], np.float32), np.array([0.7, 0.3], np.float32)]
    wrong: list[Scores] = [right[0], np.array([0.3, 0.7], np.float32)]
    scored = dict.fromkeys(rounds.WAYS, right) | {"frozen": wrong}
    found = rounds.figures(scored, y)
    assert found["daily rounds"]["by_day"] == [1.0, 1.0]
    assert found["frozen"]["by_day"] == [1.0, 0.0]
    assert found["frozen"]["auc"] == auc(np.concatenate(wrong), np.concatenate(y)) < found["daily rounds"]["auc"] == 1.0


def result(frozen: list[float], others: list[float]) -> rounds.Result:
    def of(by_day: list[float]) -> dict[str, object]:
        return {"auc": float(np.mean(by_day)), "log_loss": 0.3, "by_day": by_day}

    return {way: of(frozen if way == "frozen" else others) for way in rounds.WAYS}


def test_gains_are_paired_by_seed_and_over_the_start() -> None:
    seeds = [result([0.60, 0.61, 0.62], [0.60, 0.63, 0.66]), result([0.70, 0.69, 0.68], [0.70, 0.72, 0.77])]
    row = next(r for r in rounds.ways_of(seeds) if r["way"] == "daily rounds")
    assert row["last_day_over_start"] == pytest.approx((0.06 + 0.07) / 2)
    assert row["last_day_over_start_percent"] == pytest.approx(10.0)
    assert row["last_day_over_start_percent_ci"] == pytest.approx(0, abs=1e-5)  # 10% in either seed
    assert row["last_day_over_frozen"] == pytest.approx((0.04 + 0.09) / 2)
    days = [r for r in rounds.days_of(seeds, ["a", "b", "c"], [0.8, None, 0.81]) if r["way"] == "daily rounds"]
    assert [(r["day"], r["rounds"], r["auc"], r["oracle_auc"]) for r in days] == [
        ("a", 0, 0.65, 0.8),
        ("b", 1, 0.675, None),
        ("c", 2, 0.715, 0.81),
    ]
    assert [r["auc_over_frozen"] for r in days] == pytest.approx([0, 0.025, 0.065])


def test_the_whole_experiment_writes_its_report(tmp_path: Path) -> None:
    write_days(tmp_path / "log", days=3, seed=5, users=40, quiet=True)
    report = experiment.experiment_rounds(
        tmp_path / "log", shop_schema(), tmp_path / "out", seeds=2, test_days=2, models=("logistic",), progress=False
    )
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert [(r["inputs"], r["way"]) for r in report["ways"]] == [
        (i, way) for i in experiment.INPUTS for way in rounds.WAYS
    ]
    of = {(r["inputs"], r["way"], r["rounds"]): r["auc"] for r in report["by_day"]}
    assert len(of) == len(report["by_day"]) == 2 * len(rounds.WAYS) * 2
    for inputs in experiment.INPUTS:
        assert of[inputs, "daily rounds", 0] == of[inputs, "frozen", 0]  # both are the start on the first day
        assert of[inputs, "daily rounds", 1] != of[inputs, "frozen", 1]
    assert all(0.5 < r["oracle_auc"] < 1 for r in report["by_day"])
    runs = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert sorted((r["inputs"], r["seed"]) for r in runs) == [(i, s) for i in experiment.INPUTS for s in (0, 1)]
    last = [r["ways"]["daily rounds"]["by_day"][1] for r in runs if r["inputs"] == "raw"]
    assert of["raw", "daily rounds", 1] == pytest.approx(sum(last) / 2, abs=1e-5)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "AUC of each test day by way" in page
    assert (tmp_path / "out" / "auc_by_day.png").stat().st_size > 1000
