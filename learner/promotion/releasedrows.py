# core
"""The rows of entries of quarantine that are learnt: from the topic, or else from the entry's copy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from learner.promotion.learnerstate import LearnerState
from learner.ranker.sampling import fit
from learner.training.decisionlog import Places, places_of
from learner.training.trainer import MicroBatch
from millrace.basics.errors import SchemaError, SnapshotError
from millrace.basics.store import AbsentError
from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import Learnt


class Piece(NamedTuple):
    """A micro-batch of an entry. Rows of a user that was deleted from its copy are not in it."""

    cut: MicroBatch
    unfit: Places  # rows that no model can learn
    size: int  # rows of the entry that it stands for
    ends: bool


class ReleasedRows:
    """One entry at a time is in memory. One thread."""

    def __init__(self, state: LearnerState) -> None:
        self._state = state
        self._name = ""
        self._batch: SampleBatch
        self._places: Places

    def next(self) -> Piece:
        """Of the first entry that is to be learnt, behind what was.

        Raises:
            BrokerError, StoreError: its rows cannot be read now.
            SnapshotError, SchemaError, AbsentError, DamagedError: they are nowhere, or of no use.
        """
        state = self._state
        name, done, size = state.standing.releasing[0], state.standing.released, state.trainer.batch_rows
        whole = places_of(state.quarantine.spans(name))
        if self._name != name:
            self._batch, self._places = self._read(name)
            self._name = name
        wanted = whole[done : done + size]
        if np.array_equal(self._places, whole):
            rows = np.arange(done, done + len(wanted))
        else:
            at = {tuple(place): row for row, place in enumerate(self._places.tolist())}
            rows = np.array([at[place] for place in map(tuple, wanted.tolist()) if place in at], np.int64)
        cut = MicroBatch(self._batch.take(rows), self._places[rows], np.zeros(len(rows), np.int64))
        fits = fit(cut.batch)
        return Piece(cut.take(fits), cut.places[~fits], len(wanted), done + size >= len(whole))

    def _read(self, name: str) -> tuple[SampleBatch, Places]:
        quarantine = self._state.quarantine
        try:
            return self.from_topic(name), places_of(quarantine.spans(name))
        except (SnapshotError, SchemaError) as error:
            try:
                batch, spans = quarantine.read_copy(name)
            except AbsentError:
                raise error from None
            return batch, places_of(spans)

    def from_topic(self, name: str) -> SampleBatch:
        """All rows of an entry. Raises SnapshotError where the topic has them not, SchemaError or BrokerError."""
        quarantine = self._state.quarantine
        of, now = quarantine.entry(name).log, quarantine.samples_log
        if of and now and of != now:
            raise SnapshotError(f"the samples of '{name}' lie on another log than the broker has", "discard them")
        return next(self._state.restorer.read_again([Learnt(tuple(quarantine.spans(name)))]))
