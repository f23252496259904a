"""What happens to a learner with a gate, as a line of words: ``"0-3 snapshot 9! release learn kill"``.

A number is a batch: it is taken, and a delta is published. ``5-8`` are four; a ``+`` before it says that none is
published, an ``=`` that it is not even learnt before the next one comes. Behind the number stands what is odd of it:
``!`` poisoned, ``h`` held out, ``a`` one absurd row, ``l`` the guard of losses refuses it. ``~`` says how many rows it
has, and ``@`` its minute: ``@7``, or ``@7+2`` where each that follows is two minutes later. ``late:7,2`` is a message
of late clicks of these minutes. All other words are commands, see :data:`WORDS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from learner.gate.verdicts import GateRefusal
from learner.ranker.model import LearnReport, OnlineModel
from learner.tables.table import SparseTable
from millrace.contracts.samples import CORRECTION, NEGATIVE, SampleBatch
from millrace.versions.image import RETRIEVAL_TABLES
from tests.learner.gate.promotion_scene import BATCH, MINUTE_MS, POISON, Scene, batch
from tests.scenes.learning import START_MS

_BATCHES = re.compile(r"([+=]?)(\d+)(?:-(\d+))?([!hal]?)(?:~(\d+))?(?:@(\d+)(?:\+(\d+))?)?")
WORSE = GateRefusal("heldout", 0.02, 0.01)
BREAKS: dict[str, Callable[[OnlineModel], None]] = {}


def play(scene: Scene, acts: str) -> Scene:
    """Does all of it; the learner's life at the end."""
    for word in acts.split():
        name, _, value = word.partition(":")
        if match := _BATCHES.fullmatch(word):
            _batches(scene, *match.groups())
        elif name == "late":
            minutes = np.array(value.split(","), np.int64)
            learn(scene, late_clicks(int(minutes[0]), minutes, np.ones(len(minutes), np.bool_)))
            scene.drain()
        elif name in LIVES:
            scene = LIVES[name](scene)
        elif name in FIGURES:
            found = FIGURES[name](scene)
            assert found == (value if isinstance(found, str) else int(value)), (acts, word, found)
        else:
            assert WORDS[name](scene, *([value] if value else [])) is not False, (acts, word)
    return scene


def _batches(scene: Scene, alone: str, first: str, last: str, odd: str, rows: str, minute: str, step: str) -> None:
    for n in range(int(first), int(last or first) + 1):
        at = int(minute or 0) + int(step or 0) * (n - int(first))
        page = {"!": POISON, "h": "held"}.get(odd, "page")
        made = batch(n, rows=int(rows or BATCH), minute=at, page=page)
        if odd == "a":
            made = replace(made, ts_ms=np.where(np.arange(len(made)) == 0, START_MS + 2 * 10**11, made.ts_ms))
        with pytest.MonkeyPatch.context() as patch:
            if odd == "l":
                patch.setattr(OnlineModel, "learn", lambda *_: LearnReport(9.0, 0, "loss_jumped"))
            scene.take(made, step=alone != "=")
        if not alone:
            scene.publish()


def learn(scene: Scene, *batches: SampleBatch) -> None:
    """Takes each and publishes a delta behind it."""
    for each in batches:
        scene.take(each)
        scene.publish()


def late_clicks(seed: int, minutes: NDArray[np.int64], late: NDArray[np.bool_]) -> SampleBatch:
    """A message with rows of these minutes, (B,): some are late clicks, the others exposures."""
    kind, label = np.where(late, CORRECTION, NEGATIVE), late.astype(np.float32)
    made = batch(seed, rows=len(late), kind=kind.astype(np.uint8), label=label)
    return replace(made, ts_ms=START_MS + minutes * MINUTE_MS)


# -- words -----------------------------------------------------------------------------------------------------


def _snapshot(scene: Scene) -> bool:
    note = scene.snapshot()
    scene.first = scene.first or note
    return note is not None and scene.promotion.at_mark


def _nothing(scene: Scene) -> bool:
    """Nothing is published, and the scorer serves what it served."""
    served = scene.served
    return scene.publish() is None and scene.served.same_bits(served) == ""


def _root(scene: Scene) -> None:
    """The next delta is a root: old content with a new number."""
    newest = scene.sent[-1].version if scene.sent else -1
    found = scene.publish()
    assert found is not None
    assert found.note.is_root
    assert found.note.version > newest
    assert found.note.trained == scene.trainer.counts["trained"]


def _step(scene: Scene) -> None:
    """All that can be learnt of what waits."""
    while scene.promotion.step() is not None:
        pass


def _learn_released(scene: Scene) -> None:
    while scene.promotion.commands.learn_some():
        pass


def _copied(scene: Scene) -> None:
    """Each entry of quarantine."""
    for entry, (rows, _) in zip(scene.quarantine.entries(), scene.kept, strict=True):
        scene.quarantine.copy(entry.name, rows)


def _rolled_back(scene: Scene) -> float:
    """To the first snapshot: how many batches are gone."""
    assert scene.first is not None
    return scene.promotion.commands.roll_back(scene.first) / BATCH


