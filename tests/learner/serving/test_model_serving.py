"""Versions of a model that serves: overlays, folds, readers that attach late, and products in bfloat16."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from learner.network import bfloat16, elementwise
from learner.network.backward import Workspace, written_pass
from learner.network.dense import threads
from learner.network.forward import (
    ARITHMETICS,
    Arithmetic,
    PageColumns,
    PageForward,
    PageInput,
    forward_of,
    has_forward,
    prepared,
    rows_of,
)
from learner.network.models.base import Network
from learner.ranker.model import OnlineModel
from learner.role.learner_warmup import warm_serving
from learner.serving import overlaykernels
from learner.serving.model_form import Arrays, NumberPlan
from learner.serving.serving_model import ServingModel
from learner.serving.staging import ModelWriter
from learner.tables import attention
from millrace.basics.errors import SnapshotError
from millrace.basics.ranking_metrics import auc
from millrace.commands.replay.logsamples import LabelSettings
from millrace.commands.replay.replayrun import BATCH_ROWS, run_log
from millrace.contracts.logforms import OutcomeRule
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, load_schema
from millrace.contracts.settings import Settings
from millrace.logs import local_days, read_log
from millrace.versions.modelstore import Image
from millrace.windows.features import FeatureBuilder
from millrace.windows.pagewide import page_wide
from tests.architecture import ROOT
from tests.scenes.exploring import examples
from tests.scenes.learning import ATTENDED, MEANT, SCHEMA, START_MS, make_samples
from tests.scenes.networks import SPECS, WIDTH, network
from tests.scenes.torn_pages import torn_pages

Floats = NDArray[np.float32]
HOUR = 3_600_000
SPEC: dict[str, Any] = {"model": "wide_resnet", "hidden": [16, 16], "width": 4, "max_rows": 150, "max_age_days": 1.0}


class World:
    """A learner, a writer that stages its versions, and readers, each some messages behind."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.model = OnlineModel(SCHEMA, spec, 0)
        self.writer = ModelWriter.of(SCHEMA, self.model.spec, self.model.snapshot()[0])
        self.model.changes()
        self.probe = make_samples(60, 99, users=90, items=60)
        self.readers: list[Reader] = []
        self.turn = self.removed = 0
        self.attach()

    def attach(self) -> None:
        self.readers.append(Reader(self))

    def version(self) -> None:
        self.turn += 1
        for k in range(2):
            start_ms = START_MS + self.turn * 10 * HOUR
            self.model.learn(make_samples(64, 2 * self.turn + k, start_ms=start_ms, users=20 + 7 * self.turn, items=60))
        change = self.model.changes(dense=self.turn % 3 != 1)
        self.removed += sum(len(rows.removed) for rows in change.tables.values())
        overlay = self.writer.stage(change)
        answers = None if self.turn % 3 == 1 else self.model.score(self.probe.cat, self.probe.num)
        for reader in self.readers:
            reader.reported.append((overlay, answers))

    def fold(self, rows: int) -> None:
        """A slice, if all readers have the overlay."""
        generation, folded = self.writer.generation, self.writer.folded
        if all(reader.followed > folded for reader in self.readers):
            self.writer.fold(rows)
        base = self.writer.base() if self.writer.generation > generation else None
        if self.writer.folded > folded or base:
            for reader in self.readers:
                reader.reported.append((self.writer.folded - reader.began, base))


class Reader:
    """Applies what it is told, one by one, and knows what its version answers."""

    def __init__(self, world: World) -> None:
        self.probe = world.probe
        self.reported: list[tuple[Any, Any]] = []
        self.began = self.followed = world.writer.folded
        self.model = ServingModel.attach(SCHEMA, world.model.spec, world.writer.base())
        for overlay in world.writer.pending():
            self.model = self.model.followed(overlay)
            self.followed += 1
        self.answers: Floats | None = None

    def hear(self) -> bool:
        """The next message, if there is one."""
        if not self.reported:
            return False
        first, second = self.reported.pop(0)
        if isinstance(first, int):
            self.model = self.model.settled(first, second)
        else:
            self.model, self.answers = self.model.followed(first), second
            self.followed += 1
        return True

    def check(self) -> None:
        if self.answers is not None:
            np.testing.assert_array_equal(self.model.score(self.probe.cat, self.probe.num), self.answers)


