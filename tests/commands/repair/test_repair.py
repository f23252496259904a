"""Repair: what comes of it is, to the bit, what a learner makes of a topic from which the rows had been taken."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from learner.custom import ownclass
from learner.evaluation.progressive import Progressive
from learner.gate.heldout import Heldout
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats
from learner.ranker.snapshot_slices import merge
from learner.retrieval import retrieval
from learner.role.sampletopic import SampleTopic
from learner.samples.batch_reader import BatchReader, Source, TopicMessage
from learner.tables import admission
from learner.training.decisionlog import rows_in
from learner.training.learner_versions import newest_valid
from learner.training.trainer import Trainer
from millrace.basics.errors import SettingError, SnapshotError
from millrace.commands.cli.cli import app
from millrace.commands.repair import bisection, halving, repairrun
from millrace.commands.repair.bisection import Bisection
from millrace.commands.repair.judge import members_of, rows_until
from millrace.commands.repair.lineage import Lineage, check_one_model, lineage
from millrace.commands.repair.relearning import Repaired, begin, keep, repair
from millrace.commands.repair.repairrun import Scene
from millrace.commands.repair.standout import Tally, standouts
from millrace.commands.repair.without import Without, arms_of, ids_of, interval_of, moment, shown, time_of
from millrace.commands.up.data_folder import locked, say_where
from millrace.contracts.samples import CORRECTION, SampleBatch
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import Settings
from millrace.contracts.topics import SAMPLES
from millrace.processes.kafka import create_topics, make_producer
from millrace.processes.services import EmbeddedBroker
from millrace.versions.decisions import Learnt, Span
from millrace.versions.image import Array, Image
from millrace.versions.modelstore import Announcement, ModelStore, Place
from tests.commands.repair.repair_world import HOUR_MS, SPEC, Live, MemoryTopic, decode, twin
from tests.learner.gate import promotion_scene
from tests.scenes.exploring import examples
from tests.scenes.learning import SCHEMA, START_MS, make_samples

MINUTE_MS = 60_000


@pytest.fixture(scope="module", autouse=True)
def small_head() -> Iterator[None]:
    """The head remembers few users and items, so that they go, and counts of admission are halved often."""
    with pytest.MonkeyPatch.context() as patch:
        for name, size in {"ITEMS": 16, "RING": 8, "USERS": 8}.items():
            patch.setattr(retrieval, name, size)
        patch.setattr(admission, "_HALVING", 50)
        yield


def message(rows: int, seed: int, minute: int) -> SampleBatch:
    """Samples of some pages, with pages of both arms, and some corrections."""
    batch = make_samples(rows, seed, start_ms=START_MS + minute * MINUTE_MS, users=12, items=10)
    kind = np.where((batch.label == 0) & (np.arange(rows) % 17 == 3), CORRECTION, batch.kind).astype(np.uint8)
    return replace(batch, kind=kind, label=(kind != 0).astype(np.float32), arm=(batch.page % 3 == 0).astype(np.uint8))


def pair_of(store: ModelStore, version: int) -> tuple[Image, dict[str, Array]]:
    note = next(n for n in store.snapshots() if n.version == version)
    return merge(store.read_whole(note))


def differs(found: tuple[Image, dict[str, Array]], model: Any) -> str:
    """Empty where a snapshot has just what the model has, else a name. What is of trainer and gate is passed over."""
    image, training = model.snapshot()
    own = {name: array for name, array in found[1].items() if name in training}
    return found[0].same_bits(image) or ownclass.differs(own, training)


def repaired(live: Live, line: Lineage, without: Without, to: str | Path) -> tuple[Repaired, ModelStore, int]:
    begun = begin(live.store, lambda: line, SCHEMA)
    done = repair(begun, live.topic, decode, without)
    out = ModelStore(to)
    return done, out, keep(out, begun, done, without, 0).version


def again(live: Live, line: Lineage) -> None:
    repair(begin(live.store, lambda: line, SCHEMA), live.topic, decode, Without())


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.none(), st.integers(1, 40)),
        st.tuples(st.just("again"), st.none(), st.integers(0, 5)),
        st.tuples(st.just("learn"), st.integers(1, 50), st.none()),
        st.tuples(st.sampled_from(["delta", "head", "snapshot", "restart"]), st.none(), st.none()),
    ),
    min_size=4,
    max_size=14,
)
WITHOUT = st.builds(
    Without,
    users=st.sets(st.integers(1, 12), max_size=3).map(lambda ids: ids_of(map(str, ids))),
    items=st.sets(st.integers(1, 10), max_size=3).map(lambda ids: ids_of(map(str, ids))),
    arms=st.sampled_from([(), (), (0,), (1,)]),
    interval=st.one_of(
        st.none(),
        st.tuples(st.integers(0, 60), st.integers(1, 60)).map(
            lambda at: (START_MS + at[0] * MINUTE_MS, START_MS + (at[0] + at[1]) * MINUTE_MS)
        ),
    ),
)


def live_through(steps: list[tuple[str, Any, Any]], live: Live, begin: int = 0) -> None:
    sent: list[SampleBatch] = []
    for k, (what, a, b) in enumerate(steps, begin):
        if what == "take":
            sent.append(message(b, 100 + k, 4 * k))  # rows grow old within four steps
            live.take(sent[-1])
        elif what == "again" and b < len(sent):  # the joiner sends a message again after a crash
            live.take(sent[b])
        elif what == "learn":
            live.learn(a)
        elif what in ("delta", "head"):
            live.delta(what == "head")
        elif what == "snapshot":
            live.snapshot()
        elif what == "restart":
            live.restart()
    live.snapshot()


@examples(12, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(before=STEPS, after=STEPS, without=WITHOUT, admit=st.sampled_from([1, 2]))
def test_as_if_the_rows_had_never_been_on_the_topic(before: Any, after: Any, without: Without, admit: int) -> None:
    folder = f"memory://repair-{uuid.uuid4().hex}"
    live = Live(f"{folder}/models", MemoryTopic(), {**SPEC, "admit": admit})  # counting takes megabytes
    live_through(before, live)
    start = live.store.latest()
    assert start is not None
    live_through(after, live, len(before))
    line = lineage(live.store, start.event_ms)
    assert line.start.version == start.version or line.start.event_ms == start.event_ms
    done, out, version = repaired(live, line, without, f"{folder}/repair")
    expected = twin(live, line.start, without)
    assert differs(pair_of(out, version), expected.model) == ""
    assert done.rows - done.left_out >= done.learnt
    assert expected.counts["trained"] == line.start.trained + done.learnt


# -- what is left behind -----------------------------------------------------------------------------------------


def small_life(folder: str | Path = "") -> Live:
    """Three snapshots behind the root, two messages before each."""
    live = Live(folder or f"memory://repair-{uuid.uuid4().hex}", MemoryTopic())
    for k in range(6):
        live.take(message(40, k, k))
        live.learn(32)
        if k % 2:
            live.snapshot()
    return live


def kept(live: Live) -> list[Announcement]:
    return kept_of(live.store)


def kept_of(store: ModelStore) -> list[Announcement]:
    return store.snapshots()[::-1]


def test_without_anything_named_it_is_the_newest_version() -> None:
    live = small_life()
    line = lineage(live.store, kept(live)[1].event_ms)
    assert line.start.version == kept(live)[1].version
    _, out, version = repaired(live, line, Without(), f"memory://repair-{uuid.uuid4().hex}")
    assert differs(pair_of(out, version), live.trainer.model) == ""


def test_what_was_taken_back_is_not_on_the_line() -> None:
    live = small_life()
    target, refused = kept(live)[1], kept(live)[-1]
    live.gate.commands.roll_back(target)
    live.gate.delta(0)
    live.take(message(40, 50, 7))
    live.snapshot()
    line = lineage(live.store, target.event_ms)
    assert refused.place not in [note.place for note in line.kept]
    done, out, version = repaired(live, line, Without(), f"memory://repair-{uuid.uuid4().hex}")
    assert differs(pair_of(out, version), live.gate.trainer.model) == ""
    assert done.rows == sum(rows_in(act.spans) for act in line.acts) == 40
    left = lineage(live.store, target.event_ms, refused.version)  # its good part can be had yet
    assert (left.start, left.end) == (target, refused)
    with pytest.raises(SnapshotError, match="no snapshot of version 999; the store has versions 0, "):
        lineage(live.store, target.event_ms, 999)


def test_no_late_click_is_learnt_of_what_was_left_out(tmp_path: Path) -> None:
    """The gate's state of the end said that the repaired model knows those rows: 128 of 128 late clicks were learnt."""
    scene, topic = promotion_scene.Scene(tmp_path / "one"), MemoryTopic()
    for n in range(12):
        scene.take(promotion_scene.batch(n, minute=n))
        scene.publish()
        if n % 4 == 3:
            assert scene.snapshot() is not None
    for batch in scene.broker.samples.values():
        topic.send(batch)
    line = lineage(scene.store, kept_of(scene.store)[1].event_ms)
    begun = begin(scene.store, lambda: line, SCHEMA)
    without, out = (
        Without(interval=(START_MS + 5 * MINUTE_MS, START_MS + 9 * MINUTE_MS)),
        ModelStore(tmp_path / "repair"),
    )
    done = repair(begun, topic, decode, without)
    assert done.left_out == 128
    keep(out, begun, done, without, 0)
    found = newest_valid(out, SCHEMA.id, {}, promotion_scene.build)
    assert found is not None
    scene.promotion.commands.adopt(found, "repair", same_samples=True)
    scene.trainer.begin_again(found.training)
    scene.publish()
    trained = scene.trainer.counts["trained"]
    for n in (*range(5, 9), 10):
        late = np.full(promotion_scene.BATCH, CORRECTION, np.uint8)
        scene.take(promotion_scene.batch(100 + n, minute=n, kind=late, label=np.ones(len(late), np.float32)))
    assert scene.quarantine.rows == 128
    assert scene.trainer.counts["trained"] == trained + promotion_scene.BATCH, "but of what it has learnt they are"


