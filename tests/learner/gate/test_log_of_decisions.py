"""A learner that is killed between any two writes is, after a restart, what its log says that it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from learner.gate.quarantine import forget_user
from learner.gate.verdicts import GateRefusal
from learner.promotion import promotion
from learner.ranker.model import OnlineModel
from learner.training.decisionlog import places_of
from millrace.basics.errors import BrokerError, StoreError
from millrace.basics.store import Store
from millrace.versions.decisions import Span
from tests.learner.gate.acts import learn, play, state_of
from tests.learner.gate.promotion_scene import BATCH, MINUTE_MS, POISON, Scene, batch
from tests.scenes.learning import START_MS
from tests.scenes.same_state import differs

B = BATCH


class Story(NamedTuple):
    """Acts, and what has become of a learner behind them."""

    acts: str
    as_if: str | None  # acts that give the same model, to the bit: what is left out never happened
    expected: dict[str, Any]
    said: str
    served: bool | None  # whether the scorer has what the model is; None: it is not looked at
    killed: bool  # whether a kill is tried at last


def story(
    acts: str,
    as_if: str | None = None,
    said: str = "",
    served: bool | None = True,
    killed: bool = True,
    **expected: Any,
) -> Story:
    return Story(acts, as_if, expected, said, served, killed)


def turn(n: int) -> str:
    """A stretch and a half, ten minutes after the one before."""
    return f"{100 * n + 10}-{100 * n + 15}@{10 * n + 10}+1"


LATE = "0-3@0+1 snapshot 5-6@5+1 snapshot 7-8@7+1 snapshot 9@9 back:5 durable"
CHANGED = "10!@11 11!@22 12!@33 13!@44 14!@55 15!@66 state:blocked rebased:0 +16!@71 rebased:1"
STORIES = {
    # micro-batches
    "what passes is learnt": story("0-5", "0-5", trained=6 * B, state="promoting", shift_passed=1),
    "a refused batch is kept and never learnt": story(
        "0-3 +9!", "0-3", trained=4 * B, state="blocked", check="labels", kept=[("labels", {4: B})]
    ),
    "what was learnt since the mark never happened": story(
        "0-4 nothing +9! root", "0-3", trained=4 * B, kept=[("labels", {4: B, 5: B})]
    ),
    "no root where nothing of it was published": story(
        "0-3 +4 +9! nothing +10 nothing +11 nothing +12 nothing +13 published", "0-3 +10-12 13", state="promoting"
    ),
    "a snapshot ends its stretch": story(
        "0-8 snapshot +9! nothing", "0-8", trained=9 * B, kept=[("labels", {9: B})], snapshots=2
    ),
    "an open stretch that is refused makes no snapshot": story("0-8 shift no-snapshot no-shift", "0-7", quarantined=B),
    "shift refuses a stretch, and what came with it may have wrong labels": story(
        "0-3 shift 4-7", "0-3", check="shift", kept=[("shift", dict.fromkeys(range(4, 8), B))], spoilt=1
    ),
    "held-out pages are never learnt": story("0 +1h +2", "0 +2", held_out=B, heldout_taken=B),
    # a broken model
    **{
        f"a broken slot is mended and costs nothing, {what}": story(
            f"0-4 break:{what} 5-11", "0-11", ways_back=1, quarantined=0, trained=12 * B
        )
        for what in ("adam", "average", "rows", "weights")
    },
    "a broken row that nobody touches stops the snapshot": story(
        "0-3 break:one-row no-snapshot 5 snapshot", "0-3 5", check="finite"
    ),
    "memory that is damaged in probation ends at the mark": story(
        "0-3 10! long 11 break:weights 12", "0-3 12", trained=5 * B, kept_rows=2 * B, state="promoting"
    ),
    # snapshots
    "a snapshot that held-out pages refuse is gone back behind": story(
        "0-3 snapshot 4-8 shift-rebased:1 worse no-snapshot shift-rebased:2",
        "0-3",
        kept=[("heldout", dict.fromkeys(range(4, 9), B))],
    ),
    "an open stretch is judged at a restart": story(
        "0-3 snapshot 4-5 refusing", "0-3", check="shift", kept=[("shift", {4: B, 5: B})]
    ),
    "a gate that is switched off after a refusal starts": story(
        "0-3 snapshot shift 4-8 10! no-gate 11", trained=5 * B, kept=[("shift", dict.fromkeys(range(4, 8), B))]
    ),
    # late clicks
    "a late click of what was learnt and went back is not learnt, others of its minutes are": story(
        "0-3@0+1 4@2 5@20 +9!@21 root 10-13@50+1 late:20,21,2,3,10,50", trained=8 * B + 4, last_kept=2
    ),
    "a late click of what the loss guard refused is not learnt": story(
        "0-3@0+1 +5l@7 late:7,2", killed=False, kept=[("loss", {4: B}), ("page", {5: 1})]
    ),
    "a late click of what was rolled back is not learnt": story(
        "0-3@0+1 snapshot 5-8@5+1 back:4 published late:6,7,2", trained=4 * B + 1, kept_rows=2
    ),
    "nor behind the newest snapshot": story(
        f"{LATE} published late:5 late:6 late:7 late:8 late:2", trained=4 * B + 1, kept_rows=4
    ),
    "nor after a restart": story(f"{LATE} kill late:5 late:6 late:7 late:8 late:2", trained=4 * B + 1, kept_rows=4),
    "a gate that observes puts no late click aside": story(
        "0-3@0+1 9!@7 observe late:7", trained=4 * B + 1, kept_rows=B, served=None
    ),
    # the world has changed
    "what stays different is learnt after the stated time, and known after a restart": story(
        f"0-3 snapshot {CHANGED} nothing learn published", released=7 * B, trained=11 * B, kept=[], releasing=0
    ),
    "rows that were refused while the clock went back are learnt with the others": story(
        "0-3 +10!@40 +11!@10 +12!@60 +13!@80 +20!@101 rebased:1 learn", released=5 * B
    ),
    "what shift refuses for the stated time is the world too": story(
        "0-3 shift 10-29@4+4 rebased:1 learn", released=20 * B, trained=24 * B
    ),
    "what held-out pages refuse for the stated time is the world though stretches pass between": story(
        "0-3 snapshot worse "
        + " ".join(f"{turn(n)} state:promoting no-snapshot rebased:{int(n == 6)}" for n in range(7))
        + " learn well published snapshot",
        released=7 * 6 * B,
        kept=[],
    ),
    "a snapshot that passes ends what held-out pages refused": story(  # 50 minutes before the last turn
        "0-3 snapshot worse "
        + " ".join(f"{turn(n)} no-snapshot blocked:1" for n in range(5))
        + f" well {turn(5)} snapshot blocked:0 worse "
        + " ".join(f"{turn(n)} no-snapshot blocked:1" for n in range(6, 12)),
        rebases=0,
    ),
    "a refusal of another kind does not make one older": story(
        "0-3 snapshot 10-15@1 worse no-snapshot +20!@50 +21!@65 +22!@80 +23!@100 rebased:0 +30!@111 rebased:1",
    ),
    "what became normal again stays until a person says": story(
        "0-3 +10!@1 11-14@2 +20!@90 state:blocked release:2 learn", released=2 * B
    ),
    # persons
    "what is discarded is gone": story("+10! discard:1", "", kept=[], kept_rows=0, discarded=B),
    "held versions wait for a person": story(
        "0 hold 1 nothing 2-6 state:held promote published", "0 +1-6", trained=7 * B, sent=3
    ),
    "a person promotes what the gate refused": story("0-3 +10! promote learn published", released=B, kept=[]),
    "rolled back to a version": story("0-3 snapshot 4-9 snapshot back:6 root", "0-3", set_aside=6 * B, trained=4 * B),
    "what came before a rollback is not learnt, nor counted, twice": story(
        "0-3 snapshot 4-9 back:6 root +4 20-23", "0-3 20-23", set_aside=6 * B, repeated=B
    ),
    # releases
    "a release that was acknowledged is done after a restart": story(
        "0-3 snapshot 10! release:1 durable kill release:0 learn", released=B, trained=5 * B
    ),
    "a rollback stops a release": story(
        "0-3 snapshot 10-11! release:1 back:0 learn root", "0-3", trained=4 * B, kept_rows=2 * B
    ),
    "a rollback in the middle of a release counts no row twice": story(
        "0-3 snapshot 10-12! release:1 some back:1", "0-3", quarantined=3 * B, kept_rows=3 * B, released=0, set_aside=0
    ),
    "a rollback behind a release takes its rows back, as all that was learnt since": story(
        "0-3 snapshot 10! release:1 learn back:1 published", "0-3", kept=[], set_aside=B, trained=4 * B
    ),
    "a release of what is void is void": story(
        "0-3 snapshot 10! release:1 durable rule", void=True, kept=[], releasing=0
    ),
    "released rows that are nowhere are given up and said": story(
        "0-3 10! 11! gone:6 release:1 learn", "0-3", said="given up", killed=False, discarded=2 * B, kept=[]
    ),
    "rows that the topic lost are learnt from their copy": story(
        "0-3 10! copy hold private gone:6 kill release:1 learn", released=B, served=False
    ),
    "a broker that is away delays a release": story("0-3 10! release:1 away none nothing there learn", released=B),
    "what is released in a hold is not seen": story(
        "0-4 hold +9! release:1 none root learn nothing", released=2 * B, served=False
    ),
    "a release vouches for no others, and nothing else is learnt meanwhile": story(
        "0-3 10!~64 20-23 24 release:1 none shift published no-shift some +25 learn drain",
        trained=(8 + 2 + 1) * B,
    ),
    "a command that changes nothing is no end of an entry": story(
        "0-3 10! discard:1 11a promote discard-nothing 12a release-nothing 13a",
        kept=[("absurd", {5: 1, 6: 1, 7: 1})],
    ),
    "what a refusal began joins no older entry": story(
        "0-3 10l 11-19!@1 30l@1 promote",
        kept=[("loss", {4: B}), ("labels", dict.fromkeys(range(5, 14), B)), ("loss", {14: B})],
        killed=False,
        releasing=2,
    ),
    "rows of a topic that was made anew are not taken for others": story(
        "topic:one 0-3 10! topic:another release:1 learn", killed=False, released=0, discarded=B
    ),
    # holds and lost decisions
    **{
        f"a hold holds though what was learnt cannot be learnt again, {why}": story(
            f"0-3 snapshot 4 hold durable 5-8 {why} state:held nothing kill state:held nothing promote published",
            killed=False,
            held=False,
        )
        for why in ("rule", "no-gate", "gone:6 kill", "lose-decision kill")
    },
    "a hold outlives a restart and nothing of it is seen": story(
        "0-3 hold durable 4-8 kill state:held nothing", sent=0, trained=9 * B, served=False
    ),
    "what was held is seen when a person says, after a restart": story(
        "0-3 hold durable 4-8 kill promote root", "0-3 +4-8", trained=9 * B
    ),
    "a way back after a restart shows nothing of a hold": story(
        "0-3 snapshot 4 hold durable 5-8 kill +10! nothing", sent=0, quarantined=2 * B, served=False
    ),
    "rows that wait as a private snapshot is made outlive a kill": story(
        "0-3 hold +4~41 private kill", pending=9, state="held", served=False
    ),
    "rows that wait while a root is written outlive a kill": story(
        "0-4 =9! =10 step root pending:1 kill pending:1 11", trained=6 * B, served=False
    ),
    "decisions of a lost message are sent again": story("0-2 loses:2 3-5 kill", "0-5", trained=6 * B),
    "what is decided after a replay that ended early is known at the next restart": story(
        "0-3 snapshot 10! no-snapshot 20-22 rule release:0 11! discard:1 hold durable kill",
        replayed=True,
        held=True,
        kept=[],
        served=False,
    ),
    "a way back that was decided is completed after a restart": story(
        "0-5 away +9! durable there kill", "0-3", trained=4 * B, kept_rows=3 * B
    ),
}


@pytest.mark.parametrize("name", STORIES, ids=lambda name: name.replace(" ", "_"))
def test_what_a_learner_is_behind_its_acts(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a kill then changes nothing of it."""
    acts, as_if, expected, said, served, is_killed = STORIES[name]
    scene = play(Scene(tmp_path / "one"), acts)
    found = state_of(scene)
    more = {
        "shift_passed": scene.promotion.state.verdicts["shift", "passed"],
        "snapshots": len(scene.store.snapshots()),
        "spoilt": len(scene.heldout.spoilt_from),
        "heldout_taken": scene.heldout.taken,
        "ways_back": scene.trainer.counts["way_back:gate"],
        "last_kept": found["kept"] and sum(found["kept"][-1][1].values()),
        "sent": len(scene.sent),
        "rebases": scene.screen.told.count("rebase"),
        "void": scene.replay.void > 0,
        "replayed": scene.replay.done > 0,
    }
    assert {key: (found | more)[key] for key in expected} == expected
    assert said in capsys.readouterr().out
    scene.publish()
    if as_if is not None:
        twin = play(Scene(tmp_path / "twin"), as_if)
        twin.publish()
        assert differs(scene.whole(), twin.whole()) == ""
    assert served is None or served == (scene.served.same_bits(scene.whole()[0]) == "")
    if not is_killed:
        return
    scene.promotion.make_durable()
    killed, then = scene.again(), state_of(scene)
    assert killed.replay.differ == killed.replay.void == 0
    assert state_of(killed) == then
    assert differs(killed.whole(), scene.whole()) == ""
    assert not killed.sent or killed.served.same_bits(killed.whole()[0]) == ""


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "one")


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


