"""Which arithmetic a scorer computes in: the fastest that keeps to the bound, chosen one time, and kept with what it
depends on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from learner.network.dense import threads
from learner.network.forward import ARITHMETICS, Arithmetic, PageForward
from learner.ranker.model import OnlineModel
from learner.serving.serving_model import ServingModel
from learner.serving.staging import ModelWriter
from millrace.basics.store import Store
from scorer.feeder import arithmetic
from scorer.feeder.arithmetic import BOUND, ArithmeticChoice, choices
from tests.scenes.learning import SCHEMA, make_samples

MODEL = OnlineModel(SCHEMA, {"hidden": [32]}, 0)
MODEL.learn(make_samples(100, 0))


def writer(choose: Any = None, model: OnlineModel = MODEL) -> ModelWriter:
    return ModelWriter.of(SCHEMA, model.spec, model.snapshot()[0], choose=choose)


class Stopwatch:
    """Passes of each arithmetic take as long as is said, by the clock that this is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[Arithmetic, float]) -> None:
        self.now, self.passes, page = 0.0, 0, PageForward.page

        def timed(made: PageForward, *given: Any) -> Any:
            self.now += seconds[made.arithmetic]
            self.passes += 1
            return page(made, *given)

        monkeypatch.setattr(PageForward, "page", timed)

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("fastest", ARITHMETICS)
def test_the_fastest_within_the_bound_computes_pages(fastest: Arithmetic, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(monkeypatch, {name: 1.0 if name == fastest else 2.0 for name in ARITHMETICS})
    choose = ArithmeticChoice(watch)
    with capture_logs() as logs:
        made = writer(choose)
    assert ServingModel.attach(SCHEMA, MODEL.spec, made.base()).arithmetic == fastest
    choice = choose.choice
    assert choice is not None
    assert (choice.arithmetic, choice.measured) == (fastest, True)
    assert choice.ms == {name: 1000.0 if name == fastest else 2000.0 for name in ARITHMETICS}
    assert choice.error["float32"] == 0
    assert choice.error["float32_onednn"] < 1e-5
    assert 1e-4 < choice.error["bfloat16"] < BOUND
    (line,) = logs
    assert line["event"] == f"pages are computed in {fastest}"
    assert all(name in line["why"] for name in ARITHMETICS)


def test_one_that_strays_is_not_taken_however_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(monkeypatch, {"float32": 3.0, "float32_onednn": 2.0, "bfloat16": 1.0})
    monkeypatch.setattr(arithmetic, "BOUND", 1e-4)
    choose = ArithmeticChoice(watch)
    assert choose(writer()) == "float32_onednn"


@pytest.mark.parametrize("error", [RuntimeError("no such instruction"), AttributeError("no such product")])
def test_a_machine_that_lacks_a_product_does_without(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(monkeypatch, {"float32": 3.0, "float32_onednn": 1.0, "bfloat16": 4.0})
    page = PageForward.page

    def lacking(made: PageForward, *given: Any) -> Any:
        if made.arithmetic == "float32_onednn":
            raise error
        return page(made, *given)

    monkeypatch.setattr(PageForward, "page", lacking)
    choose = ArithmeticChoice(watch)
    with capture_logs() as logs:
        assert choose(writer()) == "float32"
    assert choose.choice is not None
    assert set(choose.choice.ms) == {"float32", "bfloat16"}
    assert str(error) in logs[0]["error"]


def test_a_model_that_is_not_finite_is_computed_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(monkeypatch, {"float32": 3.0, "float32_onednn": 2.0, "bfloat16": 1.0})
    image = MODEL.snapshot()[0]
    image.dense["out.bias"][:] = np.nan
    choose = ArithmeticChoice(watch, Store(tmp_path))
    made = ModelWriter.of(SCHEMA, MODEL.spec, image, choose=choose)
    assert ServingModel.attach(SCHEMA, MODEL.spec, made.base()).arithmetic == "float32"
    assert choices(Store(tmp_path)) == [], "it says nothing of later versions"


def test_times_are_kept_and_measured_again_where_what_they_depend_on_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(monkeypatch, {"float32": 3.0, "float32_onednn": 2.0, "bfloat16": 1.0})

    def measured(choose: ArithmeticChoice, model: OnlineModel = MODEL) -> bool:
        """Whether a scorer that starts, or goes on, measures for its next version."""
        assert choose(writer(model=model)) == "bfloat16"
        assert choose.choice is not None
        return choose.choice.measured

    first, again, other = (ArithmeticChoice(watch, Store(tmp_path)) for _ in range(3))
    assert measured(first)
    passes = watch.passes
    assert measured(first)  # the next snapshot
    assert watch.passes == passes
    assert not measured(again)
    assert watch.passes == passes + len(ARITHMETICS)  # errors alone
    larger = OnlineModel(SCHEMA, {"hidden": [48]}, 0)
    assert measured(again, larger), "another form"
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert measured(other, larger), "another library"


def test_of_two_scorers_that_measure_at_once_the_first_one_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one's own times say otherwise: it has not read the store before it measured."""
    seconds: dict[Arithmetic, float] = {"float32": 3.0, "float32_onednn": 2.0, "bfloat16": 1.0}
    watch = Stopwatch(monkeypatch, seconds)
    store = Store(tmp_path)
    first, second = ArithmeticChoice(watch, store), ArithmeticChoice(watch, store)
    timed = second._timed

    def late(*given: Any) -> Any:
        assert first(writer()) == "bfloat16"
        seconds["float32_onednn"] = 0.5
        return timed(*given)

    monkeypatch.setattr(second, "_timed", late)
    assert second(writer()) == "bfloat16"
    assert first.choice is not None
    assert second.choice is not None
    assert (first.choice.measured, second.choice.measured) == (True, False)
    assert first.choice.ms == second.choice.ms
    assert [choice.ms for choice in choices(store)] == [first.choice.ms]


def test_what_others_chose_is_not_taken_where_it_strays_in_this_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(monkeypatch, {"float32": 3.0, "float32_onednn": 2.0, "bfloat16": 1.0})
    store = Store(tmp_path)
    assert ArithmeticChoice(watch, store)(writer()) == "bfloat16"
    monkeypatch.setattr(arithmetic, "BOUND", 1e-4)
    assert ArithmeticChoice(watch, store)(writer()) == "float32_onednn"


def kept_file(folder: Path) -> Path:
    (found,) = folder.glob("arithmetic-*")
    return found


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def other_form(file: Path) -> None:
    """Whole, and of a program that keeps something else."""
    Store(file.parent).put(file.name, {"of": "x", "ms": {"float32": 1}})


@pytest.mark.parametrize("damage", [cut, other_form])
def test_a_damaged_file_is_said_and_measured_anew(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(monkeypatch, {"float32": 3.0, "float32_onednn": 1.0, "bfloat16": 2.0})
    store = Store(tmp_path)
    ArithmeticChoice(watch, store)(writer())
    damage(kept_file(tmp_path))
    assert choices(store) == []
    choose = ArithmeticChoice(watch, store)
    with capture_logs() as logs:
        assert choose(writer()) == choose(writer()) == "float32_onednn"
    assert [line["event"] for line in logs] == [
        "file is damaged and renamed",
        "pages are computed in float32_onednn",
    ]
    assert logs[1]["measured"]
    assert len(choices(store)) == 1


def test_a_store_that_takes_no_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Stopwatch(monkeypatch, {"float32": 1.0, "float32_onednn": 2.0, "bfloat16": 3.0})
    choose = ArithmeticChoice(watch, Store(tmp_path / "gone", writes=False))
    with capture_logs() as logs:
        assert choose(writer()) == "float32"
    assert "cannot be kept" in logs[0]["event"]


def test_a_network_that_is_not_written_out_leaves_no_choice() -> None:
    model = OnlineModel(SCHEMA, {"model": "deepfm"}, 0)
    choose = ArithmeticChoice(lambda: 0.0)
    assert choose(writer(model=model)) == "float32"
    assert choose.choice is None


def test_best_twenties_of_a_trained_network_stay() -> None:
    """What the bound stands for: of 1,000 candidates' best twenty at least 99.5% are float32's, in each arithmetic
    that keeps to it."""
    model = OnlineModel(SCHEMA, {"hidden": [128]}, 0)
    for seed in range(90):
        model.learn(make_samples(128, seed, users=300, items=300))
    image, shares = model.snapshot()[0], dict[Arithmetic, list[float]]()
    with threads(1):
        for name in ARITHMETICS:
            made = ServingModel.of(SCHEMA, model.spec, image, arithmetic=name)
            for seed in range(300):  # of 60 pages the share is known to .002, of these to .0007
                probe = make_samples(1000, 1000 + seed, users=300, items=300)
                exact, mine = model.score(probe.cat, probe.num), made.score(probe.cat, probe.num)
                best = [set(np.argsort(-scores, kind="stable")[:20].tolist()) for scores in (exact, mine)]
                shares.setdefault(name, []).append(len(best[0] & best[1]) / 20)
    for name, found in shares.items():
        assert np.mean(found) >= 0.995, name
    assert np.mean(shares["bfloat16"]) < 1, "so that it can be other than 1"