def test_the_result_is_one_that_a_learner_goes_on_from() -> None:
    live = small_life()
    line, without = lineage(live.store, kept(live)[1].event_ms), Without(arms=arms_of("control"))
    to = f"memory://repair-{uuid.uuid4().hex}"
    done, out, _ = repaired(live, line, without, to)
    end = live.store.latest()
    note = repaired(live, line, without, to)[1].latest()
    assert end is not None
    assert note is not None
    assert len(out.snapshots()) == 1  # the earlier result made room
    assert (note.offset, note.spec, note.schema_id) == (end.offset, end.spec, end.schema_id)
    counts, before = note.extra["counts"], end.extra["counts"]
    assert 0 < done.left_out == counts["set_aside"]
    assert counts["trained"] + counts["set_aside"] == before["trained"] == end.trained
    assert note.extra["repair"]["without"] == {"arms": ["control"]}
    found = newest_valid(out, SCHEMA.id, {}, live._build)
    assert found is not None
    trainer = Trainer(found.model, Progressive(1000), Repeats(HOUR_MS), 64)
    trainer.resume(found.training, note.extra["counts"])
    trainer.take(message(40, 5, 5))  # the stream sends it again: what was left out stays out
    assert trainer.pending == 0


def test_samples_that_retention_took_are_named_and_so_is_what_is_left() -> None:
    live = small_life()
    live.topic.begins = 3
    with pytest.raises(SnapshotError, match="they begin at offset 0, the topic at 3") as error:
        again(live, lineage(live.store, 0))
    young = kept(live)[2]
    assert f"version {young.version} can be gone on from" in error.value.remedy
    line = lineage(live.store, moment(time_of(young.event_ms), 0))
    assert line.start.version == young.version
    again(live, line)


