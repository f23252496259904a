"""The contract that holds for any model, registered or of one's own; and what is refused of the latter.

tests/learner/ranker/test_models.py has what registered models promise beyond it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from learner.custom import ownclass
from learner.custom.adapters.torchmodule import TorchModel
from learner.custom.own import OwnModel
from learner.custom.ownclass import own_class, serving_of
from learner.custom.ownids import KnownIds
from learner.evaluation.progressive import Progressive
from learner.evaluation.traffic_segments import Segments
from learner.ranker.model import LearnReport, OnlineModel
from learner.ranker.repeats import Repeats
from learner.role.model_factory import model_of, reader_of, writer_of
from learner.role.trial import tried
from learner.training.learner_versions import Last, Progress, Versions
from learner.training.trainer import Trainer
from millrace.basics.errors import SettingError, SnapshotError
from millrace.basics.ranking_metrics import auc
from millrace.commands.loop.signals import AtOnce
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.labels import policy_named
from millrace.versions.image import Image
from millrace.versions.packing import unpack
from tests.learner import own_models
from tests.learner.own_models import BAD_WEIGHT, ENDING_WEIGHT, ODD_WEIGHT, Moody
from tests.scenes.learning import SCHEMA, START_MS, make_samples, poison
from tests.scenes.model_contract import Make, ModelContract, equal, taught

MODELS: dict[str, dict[str, Any]] = {
    "registered": {
        "model": "wide_deep",
        "hidden": [16],
        "width": 4,
        "max_rows": 300,
        "step_rows": 1,
        "averaging": 0.0,
        "dense_rate": 0.01,
        "ftrl_alpha": 0.1,
    },
    "river": {"model": "learner.custom.adapters.rivermodel:RiverFTRL", "alpha": 0.2, "buckets": 300},
    "torch": {
        "model": "learner.custom.adapters.torchmodule:HashedMLP",
        "rate": 0.02,
        "hidden": 16,
        "width": 4,
        "buckets": 300,
    },
    "numpy": {"model": "tests.learner.own_models:Hashed"},
}
MOODY = {"model": "tests.learner.own_models:Moody"}


class TestContract(ModelContract):
    @pytest.fixture
    def make(self, kind: str) -> Make:
        return partial(made, kind)


@pytest.fixture(params=sorted(MODELS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def _calm() -> Iterator[None]:
    Moody.fails, Moody.last = set(), None
    yield
    Moody.fails = set()


def made(kind: str, seed: int = 0) -> OnlineModel | OwnModel:
    return model_of(SCHEMA, MODELS[kind], seed, live=True)


def fed(kind: str, batches: int = 4) -> OnlineModel | OwnModel:
    return taught(made(kind), batches)


def moody() -> OwnModel:
    model = taught(OwnModel(SCHEMA, MOODY, 0, live=True))
    assert isinstance(model, OwnModel)
    return model


# -- what holds for any model ---------------------------------------------------------------------------------------


def test_learns_which_items_are_clicked(kind: str) -> None:
    def batch(rows: int, seed: int) -> SampleBatch:
        samples = make_samples(rows, seed)
        odd = np.random.default_rng(seed).random(rows) < np.where(samples.item % 2 == 1, 0.9, 0.1)
        label = odd.astype(np.float32)
        return replace(samples, label=label, kind=np.where(odd, POSITIVE, NEGATIVE).astype(np.uint8))

    model = made(kind)
    for i in range(60):
        model.learn(batch(128, i))
    test = batch(2000, 1000)
    assert auc(model.score(test.cat, test.num), test.label) > 0.8  # the true probabilities reach .9


def test_base_and_deltas_equal_the_snapshot_and_serve_its_scores(kind: str) -> None:
    """As they travel: packed as differences; each version is followed before the next comes, and stays what it is."""
    model, spec = fed(kind), MODELS[kind]
    versions = Versions(model)
    state = Image.of_tensors(versions.model.snapshot()[0].tensors())
    slices = versions.begin_root()
    while slices.next() is not None:
        pass
    last = versions.finish(slices, Progress(), {}, 0)
    assert isinstance(last, Last)
    held = last.part[0].dense
    writer = writer_of(SCHEMA, spec, state, named=spec["model"])
    reader = reader_of(SCHEMA, spec, writer.base(), named=spec["model"])
    probe, scores = make_samples(100, 77), []
    for i in range(10, 16):
        model.learn(make_samples(64, i, start_ms=START_MS + i * 3_600_000, users=20 + 30 * i, items=60))
        versions.learnt(np.empty(0, np.int64))
        if i % 2:
            continue
        found = versions.delta(Progress(), 0)
        assert found is not None
        delta = unpack(found[1], held)
        held = {**held, **delta.dense}
        state = state.apply(delta)
        writer.check(delta)
        before, reader = reader, reader.followed(writer.stage(delta))
        scores.append((before, before.score(probe.cat, probe.num)))
        while writer.fold(7):
            pass
        reader = reader.settled(writer.folded, writer.base())
    model.learn(make_samples(64, 20))
    versions.learnt(np.empty(0, np.int64))
    found = versions.delta(Progress(), 0)
    assert found is not None
    delta = unpack(found[1], held)
    state, reader = state.apply(delta), reader.followed(writer.stage(delta))
    snapshot, _ = model.snapshot()
    assert state.same_bits(snapshot) == ""
    assert reader.snapshot().same_bits(snapshot) == ""
    np.testing.assert_array_equal(model.score(probe.cat, probe.num), reader.score(probe.cat, probe.num))
    if isinstance(model, OwnModel):
        for old, p in scores:  # a version never changes; a registered one may not be used once others are folded
            np.testing.assert_array_equal(old.score(probe.cat, probe.num), p)
        late = reader_of(SCHEMA, spec, writer.base(), named=spec["model"])
        for overlay in writer.pending():
            late = late.followed(overlay)
        assert late.snapshot().same_bits(snapshot) == ""


def test_memory_is_bounded(kind: str) -> None:
    """By buckets, or by the rows of tables. What is kept of ids beside the class has a bound of its own (KnownIds)."""

    def size() -> int:
        image, training = model.snapshot()
        arrays = {**image.tensors(), **training}
        return sum(a.nbytes for name, a in arrays.items() if not name.startswith("known/"))

    model = made(kind)
    for i in range(10):
        model.learn(make_samples(200, i, users=100_000, items=100_000))
    first = size()
    for i in range(10, 30):
        model.learn(make_samples(200, i, users=100_000, items=100_000))
    assert size() <= 1.5 * first


@pytest.mark.parametrize("kind", sorted({*MODELS} - {"river"}))
def test_a_batch_that_would_break_it_leaves_no_trace(kind: str) -> None:
    """River clips gradients and FTRL divides by their sum: no weight of float32 makes its state infinite."""
    model, twin = fed(kind), fed(kind)
    with np.errstate(all="ignore"):
        report = model.learn(poison(make_samples(64, 5, users=900), weight=(slice(None), 3e38)))
    assert report.rows == 0
    assert report.skipped in ("loss_not_finite", "gradient_not_finite", "model_invalid")
    after = make_samples(64, 6)
    assert model.learn(after).rows == twin.learn(after).rows == 64
    np.testing.assert_array_equal(model.score(after.cat, after.num), twin.score(after.cat, after.num))
    assert model.snapshot()[0].same_bits(twin.snapshot()[0]) == ""


def test_weighted_samples(kind: str) -> None:
    """The same rows as clicks and as negatives: the heavier half wins."""
    heavy, light, rows = fed(kind), fed(kind), make_samples(32, 5)
    batch = poison(SampleBatch.concat([rows, rows]), label=(slice(0, 32), 1.0))
    batch = poison(batch, label=(slice(32, 64), 0.0))
    for _ in range(20):
        heavy.learn(poison(batch, weight=(slice(0, 32), 9.0)))
        light.learn(poison(batch, weight=(slice(0, 32), 0.1)))
    assert heavy.score(rows.cat, rows.num).mean() > 0.5 > light.score(rows.cat, rows.num).mean()


@pytest.mark.parametrize(("kind", "other"), [*permutations(sorted(MODELS), 2)])
def test_a_snapshot_of_another_model_is_refused(kind: str, other: str) -> None:
    model, twin = fed(kind, 1), fed(kind, 1)
    with pytest.raises(SnapshotError, match="not of a"):
        model.resume(*fed(other, 1).snapshot())
    assert equal(model, twin) == ""


# -- a model of one's own: what is refused at the start ---------------------------------------------------------------

BAD = {
    "Column": r"shape \(\d+, 1\)",
    "Logits": r"gave -[\d.]+ for \d+ of \d+ rows",
    "Texts": "score gave <U",
    "Grows": "score changed 'weights'",
    "Forgets": "resumed all arrays scores otherwise",
    "Shares": "goes on to change",
    "NeedsAll": "KeyError",
    "NewNames": r"other names after a batch: \['seen'\]",
    "Objects": "'self' as object",
    "Plain": "'rate' as float",
    "NotFinite": "'more' with numbers that are not finite",
    "OnlyTraining": "no array to score with",
    "Tuple": "snapshot gave tuple",
    "Tells": "learn gave float",
    "CannotLearn": "ZeroDivisionError: by design",
    "Mute": "no learn, snapshot, resume",
    "NoArguments": r"cannot be made with \{\}: TypeError",
    "NUMBER": "is int, and no class",
    "Absent": r"module 'tests.learner.own_models' \(.*own_models.py\) has no 'Absent'",
    "WritesToPage": r"read-only \(line \d+ of tests.learner.own_models\), on made-up rows",
    "WritesToBatch": r"read-only \(line \d+ of tests.learner.own_models\), on made-up rows",
    "Draws": "two objects of one seed learnt the same batch, and 'weights' is not the same",
    "Unsure": "other numbers for the same rows",
    "ForgetsSteps": "resumed all arrays learnt otherwise .* '(intercept|weights)' differs",
    "NeedsTwo": "more than one row is needed",
    "Leaves": r"SystemExit: 3 \(line \d+ of tests.learner.own_models\), on made-up rows",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_class_is_refused_at_the_start_in_one_line(name: str) -> None:
    with pytest.raises(SettingError, match=BAD[name]) as caught:
        model_of(SCHEMA, {"model": f"tests.learner.own_models:{name}"}, 0)
    assert f"tests.learner.own_models:{name}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tests.nowhere:Model", "No module named 'tests.nowhere'.*PYTHONPATH"),
        ("tests.learner.own_models:", "is no name"),
        (":Hashed", "is no name"),
        ("../own_models:Hashed", "is no name"),
        ("os:system('true')", "is no name"),
    ],
)
def test_a_name_that_names_nothing_is_refused(name: str, why: str) -> None:
    with pytest.raises(SettingError, match=why):
        own_class(name)


def test_a_module_that_fails_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text, why in (
        ("broken_model", "import a_package_that_is_not_there\n", "a_package_that_is_not_there"),
        ("typo_model", "def (:\n", "SyntaxError"),
        ("older_model", "import math\n\nmath.no_function_of_it\n", r"'no_function_of_it' \(line 3 of older_model\)"),
        ("script_model", "import sys\nsys.exit('usage')\n", r"SystemExit: usage \(line 2 of script_model\)"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(SettingError, match=why):
            own_class(f"{name}:Model")


REGISTERED_ALONE = ("negative_keep", "admit", "max_age_days", "retrieval_width", "retrieval_rate")


@pytest.mark.parametrize(
    ("kind", "entry", "value", "why"),
    [
        ("river", "colour", "red", "'colour'"),
        ("torch", "colour", "red", "'colour'"),
        ("numpy", "settled_minutes", "long", "settled_minutes"),
        *(
            ("numpy", entry, 0.5, f"'{entry}', which model 'tests.learner.own_models:Hashed' cannot have")
            for entry in REGISTERED_ALONE
        ),
    ],
)
def test_an_entry_that_cannot_be_heeded_is_refused_aloud(kind: str, entry: str, value: Any, why: str) -> None:
    """Of an adapter that does not know it, of a wrong type, or of registered models alone."""
    with pytest.raises(SettingError, match=why):
        model_of(SCHEMA, {**MODELS[kind], entry: value}, 0)


def test_a_state_that_cannot_be_published_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and later: what was learnt before stays."""
    model, twin = moody(), moody()
    size = sum(array.nbytes for array in model.changes().dense.values())
    monkeypatch.setattr(ownclass, "MOST_BYTES", size)
    learn = Moody.learn

    def grows(self: Moody, batch: SampleBatch) -> None:
        learn(self, batch)
        self.weights = np.append(self.weights, np.float32(0))

    monkeypatch.setattr(Moody, "learn", grows)
    assert model.learn(make_samples(64, 9)).skipped == "model_invalid"
    assert model.snapshot()[0].same_bits(twin.snapshot()[0]) == ""
    monkeypatch.setattr(ownclass, "MOST_BYTES", size - 1)
    with pytest.raises(SettingError, match=f"snapshot gave {size:,} bytes to score with; {size - 1:,} can be"):
        model_of(SCHEMA, MOODY, 0)


