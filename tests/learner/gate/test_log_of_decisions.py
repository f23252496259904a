"""A learner that is killed between any two writes is, after a restart, what its log says that it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.gate.quarantine import forget_user
from learner.gate.verdicts import GateRefusal
from learner.promotion import promotion
from learner.ranker.model import LearnReport, OnlineModel
from learner.training.decisionlog import places_of
from millrace.basics.errors import BrokerError, StoreError
from millrace.basics.store import Store
from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import SamplesTaken, Span
from tests.learner.gate.promotion_scene import BATCH, MINUTE_MS, POISON, Scene, batch
from tests.scenes.learning import START_MS
from tests.scenes.same_state import differs


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "one")


def learn(scene: Scene, *batches: SampleBatch) -> None:
    for each in batches:
        scene.take(each)
        scene.publish()


def release(scene: Scene) -> None:
    while scene.promotion.commands.learn_some():
        pass


def state_of(scene: Scene) -> dict[str, object]:
    """What a person and the next decision see of a gate."""
    status = scene.status
    names = ("state", "refused_ms", "blocked_since_ms", "quarantined_rows", "releasing")
    return {name: status[name] for name in names} | {
        "trained": scene.trainer.counts["trained"],
        "kept": [(entry.name, entry.rows) for entry in scene.quarantine.entries()],
        "repeats": len(scene.trainer.repeats),
    }


# -- stories, each of which lost something before ----------------------------------------------------------------


def test_what_was_served_is_learnt_with_the_same_cuts(scene: Scene) -> None:
    learn(scene, *(batch(n, rows=20 + n) for n in range(6)))
    assert scene.snapshot() is not None
    for n in range(6, 11):
        scene.take(batch(n, rows=20 + n))
        if n % 2:
            scene.drain()
            scene.publish(retrieval=n == 9)
    before, then = scene.whole(), state_of(scene)
    after = scene.again()
    assert after.replay.done > 0
    assert after.replay.differ == 0
    assert after.offset == 10, "what came behind the newest message of decisions is read again"
    after.take(batch(10, rows=30))
    assert differs(after.whole(), before) == ""
    assert state_of(after) == then


def test_a_release_that_was_acknowledged_is_done_after_a_restart(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)))
    assert scene.snapshot() is not None
    learn(scene, batch(10, page=POISON))
    assert scene.promotion.commands.release("all") == 1
    scene.promotion.make_durable()
    after = scene.again()
    assert after.status["releasing"] == 1
    release(after)
    assert after.trainer.counts["released"] == BATCH
    assert after.trainer.counts["trained"] == 5 * BATCH


def test_what_was_learnt_of_a_changed_world_and_served_is_known_after_a_restart(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)))
    assert scene.snapshot() is not None
    learn(scene, *(batch(n, page=POISON, minute=(n - 9) * 11) for n in range(10, 17)))
    release(scene)
    assert scene.publish() is not None
    assert scene.trainer.counts["released"] == 7 * BATCH
    before, served = scene.whole(), scene.served
    after = scene.again()
    assert differs(after.whole(), before) == ""
    assert after.served.same_bits(served) == ""
    assert after.trainer.counts["released"] == 7 * BATCH
    assert after.status["quarantined_rows"] == 0
    release(after)
    assert after.trainer.counts["trained"] == 11 * BATCH, "and nothing is learnt twice"


def test_a_rollback_stops_a_release(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)))
    note = scene.snapshot()
    assert note is not None
    learn(scene, batch(10, page=POISON), batch(11, page=POISON))
    then = scene.trainer.counts["trained"]
    scene.promotion.commands.release("all")
    scene.promotion.commands.roll_back(note)
    rolled_back = scene.whole()
    release(scene)
    found = scene.publish()
    assert found is not None
    assert found.note.is_root
    assert differs(scene.whole(), rolled_back) == "", "nothing was learnt into what a person went back to"
    assert scene.trainer.counts["trained"] == then
    assert scene.status["quarantined_rows"] == 2 * BATCH


def test_a_rollback_in_the_middle_of_a_release_counts_no_row_twice(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)))
    note = scene.snapshot()
    assert note is not None
    learn(scene, *(batch(n, page=POISON) for n in range(10, 13)))
    scene.promotion.commands.release("all")
    assert scene.promotion.commands.learn_some()
    scene.promotion.commands.roll_back(note)
    assert scene.quarantine.rows == scene.trainer.counts["quarantined"] == 3 * BATCH
    assert scene.trainer.counts["released"] == scene.trainer.counts["set_aside"] == 0


def test_a_rollback_behind_a_release_takes_its_rows_back_too(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)))
    note = scene.snapshot()
    assert note is not None
    learn(scene, batch(10, page=POISON))
    scene.promotion.commands.release("all")
    release(scene)
    scene.promotion.commands.roll_back(note)
    assert scene.publish() is not None
    assert scene.quarantine.entries() == []
    assert scene.trainer.counts["set_aside"] == BATCH, "as all that was learnt since"
    assert scene.trainer.counts["trained"] == 4 * BATCH


def test_what_a_root_leaves_out_is_known_wherever_it_is_killed(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn(scene, *(batch(n) for n in range(5)))  # the fifth was published
    scene.take(batch(9, page=POISON))
    then, put = scene.whole(), Store.put

    class Killed(Exception):
        pass

    def dies(store: Store, name: str, *rest: Any) -> Any:
        if name.endswith(".manifest"):
            raise Killed
        return put(store, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", dies)
        with pytest.raises(Killed):
            scene.publish()
    after = scene.again()
    assert differs(after.whole(), then) == ""
    assert after.served.same_bits(after.whole()[0]) == ""
    assert after.quarantine.rows == 2 * BATCH, "the one that was refused, and the open stretch"


def test_nothing_is_learnt_while_a_root_cannot_be_written(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    learn(scene, *(batch(n) for n in range(5)))
    scene.take(batch(9, page=POISON))
    before = scene.whole()

    def full(*_: object) -> None:
        raise StoreError("no space", "make some")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", full)
        with pytest.raises(StoreError, match="no space"):
            scene.publish()
        scene.take(batch(10))
        with pytest.raises(StoreError, match="no space"):
            scene.publish()
    assert scene.trainer.pending == BATCH
    found = scene.publish()
    assert found is not None
    assert scene.served.same_bits(before[0]) == "", "just what was promoted"
    scene.drain()
    assert scene.trainer.pending == 0


def test_a_root_that_is_there_though_its_write_failed_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a store on the network whose answer was lost: the first snapshot of all."""
    put = Store.put

    def unanswered(store: Store, name: str, *rest: Any) -> Any:
        done = put(store, name, *rest)
        if name.endswith(".manifest"):
            raise StoreError("no answer", "look at the network")
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", unanswered)
        with pytest.raises(StoreError, match="no answer"):
            Scene(tmp_path / "one")
    scene = Scene(tmp_path / "one")
    learn(scene, batch(0))
    assert scene.served.same_bits(scene.whole()[0]) == ""


