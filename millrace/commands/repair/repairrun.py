# shell
"""``millrace model repair`` and ``bisect`` in the terminal: where things are, progress, and what was found."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from learner.network.dense import role_threads, threads
from learner.role.sampletopic import SampleTopic
from learner.samples.batch_reader import Source, TopicMessage
from learner.samples.formersamples import FormerSamples
from learner.samples.viewpoint import Viewpoint
from millrace.basics.errors import SettingError, SnapshotError
from millrace.commands.repair.bisection import Bisection, StretchSamples
from millrace.commands.repair.judge import FIGURES, SMALL
from millrace.commands.repair.lineage import Lineage, check_one_model, end_of, lineage
from millrace.commands.repair.relearning import Begun, begin, check_there, keep, repair
from millrace.commands.repair.without import Without, interval_of, moment, time_of
from millrace.contracts import schemabook
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import Settings
from millrace.evidence.learners import REPAIRED
from millrace.processes.wall import wall_ms
from millrace.reports.progress import bars
from millrace.versions.modelstore import Announcement, ModelStore

_SHOWN = 8


class Scene:
    """What both commands need: the line of the model, its schema, and its samples.

    Args:
        of: the version at which the line ends; None: the newest.

    Raises:
        MillraceError: something of it is not there.
    """

    def __init__(self, settings: Settings, since: str, of: int | None = None) -> None:
        self.settings, self._of = settings, of
        self.store = ModelStore(settings.place("models"), writes=False)
        notes = self.store.snapshots()
        end = end_of(self.store, notes, of)
        self.newest_ms = notes[0].event_ms
        self.since_ms = moment(since, self.newest_ms)
        book = SchemaBook(settings.place(schemabook.PLACE), writes=False)
        self.schema = _schema_of(settings, book, end.schema_id)
        self._former = FormerSamples(self.schema, book, Viewpoint.of(settings))
        self.source: Source = SampleTopic(settings, end.samples_log)

    def line(self) -> Lineage:
        line = lineage(self.store, self.since_ms, self._of)
        check_one_model(line)
        return line

    def begin(self) -> Begun:
        return begin(self.store, self.line, self.schema, self.settings.model)

    def decode(self, message: TopicMessage) -> SampleBatch:
        return self._former.carried(SampleBatch.from_bytes(message.value), message.headers)


def _schema_of(settings: Settings, book: SchemaBook, id: str) -> Schema:
    """The schema of a model: the settings', or a former one of the store. Raises SnapshotError if neither has it."""
    own = settings.load_schema()
    found = own if own.id == id else next((schema for schema in book.history() if schema.id == id), None)
    if found is None:
        raise SnapshotError(
            f"the model is of schema {id}, which the store does not know", "set MILLRACE_SCHEMA to its file"
        )
    return found


def run_repair(
    settings: Settings,
    since: str,
    without: Without,
    interval: str | None = None,
    dry_run: bool = False,
    of: int | None = None,
) -> Announcement | None:
    """Learns the samples since a time again, without the named rows, and keeps the result. Prints its steps.

    Args:
        interval: as :func:`~millrace.commands.repair.without.interval_of` reads it.
        of: version to repair; None: the newest.

    Raises:
        MillraceError: it cannot be done; nothing was written then, and an earlier result remains.
    """
    say = _say()
    scene = Scene(settings, since, of)
    if interval is not None:
        without = replace(without, interval=interval_of(interval, scene.newest_ms))
    with threads(role_threads()):  # a learner's: sums depend on how they are split
        begun = scene.begin()
        line, rows = begun.line, begun.line.rows
        say(_way(line))
        began = time.perf_counter()
        with bars() as tick:
            done = repair(begun, scene.source, scene.decode, without, lambda read: tick("rows", read, rows), dry_run)
        if dry_run:
            say(f"would leave out {done.left_out:,} of {rows:,} rows; nothing was learnt or written")
            return None
        to = ModelStore(settings.place(REPAIRED))
        note = keep(to, begun, done, without, wall_ms())
    each = "".join(f", {name} {n:,}" for name, n in done.by.items())
    took = time.perf_counter() - began
    say(f"{done.rows:,} rows read, {done.left_out:,} left out{each}; {done.learnt:,} learnt in {took:.1f} s")
    if without and not done.left_out:
        say("no row was left out: the result is the newest version as it is; look at what was named")
    say(f"kept in {to.url}: what version {line.end.version} of {time_of(line.end.event_ms)} would be without them")
    say("'millrace model promote repair' has the learner go on with it")
    return note


def _way(line: Lineage) -> str:
    start, end = (f"version {note.version} of {time_of(note.event_ms)}" for note in (line.start, line.end))
    return f"from {start} to {end}: {line.rows:,} rows"


def run_bisect(settings: Settings, since: str, figure: str = "auc", of: int | None = None) -> StretchSamples | None:
    """Finds the stretch of samples that moved a figure, and prints what stands out in it. Never writes. Raises
    MillraceError if it cannot be done."""
    if figure not in FIGURES:
        raise SettingError(f"there is no figure '{figure}'", f"choose one of {', '.join(FIGURES)}")
    say = _say()
    scene = Scene(settings, since, of)
    with threads(role_threads()):  # a learner's: sums depend on how they are split
        begun = scene.begin()
        line = begun.line
        if not line.acts:
            raise SnapshotError(
                f"version {line.start.version} is the newest: nothing was learnt since {time_of(scene.since_ms)}",
                "name an earlier --since",
            )
        check_there(line, scene.source)
        say(_way(line))
        search = Bisection(figure, scene.store, begun, scene.source, scene.decode, scene.schema, settings.model)
        kind = "of the rows learnt last" if figure == "auc" else "held-out rows"
        say(f"judged on {len(search.judged.label):,} {kind} of before")
        found = search.points()
        for point, note in found:
            say(f"  version {note.version:>8} of {time_of(note.event_ms)}  {figure} {point.value:.4f}")
        if len(found) < 2:
            raise SnapshotError(
                f"what was kept behind version {line.start.version} was removed meanwhile", "bisect once more"
            )
        narrowed = search.stretch([point for point, _ in found])
        if narrowed is None:
            say(f"{figure} nowhere became worse")
            return None
        stretch, seen = narrowed
        samples, what = search.look(stretch)
    say(
        f"{figure} went from {stretch.begin.value:.4f} to {stretch.end.value:.4f} with {samples.rows:,} rows, "
        f"{time_of(samples.from_ms)} to {time_of(samples.to_ms)} ({len(seen)} points looked at between)"
    )
    if search.move(stretch.begin.value, stretch.end.value) < SMALL[figure]:
        say(f"  less than {SMALL[figure]:g}: that may be chance, or the world; what follows need not be to blame")
    say(f"  offsets {samples.offsets[0]} to {samples.offsets[1] - 1} of samples")
    for one in what[:_SHOWN]:
        say(f"  {one}")
    if not what:
        say("  nothing in it stands out by user, item, arm, column or clicks")
    interval = f"{time_of(samples.from_ms)}..{time_of(samples.to_ms + 1)}"
    say(f"without it: millrace model repair --since {time_of(scene.since_ms)} --without-interval {interval}")
    return samples


def _say() -> Callable[[str], None]:
    console = Console()
    return lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True)