STEPS = st.lists(st.sampled_from(["version", "fold", "fold", "hear", "hear", "hear", "attach"]), max_size=40)


@examples(25)
@given(STEPS, st.integers(1, 60), st.sampled_from(["wide_resnet", "wide_deep"]))
def test_every_reader_answers_by_its_own_version(steps: list[str], rows: int, kind: str) -> None:
    """However far readers are behind, whenever they attach, and however folds are cut: bit for bit the learner's
    answers at that version. When all has come, all have the learner's state."""
    world = World({**SPEC, "model": kind})
    for step in [*["version", "hear"] * 2, *steps]:
        if step == "version":
            world.version()
        elif step == "fold":
            world.fold(rows)
        elif step == "attach" and len(world.readers) < 4:
            world.attach()
        elif step == "hear":
            for k, reader in enumerate(world.readers):
                if k <= world.turn % 3:  # not all at once
                    reader.hear()
        for reader in world.readers:
            reader.check()
    while sum(reader.hear() for reader in world.readers):
        pass
    while world.writer.pending():
        world.fold(40)
        for reader in world.readers:
            while reader.hear():
                reader.check()
    state = world.model.snapshot()[0]
    for reader in world.readers:
        reader.check()
        assert world.model.rows == world.writer.rows
        mine = reader.model.snapshot()
        assert Image({}, mine.tables).same_bits(Image({}, state.tables)) == ""


def test_a_version_stays_what_it_is() -> None:
    """Also the one that others were made from: a reader swaps a reference, and may keep the old one."""
    world = World(SPEC)
    world.version()
    world.version()
    reader = world.readers[0]
    kept: list[tuple[ServingModel, Image]] = []
    while reader.hear():
        kept.append((reader.model, reader.model.snapshot()))
    for model, image in kept:
        assert model.snapshot().same_bits(image) == ""
    assert kept[0][1].same_bits(kept[1][1]) != ""


@pytest.mark.parametrize("whole", [True, False])
def test_readers_take_over_slots_that_were_made_again(whole: bool) -> None:
    """By the whole base or by what of it is new, and what is folded afterwards is found there."""
    model = OnlineModel(SCHEMA, {**SPEC, "max_rows": 20_000}, 0)
    writer = ModelWriter.of(SCHEMA, model.spec, model.snapshot()[0])
    reader = ServingModel.attach(SCHEMA, model.spec, writer.base())
    probe = make_samples(400, 9, users=3000, items=3000)
    generation = 0
    for seed in range(6):
        model.learn(make_samples(900, seed, users=3000, items=3000))
        reader = reader.followed(writer.stage(model.changes()))
        while writer.fold(100):
            pass
        base = {name: a for name, a in writer.base().items() if whole or name.endswith("/slots")}
        reader = reader.settled(writer.folded, base if writer.generation > generation else None)
        generation = writer.generation
        np.testing.assert_array_equal(reader.score(probe.cat, probe.num), model.score(probe.cat, probe.num))
    assert generation > 1
    assert not any(table.overlays for table in reader.tables.values())


def test_a_delta_that_is_refused_is_not_staged() -> None:
    world = World(SPEC)
    world.version()
    before = world.writer.pending()
    change = world.model.changes()
    with pytest.raises(SnapshotError, match="is missing"):
        world.writer.stage(Image({"more": np.zeros(1, np.float32)}, change.tables))
    assert [id(a) for a in world.writer.pending()] == [id(a) for a in before]
    assert world.writer.fold(10**6) is False  # there was one, and it is in
    assert world.writer.folded == 1


def test_only_its_writer_patches_a_model() -> None:
    world = World(SPEC)
    with pytest.raises(TypeError, match="only reads"):
        world.readers[0].model.patch(world.model.changes())


def test_the_next_snapshot_goes_on_with_the_working_memory_of_its_like() -> None:
    world = World(SPEC)
    before = world.readers[0].model
    for seed in range(3):
        world.model.learn(make_samples(100, seed))
    writer = ModelWriter.of(SCHEMA, world.model.spec, world.model.snapshot()[0])
    after = ServingModel.attach(SCHEMA, world.model.spec, writer.base(), before)
    assert after.form is before.form
    expected = world.model.score(world.probe.cat, world.probe.num)
    np.testing.assert_array_equal(after.score(world.probe.cat, world.probe.num), expected)
    assert not np.array_equal(before.score(world.probe.cat, world.probe.num), expected)
    other = OnlineModel(SCHEMA, {**SPEC, "hidden": [8, 8]}, 0)
    writer = ModelWriter.of(SCHEMA, other.spec, other.snapshot()[0])
    assert ServingModel.attach(SCHEMA, other.spec, writer.base(), after).form is not after.form