def test_a_line_that_is_broken_says_how_far_it_reaches() -> None:
    live = small_life()
    notes = kept(live)
    name = next(n for n in live.store.store.names("cuts-") if f"{notes[2].version:016d}" in n)
    live.store.store.remove([name])
    with pytest.raises(SnapshotError, match=f"reaches back to version {notes[2].version} of .*; file '{name}' is not"):
        lineage(live.store, notes[1].event_ms)
    assert lineage(live.store, notes[2].event_ms).start.version == notes[2].version


def test_a_learner_may_remove_snapshots_meanwhile() -> None:
    live = small_life()
    looked: list[int] = []

    def find() -> Lineage:
        line = lineage(live.store, kept(live)[1].event_ms)
        looked.append(line.start.version)
        if len(looked) == 1:  # the start goes just then; the store keeps older cuts
            mine = f"-{line.start.place.epoch:08d}-{line.start.place.number:016d}."
            manifests = (name for name in live.store.store.names("snapshot-") if mine in name)
            live.store.store.remove([*manifests, *(file.name for file in line.start.files)])
        return line

    found = begin(live.store, find, SCHEMA)
    assert looked[1] != looked[0]
    live.store.prune(1)
    done = repair(found, live.topic, decode, Without())
    assert done.rows == sum(rows_in(act.spans) for act in found.line.acts)
    assert differs(pair_of(live.store, found.line.end.version), done.model) == ""


