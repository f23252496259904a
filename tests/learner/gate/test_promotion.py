"""The gate: what is refused never happened, what is served stays sound, and persons have the last word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from learner.evaluation.progressive import Progressive
from learner.evaluation.served_scores import ServedExposures
from learner.evaluation.traffic_segments import Segments
from learner.gate.checks import Checks
from learner.gate.quarantine import Quarantine
from learner.promotion.promotion import Promotion
from learner.promotion.savedstate import saved_state
from learner.ranker.model import OnlineModel
from learner.ranker.repeats import Repeats
from learner.training.decisionlog import learn_again, places_of
from learner.training.learner_versions import FoundSnapshot, Progress, SnapshotFiles, Versions, newest_valid
from learner.training.trainer import Trainer
from millrace.basics.errors import SnapshotError
from millrace.basics.store import AbsentError, Store
from millrace.contracts.events import ARMS, MODEL, OTHER, PROFILE_MISSING
from millrace.contracts.samples import CORRECTION, NEGATIVE, PAGE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema, WindowKey
from millrace.contracts.settings import Settings
from millrace.labels import Waits
from millrace.versions.decisions import Learnt
from millrace.versions.modelstore import ModelStore
from tests.learner.gate.acts import WORSE, break_adam, late_clicks, learn, play
from tests.learner.gate.promotion_scene import BATCH, MINUTE_MS, POISON, SPEC, Scene, batch, build
from tests.scenes.learning import SCHEMA, START_MS, make_samples
from tests.scenes.same_state import differs


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "one")


@pytest.fixture
def twin(tmp_path: Path) -> Scene:
    """The same learner, which never sees what is refused."""
    return Scene(tmp_path / "twin")


def both(scenes: tuple[Scene, ...], *batches: SampleBatch) -> None:
    for one in scenes:
        for each in batches:
            one.take(each)
            one.publish()


def served_as_learnt(scene: Scene) -> bool:
    """Whether the scorer has, to the bit, what the learner's tables and dense tensors are."""
    return scene.served.same_bits(scene.whole()[0]) == ""


# -- micro-batches ---------------------------------------------------------------------------------------------


def test_pages_teach_where_their_exposures_have_and_a_killed_learner_does_the_same(tmp_path: Path) -> None:
    """Rows of the time of what was refused go to quarantine, and suspect nothing else."""
    spec = {**SPEC, "page_weight": 1.0}
    scene, twin = Scene(tmp_path / "one", spec=spec), Scene(tmp_path / "twin", spec=spec)

    def again(one: SampleBatch) -> SampleBatch:
        return replace(one, kind=np.full(len(one), PAGE, np.uint8))

    both((scene, twin), *(batch(n) for n in range(4)))
    scene.take(batch(9, minute=7, page=POISON))
    scene.take(again(batch(9, minute=7, page=POISON)))
    both((scene, twin), again(batch(3)))
    assert [(entry.check, entry.rows) for entry in scene.quarantine.entries()] == [("labels", BATCH), ("page", BATCH)]
    assert scene.trainer.counts["trained"] == 5 * BATCH
    assert scene.status["check"] == "labels"
    assert differs(scene.whole(), twin.whole()) == ""
    killed = scene.again()
    assert differs(killed.whole(), scene.whole()) == ""
    assert killed.quarantine.entries() == scene.quarantine.entries()


WAITS = Waits(300_000, 0, 60_000)


def judging(scene: Scene) -> ServedExposures:
    """The figures of what a scene takes from now on."""
    scene.trainer.served = found = ServedExposures(SCHEMA, Segments(SCHEMA, {}), WAITS, 10_000)
    return found


def shown(n: int, arm: int) -> SampleBatch:
    """A page of people, which is a little more often clicked than its scores say."""
    made = batch(n, minute=n % 50, page="people")
    score = np.where(made.label > 0, 0.5, 0.3).astype(np.float32)
    return replace(made, score=score, version=np.full(BATCH, 3), arm=np.full(BATCH, arm, np.uint8))