def _lose_decision(scene: Scene) -> None:
    """One of those in the middle is not on its topic any more."""
    del scene.broker.decided[len(scene.broker.decided) // 2 - 4]


WORDS: dict[str, Callable[..., object]] = {
    "snapshot": _snapshot,
    "no-snapshot": lambda scene: scene.snapshot() is None,
    "private": lambda scene: scene.promotion.write_private(0),  # a snapshot of what is held
    "published": lambda scene: scene.publish() is not None,
    "nothing": _nothing,
    "root": _root,
    "drain": Scene.drain,
    "step": _step,
    "hold": lambda scene: scene.promotion.commands.hold(),
    "promote": lambda scene: scene.promotion.commands.promote(),
    "learn": _learn_released,
    "some": lambda scene: scene.promotion.commands.learn_some(),
    "none": lambda scene: not scene.promotion.commands.learn_some(),
    "release-nothing": lambda scene: scene.promotion.commands.release([]),
    "discard-nothing": lambda scene: scene.promotion.commands.discard([]),
    "copy": _copied,
    "break": lambda scene, what: BREAKS[what](scene.model),
    "shift": lambda scene: setattr(scene.shift, "refuses", True),  # refuses each stretch
    "no-shift": lambda scene: setattr(scene.shift, "refuses", False),
    "worse": lambda scene: setattr(scene.heldout, "refusal", WORSE),  # held-out pages refuse each snapshot
    "well": lambda scene: setattr(scene.heldout, "refusal", None),
    "long": lambda scene: setattr(scene.shift, "stretch", 10**6),
    "durable": lambda scene: scene.promotion.make_durable(),
    "away": lambda scene: setattr(scene.broker, "away", True),  # samples are not given again
    "there": lambda scene: setattr(scene.broker, "away", False),
    "gone": lambda scene, offset: setattr(scene.broker, "first", int(offset)),  # what is older than this offset
    "loses": lambda scene, messages: setattr(scene.broker, "loses", int(messages)),
    "lose-decision": _lose_decision,
    "topic": lambda scene, id: setattr(scene.quarantine, "samples_log", id),
}
"""What is done. What comes to False fails."""

FIGURES: dict[str, Callable[[Scene], Any]] = {
    "release": lambda scene: scene.promotion.commands.release("all"),
    "discard": lambda scene: scene.promotion.commands.discard("all") / BATCH,
    "back": _rolled_back,
    "state": lambda scene: scene.status["state"],
    "blocked": lambda scene: int(scene.status["blocked_since_ms"] > 0),
    "pending": lambda scene: scene.trainer.pending / BATCH,
    "rebased": lambda scene: scene.screen.told.count("rebase"),
    "shift-rebased": lambda scene: scene.shift.rebased,
}
"""What is done, or looked at, and must come to the value behind the colon: entries or batches, where it is a number."""

LIVES: dict[str, Callable[[Scene], Scene]] = {
    "kill": lambda scene: scene.again(),
    "refusing": lambda scene: scene.again(refuses=True),  # killed; the first look at a stretch refuses
    "rule": lambda scene: scene.again(share=0.02),  # killed; then another share of pages is held out
    "no-gate": lambda scene: scene.again(gate=False),
    "gate": lambda scene: scene.again(gate=True),
    "observe": lambda scene: scene.again(observe=True),
}
"""What ends a life, and the next one."""


# -- what breaks a model ---------------------------------------------------------------------------------------


def table_of(model: OnlineModel) -> SparseTable:
    """The largest of the ranker's tables."""
    return max((t for n, t in model.tables.items() if n not in RETRIEVAL_TABLES), key=len)


def _fill(name: str, value: float, rows: slice) -> Callable[[OnlineModel], None]:
    def fill(model: OnlineModel) -> None:
        index = table_of(model).index
        index.data[index.rows()[rows], index.at[name]] = value

    return fill


def break_adam(model: OnlineModel) -> None:
    model.dense.second[0] = float("nan")


def break_average(model: OnlineModel) -> None:
    next(iter(model.serving.parameters())).data[0] = float("nan")


def break_weights(model: OnlineModel) -> None:
    model.dense.weights[0] = float("nan")


BREAKS |= {
    "adam": break_adam,
    "average": break_average,
    "weights": break_weights,
    "rows": _fill("square", np.nan, slice(None)),
    "one-row": _fill("z", np.inf, slice(1)),
}


# -- what has become of it -------------------------------------------------------------------------------------


def state_of(scene: Scene) -> dict[str, Any]:
    """What a person and the next decision see of a gate, and where each refused row is: of each entry its check, and
    how many rows of which message."""
    status, counts = scene.status, scene.trainer.counts
    standing = scene.promotion.state.standing
    kept = []
    for entry in scene.quarantine.entries():
        rows: dict[int, int] = {}
        for span in scene.quarantine.spans(entry.name):
            rows[span.offset] = rows.get(span.offset, 0) + span.stop - span.first
        kept.append((entry.check, rows))
    return {
        **{name: status[name] for name in ("state", "check", "refused_ms", "blocked_since_ms", "releasing")},
        **{name: counts[name] for name in COUNTED},
        "kept": kept,
        "kept_rows": status["quarantined_rows"],
        "repeats": len(scene.trainer.repeats),
        "pending": scene.trainer.pending,
        "probation": standing.probation,
        "held": standing.held,
    }


COUNTED = ("trained", "quarantined", "released", "discarded", "set_aside", "repeated", "held_out")
