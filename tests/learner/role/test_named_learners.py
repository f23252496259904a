"""A learner with a name: the same samples and held-out rows, figures beside the first's; taken over spec and all."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from structlog.testing import capture_logs

from learner.evaluation.versus import versus
from learner.ranker.interfaces import Learning
from learner.role import learnloop, service
from learner.role.comparison import newest_of
from learner.role.learner import Learner
from learner.role.learnloop import LearnPace
from learner.role.model_factory import model_of, wanted_spec
from learner.training.learner_versions import Progress, Versions, adopted, asked, newest_valid, write_root
from millrace.basics.errors import FencedError, SettingError, SnapshotError
from millrace.commands.cli import climodel
from millrace.commands.up.uprun import UpOptions
from millrace.contracts.samples import SampleBatch
from millrace.contracts.settings import Settings, load_settings
from millrace.contracts.topics import MODEL_DELTAS, SAMPLES, TOPICS
from millrace.evidence.learners import NamedLearner
from millrace.processes.kafka import create_topics, topics_of, wait_for_broker
from millrace.processes.services import EmbeddedBroker
from millrace.processes.supervisor import Patience, Supervisor
from millrace.versions.modelstore import Announcement, Array, Image, ModelStore
from tests.scenes import learner_role
from tests.scenes.learner_role import Role, send
from tests.scenes.learning import SCHEMA, START_MS, make_samples
from tests.scenes.waiting import LONG, until

MS = 1_800_000_000_000
LOGISTIC = {"b": NamedLearner("logistic")}

short_stretches = learner_role.short_stretches


# -- figures -----------------------------------------------------------------------------------------------------------


def test_the_better_model_is_told_and_the_same_one_is_not() -> None:
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(400), 10)
    chance = 1 / (1 + np.exp(1.0 - rng.normal(0, 1, 4000)))
    y = (rng.random(4000) < chance).astype(np.float32)
    found = versus(chance, np.full(4000, y.mean()), y, user)
    assert (found.rows, found.users, found.clicks) == (4000, 400, int(y.sum()))
    assert found.gaps["auc"].is_significant
    assert found.gaps["auc"].value == pytest.approx(found.own["auc"] - 0.5)
    assert found.gaps["log_loss"].is_significant
    assert found.gaps["log_loss"].value < 0
    same = versus(chance, chance, y, user)
    assert not same.gaps["auc"].is_significant
    assert same.line()["auc"] == same.line()["first_auc"]


def test_a_prediction_that_is_no_number_is_wrong_and_not_left_out() -> None:
    y, user = np.arange(200) % 2, np.arange(200) // 4
    good = np.where(y > 0, 0.9, 0.1)
    spoilt = np.where(np.arange(200) < 100, np.nan, good)
    found = versus(spoilt, good, y, user)
    assert found.own["auc"] == pytest.approx(0.25)  # a pair is in order where both are numbers
    assert found.rows == 200


def test_where_there_is_no_figure_json_has_null() -> None:
    line = versus(np.full(3, 0.5), np.full(3, 0.4), np.zeros(3), np.arange(3)).line()
    assert line["auc"] is None
    assert line["auc_half"] is None
    assert json.loads(json.dumps(line, allow_nan=False))["rows"] == 3


# -- taking over -------------------------------------------------------------------------------------------------------


def build(note: Announcement, parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Learning:
    model = model_of(SCHEMA, note.spec, 0)
    model.resume(parts)
    return model


def written(place: str, spec: dict[str, Any], **extra: Any) -> Learning:
    """A model that has learnt something, and is the newest snapshot of a store."""
    store = ModelStore(place)
    model = model_of(SCHEMA, spec, 0)
    model.learn(make_samples(200, 0))
    versions = Versions(model, 1, "some", store.highest().number)
    write_root(store, versions, Progress(200, 7, "", {"counts": {"trained": 200}, **extra}), {}, MS)
    return model


def test_a_restart_with_unchanged_settings_goes_on_with_an_adopted_model(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path), model="wide_deep", learners=LOGISTIC)
    wanted = wanted_spec(settings, SCHEMA)
    shadow = written(settings.of_learner("b").place("models"), wanted_spec(settings.of_learner("b"), SCHEMA))
    found = newest_of("b", settings, SCHEMA)
    assert found.model.snapshot()[0].same_bits(shadow.snapshot()[0]) == ""
    assert found.note.offset == 7

    note = adopted("b", found.note, wanted)
    written(settings.place("models"), found.model.spec, adopted=note)
    store = ModelStore(settings.place("models"))
    again = newest_valid(store, SCHEMA.id, wanted, build)
    assert again is not None
    assert again.model.spec["model"] == "logistic"
    assert asked(again.note, wanted) == {}

    # Settings that were changed since hold: here the model that was named before is no longer what is asked for.
    changed = wanted_spec(msgspec.structs.replace(settings, model="deepfm"), SCHEMA)
    assert asked(again.note, changed) == changed
    with pytest.raises(SnapshotError, match="'logistic', the learner is set to 'deepfm'"):
        newest_valid(store, SCHEMA.id, changed, build)


def test_without_a_note_of_it_another_model_is_refused(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path), model="wide_deep")
    written(settings.place("models"), {"model": "logistic"})
    with pytest.raises(SnapshotError, match="MILLRACE_MODEL"):
        newest_valid(ModelStore(settings.place("models")), SCHEMA.id, wanted_spec(settings, SCHEMA), build)


def test_what_cannot_be_taken_over_is_said_in_a_line(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path), learners=LOGISTIC)
    with pytest.raises(SnapshotError, match="no model of 'b' to adopt"):
        newest_of("b", settings, SCHEMA)
    written(settings.of_learner("b").place("models"), {"model": "logistic"})
    other = msgspec.structs.replace(SCHEMA, name="other", fields=SCHEMA.fields[:-1])
    with pytest.raises(SnapshotError, match="this one's is"):
        newest_of("b", settings, other)


def test_a_class_is_never_imported_because_a_snapshot_names_it(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path), model="wide_deep", learners=LOGISTIC)
    own = "tests.learner.own_models:Rates"
    model = model_of(SCHEMA, {"model": "logistic"}, 0)
    versions = Versions(model, 1, "some", -1)
    store = ModelStore(settings.of_learner("b").place("models"))
    note = write_root(store, versions, Progress(), {}, MS)
    name = f"snapshot-{note.epoch:08d}-{note.version:016d}.manifest"
    store.store.put(name, msgspec.structs.replace(note, spec={"model": own}))
    before = set(sys.modules)
    with pytest.raises(SnapshotError, match="nothing is imported"):
        newest_of("b", settings, SCHEMA)
    assert not {m for m in set(sys.modules) - before if "own_models" in m}
    # Nor does a note that it was adopted make it so.
    wanted = wanted_spec(settings, SCHEMA)
    forged = msgspec.structs.replace(note, spec={"model": own}, extra={"adopted": adopted("b", note, wanted)})
    assert asked(forged, wanted) == wanted


def test_a_learner_has_a_topic_and_places_of_its_own() -> None:
    settings = Settings(data="/some", learners={"b": NamedLearner("deepfm", {"ftrl_l1": 0.5})}, prefix="shop.")
    own = settings.of_learner("b")
    assert (own.spec(), own.topic(MODEL_DELTAS)) == ({"model": "deepfm", "ftrl_l1": 0.5}, "shop.model.deltas.b")
    assert own.topic(SAMPLES) == settings.topic(SAMPLES)
    far = msgspec.structs.replace(settings, store="s3://shop/state/").of_learner("b")
    assert far.place("models") == "s3://shop/state/learners/b/models"
    assert far.place("schemas") == "s3://shop/state/schemas"
    assert set(topics_of(settings)) == {settings.topic(t.name) for t in TOPICS} | {"shop.model.deltas.b"}
    with pytest.raises(SettingError, match=r"no learner 'c'.*learners are b"):
        settings.of_learner("c")


@pytest.mark.parametrize("name", ["", "a.b", "../b", "ü", "a b", "x" * 41, "newest", "repair"])
def test_a_name_that_no_learner_can_have_is_refused(name: str) -> None:
    given = {"MILLRACE_LEARNERS": json.dumps({name: {"model": "logistic"}})}
    with pytest.raises(SettingError, match="MILLRACE_LEARNERS: a learner is named"):
        load_settings({}, given)


def test_two_learners_of_one_name_are_refused_and_a_learner_has_a_model() -> None:
    for text, why in (
        ('{"b": {"model": "deepfm"}, "b": {"model": "logistic"}}', "names 'b' twice"),
        ('{"b": {}}', "model"),
        ('{"b": {"model": "deepfm", "shape": 1}}', "shape"),
    ):
        with pytest.raises(SettingError, match=why):
            load_settings({}, {"MILLRACE_LEARNERS": text})


# -- beside the loop ---------------------------------------------------------------------------------------------------


def test_a_shadow_that_cannot_live_ends_nobody_else(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, Patience(2, 1e9, 0.0, 0.0), said.append)
    supervisor.start("b", {}, [sys.executable, "-c", "raise SystemExit('it has no model')"], needed=False)

    def given_up() -> bool:
        supervisor.poll()
        return supervisor.roles["b"].state == "gave up"

    with capture_logs():
        until(given_up, "it is given up")
    assert "it has no model" in said[-1]
    assert "go on without it" in said[-1]
    supervisor.poll()
    assert supervisor.roles["b"].state == "gave up"


def test_up_starts_every_learner() -> None:
    assert UpOptions().roles(Settings()) == ("stream", "learn", "serve", "intake", "archive")
    named = ("stream", "learn", "serve", "intake", "learn-b")
    assert UpOptions(archive=False).roles(Settings(learners=LOGISTIC)) == named


# -- what it goes on from ----------------------------------------------------------------------------------------------


def learner(settings: Settings, model: str, **spec: Any) -> Learner:
    own = msgspec.structs.replace(settings, learners={"b": NamedLearner(model, spec)}, learner="b")
    return Learner(own, SCHEMA)


def test_a_model_of_the_same_shape_begins_as_the_first_and_another_with_the_oldest_sample(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path), model="wide_deep")
    first = written(settings.place("models"), wanted_spec(settings, SCHEMA))
    like = learner(settings, "wide_deep", dense_rate=0.01)
    assert like.trainer.model.snapshot()[0].same_bits(first.snapshot()[0]) == ""
    assert like.trainer.model.spec["dense_rate"] == 0.01
    assert (like.samples.offset, like.trainer.counts["trained"]) == (7, 200)
    other = learner(settings, "logistic")
    assert (other.samples.offset, other.trainer.counts["trained"]) == (None, 0)
    # What share of pages was held out before is not known: these are not compared on.
    assert other.compares_from_ms == first.newest_ms > like.compares_from_ms == 0


def test_it_goes_on_from_its_own_snapshot_and_refuses_one_of_another_shape(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path), model="wide_deep", learners=LOGISTIC)
    own = settings.of_learner("b")
    written(own.place("models"), wanted_spec(own, SCHEMA), from_ms=7)
    again = learner(settings, "logistic")
    assert (again.trainer.counts["trained"], again.compares_from_ms) == (200, 7)
    with pytest.raises(SnapshotError, match=r"learners/b/models.*'logistic'.*'deepfm'"):
        learner(settings, "deepfm")


# -- the role ----------------------------------------------------------------------------------------------------------


def minutes(first: int, last: int) -> list[SampleBatch]:
    """A message for each ten minutes of event time."""
    return [make_samples(300, i, start_ms=START_MS + i * 600_000) for i in range(first, last)]


def lines(settings: Settings) -> list[dict[str, Any]]:
    path = Path(settings.data, "learners", "b", "learner", "compared.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def newest(place: str) -> Announcement | None:
    return ModelStore(place, writes=False).latest()


def has_learnt(place: str, rows: int) -> bool:
    note = newest(place)
    return note is not None and sum(note.extra["counts"].get(name, 0) for name in ("trained", "held_out")) >= rows


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(LONG)
@pytest.mark.usefixtures("short_stretches")
def test_life_of_a_learner_beside_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It learns what the first learns, on rows that neither learns it is compared; it goes on after a restart; a
    command makes it the model that serves, and stays so after one."""
    monkeypatch.setattr(Settings, "load_schema", lambda self: SCHEMA)
    monkeypatch.setattr(learnloop, "PACE", LearnPace(batch_ms=50, delta_seconds=0.1))
    monkeypatch.setattr(service, "warm_up", lambda model: None)
    token = tmp_path / "token"
    token.write_text("a-token-of-the-test\n")
    roles = ExitStack()
    with EmbeddedBroker(tmp_path / "broker") as broker, roles:
        settings = Settings(
            kafka=broker.address,
            data=str(tmp_path / "data"),
            partitions=2,
            snapshot_seconds=0.5,
            heldout_share=0.1,
            teach_limits={},
            model="wide_deep",
            learners=LOGISTIC,
            admin_port=0,
            admin_token_file=str(token),
        )
        wait_for_broker(settings)
        create_topics(settings)
        named = msgspec.structs.replace(settings, learner="b")
        models, others = settings.place("models"), settings.of_learner("b").place("models")
        first, beside = Role(settings), Role(named)
        roles.callback(first.end)
        roles.callback(beside.end)
        until(lambda: newest(models) is not None and newest(others) is not None, "both have a first version")
        send(settings, minutes(0, 8))
        until(lambda: has_learnt(models, 2400) and has_learnt(others, 2400), "both have learnt")
        until(lambda: bool(lines(settings)), "they were compared")
        compared = lines(settings)[-1]
        notes = [newest(place) for place in (models, others)]
        assert [n.spec["model"] for n in notes if n is not None] == ["wide_deep", "logistic"]
        held = [n.extra["counts"]["held_out"] for n in notes if n is not None]
        assert [n.extra["began"] for n in notes if n is not None] == [0, 0], "the oldest samples"
        assert held[0] == held[1] > 0, "the same pages"
        # Of the held-out rows those that are half an hour old: some of the first five messages'.
        assert 0 < compared["rows"] < held[0]
        assert 0 < compared["users"] <= 40
        assert compared["auc_gap"] == pytest.approx(compared["auc"] - compared["first_auc"])

        # Its restart, without new settings, goes on; nothing is learnt twice.
        beside.end()
        beside = Role(named)
        roles.callback(beside.end)
        send(settings, minutes(8, 9))
        until(lambda: has_learnt(others, 2700) and has_learnt(models, 2700), "it goes on")
        until(lambda: len(lines(settings)) > 1 and lines(settings)[-1]["rows"] > compared["rows"], "with what it held")
        note = newest(others)
        assert note is not None
        assert note.extra["counts"]["repeated"] == 0

        # Commands to it by its name are none to the first.
        monkeypatch.setenv("MILLRACE_ADMIN_TOKEN_FILE", str(token))
        monkeypatch.setenv("MILLRACE_LEARNERS", '{"b": {"model": "logistic"}}')
        data, went_on = Path(settings.data), newest(models)
        assert went_on is not None
        climodel.hold(data=data, learner="b")
        held_at = newest(others)
        send(settings, minutes(9, 10))
        until(lambda: has_learnt(models, 3000), "the first one goes on")
        assert newest(others) == held_at, "nothing newer of it is seen"
        climodel.promote(data=data, learner="b")
        until(lambda: has_learnt(others, 3000), "it is seen again")
        climodel.rollback(data=data, learner="b")
        back = newest(others)
        assert back is not None
        assert back.is_root
        assert back.epoch == 2
        assert (last := newest(models)) is not None
        assert last.epoch == went_on.epoch

        # Its model is what serves, with all that it has learnt.
        climodel.promote("b", data=data)
        adopted_note = newest(models)
        assert adopted_note is not None
        assert adopted_note.is_root
        assert adopted_note.spec["model"] == "logistic"
        assert adopted_note.extra["adopted"]["from"] == "b"
        learnt_by_it = adopted_note.extra["counts"]
        before = sum(learnt_by_it[name] for name in ("trained", "held_out"))
        send(settings, minutes(10, 11))
        until(lambda: has_learnt(models, before + 300), "it learns on")

        # Another of its name takes over, and the first learner knows nothing of it.
        second = Role(named)
        roles.callback(second.end)
        until(lambda: isinstance(beside.error, FencedError), "the one before ends")
        beside.error = None
        assert first.thread.is_alive()
        second.end()
        first.end()

        # Nothing was set anew, and nothing is refused.
        first = Role(settings)
        roles.callback(first.end)
        until(lambda: (note := newest(models)) is not None and note.epoch == 2, "it is there again")
        first.end()
        last = newest(models)
        assert last is not None
        assert (last.spec["model"], last.extra["adopted"]["from"]) == ("logistic", "b")
        counts = last.extra["counts"]
        assert counts["trained"] + counts["held_out"] == before + 300


def test_there_is_no_learner_that_no_setting_names() -> None:
    with pytest.raises(SettingError, match="no learner 'c'"):
        service.run(Settings(learner="c"), threading.Event())
