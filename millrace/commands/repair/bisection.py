# core
"""A line of versions, and a figure at each point of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from learner.ranker.interfaces import Learning
from learner.role.model_factory import model_of, resumed
from learner.samples.batch_reader import BatchReader, Decode, Source, wanted_by
from learner.training.decisionlog import learn_again
from millrace.basics.errors import SnapshotError
from millrace.basics.store import AbsentError
from millrace.commands.repair.halving import MovedStretch, Point, narrowed, steepest
from millrace.commands.repair.judge import JudgedRows, figure_on, members_of, rows_until, worse
from millrace.commands.repair.relearning import Begun
from millrace.commands.repair.standout import Standout, Tally, standouts
from millrace.commands.repair.without import time_of
from millrace.contracts.samples import FOLLOW_UP, SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.decisions import Learnt
from millrace.versions.modelstore import Announcement, ModelStore

_BACK_ROWS = 400_000
"""Rows before the start that are looked through for held-out pages."""
_PIECES, _FEW_PIECES = 20, 3
"""Pieces before the start that show usual values; with fewer than a few, later pieces count too."""
_AGE_MS = 1_800_000
"""Rows to judge by are as old at the start as the gate asks of its own: their labels are in."""


@dataclass(frozen=True, slots=True)
class StretchSamples:
    """Which samples a stretch has: rows, exposures from and to (ms), and offsets (to: not included)."""

    rows: int
    from_ms: int
    to_ms: int
    offsets: tuple[int, int]


class Bisection:
    """Finds the stretch that moved a figure. Models between two kept versions are learnt again from less than twice
    the rows.

    Raises:
        SnapshotError: there are no rows to judge by.
        StoreError: a snapshot cannot be read.
    """

    def __init__(
        self,
        figure: str,
        store: ModelStore,
        begun: Begun,
        source: Source,
        decode: Decode,
        schema: Schema,
        named: str = "",
    ) -> None:
        self.figure, self.line, self.acts = figure, begun.line, begun.line.acts
        self._start = begun.model
        self._store, self._source, self._decode, self._schema, self._named = store, source, decode, schema, named
        self._models: dict[int, Learning] = {}
        self.judged = self._judged()

    def _judged(self) -> JudgedRows:
        start = self.line.start
        until_ms = start.event_ms - _AGE_MS
        members = None if self.figure == "auc" else members_of(start.extra.get("heldout", {}))
        rows = rows_until(self._before(_BACK_ROWS), until_ms, members)
        if not 0 < (rows.label > 0.5).sum() < len(rows.label):
            kind = "" if members is None else "held-out "
            other = "" if members is None else ", or take --figure auc"
            raise SnapshotError(
                f"of {len(rows.label)} {kind}rows up to {time_of(until_ms)} none is clicked, or each",
                f"name a later --since{other}",
            )
        return rows

    def _before(self, rows: int) -> Iterator[SampleBatch]:
        uses = {s.offset for act in self.acts if isinstance(act, Learnt) for s in act.spans}
        rows_each = max(1.0, self.line.rows / max(1, len(uses)))
        stop = self.line.start.offset or 0
        wanted = range(max(self._source.first(), stop - round(rows / rows_each)), stop)
        with contextlib.closing(self._source.open(wanted)) as reading:
            while came := reading.more():
                yield from map(self._decode, came)

    def points(self) -> list[tuple[Point, Announcement]]:
        """The figure at each kept version, oldest first. One that a learner has removed meanwhile is passed over."""
        found = [(Point(0, self._figure(self._start)), self.line.start)]
        for note, done in zip(self.line.kept[1:], self.line.done[1:], strict=True):
            with contextlib.suppress(AbsentError):
                found.append((Point(done, self._figure(self._resumed(note))), note))
        return found

    def stretch(self, points: list[Point]) -> tuple[MovedStretch, list[Point]] | None:
        """The stretch in which the figure fell, and what was looked at; None: it nowhere became worse."""
        steep = steepest(points, self.move)
        if steep is None:
            return None
        self._models = {steep.begin.at: self._model_at(steep.begin.at)}
        return narrowed(steep, self.acts, self._value_at, self.move)

    def move(self, before: float, after: float) -> float:
        return worse(self.figure, before, after)

    def look(self, stretch: MovedStretch) -> tuple[StretchSamples, list[Standout]]:
        begin, end = stretch.begin.at, stretch.end.at
        there, times = Tally(), list[tuple[int, int]]()
        for batch in self._batches(begin, end):
            there.add(batch)
            times.append((int(batch.ts_ms.min()), int(batch.ts_ms.max())))
        at = wanted_by(self.acts[begin:end])
        first_ms, last_ms = min(first for first, _ in times), max(last for _, last in times)
        samples = StretchSamples(there.rows, first_ms, last_ms, (at.start, at.stop))
        return samples, self._standouts(there, begin, end)

    def _standouts(self, there: Tally, begin: int, end: int) -> list[Standout]:
        """What stands out in a stretch against earlier pieces of the same length. Later ones may be as wrong, so they
        count only where there is little before."""
        before = (b.take(b.kind < FOLLOW_UP) for b in self._before(_PIECES * there.rows))
        usual = _pieces(before, there.rows) + _pieces(self._batches(0, begin), there.rows)
        if len(usual) < _FEW_PIECES:
            usual += _pieces(self._batches(end, len(self.acts)), there.rows)
        layout = self._schema.layout
        return standouts(there, usual, layout.cat_names, layout.num_names)

    def _model_at(self, at: int) -> Learning:
        """The model of a kept version, ``at`` acts after the start; learnt again from the start where it is gone."""
        for note, done in zip(self.line.kept[1:], self.line.done[1:], strict=True):
            if done == at:
                with contextlib.suppress(AbsentError):
                    return self._resumed(note)
        return self._learnt_on(self._start, 0, at)

    def _resumed(self, note: Announcement) -> Learning:
        return resumed(self._schema, note, self._store.read_whole(note), self._named)

    def _value_at(self, begin: int, at: int) -> float:
        """The figure after ``at`` acts, by way of the model after ``begin``, which stays."""
        base = self._models[begin]
        model = self._learnt_on(base, begin, at)
        self._models = {begin: base, at: model}
        return self._figure(model)

    def _learnt_on(self, base: Learning, begin: int, at: int) -> Learning:
        model = model_of(base.schema, base.spec, base.seed, live=True)
        model.resume(*base.snapshot())
        acts = self.acts[begin:at]
        with contextlib.closing(BatchReader(acts, self._source, self._decode)) as feed:
            learn_again(model, acts, feed.rows_of)
        return model

    def _figure(self, model: Learning) -> float:
        return figure_on(self.figure, model, self.judged)

    def _batches(self, begin: int, end: int) -> Iterator[SampleBatch]:
        acts = self.acts[begin:end]
        with contextlib.closing(BatchReader(acts, self._source, self._decode)) as feed:
            yield from feed.batches(acts)


def _pieces(batches: Iterable[SampleBatch], rows: int) -> list[Tally]:
    """Tallies of this many rows each; the remaining rows are in none."""
    found: list[Tally] = []
    piece = Tally()
    for batch in batches:
        piece.add(batch)
        if piece.rows >= rows:
            found.append(piece)
            piece = Tally()
    return found