def test_scoring_unknown_ids_and_other_versions_leaves_the_base_as_it_was() -> None:
    world = World(SPEC)
    world.version()
    reader = world.readers[0]
    before = {name: array.copy() for name, array in world.writer.base().items()}
    reader.hear()
    for seed in range(5):
        strange = make_samples(200, seed, users=10**6, items=10**6)
        reader.model.score(strange.cat, strange.num)
    assert all(np.array_equal(array, before[name]) for name, array in world.writer.base().items())


# -- the fast way in ---------------------------------------------------------------------------------------------------


def of_a_page(seed: int, rows: int, schema: Schema = SCHEMA) -> SampleBatch:
    """Rows whose page-wide features are those of the first."""
    wide, probe = page_wide(FeatureBuilder(schema)), make_samples(rows, seed, schema)
    probe.cat[:, wide.cat], probe.num[:, wide.num] = probe.cat[:1, wide.cat], probe.num[:1, wide.num]
    return probe


def filled(num: Floats) -> Callable[[NumberPlan, PageInput], None]:
    """Fills number columns by the plan, in plain numpy."""

    def fill(plan: NumberPlan, given: PageInput) -> None:
        v = np.where(np.isfinite(num), num, 0)[:, plan.columns]
        v = np.where(plan.log, np.copysign(np.log1p(np.abs(v)), v), v)
        v = ((v - plan.mean) * plan.factor).clip(-plan.bound, plan.bound)
        own = plan.place >= 0
        given.own[: len(num), plan.place[own]] = v[:, own]
        given.same[0, -1 - plan.place[~own]] = v[0, ~own]

    return fill


@pytest.mark.parametrize("spec", [{}, {"numerics": "norm"}, {"numerics": "none"}, {"model": "wide_deep"}])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("schema", [SCHEMA, ATTENDED, MEANT], ids=["plain", "attended", "meant"])
def test_a_page_scores_as_its_rows_do(spec: dict[str, Any], schema: Schema, arithmetic: Arithmetic) -> None:
    """Of which all columns are given, and none is known to be the same."""
    model = OnlineModel(schema, {"hidden": [16], **spec}, 0)
    for seed in range(4):
        model.learn(make_samples(100, seed, schema))
    serving = ServingModel.of(schema, model.spec, model.snapshot()[0], arithmetic=arithmetic)
    assert serving.arithmetic == arithmetic
    assert len(serving.form.columns.own) > 0
    assert len(serving.form.columns.same) > 0
    probe = of_a_page(9, 80, schema)
    probe.num[3, schema.layout.num_names.index("price")] = np.nan
    page = serving.score_page(probe.cat, filled(probe.num))
    exact = model.score(probe.cat, probe.num)
    rounding = exact.std() * (0.05 if arithmetic == "bfloat16" else 2e-4)
    np.testing.assert_allclose(serving.score(probe.cat, probe.num), exact, rtol=0, atol=rounding)
    np.testing.assert_allclose(page, exact, rtol=0, atol=rounding)