def test_an_open_stretch_is_judged_at_a_restart(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)))  # the mark
    assert scene.snapshot() is not None
    at_mark = scene.whole()
    learn(scene, batch(4), batch(5))
    after = scene.again(refuses=True)
    assert after.status["check"] == "shift"
    assert after.trainer.counts["quarantined:shift"] == 2 * BATCH
    assert differs(after.whole(), at_mark) == ""
    assert after.served.same_bits(at_mark[0]) == "", "what was never judged is not the root"


def test_the_screen_sees_each_batch_as_often_when_it_is_done_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is learnt, and one of which a sound model predicts no numbers, as a class of one's own may."""
    learn(scene, *(batch(n) for n in range(4)))
    assert scene.snapshot() is not None
    before = scene.screen.looks
    learn(scene, batch(4))
    with monkeypatch.context() as patch:
        patch.setattr(OnlineModel, "score", lambda self, cat, num: np.full(len(cat), np.nan, np.float32))
        scene.take(batch(5))
    scene.publish()
    scene.promotion.make_durable()
    assert scene.again().screen.looks == scene.screen.looks - before == 2


# -- holds -------------------------------------------------------------------------------------------------------


def held(scene: Scene) -> None:
    """A hold that was answered; then something is learnt."""
    learn(scene, *(batch(n) for n in range(4)))
    assert scene.snapshot() is not None
    learn(scene, batch(4))
    scene.promotion.commands.hold()
    scene.promotion.make_durable()
    learn(scene, *(batch(n) for n in range(5, 9)))


