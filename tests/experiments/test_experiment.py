"""Experiments: the arrays they train on are those of replay, test days are never learnt from, intervals are right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

from experiments import experiment_models
from experiments.experiment_models import OnLog
from learner.network.models import REGISTRY
from learner.network.models.logistic import Logistic
from learner.ranker.model import OnlineModel
from millrace.basics.errors import SettingError
from millrace.commands.offline import compared, rounds
from millrace.commands.offline.dataset import SCALED, Dataset, plain_schema, prepare, scaled
from millrace.commands.offline.intervals import interval
from millrace.contracts.schema import shop_schema
from simulator.daylog import write_days


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("log")
    write_days(folder / "log", days=3, seed=5, users=60)
    return prepare(folder / "log", plain_schema(shop_schema()), folder / "data")


def test_the_truth_stands_beside_its_exposure(data: Dataset) -> None:
    """A click is likelier where the true probability says so: a shuffled truth would not show it."""
    assert np.isfinite(data.truth).all()
    clicked = data.label == 1
    assert data.truth[clicked].mean() > 1.5 * data.truth[~clicked].mean()
    assert np.all(np.diff(data.ts_ms) >= 0)


def test_days_follow_each_other_and_cover_all(data: Dataset) -> None:
    slices = [data.rows((d,)) for d in range(len(data.days))]
    assert [s.start for s in slices] == [0, *[s.stop for s in slices[:-1]]]
    assert slices[-1].stop == len(data.label)


def test_scaling_is_fitted_on_the_training_rows_alone(data: Dataset) -> None:
    train = data.rows((0, 1))
    x = scaled(data, train)[train].astype(np.float64)
    moving = x.std(0) > 1e-3
    assert moving.sum() > 20
    np.testing.assert_allclose(x.mean(0)[moving], 0, atol=1e-3)
    np.testing.assert_allclose(x.std(0)[moving], 1, atol=1e-3)


def test_an_interval_is_students() -> None:
    row = interval("auc", [1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.303, s = 1, n = 3
    assert row == {"auc": 2.0, "auc_ci": pytest.approx(4.30265 / 3**0.5, abs=1e-4)}


def test_without_pages_grouped_auc_compares_what_was_known_when_the_day_began(data: Dataset, tmp_path: Path) -> None:
    """The same log, read as one without pages: frozen windows equal a recount, and the usual ones do not move."""
    schema = plain_schema(shop_schema())
    assert schema.log is not None
    schema = structs.replace(schema, log=structs.replace(schema.log, request=None, identity=()))
    write_days(tmp_path / "log", days=3, seed=5, users=60)
    found = prepare(tmp_path / "log", schema, tmp_path / "data", frozen_days=2)
    assert data.frozen is None
    assert "pages" in data.compares
    assert found.frozen is not None
    assert "users and days" in found.compares
    for name in ("num", "cat", "label", "day"):
        assert np.array_equal(getattr(found, name), getattr(data, name))
    column = schema.layout.num_names.index("user_id.exposure.30d")
    for day in range(3):
        rows = found.rows((day,))
        before, own = np.array(found.user[: rows.start]), np.array(found.user[rows])
        expected = [np.count_nonzero(before == u) for u in own] if day else np.zeros(len(own))
        assert np.array_equal(found.frozen[rows][:, column], expected)
    pairs = set(zip(found.user.tolist(), found.day.tolist(), strict=True))
    assert len(pairs) == len(np.unique(found.group))
    assert len({(u, d, g) for u, d, g in zip(found.user, found.day, found.group, strict=True)}) == len(pairs)

    train = found.rows((0, 1))
    mapped = scaled(found, train)
    fixed = np.load(found.folder / SCALED["frozen"])
    scale = (mapped[train, column].max() - mapped[train, column].min()) / np.log1p(found.num[train, column].max())
    last = found.rows((2,))
    shift = (np.log1p(found.frozen[last, column]) - np.log1p(found.num[last, column])) * scale
    np.testing.assert_allclose(fixed[last, column] - mapped[last, column], shift, atol=1e-4)


@pytest.mark.slow
def test_a_report_on_a_log_without_pages_says_what_it_compares(tmp_path: Path) -> None:
    """One runs in processes of its own, the other in this one: nothing else depends on that."""
    schema = shop_schema()
    assert schema.log is not None
    schema = structs.replace(schema, log=structs.replace(schema.log, request=None, identity=()))
    write_days(tmp_path / "log", days=2, seed=5, users=40)
    on, log = OnLog(seeds=2, test_days=1, models=("logistic",), inputs=("raw",)), tmp_path / "log"
    frozen = experiment_models.experiment("models", log, schema, tmp_path / "a", on, progress=False)
    paged = experiment_models.experiment("models", log, shop_schema(), tmp_path / "b", on, workers=0, progress=False)
    assert "frozen" in frozen["grouped_auc_compares"]
    assert paged["grouped_auc_compares"] == "within pages"
    assert frozen["models"][0]["auc"] == paged["models"][0]["auc"]
    assert frozen["models"][0]["grouped_auc"] != paged["models"][0]["grouped_auc"]


class Own(Logistic):
    """A network of one's own."""


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a registered model of one's own; runs stay in this process, since another does not have it."""
    threads = torch.get_num_threads()
    monkeypatch.setitem(REGISTRY, "own", Own)
    monkeypatch.setattr(Own, "name", "own")
    yield "own"
    torch.set_num_threads(threads)