@pytest.mark.parametrize("model", ["wide_resnet", "wide_resnet_bn", "wide_deep"])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
@pytest.mark.parametrize("schema", [SCHEMA, ATTENDED], ids=["plain", "attended"])
def test_a_page_has_the_outcomes_of_its_rows(model: str, schema: Schema, arithmetic: Arithmetic) -> None:
    """Each by tables, network and scaling of its own, and by what the click's network says; the click as without."""
    buy = OutcomeRule("buy", on="click", event="purchase", within="30d")
    schema = msgspec.structs.replace(schema, outcome=(OutcomeRule("like", column="like"), buy))
    learner = OnlineModel(schema, {"model": model, "hidden": [16]}, 0)
    for seed in range(20):
        batch = make_samples(100, seed, schema)
        liked, bought = batch.item % np.uint64(3) > 0, np.where(batch.label > 0, batch.user % np.uint64(2) > 0, np.nan)
        learner.learn(replace(batch, outcomes=np.stack([liked, bought], axis=1).astype(np.float32)))
    assert all(abs(head.lift.item()) > 1e-3 for head in learner.network.heads.values())
    serving = ServingModel.of(schema, learner.spec, learner.snapshot()[0], arithmetic=arithmetic)
    probe = of_a_page(9, 80, schema)
    page, exact = serving.score_page(probe.cat, filled(probe.num), outcomes=True), learner.predict(probe.cat, probe.num)
    assert page.shape == (80, 3)
    assert page[:, 0].tobytes() == serving.score_page(probe.cat, filled(probe.num)).tobytes()
    rounding = exact.std(axis=0) * (0.05 if arithmetic == "bfloat16" else 2e-4)
    assert (np.abs(page - exact) <= rounding).all()
    apart = np.abs(page[:, :, None] - exact[:, None, :]).max(axis=0)
    assert (apart + np.eye(3) > 10 * rounding).all(), "each is told from the others"


@pytest.mark.parametrize("spec", [{"model": "deepfm"}, {"model": "wide_resnet_bn", "norm": "layer"}])
def test_a_network_that_is_not_written_out_has_no_plan(spec: dict[str, Any]) -> None:
    model = OnlineModel(SCHEMA, spec, 0)
    model.learn(make_samples(100, 0))
    serving = ServingModel.of(SCHEMA, model.spec, model.snapshot()[0], arithmetic="bfloat16")
    assert serving.numbers is None
    probe = make_samples(50, 9)
    np.testing.assert_array_equal(serving.score(probe.cat, probe.num), model.score(probe.cat, probe.num))


# -- bfloat16 ----------------------------------------------------------------------------------------------------------


def test_rounding_is_torchs() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 4000, dtype=np.uint32)
    ties = (rng.integers(0, 2**16, 4000, dtype=np.uint32) << np.uint32(16)) | np.uint32(0x8000)
    x = np.concatenate([bits, ties]).view(np.float32).reshape(80, 100)
    x[0, :4] = 0.0, -0.0, np.inf, -np.inf
    out = np.full((80, 104), 7, np.uint16)
    bfloat16.rounded(x, out)
    theirs = torch.from_numpy(x).to(torch.bfloat16)
    mine = bfloat16.as_tensor(out)[:, :100]
    assert torch.equal(mine.isnan(), theirs.isnan())
    assert torch.equal(mine.nan_to_num(0.0).view(torch.int16), theirs.nan_to_num(0.0).view(torch.int16))
    assert not out[:, 100:].any()


COLUMNS = PageColumns.of(np.arange(WIDTH) % 3 == 1)


def page_of(x: Floats) -> PageInput:
    own = np.full((rows_of(len(x)), len(COLUMNS.own)), np.nan, np.float32)
    own[: len(x)] = x[:, COLUMNS.own]
    return PageInput(own, x[:1, COLUMNS.same], len(x))


def forward(net: Network, arithmetic: Arithmetic) -> PageForward:
    found = forward_of(net, COLUMNS, prepared(net, COLUMNS, arithmetic))
    assert found is not None
    return found


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_pages_pass_is_that_of_the_network(name: str, arithmetic: Arithmetic) -> None:
    """Of every placement and norm, against the same network as it learns; what differs in bfloat16 is what eight bits
    leave out."""
    net = network(SPECS[name]).eval()
    assert has_forward(net) == (name != "wide_deep-none")
    if not has_forward(net):
        return
    x = np.random.default_rng(1).standard_normal((333, WIDTH), np.float32)
    x[:, COLUMNS.same] = x[:1, COLUMNS.same]
    before = x.copy()
    written = written_pass(net)
    assert written is not None
    exact = written.infer(torch.from_numpy(x), Workspace())
    made = forward(net, arithmetic)
    most = np.abs(exact).mean() * (0.05 if arithmetic == "bfloat16" else 1e-5)
    for mine in (made.page(page_of(x), Workspace()), made.infer(torch.from_numpy(x), Workspace())):
        assert np.abs(mine - exact).max() < most
    np.testing.assert_array_equal(x, before)
    x = np.random.default_rng(2).standard_normal((70, WIDTH), np.float32)  # nothing is the same in all
    rows = made.infer(torch.from_numpy(x), Workspace())
    assert np.abs(rows - written.infer(torch.from_numpy(x), Workspace())).max() < most