@pytest.mark.parametrize("why", ["another rule", "the topic lost samples", "a message was lost", "no gate any more"])
def test_a_hold_holds_though_what_was_learnt_cannot_be_learnt_again(scene: Scene, why: str) -> None:
    held(scene)
    changes: dict[str, Any] = {}
    if why == "another rule":
        changes["share"] = 0.02
    elif why == "the topic lost samples":
        scene.broker.first = 6
    elif why == "a message was lost":
        del scene.broker.decided[len(scene.broker.decided) // 2 - 4]
    else:
        changes["gate"] = False
    after = scene.again(**changes)
    assert after.status["state"] == "held"
    assert after.sent == [], "nothing of it is seen"
    assert after.again().status["state"] == "held", "nor is it lost at the next restart"
    after.promotion.commands.promote()
    assert after.publish() is not None


def test_a_way_back_after_a_restart_shows_nothing_of_a_hold(scene: Scene) -> None:
    held(scene)
    after = scene.again()
    assert after.trainer.counts["trained"] == 9 * BATCH
    after.take(batch(10, page=POISON))
    assert after.trainer.counts["quarantined"] > 0
    assert after.publish() is None
    assert after.sent == []


def test_a_release_of_what_is_void_is_void(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)))
    assert scene.snapshot() is not None
    learn(scene, batch(10, page=POISON))
    assert scene.promotion.commands.release("all") == 1
    scene.promotion.make_durable()
    after = scene.again(share=0.02)
    assert after.replay.void > 0
    assert after.quarantine.entries() == []
    assert after.status["releasing"] == 0


def test_a_hold_of_a_day_takes_no_more_memory_than_one_of_an_hour(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "MOST_DECISIONS", 20)
    learn(scene, *(batch(n) for n in range(4)))
    served = scene.served
    scene.promotion.commands.hold()
    sizes = []
    for n in range(4, 60):
        learn(scene, batch(n))
        scene.promotion.write_private(0)
        held = scene.promotion.state.rows._held
        sizes.append((len(scene.promotion.state.log.kept.decided), sum(map(len, held.values()))))
    assert max(size for size, _ in sizes) < 40
    assert max(rows for _, rows in sizes) < 40 * BATCH
    assert sum(note.held for note in scene.store.snapshots(held=True)) == 1
    assert scene.served.same_bits(served) == "", "nobody sees it"
    before = scene.whole()
    after = scene.again()
    assert after.replay.done < 40, "a restart begins at the newest of them"
    assert after.sent == []
    assert differs(after.whole(), before) == ""
    after.take(batch(70, page=POISON))  # a way back begins there, too
    after.promotion.commands.promote()
    release(after)
    found = after.publish()
    assert found is not None
    assert found.note.is_root
    assert after.served.same_bits(after.whole()[0]) == ""
    assert not any(note.held for note in after.store.snapshots(held=True))
    line = after.lineage()
    place, stages = found.note.place, 0
    while place in line:
        place, stages = line[place][0], stages + 1
    assert place.number == 0, "the line of the store goes on through them"
    assert stages > 3


def test_a_hold_outlives_a_restart_and_nothing_of_it_is_seen(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)))
    scene.promotion.commands.hold()
    scene.promotion.make_durable()
    learn(scene, *(batch(n) for n in range(4, 9)))
    before = scene.whole()
    after = scene.again()
    assert after.status["state"] == "held"
    assert after.sent == [], "no root of what is held"
    assert differs(after.whole(), before) == "", "what was learnt meanwhile is not lost"
    assert after.publish() is None
    after.promotion.commands.promote()
    found = after.publish()
    assert found is not None
    assert found.note.is_root
    assert after.served.same_bits(after.whole()[0]) == ""