def bot(n: int, user: int, arm: int, deleted: bool = False) -> SampleBatch:
    """A page of one who clicks on everything."""
    made, missing = shown(n, arm), PROFILE_MISSING * deleted
    return replace(
        made,
        request=(f"bot-{user}-{n}",),
        user=np.full(BATCH, user, np.uint64),
        user_missing=np.full(BATCH, missing, np.uint8),
        label=np.ones(BATCH, np.float32),
        kind=np.full(BATCH, POSITIVE, np.uint8),
    )


@pytest.mark.parametrize("diverted", [False, True], ids=["all pages", "own pages"])
def test_bots_count_in_no_figure(tmp_path: Path, diverted: bool) -> None:
    """Two bots: one of an arm alone, which was deleted; the other of the model's pages, at first as slow as people. A
    kiosk's account, whose people click as others do, is left out like them. Figures are those of people alone."""
    scene, twin = (Scene(tmp_path / name, visitors={"user": 60}) for name in ("one", "twin"))
    scene.trainer.diverted = twin.trainer.diverted = diverted
    found, exact = judging(scene), judging(twin)
    model, other, kiosk = ARMS.index(MODEL), ARMS.index(OTHER), 9_003
    for n in range(24):
        page = shown(n, (model, other)[n % 2])
        both((scene, twin), page)
        scene.take(bot(100 + n, 9_001, other, deleted=True))
        if n % 3 == 0:
            scene.take(bot(200 + n, 9_002, model))
        scene.take(replace(page, request=(f"kiosk-{n}",), user=np.full(BATCH, kiosk, np.uint64)))
    end = shown(49, model)
    end = replace(
        end, ts_ms=end.ts_ms + 10**7, kind=np.full(BATCH, NEGATIVE, np.uint8), label=np.zeros(BATCH, np.float32)
    )
    for one, of in ((scene, found), (twin, exact)):
        one.take(end)
        one.drain()
        of.settle()
    for arm in ARMS:
        assert found.figures(arm) == pytest.approx(exact.figures(arm), nan_ok=True)
    assert [exact.figures(arm)["rows"] for arm in (MODEL, OTHER)] == [13 * BATCH, 12 * BATCH]
    assert found.over_limit == (24 + 8 + 24) * BATCH, "all of theirs, also those on the way to the limit"
    assert exact.over_limit == twin.trainer.counts["over_limit"] == 0
    assert scene.trainer.counts["over_limit"] == found.over_limit - 3 * 60, "what the limit lets pass is learnt"


def test_a_bot_is_beyond_its_limit_after_a_restart_too(tmp_path: Path) -> None:
    scene = Scene(tmp_path, visitors={"user": 60})
    learn(scene, shown(0, 0), *(bot(100 + n, 9_001, 0) for n in range(3)))
    scene.snapshot()
    learn(scene, shown(1, 0), bot(103, 9_002, 0), bot(104, 9_002, 0))  # behind the snapshot
    killed = scene.again()
    for offset in range(killed.offset, scene.offset):
        killed.take(scene.messages[offset])
    found = judging(killed)
    learn(killed, shown(2, 0), bot(105, 9_001, 0), bot(106, 9_002, 0))
    killed.drain()
    assert (found.over_limit, found.waiting) == (2 * BATCH, BATCH)


