"""Random histories with a kill between any two writes: after a restart a learner is what its log says, made afresh.

The broker of these histories loses messages of decisions and gives some twice; its topics are trimmed as far as a
learner or retention lets it; samples are away for a while; the gate's settings change from one life to the next.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from learner.gate.verdicts import GateRefusal
from learner.promotion import promotion
from millrace.basics.errors import MillraceError
from millrace.basics.store import Store
from millrace.contracts.samples import CORRECTION, NEGATIVE
from millrace.versions.decisions import Learnt
from tests.learner.gate.promotion_scene import MINUTE_MS, POISON, SPEC, Broker, Scene, batch
from tests.scenes.exploring import examples
from tests.scenes.learning import START_MS
from tests.scenes.waiting import LONG

PLAIN = ["drain", "delta", "head", "snapshot", "private", "shift", "worse", "broken", "release some"]
PERSONS = ["hold", "promote", "release", "discard"]
HOSTILE = ["lose", "twice", "trim", "retention", "away", "rule"]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(5, 80)),
        st.tuples(st.just("two at once"), st.integers(5, 40)),
        st.tuples(st.sampled_from(["poison", "heavy"]), st.integers(5, 80)),
        st.tuples(st.just("held out"), st.integers(1, 9)),
        st.tuples(st.just("again"), st.integers(0, 9)),
        st.tuples(st.sampled_from(["late", "late alone"]), st.integers(0, 20)),
        st.tuples(st.sampled_from(PLAIN), st.just(0)),
        st.tuples(st.sampled_from(PERSONS), st.just(0)),
        st.tuples(st.sampled_from(HOSTILE), st.integers(1, 3)),
        st.tuples(st.just("rollback"), st.integers(0, 2)),
    ),
    min_size=6,
    max_size=24,
)
KILLS = st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=4)


READ = {"pending", "repeats", "offset"}
"""What reading alone changes."""


class Killed(Exception):
    """Nothing that a learner handles."""


class World:
    """What outlives a learner, and who kills it: at the write of a number, before or after it. It knows of each state
    in which a learner wrote what a restart goes on from, and what persons were answered."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.broker = folder, Broker()
        self.scene: Scene | None = None
        self.states: dict[int, tuple[str, dict[str, Any]]] = {}  # by newest decision: the model, and the rest
        self.share, self.harmed, self.held = 0.01, False, False
        self.left, self.after = 0, False

    def live(self, kill: tuple[int, bool]) -> None:
        """The next life, which ends at that write. It reads what the topic has behind its offsets."""
        self.left, self.after = kill
        self.scene = None
        kept = max((each.n for each in self.broker.decided), default=0)
        self.states = {n: state for n, state in self.states.items() if n <= kept}  # this life numbers from there
        self.scene = life(self.folder, self.broker, self.share)
        for offset in range(self.scene.offset, max(self.broker.samples, default=-1) + 1):
            self.scene.take(self.broker.samples[offset])

    def write(self, real: Callable[..., Any], *args: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        scene, recorded = self.scene, real.__name__ == "decide" or args[1].endswith(".manifest")
        if (
            recorded and scene is not None and np.isfinite(float(scene.model.dense.second[0]))
        ):  # what damages it is no decision
            self.states[scene.promotion.state.log.newest] = (digest(scene), known(scene))
        done = real(*args)
        if self.left == 0:
            raise Killed
        return done

    # -- steps ---------------------------------------------------------------------------------------------------

    def do(self, number: int, step: tuple[str, int]) -> None:
        """One step of a history. ``number``: of the step, for other rows each time."""
        what, arg = step
        assert self.scene is not None
        if what in HOSTILE:
            self.harm(what, arg)
        elif what in PERSONS:
            self.ask(what)
        elif what == "rollback":
            notes = self.scene.store.snapshots()
            self.scene.drain()
            self.scene.promotion.commands.roll_back(notes[min(arg, len(notes) - 1)])
            publish(self.scene)
        else:
            act(self.scene, number, what, arg)

    def ask(self, what: str) -> None:
        """A person's command; it was answered where it is durable."""
        scene = self.scene
        assert scene is not None
        scene.drain()
        with contextlib.suppress(MillraceError):
            commands = scene.promotion.commands
            if what in ("release", "discard"):
                getattr(commands, what)("all")
            else:
                getattr(commands, what)()
            if what == "promote":
                self.held = False  # from now on either is right
            scene.promotion.make_durable()
            if what == "hold":
                self.held = True

    def harm(self, what: str, arg: int) -> None:
        broker = self.broker
        assert self.scene is not None
        if what == "lose":
            broker.loses = arg
        elif what == "twice":
            broker.decided += broker.decided[-7 * arg :]
        elif what == "trim":  # as the learner lets the broker: what its newest two snapshots do not need
            notes = self.scene.store.snapshots()[:2]
            least = min((note.extra["decision"] for note in notes), default=0)
            broker.decided = [each for each in broker.decided if each.n > least]
        elif what == "retention":
            broker.first = max(broker.first, self.scene.offset - 3 * arg)
            self.harmed = True
        elif what == "away":
            broker.away = not broker.away
        elif what == "rule":
            self.share += 0.01
            self.harmed = True


def life(folder: Path, broker: Broker, share: float, replayed: Callable[[Scene], None] = lambda scene: None) -> Scene:
    spec = {**SPEC, "max_rows": 1000}
    return Scene(folder, stretch=96, broker=broker, spec=spec, share=share, replayed=replayed)


def act(scene: Scene, number: int, what: str, arg: int) -> None:
    minute = number * 9
    match what:
        case "take":
            scene.take(batch(number, rows=arg, minute=minute))
        case "two at once":  # and neither is learnt before the next step
            scene.take(batch(number, rows=arg, minute=minute, page=POISON), step=False)
            scene.take(batch(100 + number, rows=arg, minute=minute), step=False)
        case "poison":
            scene.take(batch(number, rows=arg, minute=minute, page=POISON))
        case "heavy":  # a model learns none of it, whoever vouches for it
            weight = np.full(arg, 1e6, np.float32)
            scene.take(batch(number, rows=arg, minute=minute, page=POISON, weight=weight))
        case "held out":
            scene.take(batch(number, rows=arg, minute=minute, page="held"))
        case "late" | "late alone":  # clicks of what was shown at an earlier step, among others' exposures
            late = np.arange(12) % 2 < (1 if what == "late" else 2)
            kind, ts_ms = np.where(late, CORRECTION, NEGATIVE), START_MS + np.where(late, 9 * arg, minute) * MINUTE_MS
            scene.take(batch(number, rows=12, page="late", kind=kind.astype(np.uint8), ts_ms=ts_ms))
        case "again":
            if scene.offset > arg and arg >= scene.broker.first:
                scene.take(scene.broker.samples[arg])
        case "drain":
            scene.drain()
        case "delta" | "head":
            publish(scene, retrieval=what == "head")
        case "snapshot":
            snapshot(scene)
        case "private":
            with contextlib.suppress(MillraceError):
                scene.promotion.write_private(0)
        case "release some":
            scene.promotion.commands.learn_some()
        case "shift":
            scene.shift.refuses = True
            publish(scene)
            scene.shift.refuses = False
        case "worse":
            scene.heldout.refusal = GateRefusal("heldout", 0.02, 0.01)
            snapshot(scene)
            scene.heldout.refusal = None
        case "broken":
            scene.drain()
            scene.model.dense.second[0] = float("nan")
            publish(scene)


def snapshot(scene: Scene) -> None:
    with contextlib.suppress(MillraceError):
        scene.drain()
        scene.snapshot()


def publish(scene: Scene, retrieval: bool = True) -> None:
    with contextlib.suppress(MillraceError):
        scene.drain()
        scene.publish(retrieval=retrieval)


def digest(scene: Scene) -> str:
    """Of all that the model is, to the bit."""
    image, training = scene.whole()
    arrays = {f"image/{name}": array for name, array in image.tensors().items()} | dict(training)
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def known(scene: Scene) -> dict[str, Any]:
    """All of a learner that is no model."""
    state, counts = scene.promotion.state, scene.trainer.counts
    assert state.checks is not None
    return {
        "held": state.standing.held,
        "probation": state.standing.probation,
        "since": dict(state.standing.since),
        "back": state.standing.back,
        "releasing": (list(state.standing.releasing), state.standing.released, list(state.standing.skipped)),
        "unjudged": sum(d.what.rows for d in state.unjudged if isinstance(d.what, Learnt)),
        "kept": {entry.name: (entry.rows, scene.quarantine.spans(entry.name)) for entry in scene.quarantine.entries()},
        "counts": {name: counts[name] for name in ("trained", "quarantined", "released", "discarded", "set_aside")},
        "repeats": len(scene.trainer.repeats),
        "stretch": scene.shift.rows,
        "minutes": hashlib.sha256(state.checks.minutes.snapshot()["counts"].tobytes()).hexdigest(),
        "pending": scene.trainer.pending,
        "offset": scene.offset,
    }


def balance(scene: Scene) -> int:
    """Rows of which it is not known what became of them."""
    counts = scene.trainer.counts
    came = sum(len(scene.broker.samples[offset]) for offset in range(scene.offset))
    there = sum(counts[name] for name in ("trained", "repeated", "held_out", "discarded", "set_aside", "alone"))
    half = scene.promotion.state.standing.half
    return came - there - scene.quarantine.rows - scene.trainer.pending + half


# -- what must hold ----------------------------------------------------------------------------------------------


def made_afresh(world: World, copy: Path) -> tuple[Scene, str, dict[str, Any], bool]:
    """A fresh learner on a copy of what was left behind. Model, rest, and whether somebody went back, as its decisions
    were done again."""
    if world.folder.exists():
        shutil.copytree(world.folder, copy / "one")
    broker, seen = Broker(), []
    broker.samples, broker.decided = dict(world.broker.samples), list(world.broker.decided)
    broker.first = world.broker.first

    def replayed(scene: Scene) -> None:
        then, newest = world.states.get(scene.begun_at), scene.promotion.state.log.newest
        for offset in range(scene.offset, then[1]["offset"] if then else 0):
            scene.take(broker.samples[offset], step=False)
        assert scene.promotion.state.log.newest == newest, "what was read behind the newest decision decides nothing"
        seen.append((digest(scene), known(scene), scene.promotion.state.root_due))

    scene = life(copy / "one", broker, world.share, replayed)
    return scene, *seen[0]


def check(world: World) -> None:
    with tempfile.TemporaryDirectory(dir=world.folder.parent) as one, tempfile.TemporaryDirectory() as other:
        first, learnt, was, root_due = made_afresh(world, Path(one))
        second, *_ = made_afresh(world, Path(other))
    assert first.replay.differ == 0
    assert digest(first) == digest(second), "two processes make the same of it"
    assert known(first) == known(second)
    standing = first.promotion.state.standing
    if first.begun_at in world.states and not first.replay.void:
        model, rest = world.states[first.begun_at]
        assert learnt == model, "and it is what the learner was that was killed"
        if first.broker.at < world.broker.first < rest["offset"]:  # retention took some of what nothing was decided on
            was, rest = ({name: of[name] for name in of.keys() - READ} for of in (was, rest))
        assert was == rest
    if world.held:
        assert standing.held, "a person was answered"
    if not world.harmed:
        assert balance(first) == 0, "each row is somewhere, and one time"
    if first.sent:
        assert first.served.same_bits(first.whole()[0]) == "", "what it publishes is what it has"
        assert not standing.held or root_due, "what is held is seen only where somebody went back"
    else:
        assert standing.held or standing.probation or standing.releasing


@pytest.mark.timeout(LONG)
@given(steps=STEPS, kills=KILLS)
@examples(60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], deadline=None)
def test_a_learner_that_is_killed_goes_on_as_what_it_was(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], kills: list[tuple[int, bool]]
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    world = World(folder / "one")
    put, decide = Store.put, world.broker.decide
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(promotion, "MOST_DECISIONS", 12)
        patch.setattr(Store, "put", lambda *args: world.write(put, *args))
        patch.setattr(world.broker, "decide", lambda *args: world.write(decide, *args))
        todo, lives = list(enumerate(steps)), [*kills, (0, False)]
        while lives:
            try:
                world.live(lives.pop(0))
                while todo and world.scene is not None:
                    world.do(*todo.pop(0))
                break
            except Killed:
                world.broker.loses, world.broker.lost, world.broker.away = 0, False, False
                with pytest.MonkeyPatch.context() as unpatched:
                    unpatched.setattr(Store, "put", put)
                    check(world)
    check(world)
    world.scene = None
    shutil.rmtree(folder)  # a snapshot of this model takes 17 MB
    gc.collect()