def test_a_command_that_is_not_durable_is_no_success(scene: Scene) -> None:
    learn(scene, batch(0))
    scene.promotion.commands.hold()

    def away() -> None:
        raise BrokerError("broker 'x' does not answer", "start it")

    scene.broker.write = away
    with pytest.raises(BrokerError):
        scene.promotion.make_durable()
    scene.broker.write = lambda: None
    scene.promotion.make_durable()
    assert scene.again().status["state"] == "held"


def test_decisions_of_a_lost_message_are_sent_again(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(3)))
    scene.broker.loses = 2
    learn(scene, *(batch(n) for n in range(3, 6)))
    before = scene.whole()
    assert differs(scene.again().whole(), before) == ""


def test_what_the_topic_does_not_have_any_more_ends_the_replay_and_is_said(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    learn(scene, *(batch(n) for n in range(4)))
    scene.broker.first = 2
    after = scene.again()
    assert after.offset == 2, "what is left is read again"
    assert "cannot be done again" in capsys.readouterr().out
    assert after.promotion.state.log.newest > scene.promotion.state.log.newest, "no number is given twice"
    assert after.trainer.counts["trained"] == 0


def test_what_is_decided_after_a_replay_that_ended_early_is_known_at_the_next_restart(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)))
    assert scene.snapshot() is not None
    learn(scene, batch(10, page=POISON))
    assert scene.snapshot() is None
    learn(scene, *(batch(n) for n in range(20, 23)))
    after = scene.again(share=0.02)  # nothing is done again
    assert after.promotion.commands.release("all") == 0, "what was refused behind the snapshot is judged anew"
    learn(after, batch(11, page=POISON))
    (entry,) = after.quarantine.entries()
    after.promotion.commands.discard([entry.name])
    after.promotion.commands.hold()
    after.promotion.make_durable()
    again = after.again()
    assert again.replay.done > 0
    assert again.promotion.state.standing.held
    assert again.quarantine.entries() == []


def test_messages_that_were_only_read_are_decisions_that_are_sent_too(scene: Scene) -> None:
    learn(scene, batch(0))
    for n in range(1000):
        scene.broker.samples[scene.offset] = scene.broker.samples[0]
        scene.promotion.take(scene.broker.samples[0], n % 2, 0, scene.offset)
        scene.offset += 1
        if n % 10 == 0:
            scene.publish()
    assert scene.promotion.state.log.waiting < 1200
    assert sum(isinstance(each.what, SamplesTaken) for each in scene.broker.decided) > 500


def test_a_gate_that_is_switched_off_after_a_refusal_starts(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)))
    assert scene.snapshot() is not None
    scene.shift.refuses = True
    learn(scene, *(batch(n) for n in range(4, 9)), batch(10, page=POISON))
    after = scene.again(gate=False)
    learn(after, batch(11, page=POISON))
    assert after.trainer.counts["trained"] == 5 * BATCH
    assert after.served.same_bits(after.whole()[0]) == ""
    assert after.again(gate=True).served.tensors()


def test_a_refusal_of_a_day_takes_no_more_memory_than_one_of_an_hour(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "MOST_DECISIONS", 20)
    learn(scene, *(batch(n) for n in range(4)))
    served = scene.whole()[0]
    for n in range(10, 60):
        learn(scene, batch(n, page=POISON))
        assert len(scene.promotion.state.log.kept.decided) < 40
    assert scene.status["state"] == "blocked"
    assert scene.served.same_bits(served) == ""
    after = scene.again()
    assert after.replay.done < 80
    assert after.quarantine.rows == 50 * BATCH


# -- way back ----------------------------------------------------------------------------------------------------