def test_other_rates_on_the_line_are_refused() -> None:
    live = small_life()
    live.spec = {**live.spec, "dense_rate": 0.5}
    live._build = lambda note, parts: resumed_as(live.spec, parts)  # type: ignore[method-assign]
    live.restart()
    with pytest.raises(SnapshotError, match="the model's dense_rate changed"):
        check_one_model(lineage(live.store, kept(live)[0].event_ms))


def test_a_line_over_two_logs_of_samples_is_refused() -> None:
    """Offsets of the one name other samples of the other."""
    live = small_life()
    line = lineage(live.store, kept(live)[0].event_ms)
    check_one_model(line)
    first, *others = (msgspec.structs.replace(note, samples_log="new") for note in line.kept)
    recreated = replace(line, kept=(msgspec.structs.replace(first, samples_log="old"), *others))
    with pytest.raises(SnapshotError, match="the log of samples changed"):
        check_one_model(recreated)


def resumed_as(spec: Any, parts: Any) -> OnlineModel:
    model = OnlineModel(SCHEMA, spec, 0)
    model.resume(parts)
    return model


def test_a_message_is_decoded_once_however_often_it_was_cut() -> None:
    topic, decoded = MemoryTopic(), list[int]()
    for k in range(2):
        topic.send(message(20, k, k))

    def counted(message: TopicMessage) -> SampleBatch:
        decoded.append(message.offset)
        return decode(message)

    acts = [Learnt((Span(0, 0, 7),)), Learnt((Span(0, 7, 9), Span(1, 0, 20))), Learnt((Span(0, 9, 20),))]
    with closing(BatchReader(acts, topic, counted)) as feed:
        rows = [len(batch) for act in acts if (batch := feed.rows_of(act))]
    assert rows == [7, 22, 11]
    assert sorted(decoded) == [0, 1]
    assert feed._held == {}


def test_a_topic_that_is_another_one_is_refused() -> None:
    live = small_life()
    line = lineage(live.store, 0)
    live.topic.messages[1] = message(3, 0, 0).to_bytes()
    with pytest.raises(SnapshotError, match="message 1 of the samples has 3 rows"):
        again(live, line)
    del live.topic.messages[1]
    with pytest.raises(SnapshotError, match="message 1 of the samples is not there"):
        again(live, line)


@pytest.mark.parametrize(
    ("read", "text", "why"),
    [
        (arms_of, "modle", "there is no arm 'modle'"),
        (lambda text: moment(text, 0), "yesterday", "'yesterday' is no time"),
        (lambda text: interval_of(text, 0), "2026-03-01T14:00", "is no interval"),
        (lambda text: interval_of(text, 10**12), "1h..2h", "ends before it begins"),
    ],
)
def test_what_cannot_be_read_is_named(read: Any, text: str, why: str) -> None:
    with pytest.raises(SettingError, match=why):
        read(text)


