# core
"""Makes an earlier model again: the newest snapshot, and what the line has behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import structlog

from learner.gate.checks import GATE, sound_parts
from learner.gate.model_checks import unsound
from learner.ranker.interfaces import Learning
from learner.training.decisionlog import DecisionLog, learn_again
from learner.training.learner_versions import Build
from millrace.basics.errors import SnapshotError
from millrace.basics.store import AbsentError, DamagedError
from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import Learnt, LogPart
from millrace.versions.image import Array, below
from millrace.versions.modelstore import Announcement, Cuts, ModelStore, Place

log = structlog.get_logger("learner")


ReadAgain = Callable[[Sequence[Learnt]], Iterator[SampleBatch]]


def _from_nowhere(learnt: Sequence[Learnt]) -> Iterator[SampleBatch]:
    raise SnapshotError(f"nobody reads {len(learnt)} micro-batches again", "an older model is taken")


class Base(NamedTuple):
    """A snapshot, and the newest decision that it has. What it has was judged: nothing goes back behind it."""

    note: Announcement
    at: int


class Restored(NamedTuple):
    model: Learning
    to: int  # the decision behind which it is


class Restorer:
    """One thread, but for :meth:`needed`.

    Attributes:
        log: what was decided since the base.
        read_again: reads the batches of micro-batches from ``samples``, in order. Raises SnapshotError where some are
            gone, BrokerError where the broker does not give them.
        base: the newest snapshot; None: there is none.
        origin: the snapshot whose content the newest root had, or the newest snapshot of the store.
    """

    def __init__(self, store: ModelStore, build: Build) -> None:
        self.store, self._build = store, build
        self.log = DecisionLog()
        self.read_again: ReadAgain = _from_nowhere
        self.base: Base | None = None
        self.tick: Callable[[], None] = lambda: None  # called between two micro-batches; what it raises ends it
        self.origin = Place(0, -1)
        store.needed = self.needed

    def begin_at(self, base: Base) -> None:
        """A snapshot is what is gone back to from now on."""
        self.base = base
        self.log.forget(base.at)
        if not base.note.held:
            self.origin = base.note.place

    def needed(self) -> list[Place]:
        """Snapshots of the store that may be begun from. The writer's thread asks for them."""
        return [self.origin] if self.base is None else [self.base.note.place, self.origin]

    def cuts(self) -> Cuts | None:
        """What was decided since the base, for another thread too; None: there is none."""
        log, kept = self.log.kept
        return None if self.base is None else Cuts(self.base.note.place, LogPart(log, list(kept)))

    def restored(self, targets: Sequence[int]) -> Restored | None:
        """A sound model as it was behind the first of the decisions that gives one; None: none does.

        Raises:
            BrokerError: the rows of one cannot be read now.
            StoreError: the store cannot be read.
        """
        if self.base is None:
            return None
        for to in dict.fromkeys([*targets, self.base.at]):
            try:
                model = self.learnt_again(to)
            except (AbsentError, DamagedError, SnapshotError) as error:  # or rows behind it are gone
                log.error("what was learnt cannot be learnt again", upto=to, error=str(error))
                continue
            refusal = unsound(model)
            if refusal is None:
                return Restored(model, to)
            log.error("a way back ends at a model that is not sound", upto=to, why=str(refusal))
        return None

    def learnt_again(self, to: int) -> Learning:
        """The model as it was behind a decision. Raises SnapshotError or StoreError where there is no way to it."""
        base = self.base
        if base is None or to < base.at:
            raise SnapshotError(f"no snapshot at or before decision {to} is known", "a newer one is gone on from")
        model, line = self.snapshot(base.note), self.log.line(base.at, to)
        batches = self.read_again([d.what for d in line if isinstance(d.what, Learnt) and d.what.spans])

        def next_batch(_: Learnt) -> SampleBatch:
            self.tick()
            return next(batches)

        learn_again(model, [decided.what for decided in line if isinstance(decided.what, Learnt)], next_batch)
        return model

    def snapshot(self, note: Announcement) -> Learning:
        """The model of a snapshot. Raises SnapshotError or StoreError where it cannot be read, or is not sound."""
        return self._build(note, sound_parts(self.store, note))

    def minutes(self, note: Announcement) -> dict[str, Array]:
        """What a snapshot knew of refused minutes; empty: it had no gate. Errors as of :meth:`snapshot`."""
        parts = (below(f"{GATE}minutes/", part) for part in self.store.read_training(note))
        return {name: array for part in parts for name, array in part.items()}

    def older(self) -> tuple[Announcement, Learning]:
        """The newest sound snapshot of the store beside the base.

        Raises:
            SnapshotError: there is none.
            StoreError: the store cannot be read.
        """
        for note in self.store.snapshots():
            if (self.base is not None and note.place == self.base.note.place) or note.place > self.origin:
                continue
            with contextlib.suppress(AbsentError, DamagedError, SnapshotError):
                return note, self.snapshot(note)
        raise SnapshotError(
            f"no snapshot of '{self.store.url}' gives a sound model", "empty the store to begin with an untrained one"
        )