@pytest.mark.parametrize("kind", ["wide_resnet", "wide_deep"])
@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_row_scores_the_same_among_any_others(kind: str, arithmetic: Arithmetic) -> None:
    """Products are widened to sizes that are known: what lies in the rows beyond is of no account, not even NaN."""
    made, room = forward(network({"model": kind, "hidden": [24]}).eval(), arithmetic), Workspace()
    x = np.random.default_rng(1).standard_normal((300, WIDTH), np.float32)
    made.page(page_of(np.full((400, WIDTH), np.nan, np.float32)), room)
    whole = made.page(page_of(x), room)
    for n in (1, 31, 33, 64, 65, 200):
        np.testing.assert_allclose(made.page(page_of(x[:n]), room), whole[:n], rtol=1e-5, atol=1e-6)
    assert [rows_of(n) for n in (1, 32, 33, 64, 65, 1000)] == [32, 32, 64, 64, 128, 1024]


def test_warming_scores_every_size_and_changes_nothing() -> None:
    model = OnlineModel(SCHEMA, {**SPEC, "max_rows": 5000}, 0)
    model.learn(make_samples(100, 0))
    for arithmetic in ARITHMETICS:
        serving = ServingModel.of(SCHEMA, model.spec, model.snapshot()[0], arithmetic=arithmetic)
        before = serving.snapshot()
        serving.warm(200)
        assert serving.snapshot().same_bits(before) == ""


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_nan_comes_through(arithmetic: Arithmetic) -> None:
    x = np.zeros((20, WIDTH), np.float32)
    x[3, COLUMNS.own[2]] = np.nan
    logits = forward(network(SPECS["wide_resnet"]).eval(), arithmetic).page(page_of(x), Workspace())
    assert np.isnan(logits[3])
    assert np.isfinite(np.delete(logits, 3)).all()


def test_a_scorer_in_bfloat16_answers_as_the_learner_does() -> None:
    """Version after version; its base has what readers need, so they follow the writer's choice."""
    model = OnlineModel(SCHEMA, {"model": "wide_resnet_bn", "norm": "renorm"}, 0)
    writer = ModelWriter.of(SCHEMA, model.spec, model.snapshot()[0], choose=lambda _: "bfloat16")
    serving = ServingModel.attach(SCHEMA, model.spec, writer.base())
    probe = make_samples(300, 99)
    for seed in range(12):
        model.learn(make_samples(64, seed))
        serving = serving.followed(writer.stage(model.changes()))
        mine, exact = serving.score(probe.cat, probe.num), model.score(probe.cat, probe.num)
        assert np.abs(mine - exact).max() < 0.01
        assert mine.tobytes() != exact.tobytes()