def test_no_way_back_completes_while_samples_cannot_be_read(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    learn(scene, *(batch(n) for n in range(6)))  # the mark is behind the fourth
    scene.promotion.state.rows.cut(-1)  # as after a restart: they have to come from the topic
    scene.broker.away = True
    scene.take(batch(9, page=POISON))
    assert "cannot go back yet" in capsys.readouterr().out
    with pytest.raises(BrokerError):
        scene.publish()
    scene.take(batch(10))
    assert scene.trainer.pending == BATCH, "nothing is learnt into what is refused"
    with pytest.raises(BrokerError, match="has to go back"):
        scene.promotion.commands.promote()
    killed = scene.again()  # the broker is back, and the refusal was never durable
    assert killed.trainer.counts["trained"] == 6 * BATCH
    scene.broker.away = False
    found = scene.publish()
    assert found is not None
    assert found.note.is_root
    assert scene.trainer.counts["trained"] == 4 * BATCH
    assert scene.quarantine.rows == 3 * BATCH


def test_a_way_back_that_was_decided_is_completed_after_a_restart(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(6)))
    scene.promotion.state.rows.cut(-1)
    scene.broker.away = True
    scene.take(batch(9, page=POISON))
    scene.promotion.make_durable()
    scene.broker.away = False
    after = scene.again()
    assert after.trainer.counts["trained"] == 4 * BATCH
    assert after.quarantine.rows == 3 * BATCH
    assert after.served.same_bits(after.whole()[0]) == ""


# -- rows that wait ----------------------------------------------------------------------------------------------


def test_rows_that_wait_while_a_root_is_written_outlive_a_kill(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(5)))
    scene.take(batch(9, page=POISON), step=False)
    scene.take(batch(10), step=False)  # of the same poll
    while scene.promotion.step() is not None:
        pass
    found = scene.publish()
    assert found is not None
    assert found.note.is_root
    assert scene.trainer.pending == BATCH
    after = scene.again()
    assert after.trainer.pending == BATCH
    learn(after, batch(11))
    assert after.trainer.counts["trained"] == 6 * BATCH
    last = after.again()
    assert last.replay.void == 0
    assert differs(last.whole(), after.whole()) == ""


def test_rows_that_wait_as_a_private_snapshot_is_made_outlive_a_kill(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)))
    scene.promotion.commands.hold()
    scene.take(batch(4, rows=BATCH + 9))
    assert scene.promotion.write_private(0)
    assert scene.trainer.pending == 9
    after = scene.again()
    assert after.trainer.pending == 9
    assert after.status["state"] == "held"


# -- released rows -----------------------------------------------------------------------------------------------


def test_what_is_released_in_a_hold_is_not_seen(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(5)))
    scene.promotion.commands.hold()
    scene.take(batch(9, page=POISON))  # behind rows that were published
    scene.promotion.commands.release("all")
    assert not scene.promotion.commands.learn_some(), "the root of what was promoted comes first"
    promoted = scene.whole()
    found = scene.publish()
    assert found is not None
    assert scene.served.same_bits(promoted[0]) == ""
    release(scene)
    assert scene.publish() is None
    assert scene.served.same_bits(promoted[0]) == ""


def test_a_release_vouches_for_no_others(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)), batch(10, rows=2 * BATCH, page=POISON))
    learn(scene, *(batch(n) for n in range(20, 24)))
    learn(scene, batch(24))  # an open stretch
    scene.promotion.commands.release("all")
    assert not scene.promotion.commands.learn_some(), "it is judged first"
    scene.shift.refuses = True
    scene.publish()
    scene.shift.refuses = False
    assert scene.trainer.counts["quarantined:shift"] == BATCH
    assert scene.promotion.commands.learn_some()
    scene.take(batch(25))
    assert scene.trainer.pending == BATCH, "nothing else is learnt meanwhile"
    release(scene)
    scene.drain()
    assert scene.trainer.counts["trained"] == (8 + 2 + 1) * BATCH