# -- bisect ------------------------------------------------------------------------------------------------------

PLAIN = {"model": "wide_deep", "hidden": [8], "width": 4, "retrieval_width": 0}


@pytest.fixture(scope="module")
def poisoned() -> Live:
    """Sixty messages of items that are liked or not; in those of minutes 24 to 35 the labels are flipped, and half of
    the rows are one user's."""
    live = Live(f"memory://repair-{uuid.uuid4().hex}", MemoryTopic(), PLAIN)
    for k in range(60):
        batch = make_samples(100, k, start_ms=START_MS + k * MINUTE_MS)
        liked = (batch.item % 2 == 0) == (np.random.default_rng(k).random(100) < 0.9)
        batch = replace(batch, label=liked.astype(np.float32), kind=liked.astype(np.uint8))
        if 24 <= k < 36:
            user = np.where(np.arange(100) % 2, ids_of(["7"])[0], batch.user)
            batch = replace(batch, label=1 - batch.label, kind=(1 - batch.kind).astype(np.uint8), user=user)
        live.take(batch)
        live.learn(50)
        live.drain()
        if k % 10 == 9:
            live.snapshot()
    return live


def test_bisect_finds_the_stretch_and_what_stands_out_in_it(poisoned: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bisection, "_AGE_MS", MINUTE_MS)
    monkeypatch.setattr(halving, "LEAST_ROWS", 200)
    line = lineage(poisoned.store, kept(poisoned)[2].event_ms)
    search = Bisection(
        "auc", poisoned.store, begin(poisoned.store, lambda: line, SCHEMA), poisoned.topic, decode, SCHEMA
    )
    assert len(search.judged.label) == 1900  # the last minute is too young
    points = search.points()
    assert [note.version for _, note in points] == [note.version for note in line.kept]
    assert points[0][0].value > 0.75
    found = search.stretch([point for point, _ in points])
    assert found is not None
    samples, what = search.look(found[0])
    assert START_MS + 23 * MINUTE_MS <= samples.from_ms < START_MS + 27 * MINUTE_MS  # poisoned from minute 24
    assert START_MS + 33 * MINUTE_MS <= samples.to_ms < START_MS + 37 * MINUTE_MS  # up to minute 36
    assert samples.rows == sum(rows_in(act.spans) for act in line.acts[found[0].begin.at : found[0].end.at]) <= 1300
    assert samples.offsets[0] in range(22, 32)
    named = {(s.what, s.figure) for s in what}
    assert (f"user {shown(int(ids_of(['7'])[0]))}", "share of rows") in named
    assert any(what.startswith("item") and figure == "clicks a row" for what, figure in named)  # flipped labels


def test_what_stands_out_is_told_against_the_usual() -> None:
    usual = [Tally() for _ in range(20)]
    for k, tally in enumerate(usual):
        tally.add(make_samples(400, k))
    there = Tally()
    flood = make_samples(400, 30)
    user = np.where(np.arange(400) % 2, ids_of(["7"])[0], flood.user)
    num = flood.num.copy()
    num[:, 0] = 0
    there.add(replace(flood, user=user, num=num, label=np.ones(400, np.float32)))
    names = SCHEMA.layout.cat_names, SCHEMA.layout.num_names
    found = {(s.what, s.figure): (s.value, s.usual) for s in standouts(there, usual, *names)}
    share, before = found[f"user {shown(int(ids_of(['7'])[0]))}", "share of rows"]
    assert share == pytest.approx(0.5, abs=0.05)
    assert before == pytest.approx(1 / 40, abs=0.02)
    assert found["all samples", "clicks a row"][0] == 1
    missing = found["column price", "share that is there"]
    assert missing == pytest.approx((0, 1))
    calm = Tally()
    calm.add(make_samples(400, 31))
    assert not standouts(calm, usual, *names)