def test_memory_of_a_version_comes_from_the_allocator() -> None:
    """What is large is made where readers in other processes see it; and matrices begin at a cache line."""
    given: list[NDArray[Any]] = []

    def allocate(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        given.append(np.zeros(shape, dtype))
        return given[-1]

    model = OnlineModel(SCHEMA, {**SPEC, "max_rows": 5000}, 0)
    model.learn(make_samples(300, 0, users=300, items=300))
    image = model.snapshot()[0]
    writer = ModelWriter.of(SCHEMA, model.spec, image, {"w4": 4000}, allocate, lambda _: "bfloat16")
    model.learn(make_samples(300, 1, users=900, items=900))
    overlay = writer.stage(model.changes())

    def foreign(arrays: Arrays) -> list[str]:
        large = {name: a for name, a in arrays.items() if a.nbytes > 4096}
        return [name for name, a in large.items() if not any(np.shares_memory(a, g) for g in given)]

    assert foreign(writer.base()) == foreign(overlay) == []
    assert overlay["page/matrices/bfloat16"].ctypes.data % 64 == 0


# -- pages under changing versions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_no_page_is_torn(arithmetic: Arithmetic) -> None:
    found = torn_pages(1500, arithmetic)
    assert found["torn"] == 0
    assert found["versions"] >= 20


def test_pages_are_torn_where_a_writer_does_not_wait() -> None:
    """So the count can be other than 0."""
    assert torn_pages(300, patient=False)["torn"] > 0


def chosen(arithmetic: Arithmetic, _: ModelWriter) -> Arithmetic:
    return arithmetic


def compiled() -> dict[str, int]:
    found = {}
    for module in (attention, elementwise, bfloat16, overlaykernels):
        for name, kernel in vars(module).items():
            if hasattr(kernel, "signatures"):
                found[f"{module.__name__}.{name}"] = len(kernel.signatures)
    return found


@pytest.mark.parametrize("schema", [SCHEMA, ATTENDED], ids=["plain", "attended"])
def test_after_a_warm_up_serving_compiles_nothing_more(schema: Schema) -> None:
    warm_serving(schema)
    before = compiled()
    assert sum(before.values())
    for kind, arithmetic in product(("wide_resnet", "wide_deep"), ARITHMETICS):
        model = OnlineModel(schema, {"model": kind}, 0)
        model.learn(make_samples(64, 0, schema))
        image = Image.of_tensors(model.changes().tensors())
        writer = ModelWriter.of(schema, model.spec, image, choose=partial(chosen, arithmetic))
        reader = ServingModel.attach(schema, model.spec, writer.base())
        for seed in range(1, 5):
            model.learn(make_samples(900, seed, schema, users=3000, items=3000))
            change = Image.of_tensors(model.changes().tensors())
            for rows in change.tables.values():
                rows.removed = np.array([5, 6])
            reader = reader.followed(writer.stage(change))
            batch = make_samples(70, 9, schema)
            reader.score(batch.cat, batch.num)
            reader.score_page(batch.cat, filled(batch.num))
            while writer.fold(50):
                pass
            reader = reader.settled(writer.folded, writer.base())
        assert writer.generation > 0
        reader.snapshot()
    assert compiled() == before


# -- exactness ---------------------------------------------------------------------------------------------------------


class Twin:
    """A learner, and beside it, from its exposure ``first`` on, the same model as scorers have it that compute in other
    arithmetics. What it answers is the learner's; ``served`` keeps the scorers' answers, of the same exposures in their
    order."""

    def __init__(self, model: OnlineModel, first: int) -> None:
        self.model, self._left = model, first
        self.scorers: dict[Arithmetic, ServingModel] = {}
        self.served: dict[Arithmetic, list[NDArray[np.float32]]] = {"float32_onednn": [], "bfloat16": []}

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        exact = self.model.score(cat, num)
        early, self._left = min(self._left, len(cat)), max(0, self._left - len(cat))
        if early < len(cat):
            if not self.scorers:
                self.model.changes()  # what the snapshot has
                image, spec = self.model.snapshot()[0], self.model.spec
                self.scorers = {a: ServingModel.of(self.model.schema, spec, image, arithmetic=a) for a in self.served}
            for arithmetic, scorer in self.scorers.items():
                self.served[arithmetic].append(scorer.score(cat, num)[early:])
        return exact

    def learn(self, batch: SampleBatch) -> object:
        report = self.model.learn(batch)
        if self.scorers:
            change = self.model.changes()
            for scorer in self.scorers.values():
                scorer.patch(change)
        return report


@pytest.mark.log
@pytest.mark.slow
def test_no_arithmetic_costs_auc_on_kuairand() -> None:
    """The AUC of the log's last two days, scored by scorers in each arithmetic and by the learner."""
    folder = os.environ.get("MILLRACE_TEST_LOG")
    if not folder:
        pytest.skip("MILLRACE_TEST_LOG names no folder with the KuaiRand log")
    schema = load_schema(ROOT / "examples/kuairand/schema.toml")
    with threads(1):
        exposures = read_log(Path(folder) / "log_2022-04-24_to_04-30.parquet", schema)
        days = np.array(local_days(exposures, schema))
        first = int(np.searchsorted(days, np.unique(days)[-2]))  # a log is in order of time
        twin = Twin(OnlineModel(schema, {}, 0), first)
        exact = run_log(exposures, schema, twin, BATCH_ROWS, lambda _: None, None, LabelSettings.of(Settings()))
    y = exposures.table[exposures.label].to_numpy()
    for arithmetic, scores in twin.served.items():
        gap = auc(np.concatenate(scores), y[first:]) - auc(exact[first:], y[first:])
        print(f"{arithmetic}: AUC {auc(exact[first:], y[first:]):.6f} {gap:+.6f}")
        assert abs(gap) <= 0.0003, arithmetic