def test_a_quarantine_that_is_full_gives_up_what_is_released_too(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)), batch(10, page=POISON))
    learn(scene, batch(11))
    scene.promotion.commands.release("all")
    scene.quarantine.most_bytes = 1
    scene.quarantine.close()
    scene.promotion.state.refused(GateRefusal("loss", 9.0, 1.0), batch(12), places_of([Span(0, 2, 0, BATCH)]))
    assert scene.promotion.state.standing.releasing == []
    release(scene)
    assert scene.again().status["releasing"] == 0


def test_a_user_who_was_deleted_from_a_copy_is_not_learnt(scene: Scene) -> None:
    poisoned = batch(10, page=POISON, user=np.repeat(np.array([7, 8], np.uint64), BATCH // 2))
    learn(scene, *(batch(n) for n in range(4)), poisoned)
    (entry,) = scene.quarantine.entries()
    scene.quarantine.copy(entry.name, scene.kept[0][0])
    assert forget_user(scene.quarantine.store, 7) == BATCH // 2
    scene.broker.first = 6
    scene.promotion.commands.release("all")
    release(scene)
    assert scene.trainer.counts["released"] == scene.trainer.counts["discarded"] == BATCH // 2
    assert scene.status["releasing"] == 0


def test_rows_of_a_topic_that_was_made_anew_are_not_taken_for_others(scene: Scene) -> None:
    scene.quarantine.samples_log = "one"
    learn(scene, *(batch(n) for n in range(4)), batch(10, page=POISON))
    scene.quarantine.samples_log = "another"
    scene.promotion.commands.release("all")
    release(scene)
    assert scene.trainer.counts["released"] == 0
    assert scene.trainer.counts["discarded"] == BATCH


def test_memory_that_is_damaged_in_probation_ends_at_the_mark(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)), batch(10, page=POISON))
    scene.shift.stretch = 10**6
    learn(scene, batch(11))
    scene.model.dense.weights[0] = float("nan")
    learn(scene, batch(12))
    assert scene.promotion.takes
    assert scene.status["state"] == "promoting"
    assert scene.trainer.counts["trained"] == 5 * BATCH, "to the mark, and the newest batch"
    assert scene.quarantine.rows == 2 * BATCH
    assert scene.sent[-1].is_root
    assert scene.served.same_bits(scene.whole()[0]) == ""
    after = scene.again()
    assert after.promotion.takes
    assert differs(after.whole(), scene.whole()) == ""