def test_a_stretch_is_narrowed_to_where_the_figure_falls() -> None:
    acts = [Learnt((Span(k, 0, 1024),)) for k in range(64)]
    whole = halving.MovedStretch(halving.Point(0, 0.8), halving.Point(64, 0.16))

    def narrowed(value_at: Callable[[int], float]) -> tuple[int, int]:
        met = {0}

        def asked(begin: int, at: int) -> float:
            assert begin in met  # only there is a model to learn on from
            met.clear()
            met.update((begin, at))
            return value_at(at)

        found, seen = halving.narrowed(whole, acts, asked, lambda a, b: a - b)
        assert len(seen) <= 12
        return found.begin.at, found.end.at

    assert narrowed(lambda at: 0.8 - 0.01 * at) == (6, 58)  # an even decline
    assert narrowed(lambda at: 0.8 if at < 37 else 0.16) == (36, 37)
    assert narrowed(lambda at: 0.8 if at < 37 else math.nan) == (36, 37)
    assert narrowed(lambda at: 0.8 if at < 20 else 0.5 if at < 50 else 0.16) == (19, 50)


@pytest.mark.parametrize(("rows", "at"), [([2000, 3000], 1), ([100, 100, 3000], 2), ([3000, 2000], 1), ([3000], None)])
def test_a_stretch_of_two_batches_is_halved_whichever_is_the_larger(rows: list[int], at: int | None) -> None:
    assert halving.middle([Learnt((Span(k, 0, n),)) for k, n in enumerate(rows)], 0, len(rows)) == at


def test_held_out_rows_are_of_before_and_labelled_by_what_was_known_last() -> None:
    told = {"from_ms": [0], "shares": [0.5]}
    batch = make_samples(400, 3)
    batch = replace(batch, label=np.zeros(400, np.float32), kind=np.zeros(400, np.uint8))
    late = batch.take(np.arange(0, 400, 7))
    late = replace(late, kind=np.full(len(late), CORRECTION, np.uint8), label=np.ones(len(late), np.float32))
    rows = rows_until([batch, late], int(batch.ts_ms[299]), members_of(told))
    gate = Heldout(0.5, follows=False)
    members = np.flatnonzero(gate.held(batch))
    members = members[members < 300]
    assert 0 < len(members) < 300
    assert rows.cat.tobytes() == batch.cat[members].tobytes()
    assert (rows.label == (members % 7 == 0)).all()
    with pytest.raises(SnapshotError, match="does not say which pages were held out"):
        members_of({})
    assert len(rows_until([batch, late], int(batch.ts_ms[-1])).label) == 400
    assert rows_until([batch, late], int(batch.ts_ms[-1]), most=5).cat.tobytes() == batch.cat[-5:].tobytes()


# -- the commands ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of a loop that has ended. Its samples lie on a topic in memory."""
    live = small_life(tmp_path / "data" / "models")
    monkeypatch.setattr(repairrun, "SampleTopic", lambda settings, id: live.topic)
    SchemaBook(tmp_path / "data" / "schemas").enter(SCHEMA)  # the settings name another one: the shop's
    return tmp_path


def command(*words: str | Path) -> None:
    app([str(word) for word in words], result_action="return_value")


def test_the_command_keeps_a_result_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--data", folder / "data", "--kafka", "127.0.0.1:1")
    store, users = ModelStore(folder / "data" / "models"), folder / "users.txt"
    since = store.snapshots()[-1]
    users.write_text("3\n4\n")
    command("model", "repair", "--since", time_of(since.event_ms), "--without-users", users, "--dry-run", *where)
    assert "would leave out" in capsys.readouterr().out
    assert not (folder / "data" / "repair").exists()
    command("model", "repair", "--since", time_of(since.event_ms), "--without-users", users, *where)
    said = capsys.readouterr().out
    note = ModelStore(folder / "data" / "repair").latest()
    assert note is not None
    assert note.extra["repair"]["without"]["users"] == [shown(int(hashed)) for hashed in ids_of(["3", "4"])]
    assert f"240 rows read, {note.extra['repair']['left_out']} left out" in said
    assert "millrace model promote repair" in said