def test_the_originals_models_alone_have_its_settings(own: str) -> None:
    default = OnlineModel(plain_schema(shop_schema()), {}, 0).spec
    for name in REGISTRY:
        spec = OnlineModel(plain_schema(shop_schema()), compared.spec_of(name), 0).spec
        if name == own:
            assert compared.spec_of(name) == {"model": own}
            assert spec == default | {"model": own}
        else:
            assert name in compared.ORIGINAL
            assert (spec["numerics"], spec["averaging"], spec["max_loss"]) == ("none", 0.0, 1e30)
        assert compared.settings_of(name) == ("default" if name == own else "original")
    assert compared.spec_of(compared.DEFAULT) == {}
    assert compared.settings_of(compared.DEFAULT) == "default"


def experimented(folder: Path, kind: Any, on: OnLog, days: int) -> tuple[dict[str, Any], str]:
    """The report of an experiment on a small log, and its page. The settings of each model are those that it says."""
    write_days(folder / "log", days=days, seed=5, users=40)
    had = set[tuple[str, float]]()

    class Spy(OnlineModel):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            had.add((self.spec["model"], self.spec["averaging"]))

    out, schema = folder / "out", shop_schema()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_models, "model_of", Spy)
        report = experiment_models.experiment(kind, folder / "log", schema, out, on, workers=0, progress=False)
    assert json.loads((out / "report.json").read_text()) == report
    named = {compared.DEFAULT: "wide_resnet"}
    assert had == {(named.get(name, name), 0.0 if name == "logistic" else 0.98) for name in on.models}
    settings = {(name, "original" if name == "logistic" else "default") for name in on.models}
    for rows in (report[name] for name in ("models", "ways", "by_day") if name in report):
        assert {(r["model"], r["settings"]) for r in rows} == settings
    page = (out / "report.html").read_text()
    assert '<td class="text">logistic</td><td class="text">raw</td><td class="text">original</td>' in page
    assert '<td class="text">own</td><td class="text">raw</td><td class="text">default</td>' in page
    return report, page


@pytest.mark.slow
def test_models_are_compared_each_by_its_settings(tmp_path: Path, own: str) -> None:
    models = ("logistic", own, compared.DEFAULT)
    on = OnLog(seeds=2, test_days=1, models=models, inputs=("raw",))
    report, page = experimented(tmp_path, "models", on, 2)
    assert [(r["model"], r["inputs"]) for r in report["models"]] == [(name, "raw") for name in models]
    assert 0.5 < report["oracle_auc"] < 1
    assert (tmp_path / "out" / "auc.png").stat().st_size > 1000
    assert compared.DEFAULT.replace("_", " ") in page.replace("_", " ")


@pytest.mark.slow
def test_ways_of_keeping_up_are_compared_by_day(tmp_path: Path, own: str) -> None:
    on = OnLog(seeds=2, test_days=2, models=("logistic", own))
    report, page = experimented(tmp_path, "rounds", on, 3)
    combined = [(name, i, way) for name in on.models for i in compared.INPUTS for way in rounds.WAYS]
    assert [(r["model"], r["inputs"], r["way"]) for r in report["ways"]] == combined
    of = {(r["model"], r["inputs"], r["way"], r["rounds"]): r["auc"] for r in report["by_day"]}
    assert len(of) == len(report["by_day"]) == 2 * len(combined)
    for name, inputs in product(on.models, compared.INPUTS):
        assert of[name, inputs, "daily rounds", 0] == of[name, inputs, "frozen", 0]  # the start, on the first day
        assert of[name, inputs, "daily rounds", 1] != of[name, inputs, "frozen", 1]
    assert all(0.5 < r["oracle_auc"] < 1 for r in report["by_day"])
    runs = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    ran = sorted((r["model"], r["inputs"], r["seed"]) for r in runs)
    assert ran == sorted(product(on.models, compared.INPUTS, (0, 1)))
    of_raw = [r for r in runs if (r["model"], r["inputs"]) == ("logistic", "raw")]
    last = [r["ways"]["daily rounds"]["by_day"][1] for r in of_raw]
    assert of["logistic", "raw", "daily rounds", 1] == pytest.approx(sum(last) / 2, abs=1e-5)
    assert "AUC of each test day by way" in page
    row = report["ways"][0]
    assert f"{row['auc']:.4f} ± {row['auc_ci']:.4f}" in page
    assert (tmp_path / "out" / "auc_by_day.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("on", "names", "log"),
    [
        (OnLog(seeds=1, test_days=1), "1 seeds", True),
        (OnLog(seeds=2, test_days=2), "2 test days", True),
        (OnLog(seeds=2, test_days=0), "0 test", True),
        (OnLog(seeds=2, test_days=1, models=("nonesuch",)), "nonesuch", False),
        (OnLog(seeds=2, test_days=1, inputs=()), "of no kind", False),
        (OnLog(seeds=2, test_days=1, inputs=("raw", "cooked")), "cooked", False),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, on: OnLog, names: str, log: bool) -> None:
    """What is wrong with the names of models and inputs, before anything is read: there is no log."""
    if log:
        write_days(tmp_path / "log", days=2, seed=5, users=20)
    with pytest.raises(SettingError, match=names):
        experiment_models.experiment("models", tmp_path / "log", shop_schema(), tmp_path / "out", on, progress=False)