def test_other_code_than_that_of_a_snapshot_is_reported(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a learner that goes on from it and a scorer that serves it. Both go on: most changes do no harm."""
    (tmp_path / "changed_model_module.py").write_text(
        "from tests.learner.own_models import Hashed\n\nclass Own(Hashed): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "changed_model_module:Own"
    with capture_logs() as lines:
        model = model_of(SCHEMA, {"model": name}, 0)
        image = model.snapshot()[0]
        spec = model_of(SCHEMA, model.spec, 0).spec
        writer_of(SCHEMA, spec, image, named=name)
    assert spec == model.spec
    assert lines == []
    with (tmp_path / "changed_model_module.py").open("a") as file:
        file.write("# mended\n")
    assert model_of(SCHEMA, spec, 0).spec == spec, "this process has the old code still"
    ownclass.digest_of.cache_clear()  # as another process would find it
    with capture_logs() as lines:
        changed = model_of(SCHEMA, spec, 0)
        writer_of(SCHEMA, spec, image, named=name)
    assert [line["log_level"] for line in lines] == ["warning", "warning"]
    assert changed.spec["class_source"] != spec["class_source"]


def test_nothing_is_imported_because_a_version_names_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile_model_module.py").write_text("raise SystemExit('it ran')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = {"model": "hostile_model_module:Model"}
    image = Image({"w": np.zeros(1, np.float32)}, {})
    for named in ("", "wide_resnet", "tests.learner.own_models:Hashed", "hostile_model_module:Other"):
        with pytest.raises(SnapshotError, match=r"'hostile_model_module:Model'.*MILLRACE_MODEL"):
            writer_of(SCHEMA, spec, image, named=named)
        with pytest.raises(SnapshotError, match=r"'hostile_model_module:Model'.*MILLRACE_MODEL"):
            reader_of(SCHEMA, spec, {"own/w": image.dense["w"]}, named=named)
    assert "hostile_model_module" not in sys.modules


# -- a model of one's own: what goes wrong later ----------------------------------------------------------------------


@pytest.mark.parametrize("weight", [BAD_WEIGHT, ODD_WEIGHT, ENDING_WEIGHT])
def test_a_refused_batch_leaves_no_trace_and_what_came_before_it_stays(weight: float) -> None:
    """The class has done half of it, or has spoilt itself without a word."""
    model, twin = moody(), moody()
    with capture_logs() as lines:
        report = model.learn(poison(make_samples(64, 9), weight=([5], weight)))
    assert report.rows == 0
    assert report.skipped == ("model_invalid" if weight == ODD_WEIGHT else "model_raised")
    if weight == BAD_WEIGHT:
        assert re.fullmatch(
            r"RuntimeError: no mood to learn \(line \d+ of tests.learner.own_models\)", lines[0]["error"]
        )
    assert model.faults == {"learn": 1}
    assert equal(model, twin) == ""
    model.learn(make_samples(64, 10))
    twin.learn(make_samples(64, 10))
    assert equal(model, twin) == ""


@pytest.mark.parametrize("ending", [KeyboardInterrupt, AtOnce])
def test_a_signal_that_ends_the_process_is_no_fault_of_the_class(
    ending: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second Ctrl-C is raised wherever the main thread is, so also within ``learn``."""

    def interrupted(self: Moody, batch: SampleBatch) -> None:
        raise ending

    model = moody()
    monkeypatch.setattr(Moody, "learn", interrupted)
    with pytest.raises(ending):
        model.learn(make_samples(64, 9))
    assert not model.faults


def test_a_model_that_learns_nothing_any_more_is_counted_and_ends_nothing() -> None:
    trainer = Trainer(moody(), Progressive(1000), Repeats(10**9), 64)
    with capture_logs() as lines:
        for i in range(20, 50):
            trainer.take(poison(make_samples(64, i), weight=([5], BAD_WEIGHT)))
            while trainer.step(drain=True) is not None:
                pass
    assert trainer.counts["skipped:model_raised"] == 30
    assert trainer.counts["skipped"] == 30 * 64
    reported = [line["times"] for line in lines if line["event"] == "the model of one's own fails"]
    assert reported == [1, 10], "and it is not told of each time"


def test_scores_that_cannot_be_had_count_as_wrong() -> None:
    model = moody()
    trainer = Trainer(model, Progressive(1000), Repeats(10**9), 64)
    Moody.fails = {"score"}
    probe = make_samples(64, 9)
    assert np.isnan(model.score(probe.cat, probe.num)).all()
    trainer.take(probe)
    trainer.step(drain=True)
    assert trainer.counts["not_finite"] == 64


ASK: dict[str, Callable[[OwnModel], object]] = {
    "score": lambda model: model.score(make_samples(64, 9).cat, make_samples(64, 9).num),
    "learn": lambda model: model.learn(poison(make_samples(64, 9), weight=([5], BAD_WEIGHT))),
    "snapshot": lambda model: (model.learn(make_samples(64, 9)), model.changes()),
}


@pytest.mark.parametrize("verb", ASK)
def test_a_run_that_is_not_live_ends_at_the_first_fault(verb: str) -> None:
    """Its figures at the end would be of another model than the one that was named."""
    model = model_of(SCHEMA, MOODY, 0)
    assert isinstance(model, OwnModel)
    assert model.learn(make_samples(64, 8)).rows == 64
    Moody.fails = {verb}
    with pytest.raises(
        SettingError, match=rf"'{MOODY['model']}' failed in {verb}: RuntimeError: .*\(line \d+ of tests"
    ):
        ASK[verb](model)


def test_a_snapshot_that_fails_leaves_the_last_good_state_to_publish() -> None:
    model, twin = moody(), moody()
    Moody.fails = {"snapshot"}
    assert model.learn(make_samples(8, 9)).skipped == "model_raised", "nobody could go back to what it learns"
    assert model.faults == {"learn": 1}
    assert model.changes().same_bits(twin.changes()) == ""
    Moody.fails = set()
    assert equal(model, twin) == ""


def test_a_state_that_no_score_shows_to_be_spoilt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that is not finite, where no row of the batch is scored with it."""
    model, twin = moody(), moody()
    learn = Moody.learn

    def spoils(self: Moody, batch: SampleBatch) -> None:
        learn(self, batch)
        if (batch.weight == 5.0).any():
            self.steps = np.array([np.inf])

    monkeypatch.setattr(Moody, "learn", spoils)
    assert model.learn(poison(make_samples(64, 9), weight=([3], 5.0))).skipped == "model_invalid"
    for each in (model, twin):
        each.learn(make_samples(64, 10))
    assert equal(model, twin) == ""


def test_a_model_that_cannot_be_had_back_neither_scores_nor_learns_and_ends_nothing() -> None:
    """What has learnt half a batch is never asked again."""
    model, twin = moody(), moody()
    probe = make_samples(64, 10)
    Moody.fails = {"resume"}
    assert model.learn(poison(make_samples(64, 9), weight=([5], BAD_WEIGHT))).skipped == "model_raised"
    assert np.isnan(model.score(probe.cat, probe.num)).all()
    assert model.learn(probe).skipped == "model_raised"
    assert model.changes().same_bits(twin.changes()) == ""
    Moody.fails = set()
    assert model.learn(probe).rows == twin.learn(probe).rows == 64, "it has found back"
    assert equal(model, twin) == ""


def test_another_shape_is_refused_and_says_so() -> None:
    small, large = ({"model": "tests.learner.own_models:Hashed", "bits": bits} for bits in (8, 9))
    model = OwnModel(SCHEMA, large, 0, live=False)
    image, training = OwnModel(SCHEMA, small, 0, live=False).snapshot()
    with pytest.raises(SnapshotError, match="256 weights, not 512"):
        model.resume(image, training)
    with pytest.raises(SnapshotError, match="256 weights, not 512"):
        writer_of(SCHEMA, large, image, named=str(large["model"]))


def test_a_delta_that_the_class_does_not_take_changes_nothing() -> None:
    spec = {"model": "tests.learner.own_models:Hashed"}
    model = fed("numpy")
    image = model.snapshot()[0]
    writer = writer_of(SCHEMA, spec, image, named=spec["model"])
    for dense, why in (
        ({"weights": np.zeros(3, np.float32), "intercept": image.dense["intercept"]}, "3 weights"),
        ({"weights": image.dense["weights"]}, "intercept"),
        ({**image.dense, "training/steps": np.zeros(1)}, "training/steps"),
        ({**image.dense, "intercept": np.array([np.nan], np.float32)}, "score gave nan"),
    ):
        for refuse in (writer.check, writer.stage):
            with pytest.raises(SnapshotError, match=why):
                refuse(Image(dense, {}))
    assert reader_of(SCHEMA, spec, writer.base(), named=spec["model"]).snapshot().same_bits(image) == ""
    assert not writer.pending()


def test_a_reader_that_cannot_score_gives_no_numbers() -> None:
    image = moody().snapshot()[0]
    reader = reader_of(
        SCHEMA, MOODY, writer_of(SCHEMA, MOODY, image, named=MOODY["model"]).base(), named=MOODY["model"]
    )
    probe = make_samples(5, 1)
    assert np.isfinite(reader.score(probe.cat, probe.num)).all()
    Moody.fails = {"score"}
    assert np.isnan(reader.score(probe.cat, probe.num)).all()


def test_each_delta_carries_the_weights_since_there_are_no_rows_to_carry() -> None:
    model = fed("numpy")
    versions = Versions(model)
    versions.learnt(np.empty(0, np.int64))
    found = versions.delta(Progress(), 0, dense=False, retrieval=False)
    assert found is not None
    assert unpack(found[1]).same_bits(model.snapshot()[0]) == ""


def test_a_scorer_gets_nothing_that_only_learning_needs() -> None:
    model = fed("numpy")
    image, training = model.snapshot()
    assert set(image.dense) == {"weights", "intercept"}
    assert training["own/steps"].tolist() == [4]
    assert set(serving_of({"training/x": np.zeros(1), "x": np.zeros(1)})) == {"x"}


# -- adapters ---------------------------------------------------------------------------------------------------------


def test_rows_for_river_have_what_is_there_ids_first() -> None:
    model = own_class(str(MODELS["river"]["model"]))(SCHEMA, {"buckets": 10}, 0)
    cat, num = np.array([[13, 0, -1], [0, 0, 0]]), np.array([[0, 2, -3], [0, 0, 0]], np.float32)
    rows = model._rows(cat, num)  # type: ignore[attr-defined]
    assert [list(row) for row in rows] == [[3, (2**64 - 1) % 10, 11, 12], []]
    np.testing.assert_allclose(list(rows[0].values()), [1, 1, np.log(3), -np.log(4)], rtol=1e-6)


class Dropped(TorchModel):
    """A module that draws while it learns."""

    def build(self, schema: Schema, spec: Mapping[str, Any]) -> torch.nn.Module:
        return _Dropped(schema.layout.N)


class _Dropped(torch.nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.out = torch.nn.Linear(n, 1)

    def forward(self, cat: torch.Tensor, num: torch.Tensor) -> torch.Tensor:
        t: torch.Tensor = self.out(torch.nn.functional.dropout(num.abs().log1p(), training=self.training))
        return t.squeeze(1)


def test_a_module_with_dropout_goes_on_bit_for_bit_and_leaves_torchs_generator_alone() -> None:
    spec = {"model": f"{__name__}:Dropped"}
    model = OwnModel(SCHEMA, spec, 3, live=False)
    before = torch.get_rng_state()
    for i in range(3):
        model.learn(make_samples(64, i))
    assert torch.equal(torch.get_rng_state(), before)
    again = OwnModel(SCHEMA, spec, 0, live=False)
    again.resume(*model.snapshot())
    for each in (model, again):
        each.learn(make_samples(64, 9))
    assert equal(model, again) == ""
    plain = OwnModel(SCHEMA, spec, 3, live=False)
    probe = make_samples(64, 7)
    fixed = plain.score(probe.cat, probe.num)
    np.testing.assert_array_equal(plain.score(probe.cat, probe.num), fixed)


# -- what the learner adds ---------------------------------------------------------------------------------------------


def test_a_report_of_its_own_is_used_and_one_without_gets_its_loss() -> None:
    model, batch = made("numpy"), make_samples(64, 0)
    p = model.score(batch.cat, batch.num).astype(np.float64)
    y = batch.label
    expected = float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())
    assert model.learn(batch).loss == pytest.approx(expected, rel=1e-6)
    module = made("torch")
    q = torch.from_numpy(module.score(batch.cat, batch.num))
    expected = float(torch.nn.functional.binary_cross_entropy(q, torch.from_numpy(y)))
    assert module.learn(batch).loss == pytest.approx(expected, rel=1e-5)


def test_a_batch_that_the_class_itself_refuses_is_counted_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    model = moody()
    twin = moody()
    monkeypatch.setattr(Moody, "learn", lambda self, batch: LearnReport(3.0, 0, "too_odd"))
    report = model.learn(make_samples(64, 9))
    assert (report.skipped, report.rows, report.loss) == ("too_odd", 0, 3.0)
    monkeypatch.undo()
    assert equal(model, twin) == ""


def test_the_label_policys_weights_reach_the_class() -> None:
    """A click that comes after its negative weighs more where the exposure was thought unlikely to be clicked."""
    model = moody()
    code = np.uint8(policy_named("fake-negative-weighted").code)
    batch = make_samples(64, 9)
    kind = np.where(batch.label > 0, CORRECTION, NEGATIVE).astype(np.uint8)
    batch = replace(batch, kind=kind, policy=np.full(64, code))
    p = model.score(batch.cat, batch.num)
    assert model.learn(batch).rows == 64
    assert Moody.last is not None
    np.testing.assert_allclose(Moody.last.weight[kind == CORRECTION], 1 + p[kind == CORRECTION], rtol=1e-5)
    np.testing.assert_allclose(Moody.last.weight[kind == NEGATIVE], ((1 - p) * (1 + p))[kind == NEGATIVE], rtol=1e-5)


def test_segments_know_which_users_and_items_were_learnt_from() -> None:
    model = made("numpy")
    segments = Segments(SCHEMA, {})
    first, other = make_samples(64, 0, users=20), make_samples(64, 1, users=40)
    model.learn(first)
    new = np.uint64(1 << segments.names.index("user=new"))
    masks = segments.members(other, model)
    np.testing.assert_array_equal((masks & new) > 0, ~np.isin(other.user, first.user))
    again = made("numpy")
    again.resume(*model.snapshot())
    np.testing.assert_array_equal(segments.members(other, again), masks)


def test_known_ids_have_a_bound() -> None:
    known = KnownIds(100)
    for start in range(0, 5000, 50):
        known.add(np.arange(start + 1, start + 51))
    newest = known.has(np.arange(4901, 5001))
    assert newest.all()
    assert not known.has(np.arange(1, 4001)).any()
    sizes = [len(a) for a in known.snapshot().values()]
    assert sum(sizes) <= 200


def test_what_the_doctor_asks_of_a_model() -> None:
    fine = tried(Settings(model="tests.learner.own_models:Hashed"))
    assert re.fullmatch(
        r"'tests.learner.own_models:Hashed' does what its verbs promise; .* has [\d,]+ bytes", fine["text"]
    )
    bad = tried(Settings(model="tests.learner.own_models:CannotLearn"))
    assert "ZeroDivisionError: by design" in bad["problem"]
    assert bad["remedy"]
    assert "'wide_dep'" in tried(Settings(model="wide_dep"))["problem"]
    assert tried(Settings(model="logistic")) == {"text": "'logistic'"}


def test_own_models_module_is_what_these_tests_think() -> None:
    """The bad ones fail for their own reason: what they derive from passes."""
    assert (
        model_of(SCHEMA, {"model": "tests.learner.own_models:Hashed"}, 0).spec["model"]
        == "tests.learner.own_models:Hashed"
    )
    assert {name for name in BAD if name != "Absent"} <= set(vars(own_models))