def test_a_line_of_its_own_end_is_read_with_that_ends_schema_and_log(folder: Path) -> None:
    live = Live(folder / "data" / "models", MemoryTopic())
    end = kept(live)[-1]
    image, training = live.trainer.model.snapshot()
    part = live.store.write_part(Place(end.epoch, end.version + 1), 0, image, training)
    names = ("claimant", "spec", "offset", "trained", "event_ms", "published_ms", "extra")
    same = {name: getattr(end, name) for name in names}
    other = live.store.write_manifest(
        [part], **same, epoch=end.epoch, version=end.version + 1, schema_id="another", samples_log="another"
    )
    running = Settings(data=str(folder / "data"))
    with pytest.raises(SnapshotError, match="the model is of schema another"):
        Scene(running, "1h")
    scene = Scene(running, "1h", end.version)
    assert scene.schema.id == SCHEMA.id
    assert scene.newest_ms == other.event_ms
    with pytest.raises(SnapshotError, match="no snapshot of version 999"):
        Scene(running, "1h", 999)


def test_where_nothing_was_learnt_since_no_sample_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repairrun, "SampleTopic", lambda settings, id: None)
    newest = ModelStore(folder / "data" / "models").latest()
    assert newest is not None
    with pytest.raises(SnapshotError, match=f"version {newest.version} is the newest: nothing was learnt since"):
        command(
            "model",
            "bisect",
            "--since",
            time_of(newest.event_ms),
            "--data",
            folder / "data",
            "--kafka",
            "127.0.0.1:1",
        )


def test_a_run_that_was_killed_names_no_broker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = folder / "data", list[str]()
    monkeypatch.setattr(
        "millrace.commands.repair.repairrun.run_bisect", lambda settings, *_: asked.append(settings.kafka)
    )
    say_where(data, {"kafka": "127.0.0.1:1"})  # as a killed run leaves it
    with pytest.raises(SettingError, match="no Kafka address is set, and no 'millrace up' is ready on"):
        command("model", "bisect", "--since", "1h", "--data", data)
    with locked(data):
        command("model", "bisect", "--since", "1h", "--data", data)
    assert asked == ["127.0.0.1:1"]


def test_the_command_wants_something_to_leave_out_and_a_broker(folder: Path) -> None:
    with pytest.raises(SettingError, match="nothing is named that is to be left out"):
        command("model", "repair", "--since", "1h", "--data", folder / "data")
    with pytest.raises(SettingError, match="no Kafka address is set, and no 'millrace up' is ready on"):
        command("model", "repair", "--since", "1h", "--without-arm", "control", "--data", folder / "data")


@pytest.mark.services
def test_samples_are_read_from_the_topic_as_they_were_sent(tmp_path_factory: pytest.TempPathFactory) -> None:
    sent = small_life().topic
    wanted = range(1, 4)
    with EmbeddedBroker(tmp_path_factory.mktemp("broker")) as broker:
        running = Settings(kafka=broker.address, partitions=2)
        create_topics(running)
        producer = make_producer(running)
        for message in all_of(sent, range(99)):
            producer.send(SAMPLES, message.value)
        producer.flush()
        producer.close()
        topic = SampleTopic(running)
        assert all_of(topic, wanted) == all_of(sent, wanted) != []
        assert all_of(topic, range(1, 10**6)) == all_of(sent, range(1, 99))  # the topic ends before
        assert topic.first() == sent.first() == 0
        with pytest.raises(SnapshotError, match="another log"):
            SampleTopic(running, "4fe2")


def all_of(source: Source, wanted: range) -> list[TopicMessage]:
    reading, found = source.open(wanted), list[TopicMessage]()
    while came := reading.more():
        found += [message._replace(headers=()) for message in came]
    reading.close()
    return found
