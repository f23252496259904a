"""Ways of keeping up: those of the shared start equal separate models that do as each way's name says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from learner.ranker.model import OnlineModel
from millrace.basics.ranking_metrics import auc
from millrace.commands.offline import epochs, rounds
from millrace.commands.offline.dataset import Dataset, plain_schema, prepare
from millrace.commands.offline.epochs import Scores, learn, score
from millrace.commands.offline.synchronising import sync_plan
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import shop_schema
from simulator.daylog import write_days

SEED = 3
TRAIN, TEST = (0, 1), (2, 3, 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("log")
    write_days(folder / "log", days=5, seed=5, users=30)
    return prepare(folder / "log", plain_schema(shop_schema()), folder / "data")


@pytest.fixture(autouse=True)
def batches_that_days_do_not_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "BATCH_ROWS", 300)


def apart(way: str, data: Dataset, spec: dict[str, object]) -> list[Scores]:
    """What a way means, by models of its own that share nothing."""

    def trained(days: tuple[int, ...], times: int = 1) -> OnlineModel:
        model = OnlineModel(data.schema, spec, SEED)
        for _ in range(times):
            learn(model, data, data.rows(days), data.num)
        return model

    days = [data.rows((d,)) for d in TEST]
    if way == "retrained daily":
        rng, scored = np.random.default_rng(SEED), [score(trained(TRAIN), data, data.rows((TEST[0],)), data.num)]
        for d in TEST[1:]:
            model, everything = OnlineModel(data.schema, spec, SEED), data.rows((TRAIN[0], d - 1))
            order = rng.permutation(everything.stop - everything.start) + everything.start
            for part in np.split(order, range(300, len(order), 300)):
                model.learn(data.batch(np.sort(part), data.num))
            scored.append(score(model, data, data.rows((d,)), data.num))
        return scored
    if way == "replayed daily":
        return [score(trained((*TRAIN, *range(TEST[0], d))), data, data.rows((d,)), data.num) for d in TEST]
    model = trained(TRAIN, 3 if way == "more epochs" else 1)
    scored = []
    for day in days:
        bounds = sync_plan(
            [day], data.ts_ms, (), (), 0
        ).bounds.tolist()  # tests/commands/freshness/test_freshness.py says where they are
        parts = [slice(*pair) for pair in pairwise(bounds)]
        if way != "micro-batches":
            scored.append(score(model, data, day, data.num))
            for rows in parts if way == "daily rounds" else ():
                model.learn(data.batch(rows, data.num))
            continue
        own = []
        for rows in parts:
            own.append(score(model, data, rows, data.num))
            model.learn(data.batch(rows, data.num))
        scored.append(np.concatenate(own))
    return scored


@pytest.mark.slow
@pytest.mark.parametrize("spec", [{}, {"model": "wide_deep", "averaging": 0.0}], ids=["default", "wide_deep"])
def test_a_shared_start_gives_what_separate_runs_give(data: Dataset, spec: dict[str, object]) -> None:
    days = [data.rows((d,)) for d in TEST]
    assert all((s.stop - s.start) % epochs.BATCH_ROWS for s in (data.rows(TRAIN), *days)), "no batch is cut short"
    model, rng = OnlineModel(data.schema, spec, SEED), np.random.default_rng(SEED)
    together = rounds.keep_up(model, data, data.num, data.rows(TRAIN), days, rng)
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
    original = Dataset.batch

    def spy(own: Dataset, part: slice | NDArray[np.intp], num: NDArray[np.float32]) -> SampleBatch:
        learnt[part] += 1
        return original(own, part, num)

    monkeypatch.setattr(Dataset, "batch", spy)
    days = [data.rows((d,)) for d in TEST]
    train = data.rows(TRAIN)
    model = OnlineModel(data.schema, {"model": "logistic"}, SEED)
    rounds.keep_up(model, data, data.num, train, days, np.random.default_rng(SEED))
    # The training days: once, twice more for "more epochs", and for each of the two days that are retrained for. The
    # days after: once for daily rounds and micro-batches together, and by replay and retraining; the last only once.
    times = {d: set(learnt[data.rows((d,))].tolist()) for d in (*TRAIN, *TEST)}
    whole = epochs.BATCH_ROWS
    cut = (train.stop - train.start) % whole  # rows of the last batch of the start: "replayed daily" takes them again
    assert times[0] == {5}
    assert set(learnt[train.stop - cut : train.stop].tolist()) == {6}
    assert set(learnt[train.start : train.stop - cut].tolist()) == {5}
    assert times[4] == {1}
    cut = (days[1].start - train.start) % whole
    assert set(learnt[days[0].start : days[0].stop - cut].tolist()) == {4}
    assert set(learnt[days[0].stop - cut : days[0].stop].tolist()) == {5}
    assert times[3] == {3}


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
