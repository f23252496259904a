"""A model of one's own in the live path: the role `learn` with a broker, and a scorer's feed, workers and pages."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from learner.custom.own import OwnModel
from learner.custom.ownclass import OwnClass
from learner.custom.ownserving import OwnServing
from learner.role.learner import Learner
from learner.role.model_factory import model_of, writer_of
from learner.role.service import run
from learner.training.learner_versions import Progress, Versions, write_root
from learner.training.writer import SnapshotWriter
from millrace.basics.errors import SettingError, SnapshotError
from millrace.contracts.settings import Settings
from millrace.processes.deltas import read_deltas
from millrace.versions.modellog import Delta
from millrace.versions.modelstore import ModelStore
from millrace.versions.packing import unpack
from millrace.versions.proof import prove
from scorer.feeder import scorer_main
from scorer.feeder.modelfeed import ModelFeed
from scorer.worker.page_app import make_app
from tests.learner.own_models import Moody
from tests.scenes import learner_role as roles
from tests.scenes.feed_scene import Scene, feed
from tests.scenes.learner_role import Role, end_of_topic, entries, send, trained
from tests.scenes.learning import SCHEMA, make_samples
from tests.scenes.scorer_shop import ITEMS, LAYOUT, arrays, call
from tests.scenes.scorer_shop import SCHEMA as SHOP
from tests.scenes.slow_sender import Slow
from tests.scenes.waiting import LONG, until

broker, settings = roles.broker, roles.settings
HASHED, MOODY = "tests.learner.own_models:Hashed", "tests.learner.own_models:Moody"


# -- the role `learn` -------------------------------------------------------------------------------------------------


@pytest.mark.services
@pytest.mark.timeout(LONG)
def test_life_of_a_learner_with_a_model_of_its_own(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start, learn, publish, stop; a follower of the topic holds what the last snapshot says; start again, go on."""
    monkeypatch.setattr(SnapshotWriter, "tidy", lambda self, epoch: None)
    settings = msgspec.structs.replace(settings, model=HASHED, model_spec={"bits": 10})
    past = end_of_topic(settings)
    store = ModelStore(settings.place("models"), writes=False)
    role = Role(settings)
    until(lambda: trained(settings) == 0, "an untrained model serves at once")
    send(settings, [make_samples(100, 0), make_samples(100, 1)], [make_samples(100, 2)])
    until(lambda: trained(settings) == 300, "all of it was learnt")
    role.end()
    found = entries(settings, past)
    notes = [entry.note for entry in found]
    reported = {"model": HASHED, "settled_minutes": settings.attribution_minutes, "bits": 10}
    assert notes[0].spec == reported | OwnClass.of(SCHEMA, reported).source
    assert {note.retrieval_clicks for note in notes} == {-1}
    proofs = prove(store, read_deltas(settings))
    assert sum(p.deltas for p in proofs.proofs) == notes[-1].version - notes[0].version >= 1
    assert not proofs.unproved
    writer = writer_of(SCHEMA, notes[0].spec, store.read_parts(notes[0]), named=HASHED)
    for entry in found:
        if isinstance(entry, Delta):
            image = unpack(entry.body, writer.dense())
            assert set(image.dense) == {"weights", "intercept"}, "each delta has all that scorers score with"
            writer.stage(image)
    newest = store.latest()
    assert newest is not None
    assert {n: a.tobytes() for n, a in writer.dense().items()} == {
        n: a.tobytes() for n, a in store.read(newest).dense.items()
    }

    send(settings, [make_samples(100, 1), make_samples(100, 3)])
    role = Role(settings)
    until(lambda: trained(settings) == 400, "what was new was learnt, and what was known was not")
    role.end()
    last = store.latest()
    assert last is not None
    (own,) = [a["own/steps"] for a in store.read_training(last)]
    before = next(a["own/steps"] for a in store.read_training(newest))
    assert own[0] > before[0] > 0, "it went on from what the snapshot kept"

    for other in ({"model": "wide_deep", "model_spec": {}}, {"model": MOODY}):
        with pytest.raises(SnapshotError, match=f"'{HASHED}', the learner is set to '{other['model']}'"):
            run(msgspec.structs.replace(settings, **other), threading.Event())
        with pytest.raises(SnapshotError, match="one of them is a model of one's own"):
            run(msgspec.structs.replace(settings, evolve=True, **other), threading.Event())
    with pytest.raises(SnapshotError, match="1024 weights, not 512"):
        run(msgspec.structs.replace(settings, model_spec={"bits": 9}), threading.Event())