def test_a_late_click_goes_where_its_exposure_went(tmp_path: Path) -> None:
    """The click of an exposure that was refused is not learnt, among others or alone; the rows beside it are. The
    checks see all. One client that is an hour ahead among what was refused makes no other minute suspect."""
    scene, twin = Scene(tmp_path / "one"), Scene(tmp_path / "twin")
    both((scene, twin), *(batch(n, minute=n) for n in range(4)))
    poison = batch(9, minute=7, page=POISON)
    ahead = np.arange(BATCH) % 8 == 0
    scene.take(replace(poison, ts_ms=poison.ts_ms + ahead * 60 * MINUTE_MS))
    both((scene, twin), *(batch(n, minute=60 + n) for n in range(5, 9)))
    assert scene.status["state"] == "promoting"
    # of a refused minute, of one that was learnt, and of the one that an eighth of the refused rows said they were of
    minutes, late = np.array([7, 2, 67, 7, 66, 66] * 6), np.array([1, 1, 1, 1, 0, 0] * 6, np.bool_)
    message = late_clicks(20, minutes, late)
    looks, learnt = scene.screen.looks, scene.screen.told.count("learnt")
    scene.take(message)
    scene.drain()
    twin.take(message.take(minutes != 7))
    twin.drain()
    assert scene.screen.looks == looks + 2
    assert scene.screen.told.count("learnt") == learnt + 2
    learn(scene, late_clicks(21, np.full(3, 7), np.ones(3, np.bool_)))
    scene.drain()
    assert scene.trainer.counts["trained"] == twin.trainer.counts["trained"]
    entries = scene.quarantine.entries()
    assert [(entry.check, entry.rows) for entry in entries] == [("labels", BATCH), ("page", 12 + 3)]
    kept = scene.kept[1][0]
    assert set((kept.ts_ms - START_MS) // MINUTE_MS) == {7}
    assert kept.kind.tolist() == [CORRECTION] * 15
    assert not scene.promotion.state.standing.probation, "nothing else is suspect"
    scene.promotion.make_durable()
    killed = scene.again()
    assert differs(killed.whole(), scene.whole()) == ""
    assert killed.quarantine.entries() == entries
    assert killed.replay.differ == killed.replay.void == 0
    killed.promotion.commands.release("all")
    play(killed, "learn")
    learn(killed, late_clicks(22, np.full(3, 7), np.ones(3, np.bool_)))
    killed.drain()
    assert not killed.quarantine.entries(), "its exposure is learnt by now"


def test_a_way_back_waits_for_the_writer_and_goes_back_then(scene: Scene, twin: Scene) -> None:
    """The snapshot that it waits for lets acts go, so all behind them have other numbers."""
    both((scene, twin), *(batch(n) for n in range(2)))
    slices = scene.versions.begin()
    files = SnapshotFiles(scene.store, scene.versions.place)
    while (part := slices.next()) is not None:
        files.add(part)
    scene.drain()
    last = scene.promotion.finish(slices, 0)
    assert last is not None
    note = files.end(last, follows=0, log="")
    scene.promotion.state.settle = lambda: scene.promotion.written(note)
    both((scene, twin), *(batch(n) for n in range(2, 4)))  # the mark, behind that snapshot
    play(scene, "4 +5!")
    scene.publish()
    twin.publish()
    assert differs(scene.whole(), twin.whole()) == ""
    assert scene.trainer.counts["trained"] == 4 * BATCH
    assert served_as_learnt(scene)


def test_absurd_rows_go_one_by_one(scene: Scene, twin: Scene) -> None:
    odd = batch(0)
    odd.ts_ms[3] += 10**12
    scene.take(odd)
    kept = np.arange(BATCH) != 3
    twin.take(odd.take(kept))
    scene.drain()
    twin.drain()
    assert differs(scene.whole(), twin.whole()) == ""
    assert scene.trainer.counts["quarantined:absurd"] == 1
    assert scene.model.newest_ms == int(batch(0).ts_ms.max())


# -- snapshots -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_acts_of_snapshots_give_the_model_to_the_bit(scene: Scene) -> None:
    snapshots = 0
    for n in range(40):
        scene.take(batch(n, rows=7 + n % 40, page=POISON if n % 17 == 15 else "page"))
        if n % 3 == 0:
            scene.drain()
        scene.publish(dense=n % 2 == 0, retrieval=n % 5 == 0)
        if n % 4 == 0:
            snapshots += scene.snapshot() is not None
    assert snapshots >= 3
    lineage, notes = scene.lineage(), {note.place: note for note in scene.store.snapshots()}
    learnt = 0
    for place, (since, acts) in lineage.items():
        if place not in notes or since not in notes:
            continue
        model = build(notes[since], scene.store.read_whole(notes[since]))
        rows = sum(s.stop - s.first for act in acts if isinstance(act, Learnt) for s in act.spans)
        assert learn_again(model, acts, lambda act: rows_of(scene, act)) == rows
        wanted = build(notes[place], scene.store.read_whole(notes[place]))
        assert differs(model.snapshot(), wanted.snapshot()) == ""
        learnt += rows
    assert learnt > 10 * BATCH


def rows_of(scene: Scene, act: Learnt) -> SampleBatch:
    parts = [scene.messages[s.offset].take(slice(s.first, s.stop)) for s in act.spans]
    assert len(places_of(act.spans)) == sum(map(len, parts))
    return SampleBatch.concat(parts)


# -- the world has changed -------------------------------------------------------------------------------------


def test_a_client_that_is_ahead_does_not_move_the_change_of_the_world(scene: Scene) -> None:
    """One client, on pages of its own, is 59 minutes ahead, also of what is learnt: neither the first refusal nor the
    last is of its time."""

    def page(n: int, minute: int, name: str = POISON) -> SampleBatch:
        made = batch(n, page=name, minute=minute)
        ahead = np.arange(BATCH) % 4 == 1
        user = np.where(ahead, 99, np.arange(BATCH) + 100 * n).astype(np.uint64)
        return replace(made, ts_ms=made.ts_ms + ahead * 59 * MINUTE_MS, user=user)

    learn(scene, *(page(n, 0, "page") for n in range(4)))
    assert scene.model.newest_ms == START_MS + 59 * MINUTE_MS
    for n, minute in enumerate((0, 10, 20, 30, 40, 50, 59), 10):
        scene.take(page(n, minute))
        assert scene.status["state"] == "blocked", minute
        assert "rebase" not in scene.screen.told, minute
    scene.take(page(20, 61))
    assert scene.screen.told[-1] == "rebase"


@pytest.mark.parametrize(
    ("learnt", "first", "burst", "world"),
    [
        (200, 201, lambda minute: minute - 61 - 9 * np.arange(8), range(261, 262)),  # late ones run nothing down
        *((200, 201, lambda minute, by=by: np.full(8, minute + by), range(240, 261)) for by in (59, 61, 124)),
        (600, 1, lambda minute: np.full(8, minute), range(122, 123)),  # a clock that was ahead is mended
    ],
    ids=["61 to 124 minutes back", "59 ahead", "61 ahead", "124 ahead", "a clock that was ahead"],
)
def test_pages_of_other_minutes_run_down_the_time_for_which_the_gate_refuses_by_one_pause_and_no_more(
    scene: Scene, learnt: int, first: int, burst: Callable[[int], NDArray[np.int64]], world: range
) -> None:
    """Poison comes each minute, and behind it a burst of eight pages of other minutes. Of those that are ahead the
    first counts as a pause, so 20 minutes, the others as the minutes that they are."""
    play(scene, f"0-3@{learnt}")
    minute = first - 1
    while "rebase" not in scene.screen.told:
        minute += 1
        scene.take(batch(1000 + minute, page=POISON, minute=minute))
        scene.take(replace(batch(5000 + minute, rows=8, page="held"), ts_ms=START_MS + burst(minute) * MINUTE_MS))
        assert minute < 300
    assert minute in world


def test_a_model_of_new_goods_is_not_judged_by_pages_of_those_that_are_gone_then_or_later(scene: Scene) -> None:
    play(scene, "0-3 snapshot")
    scene.heldout.refusal = WORSE
    scene.shift._new_ms = START_MS
    for minutes, spoilt in ((1, []), (19, []), (20, [0])):
        scene.shift.clock.now_ms = START_MS + minutes * MINUTE_MS
        play(scene, f"{10 * minutes}-{10 * minutes + 5}@1 snapshot")
        assert scene.heldout.spoilt_from == spoilt, "pages so far are of goods that are gone"
    assert "goods are new" in scene.status["unseen"][0]
    scene.shift._new_ms = 0
    assert scene.status["unseen"] == []
    play(scene, "20-25@2 no-snapshot")


HARD = {**SPEC, "loss_ratio": 2.0}


def easy_world(scene: Scene) -> None:
    """A learner whose losses were small for long, so that its guard bears little. A restart knows of it."""
    play(scene, "0-3")
    scene.model.guard.means[:], scene.model.guard.rows[:] = 0.001, 5000
    scene.versions.learnt(np.empty(0, np.int64))
    assert scene.snapshot() is not None


@pytest.mark.parametrize("who", ["promote", "release", "time"])
def test_who_vouches_for_rows_vouches_against_the_loss_guard_too(tmp_path: Path, who: str) -> None:
    """Of a changed world the guard refused whole batches behind a release: 2,688 rows of 5,120 that counted as released
    were neither in the model nor in quarantine."""
    scene = Scene(tmp_path / "one", spec=HARD)
    easy_world(scene)
    for n in range(8):
        scene.take(batch(10 + n, page=POISON, minute=1 + n * (9 if who == "time" else 1)))
    if who != "time":
        getattr(scene.promotion.commands, who)(*(["all"] if who == "release" else []))
    assert scene.status["releasing"] == (4 if who == "time" else 1)
    assert scene.promotion.commands.learn_some()
    scene.promotion.make_durable()
    killed = scene.again()  # in the middle of it
    for one in (scene, killed):
        play(one, "learn")
        assert one.trainer.counts["released"] == 8 * BATCH
        assert one.trainer.counts["trained"] == 12 * BATCH
        assert one.trainer.counts["skipped"] == one.quarantine.rows == 0
    assert differs(killed.whole(), scene.whole()) == ""


def test_released_rows_that_cannot_be_learnt_stay_and_are_not_counted_or_tried_for_ever(tmp_path: Path) -> None:
    """A batch whose gradient is out of bounds, and a row whose label is: nobody can vouch for them."""
    scene = Scene(tmp_path / "one")
    easy_world(scene)
    heavy, odd = batch(11, page=POISON, weight=np.full(BATCH, 1e6, np.float32)), batch(12, page=POISON)
    odd.label[5] = 7
    for each in (batch(10, page=POISON), heavy, odd):
        scene.take(each)
    (entry,) = scene.quarantine.entries()
    scene.promotion.commands.promote()
    while scene.status["releasing"] and scene.promotion.state.standing.released < 2 * BATCH:
        assert scene.promotion.commands.learn_some()
    scene.promotion.make_durable()
    killed = scene.again()  # behind what was skipped
    for one in (scene, killed):
        play(one, "learn")
        assert one.status["releasing"] == 0
        assert one.trainer.counts["released"] == 2 * BATCH - 1
        assert one.trainer.counts["trained"] == 6 * BATCH - 1
        assert [(e.name, e.rows) for e in one.quarantine.entries()] == [(entry.name, BATCH + 1)]
        assert one.trainer.counts["quarantined"] - one.trainer.counts["released"] == one.quarantine.rows
        one.promotion.commands.promote()
        assert not one.promotion.commands.learn_some(), "it is not tried again unless somebody asks"
    assert differs(killed.whole(), scene.whole()) == ""
    assert killed.quarantine.spans(entry.name) == scene.quarantine.spans(entry.name)
    assert scene.kept[0][0].label.tolist() == [*heavy.label, 7]
    play(scene, "release:1 learn")
    assert scene.quarantine.rows == BATCH + 1
    assert scene.promotion.commands.discard("all") == BATCH + 1
    assert scene.trainer.counts["discarded"] == BATCH + 1
    with pytest.raises(AbsentError):
        scene.promotion.commands.release(["no-such"])


# -- persons ---------------------------------------------------------------------------------------------------


# -- adoption --------------------------------------------------------------------------------------------------


def beside(scene: Scene, name: str) -> tuple[Scene, FoundSnapshot]:
    """A learner of the same samples, whose gate only tells, and its newest snapshot."""
    other = Scene(scene.folder.parent / name, observe=True)
    learn(other, *scene.broker.samples.values())
    assert other.snapshot() is not None
    found = newest_valid(other.store, SCHEMA.id, {}, build)
    assert found is not None
    return other, found


def adopt(scene: Scene, found: FoundSnapshot) -> None:
    scene.promotion.commands.adopt(found, "b")
    scene.trainer.begin_again(found.training)
    scene.publish()


def test_what_an_adopted_model_has_learnt_is_not_in_quarantine_any_more(tmp_path: Path) -> None:
    """It had learnt 256 rows, of which this learner had refused 160: 416 were learnt behind a release."""
    scene = Scene(tmp_path / "one", stretch=96)
    learn(scene, *(batch(n, page=POISON if n > 2 else "page") for n in range(8)))
    assert (scene.trainer.counts["trained"], scene.quarantine.rows) == (96, 160)
    other, found = beside(scene, "b")
    assert other.trainer.counts["trained"] == 256
    adopt(scene, found)
    play(scene, "release:0 learn")
    assert scene.trainer.counts["trained"] == 256
    assert differs(scene.whole(), other.whole()) == ""
    assert scene.trainer.counts["quarantined"] == 0


def test_what_an_adopted_model_has_refused_is_in_quarantine_then(scene: Scene) -> None:
    """Also where the topic has lost it, and only its own learner has a copy."""
    play(scene, "0-3")
    odd = batch(10)
    odd.ts_ms[3] += 10**12
    scene.take(odd)
    play(scene, "+11!")
    other, found = beside(scene, "b")
    (entry,) = other.quarantine.entries()
    other.quarantine.copy(entry.name, other.kept[0][0])
    scene.promotion.state.quarantine.take_copies(other.quarantine.store, "b")
    adopt(scene, found)
    assert [(e.name, e.rows) for e in scene.quarantine.entries()] == [(f"b-{entry.name}", 1)]
    assert scene.trainer.counts["quarantined"] == 1
    scene.drain()
    scene.publish()
    killed = scene.again()
    for one in (scene, killed):
        play(one, "gone:6 release:1 learn")
        assert (one.trainer.counts["released"], one.quarantine.rows) == (1, 0)
        one.drain()
        assert one.trainer.counts["trained"] == 6 * BATCH


def test_what_was_refused_before_an_adopted_model_began_stays(tmp_path: Path) -> None:
    """It began with this learner's snapshot of then, which has never learnt it."""
    scene = Scene(tmp_path / "one", stretch=BATCH)
    learn(scene, *(batch(n, page=POISON if n % 2 else "page") for n in range(4)))
    _, found = beside(scene, "b")
    extra = found.note.extra | {"began": 2}
    adopt(scene, replace(found, note=msgspec.structs.replace(found.note, extra=extra)))
    assert [places[:, 0].tolist() for _, places in scene.kept] == [[1] * BATCH]


# -- restarts --------------------------------------------------------------------------------------------------


OTHER_SCHEMA = msgspec.structs.replace(
    SCHEMA,
    windows=msgspec.structs.replace(SCHEMA.windows, keys=(*SCHEMA.windows.keys, WindowKey(columns=("category",)))),
)


def gated(schema: Schema, folder: Path) -> Promotion:
    """A learner of this schema behind a gate with checks of its own, which has nothing to go on from."""
    settings = Settings(data=str(folder), gate="on", heldout_share=0.1)
    model = OnlineModel(schema, SPEC, 0)
    trainer = Trainer(model, Progressive(1000), Repeats(10**9), 512)
    versions, progress = Versions(model, 1, "me"), Progress()
    store, quarantine = ModelStore(folder / "models"), Quarantine(Store(folder / "quarantine"), schema.id)
    return Promotion(trainer, versions, store, Checks.of(settings, schema), quarantine, build, lambda: progress)


def test_the_state_of_a_gate_is_bound_to_its_schema(tmp_path: Path) -> None:
    """Carried over to another schema (``--evolve``), its reference rows and held-out rows have other columns."""
    one = gated(SCHEMA, tmp_path / "one")
    one.begin(None)
    root = one.start(0)
    assert root is not None
    for seed in range(5):
        one.take(make_samples(2048, seed, start_ms=START_MS + seed * MINUTE_MS), 0, seed)
        while one.step() is not None:
            one.delta(0)
    one.commands.hold()
    state = saved_state(one.state)
    assert "gate/shift/newest/cat" in state, "there is something that does not fit"
    assert len(state["gate/heldout/cat"])
    found = FoundSnapshot(root.note, one.trainer.model, state)
    other = gated(OTHER_SCHEMA, tmp_path / "other")
    other.begin(found)
    assert other.start(0) is None, "what is held may not be seen"
    assert other.state.standing.held, "a person's word holds"
    other.commands.promote()  # scores all reference rows and held-out rows
    assert "gate/shift/newest/cat" not in saved_state(other.state)
    assert len(saved_state(other.state)["gate/heldout/ts_ms"]) == 0
    again = gated(SCHEMA, tmp_path / "one")
    again.begin(found)
    parts = [name for name in state if name != "gate/kept"]  # which names the base that it began at, too
    same = saved_state(again.state)
    for name in parts:
        assert np.array_equal(same[name], state[name], equal_nan=state[name].dtype.kind == "f"), name


def test_no_sound_snapshot_is_said(scene: Scene) -> None:
    play(scene, "0-1")
    for name in scene.store.store.names():
        scene.store.store.remove([name])
    break_adam(scene.model)
    with pytest.raises(SnapshotError, match="no snapshot"):
        scene.publish()


def test_a_gate_that_observes_tells_and_changes_nothing(tmp_path: Path) -> None:
    """What is learnt and served is, to the bit, what it is without a gate."""
    scene, open_ = Scene(tmp_path / "one", observe=True), Scene(tmp_path / "open", gate=False)
    both((scene, open_), batch(0), batch(1, page=POISON))
    scene.shift.refuses = True
    scene.heldout.refusal = WORSE
    both((scene, open_), *(batch(n) for n in range(2, 6)))
    assert scene.snapshot() is not None
    observed = {check: n for (check, verdict), n in scene.promotion.state.verdicts.items() if verdict == "observed"}
    assert observed == {"labels": 1, "shift": 2, "heldout": 1}, "the snapshot ended a stretch too"
    assert not any(verdict == "refused" for _, verdict in scene.promotion.state.verdicts)
    assert (scene.status["state"], scene.status["refusal"]) == ("promoting", None)
    assert scene.status["observed"] == str(scene.heldout.refusal)
    assert scene.trainer.counts == open_.trainer.counts
    assert scene.quarantine.entries() == []
    assert differs((open_.whole()[0], {}), (scene.whole()[0], {})) == ""
    assert served_as_learnt(scene)


def test_a_gate_that_observes_still_refuses_what_is_damaged_or_absurd(tmp_path: Path) -> None:
    scene, clean = Scene(tmp_path / "one", observe=True), Scene(tmp_path / "clean", observe=True)
    both((scene, clean), *(batch(n) for n in range(3)))
    break_adam(scene.model)
    found = scene.publish()
    assert found is not None
    assert found.body is None, "a root"
    scene.take(batch(9, ts_ms=np.full(BATCH, 10**15)))
    assert scene.promotion.state.verdicts["absurd", "refused"] == 1
    assert scene.trainer.counts["quarantined:absurd"] == BATCH
    assert differs((clean.whole()[0], {}), (scene.whole()[0], {})) == ""


def test_without_a_gate_nothing_is_judged(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "open", gate=False)
    learn(scene, *(batch(n, page=POISON) for n in range(4)))
    assert scene.trainer.counts["trained"] == 4 * BATCH
    assert served_as_learnt(scene)
    plain = OnlineModel(SCHEMA, SPEC, 0)
    for n in range(4):
        plain.learn(batch(n, page=POISON))
    assert differs((plain.snapshot()[0], {}), (scene.whole()[0], {})) == ""
    assert isinstance(scene.store, ModelStore)