def test_released_rows_that_are_nowhere_are_given_up_and_said(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    learn(scene, *(batch(n) for n in range(4)), batch(10, page=POISON), batch(11, page=POISON))
    scene.broker.first = 6
    scene.promotion.commands.release("all")
    release(scene)
    assert "given up" in capsys.readouterr().out
    assert scene.trainer.counts["discarded"] == 2 * BATCH
    assert scene.quarantine.rows == 0
    assert scene.promotion.publishing


def some_absurd(seed: int, minute: int = 0) -> SampleBatch:
    """A batch whose first row is of a date that cannot be."""
    made = batch(seed, minute=minute)
    return replace(made, ts_ms=np.where(np.arange(len(made)) == 0, START_MS + 2 * 10**11, made.ts_ms))


def test_an_entry_that_stays_open_is_copied_before_the_topic_loses_it(scene: Scene) -> None:
    """Rows of its check may join it for ten minutes, and no more come."""
    learn(scene, *(batch(n) for n in range(4)), some_absurd(10))
    (entry,) = scene.quarantine.entries()
    held = {0: range(8, 12)}
    scene.promotion.commands.copy_some(held)
    assert scene.quarantine.copies() == set(), "it may grow still"
    learn(scene, *(batch(n, minute=11) for n in range(20, 36)))
    scene.promotion.commands.copy_some(held)
    assert scene.quarantine.copies() == {entry.name}


def test_a_command_that_changes_nothing_is_no_end_of_an_entry(scene: Scene) -> None:
    """It is no decision, so a life after a kill does not know of it."""
    learn(scene, *(batch(n) for n in range(4)), batch(10, page=POISON))
    commands = scene.promotion.commands
    commands.discard("all")
    learn(scene, some_absurd(11))
    commands.promote()
    commands.discard([])
    learn(scene, some_absurd(12))
    commands.release([])
    learn(scene, some_absurd(13))
    scene.promotion.make_durable()
    after = scene.again()
    assert after.replay.void == 0
    assert after.quarantine.entries() == scene.quarantine.entries()
    assert after.quarantine.rows == 3


def test_what_a_refusal_began_joins_no_older_entry(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused since is released where the world has changed."""

    def loss(seed: int, minute: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(OnlineModel, "learn", lambda *_: LearnReport(9.0, 0, "loss_jumped"))
            learn(scene, batch(seed, minute=minute))

    learn(scene, *(batch(n) for n in range(4)))
    loss(10, 0)
    learn(scene, *(batch(n, minute=1, page=POISON) for n in range(11, 20)))
    loss(30, 1)
    assert [(e.check, e.rows) for e in scene.quarantine.entries()] == [
        ("loss", BATCH),
        ("labels", 9 * BATCH),
        ("loss", BATCH),
    ]
    scene.promotion.commands.promote()
    assert scene.status["releasing"] == 2


def test_rows_that_were_refused_alone_do_not_make_a_minute_right(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    learn(scene, *(batch(n) for n in range(4)), batch(10, minute=7, page=POISON))
    with monkeypatch.context() as patch:
        patch.setattr(scene.screen, "absurd", lambda rows: np.ones(len(rows), np.bool_))
        learn(scene, batch(11, minute=7))
    scene.promotion.commands.release([e.name for e in scene.quarantine.entries() if e.check == "absurd"])
    release(scene)
    assert scene.trainer.counts["released"] == BATCH
    assert scene.promotion.checks is not None
    assert scene.promotion.checks.minutes.of(np.array([START_MS + 7 * MINUTE_MS])).all()


def test_rows_that_the_topic_lost_are_learnt_from_their_copy(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)), batch(10, page=POISON))
    (entry,) = scene.quarantine.entries()
    scene.quarantine.copy(entry.name, scene.kept[0][0])
    scene.promotion.commands.hold()
    assert scene.promotion.write_private(0)
    scene.broker.first = 6
    after = scene.again()
    after.promotion.commands.release("all")
    release(after)
    assert after.trainer.counts["released"] == BATCH


def test_a_broker_that_is_away_delays_a_release(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)), batch(10, page=POISON))
    scene.promotion.commands.release("all")
    scene.broker.away = True
    assert not scene.promotion.commands.learn_some()
    assert scene.publish() is None
    scene.broker.away = False
    release(scene)
    assert scene.trainer.counts["released"] == BATCH


def test_a_damaged_batch_is_learnt_one_time(scene: Scene, tmp_path: Path) -> None:
    """A model whose training half alone is damaged refuses a batch; what mends it learns that batch one time."""
    twin = Scene(tmp_path / "twin")
    for one in (scene, twin):
        learn(one, *(batch(n) for n in range(4)))
    scene.model.dense.weights[0] = float("nan")
    for one in (scene, twin):
        learn(one, batch(4))
    assert scene.trainer.counts["way_back:gate"] == 1
    assert scene.trainer.counts["trained"] == twin.trainer.counts["trained"] == 5 * BATCH
    assert differs(scene.whole(), twin.whole()) == ""


def test_a_snapshot_that_held_out_pages_refuse_is_gone_back_behind_in_a_restart_too(scene: Scene) -> None:
    learn(scene, *(batch(n) for n in range(4)))
    assert scene.snapshot() is not None
    learn(scene, *(batch(n) for n in range(4, 9)))
    scene.heldout.refusal = GateRefusal("heldout", -0.02, -0.01)
    assert scene.snapshot() is None
    before, then = scene.whole(), state_of(scene)
    after = scene.again()
    assert differs(after.whole(), before) == ""
    assert state_of(after) == then
    assert np.isfinite(after.served.tensors()[next(iter(after.served.tensors()))]).all()