@pytest.mark.services
@pytest.mark.timeout(LONG)
def test_a_learner_whose_model_fails_goes_on_and_counts(settings: Settings) -> None:
    """Each batch is refused, and yet versions, snapshots and the end of the role are as ever."""
    settings = msgspec.structs.replace(settings, model=MOODY)
    role = Role(settings)
    until(lambda: trained(settings) == 0, "an untrained model serves at once")
    Moody.fails = {"score", "snapshot"}
    try:
        with capture_logs() as lines:
            send(settings, [make_samples(100, 50)])
            until(lambda: any(line["event"] == "batch refused, weights untouched" for line in lines), "it is refused")
    finally:
        Moody.fails = set()
    send(settings, [make_samples(100, 51)])  # the topic may have samples of other tests too, which are not these
    until(lambda: trained(settings) >= 100, "it learns again")
    role.end()


def test_a_bad_class_ends_a_role_at_its_start(tmp_path: Path) -> None:
    for name, why in (("tests.learner.own_models:Column", "shape"), ("tests.nowhere:Model", "PYTHONPATH")):
        with pytest.raises(SettingError, match=why):
            Learner(Settings(data=str(tmp_path), model=name), SCHEMA)
    with pytest.raises(SettingError, match="PYTHONPATH"):
        scorer_main.run(Settings(model="tests.nowhere:Model"), threading.Event())


# -- a scorer ---------------------------------------------------------------------------------------------------------


class OwnScene(Scene):
    """A scorer whose setting names ``named``, and a learner whose model is ``model``."""

    def __init__(self, folder: Path, model: str = HASHED, named: str = HASHED) -> None:
        self._named = named
        super().__init__(folder)
        self.learner.model = cast(Any, model_of(SHOP, {"model": model}, 0))

    def start(self) -> None:
        self.settings = msgspec.structs.replace(self.settings, model=self._named)
        super().start()

    @property
    def served(self) -> OwnServing:
        found: Any = self.scorer.serving.model
        assert isinstance(found, OwnServing)
        return found

    def same(self) -> bool:
        return self.served.snapshot().same_bits(self.learner.model.snapshot()[0]) == ""


def test_a_scorer_follows_snapshots_and_deltas(tmp_path: Path) -> None:
    scene = OwnScene(tmp_path)
    scene.learner.snapshot()
    for _ in range(3):
        scene.learner.delta()
    assert scene.read() == 3
    assert scene.same()
    scene.learner.delta()
    assert scene.read() == 4
    scene.scorer.fold()
    assert scene.same()
    assert (scene.scorer.host.unfolded, scene.meters.loads, scene.meters.errors) == (0, 1, {})
    late = Slow(scene.scorer)  # a worker that joins now
    late.replica._attach = lambda reported: late.replica.attached(reported, _attached(reported, scene))
    late.take()
    assert late.serving.note is not None
    assert late.serving.note.version == 4
    assert scene.scorer.serving.retrieval is None, "recall goes without vectors"
    scene.start()  # another scorer
    assert scene.read() == 4
    assert scene.same()


def _attached(reported: Any, scene: OwnScene) -> Any:
    from scorer.worker.replica import attach

    return attach(SHOP, reported, 4, named=scene.settings.model)


def test_a_gap_is_mended_by_the_next_snapshot(tmp_path: Path) -> None:
    scene = OwnScene(tmp_path)
    scene.learner.snapshot()
    scene.learner.delta()
    assert scene.read() == 1
    scene.learner.delta(lost=True)
    scene.learner.delta()
    assert scene.read() == 1
    scene.learner.snapshot()
    scene.now += 100
    assert scene.read() == 3
    assert scene.same()


