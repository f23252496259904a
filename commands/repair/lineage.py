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

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from commands.repair.without import time_of
from millrace.basics.errors import SnapshotError
from millrace.basics.store import AbsentError, DamagedError
from millrace.contracts.topics import SAMPLES
from millrace.versions.decisions import Act, decode_decisions
from millrace.versions.modelstore import Announcement, CutsHead, ModelStore, Place, cuts_name

_NAME = re.compile(r"cuts-(\d+)-(\d+)\.acts")
_KEEP = "MILLRACE_KEEP_MINUTES says how long versions are kept"


@dataclass(frozen=True, slots=True)
class Stage:
    base: Place
    acts: tuple[Act, ...]


@dataclass(frozen=True, slots=True)
class Lineage:
    """A line of versions. ``kept`` are the snapshots on it that are there, oldest first: at least ``start``."""

    start: Announcement
    stages: tuple[Stage, ...]
    end: Announcement
    kept: tuple[Announcement, ...]

    @property
    def acts(self) -> list[Act]:
        return [act for stage in self.stages for act in stage.acts]

    def after(self, note: Announcement) -> int:
        """How many of :attr:`acts` had been done when the snapshot was made."""
        done = 0
        for stage in self.stages:
            if stage.base == note.place:
                return done
            done += len(stage.acts)
        return done


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
    names = {Place(int(m[1]), int(m[2])): name for name in store.store.names("cuts-") if (m := _NAME.fullmatch(name))}
    stages: list[Stage] = []
    kept = [end]
    at = end.place
    while kept[-1].place != at or kept[-1].event_ms > since_ms:
        stage = _stage(store, names.get(at), at)
        if not isinstance(stage, Stage) or stage.base.number < 0 or stage.base >= at:
            raise _ended(kept[-1], since_ms, end, stage if isinstance(stage, str) else "it was the first version")
        stages.append(stage)
        at = stage.base
        if at in notes:
            kept.append(notes[at])
    stages.reverse()
    kept.reverse()
    return Lineage(kept[0], tuple(stages), end, tuple(kept))


def _stage(store: ModelStore, name: str | None, place: Place) -> Stage | str:
    """The acts that led to a version; a text: why they are not available."""
    if name is None:
        return f"the store has no file '{cuts_name(place)}'"
    try:
        raw, body, _ = store.store.get(name)
        head = msgspec.json.decode(raw, type=CutsHead)
        acts = tuple(d.what for d in decode_decisions(body).decided if isinstance(d.what, Act))
    except (AbsentError, DamagedError, SnapshotError, msgspec.MsgspecError) as error:
        return f"file '{name}' cannot be used ({getattr(error, 'problem', error)})"
    if Place(head.epoch, head.version) != place:
        return f"file '{name}' is of another version"
    return Stage(Place(head.from_epoch, head.from_version), acts)


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
    old, new = note.logs.get(SAMPLES), end.logs.get(SAMPLES)
    if old and new and old != new:  # offsets of another log would name other samples
        return "the log of samples"
    missing: Any = object()
    names = [n for n in note.spec.keys() | end.spec.keys() if note.spec.get(n, missing) != end.spec.get(n, missing)]
    return f"the model's {', '.join(sorted(names))}" if names else ""