def test_what_a_root_leaves_out_is_known_wherever_it_is_killed(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(scene, "0-4 +9!")  # the fifth was published
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
    play(scene, "0-4 +9!")
    before = scene.whole()

    def full(*_: object) -> None:
        raise StoreError("no space", "make some")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", full)
        with pytest.raises(StoreError, match="no space"):
            scene.publish()
        play(scene, "+10")
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
    play(scene, "0")
    assert scene.served.same_bits(scene.whole()[0]) == ""


def test_the_screen_sees_each_batch_as_often_when_it_is_done_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is learnt, and one of which a sound model predicts no numbers, as a class of one's own may."""
    play(scene, "0-3 snapshot")
    before = scene.screen.looks
    play(scene, "4")
    with monkeypatch.context() as patch:
        patch.setattr(OnlineModel, "score", lambda self, cat, num: np.full(len(cat), np.nan, np.float32))
        play(scene, "+5")
    scene.publish()
    scene.promotion.make_durable()
    assert scene.again().screen.looks == scene.screen.looks - before == 2


def test_a_hold_of_a_day_takes_no_more_memory_than_one_of_an_hour(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "MOST_DECISIONS", 20)
    play(scene, "0-3")
    served = scene.served
    play(scene, "hold")
    sizes = []
    for n in range(4, 60):
        learn(scene, batch(n))
        scene.promotion.write_private(0)
        sizes.append(len(scene.promotion.state.log.kept.decided))
    assert max(sizes) < 40
    assert sum(note.held for note in scene.store.snapshots(held=True)) == 1
    assert scene.served.same_bits(served) == "", "nobody sees it"
    before = scene.whole()
    after = scene.again()
    assert after.replay.done < 40, "a restart begins at the newest of them"
    assert after.sent == []
    assert differs(after.whole(), before) == ""
    play(after, "+70! promote learn root")  # a way back begins there, too
    assert after.served.same_bits(after.whole()[0]) == ""
    assert not any(note.held for note in after.store.snapshots(held=True))
    line = after.lineage()
    place, stages = after.sent[-1].place, 0
    while place in line:
        place, stages = line[place][0], stages + 1
    assert place.number == 0, "the line of the store goes on through them"
    assert stages > 3


def test_a_command_that_is_not_durable_is_no_success(scene: Scene) -> None:
    play(scene, "0 hold")

    def away() -> None:
        raise BrokerError("broker 'x' does not answer", "start it")

    scene.broker.write = away
    with pytest.raises(BrokerError):
        scene.promotion.make_durable()
    scene.broker.write = lambda: None
    scene.promotion.make_durable()
    assert scene.again().status["state"] == "held"


def test_what_the_topic_does_not_have_any_more_ends_the_replay_and_is_said(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    play(scene, "0-3")
    scene.broker.first = 2
    after = scene.again()
    assert after.offset == 2, "what is left is read again"
    assert "cannot be done again" in capsys.readouterr().out
    assert after.promotion.state.log.newest > scene.promotion.state.log.newest, "no number is given twice"
    assert after.trainer.counts["trained"] == 0


def test_messages_that_were_only_read_are_no_decisions_and_are_read_again(scene: Scene) -> None:
    play(scene, "0")
    before = len(scene.broker.decided)
    for _ in range(100):
        scene.take(scene.broker.samples[0])  # all repeated
        scene.publish()
    assert len(scene.broker.decided) == before
    after = scene.again()
    assert after.offset == 1
    play(after, "1")
    assert scene.broker.decided[-1].read == 2


def test_a_refusal_of_a_day_takes_no_more_memory_than_one_of_an_hour(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "MOST_DECISIONS", 20)
    play(scene, "0-3")
    served = scene.whole()[0]
    for n in range(10, 60):
        learn(scene, batch(n, page=POISON))
        assert len(scene.promotion.state.log.kept.decided) < 40
    assert scene.status["state"] == "blocked"
    assert scene.served.same_bits(served) == ""
    after = scene.again()
    assert after.replay.done < 80
    assert after.quarantine.rows == 50 * BATCH


def test_no_way_back_completes_while_samples_cannot_be_read(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    play(scene, "0-5")  # the mark is behind the fourth
    scene.broker.away = True
    play(scene, "+9!")
    assert "cannot go back yet" in capsys.readouterr().out
    with pytest.raises(BrokerError):
        scene.publish()
    play(scene, "+10")
    assert scene.trainer.pending == BATCH, "nothing is learnt into what is refused"
    with pytest.raises(BrokerError, match="has to go back"):
        scene.promotion.commands.promote()
    killed = scene.again()  # the broker is back, and the refusal was never durable
    assert killed.trainer.counts["trained"] == 6 * BATCH
    scene.broker.away = False
    play(scene, "root")
    assert scene.trainer.counts["trained"] == 4 * BATCH
    assert scene.quarantine.rows == 3 * BATCH


def test_a_quarantine_that_is_full_gives_up_what_is_released_too(scene: Scene) -> None:
    play(scene, "0-3 10! 11")
    scene.promotion.commands.release("all")
    scene.quarantine.most_bytes = 1
    scene.quarantine.close()
    scene.promotion.state.refused(GateRefusal("loss", 9.0, 1.0), batch(12), places_of([Span(2, 0, BATCH)]))
    assert scene.promotion.state.standing.releasing == []
    play(scene, "learn")
    assert scene.again().status["releasing"] == 0


def test_a_user_who_was_deleted_from_a_copy_is_not_learnt(scene: Scene) -> None:
    poisoned = batch(10, page=POISON, user=np.repeat(np.array([7, 8], np.uint64), BATCH // 2))
    learn(scene, *(batch(n) for n in range(4)), poisoned)
    (entry,) = scene.quarantine.entries()
    scene.quarantine.copy(entry.name, scene.kept[0][0])
    assert forget_user(scene.quarantine.store, 7) == BATCH // 2
    play(scene, "gone:6 release:1 learn")
    assert scene.trainer.counts["released"] == scene.trainer.counts["discarded"] == BATCH // 2
    assert scene.status["releasing"] == 0


def test_an_entry_that_stays_open_is_copied_before_the_topic_loses_it(scene: Scene) -> None:
    """Rows of its check may join it for ten minutes, and no more come."""
    play(scene, "0-3 10a")
    (entry,) = scene.quarantine.entries()
    held = range(8, 12)
    scene.promotion.commands.copy_some(held)
    assert scene.quarantine.copies() == set(), "it may grow still"
    play(scene, "20-35@11")
    scene.promotion.commands.copy_some(held)
    assert scene.quarantine.copies() == {entry.name}


def test_rows_that_were_refused_alone_do_not_make_a_minute_right(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    play(scene, "0-3 10!@7")
    with monkeypatch.context() as patch:
        patch.setattr(scene.screen, "absurd", lambda rows: np.ones(len(rows), np.bool_))
        play(scene, "11@7")
    scene.promotion.commands.release([e.name for e in scene.quarantine.entries() if e.check == "absurd"])
    play(scene, "learn")
    assert scene.trainer.counts["released"] == BATCH
    assert scene.promotion.checks is not None
    assert scene.promotion.checks.minutes.of(np.array([START_MS + 7 * MINUTE_MS])).all()