def test_pages_are_ranked_logged_and_explained_by_it(tmp_path: Path) -> None:
    scene = OwnScene(tmp_path)
    scene.learner.snapshot()
    scene.learner.delta()
    scene.read()
    scene.scorer.stock(ITEMS)
    scene.scorer.primary.to_read.clear()
    scene.scorer.publisher.status()
    app = make_app(scene.scorer.serving, scene.meters, cast(Any, None))
    body = {"user_id": "u", "size": 5, "explain": True}
    status, answer = asyncio.run(call(app, "POST", "/recommend", body))
    assert status == 200
    assert answer["model_version"] == 1
    features, scores = arrays(scene.sent[0])
    shown = [placed["score"] for placed in answer["items"]]
    assert shown == sorted(shown, reverse=True)
    np.testing.assert_allclose(shown, scores, rtol=1e-6)
    position = LAYOUT.cat_names.index("position")
    ranked = features.cat.copy()
    ranked[:, position] = 0  # not known while a page is ranked
    np.testing.assert_array_equal(scene.learner.model.score(ranked, features.num), scores)
    assert any(placed["reasons"] for placed in answer["items"]), "occlusion asks for scores alone"


def test_a_page_is_made_though_the_model_cannot_score(tmp_path: Path) -> None:
    scene = OwnScene(tmp_path, MOODY, MOODY)
    scene.learner.snapshot()
    scene.read()
    scene.scorer.stock(ITEMS)
    scene.scorer.primary.to_read.clear()
    scene.scorer.publisher.status()
    app = make_app(scene.scorer.serving, scene.meters, cast(Any, None))
    Moody.fails = {"score"}
    try:
        status, answer = asyncio.run(call(app, "POST", "/recommend", {"user_id": "u", "size": 5}))
    finally:
        Moody.fails = set()
    assert (status, len(answer["items"])) == (200, 5)
    assert {placed["score"] for placed in answer["items"]} == {0.0}
    assert scene.meters.errors == {"scores": 1}


def test_a_version_of_a_class_that_the_scorers_own_setting_does_not_name_is_refused(tmp_path: Path) -> None:
    """By name, once, without an import."""
    for named in ("wide_resnet", MOODY):
        scene = OwnScene(tmp_path / named.replace(":", "-"), HASHED, named)
        scene.learner.model.name = "no_module_of_that_name:Model"  # type: ignore[attr-defined]
        scene.learner.snapshot()
        with capture_logs() as lines:
            assert scene.read() is None
            scene.now += 100
            scene.read()
        reported = [line["error"] for line in lines if line["event"] == "a snapshot cannot be used"]
        assert len(reported) == 1
        assert "'no_module_of_that_name:Model'" in reported[0]
        assert f"MILLRACE_MODEL names '{named}'" in reported[0]
        assert scene.meters.errors == {"snapshot": 1}
        assert scene.scorer.serving.model is None
    assert "no_module_of_that_name" not in sys.modules


def test_registered_versions_need_no_setting_as_ever(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.settings = msgspec.structs.replace(scene.settings, model=HASHED)
    scene.start()
    scene.learner.snapshot()
    assert scene.read() == 0


def test_a_delta_that_the_class_does_not_take_is_refused_before_any_worker_has_it(tmp_path: Path) -> None:
    scene = OwnScene(tmp_path, MOODY, MOODY)
    scene.learner.snapshot()
    scene.learner.delta()
    assert scene.read() == 1
    before = scene.served
    scene.learner.delta()
    Moody.fails = {"resume"}
    try:
        assert scene.read() == 1
    finally:
        Moody.fails = set()
    assert scene.served is before
    assert scene.meters.errors["delta"] == 1
    scene.learner.snapshot()
    scene.now += 100
    assert scene.read() == 2
    assert scene.same()


def test_a_learner_written_root_is_what_a_scorer_loads(tmp_path: Path) -> None:
    """As the role writes it: the class's training arrays lie in the store, and do not reach the scorer."""
    data = Settings(data=str(tmp_path), model=HASHED)
    model = OwnModel(SHOP, {"model": HASHED}, 0, live=True)
    store = ModelStore(data.place("models"))
    note = write_root(store, Versions(model), Progress(), {}, 1_800_000_000_000)
    (training,) = store.read_training(note)
    assert "own/steps" in training
    reader, scorer, meters, _ = feed(ModelFeed, tmp_path, settings=data)
    reader.look()
    assert (scorer.note and scorer.note.version, meters.errors) == (0, {})
    served: Any = scorer.serving.model
    assert served.snapshot().same_bits(model.snapshot()[0]) == ""
