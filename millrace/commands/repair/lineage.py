# core
"""The history of the newest model, read from the store: which snapshot leads to which, by which micro-batches.

::

    snapshot 57 ◄── cuts-57→92 ── snapshot 92 ◄── cuts-92→130 ── (snapshot 130: thinned out) ◄── cuts ── snapshot 171
         ▲                             └◄── cuts-92→128 ── 128: refused, never kept, nothing leads on from it
         └ start: the newest of the line that is kept and had seen nothing after ``since``               end: the newest

Each file of cuts names the version that it leads from, and has the acts since (:mod:`learner.training.decisionlog`). A
version whose snapshot was thinned out is on the line as long as its cuts are kept. Refused versions and those that a
person took back are not: the root of a rollback leads from the version that was restored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from learner.training.decisionlog import rows_in
from millrace.basics.errors import SnapshotError
from millrace.basics.store import AbsentError, DamagedError
from millrace.commands.repair.without import time_of
from millrace.versions.decisions import Learnt
from millrace.versions.modelstore import Announcement, ModelStore

_KEEP = "MILLRACE_KEEP_MINUTES says how long versions are kept"


@dataclass(frozen=True, slots=True)
class Lineage:
    """A line of versions: the snapshots on it that are ``kept``, oldest first, and what was learnt from the first of
    them to the last. ``done``: how many of these acts each of them has."""

    kept: tuple[Announcement, ...]
    done: tuple[int, ...]
    acts: tuple[Learnt, ...]

    @property
    def start(self) -> Announcement:
        return self.kept[0]

    @property
    def end(self) -> Announcement:
        return self.kept[-1]

    @property
    def rows(self) -> int:
        return sum(rows_in(act.spans) for act in self.acts)


def end_of(store: ModelStore, notes: Sequence[Announcement], of: int | None = None) -> Announcement:
    """The snapshot of a version in a store; ``notes`` are newest first. Without ``of``, the newest. Raises
    SnapshotError if there is no model, or none of this version."""
    if not notes:
        raise SnapshotError(f"there is no model in '{store.url}'", "name the data folder of a loop with --data")
    found = notes[0] if of is None else next((note for note in notes if note.version == of), None)
    if found is None:
        known = ", ".join(str(note.version) for note in notes[::-1])
        raise SnapshotError(f"there is no snapshot of version {of}", f"the store has versions {known}")
    return found


def lineage(store: ModelStore, since_ms: int, of: int | None = None) -> Lineage:
    """The line from the newest kept snapshot that had seen no exposure after ``since_ms`` to the newest one.

    Args:
        of: another version to end at, such as one that a rollback left.

    Raises:
        SnapshotError: there is no model, or none of this version; or no snapshot of before is left, or cuts are
            missing or damaged.
        StoreError: the store cannot be read.
    """
    found = store.snapshots()
    end, notes = end_of(store, found, of), {note.place: note for note in found}
    at, stages = end.place, list[list[Learnt]]()  # newest first
    kept, behind = [end], [0]  # and how many acts came behind each
    while kept[-1].place != at or kept[-1].event_ms > since_ms:
        try:
            cuts = store.read_cuts(at)
        except (AbsentError, DamagedError, SnapshotError) as error:
            raise _ended(kept[-1], since_ms, end, error.problem) from None
        if cuts.since >= at:
            raise _ended(kept[-1], since_ms, end, f"version {at.number} leads from a later one")
        stages.append([decided.what for decided in cuts.decided.decided if isinstance(decided.what, Learnt)])
        at = cuts.since
        if at in notes:
            kept.append(notes[at])
            behind.append(sum(map(len, stages)))
    done = (behind[-1] - acts for acts in reversed(behind))
    return Lineage(tuple(reversed(kept)), tuple(done), tuple(chain(*reversed(stages))))


def _ended(oldest: Announcement, since_ms: int, end: Announcement, why: str) -> SnapshotError:
    reach = f"the line of version {end.version} reaches back to version {oldest.version} of {time_of(oldest.event_ms)}"
    remedy = f"name a --since of then or later; {_KEEP}"
    if oldest is end:
        remedy = f"nothing can be learnt again before the next snapshots are made; {_KEEP}"
    return SnapshotError(f"no version of {time_of(since_ms)} or before can be gone on from: {reach}; {why}", remedy)


def check_one_model(line: Lineage) -> None:
    """Checks that all of the line has the end's rates: with others, learning again would give another result. Raises
    SnapshotError if schema or spec changed on the line."""
    for note in line.kept:
        changed = _changed(note, line.end)
        if changed:
            raise SnapshotError(
                f"{changed} changed between version {note.version} of {time_of(note.event_ms)} and the newest",
                "name a --since after the change: what came before cannot be learnt again to the bit",
            )


def _changed(note: Announcement, end: Announcement) -> str:
    if note.schema_id != end.schema_id:
        return "the schema"
    old, new = note.samples_log, end.samples_log
    if old and new and old != new:  # offsets of another log would name other samples
        return "the log of samples"
    missing: Any = object()
    names = [n for n in note.spec.keys() | end.spec.keys() if note.spec.get(n, missing) != end.spec.get(n, missing)]
    return f"the model's {', '.join(sorted(names))}" if names else ""
