# core
"""Learns the line of a model again without named rows, and keeps the result as a snapshot that a learner may adopt.

::

    start (snapshot) ──acts of the line, less what is left out──► model ──► DATA/repair: one snapshot, a root
    end   (snapshot) ──offsets, ids already seen, the gate's state──────────────┘

The model is what the live learner would have made of a topic without those rows, with the same cuts. All else is the
newest snapshot's: a learner that adopts the result reads on where that one stood. Rows that were left out count as
seen, so they are not learnt when the stream sends them again; and as refused, so that no late click of theirs is learnt
where most of its minute was left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.gate.checks import GATE
from learner.gate.refused_minutes import RefusedMinutes
from learner.ranker.interfaces import Learning
from learner.role.model_factory import resumed
from learner.samples.batch_reader import BatchReader, Decode, Source
from learner.training.decisionlog import learn_again
from learner.training.learner_versions import Progress, Versions, write_root
from learner.training.trainer import TRAINER
from millrace.basics.errors import SnapshotError
from millrace.basics.store import AbsentError
from millrace.commands.repair.lineage import Lineage
from millrace.commands.repair.without import Without, time_of
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.decisions import Learnt
from millrace.versions.image import below
from millrace.versions.modelstore import Announcement, Array, ModelStore, Place, manifests_first

Tick = Callable[[int], None]
"""Takes the number of rows read so far."""

CLAIMANT = "repair"
_MINUTES = f"{GATE}minutes/"
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair made: ``rows`` were read, ``left_out`` of them, and ``learnt`` of the others. ``beside``: the end's
    state beside the model, that knows of what was left out."""

    model: Learning
    rows: int
    left_out: int
    learnt: int
    by: Mapping[str, int]
    beside: Mapping[str, Array]


def check_there(line: Lineage, source: Source) -> None:
    """Checks that the topic has the samples of all acts. Raises SnapshotError if retention took some; says from which
    kept version on all are there."""
    first = source.first()
    gone = [
        (k, span)
        for k, act in enumerate(line.acts)
        if isinstance(act, Learnt)
        for span in act.spans
        if span.offset < first
    ]
    if not gone:
        return
    span = gone[0][1]
    whole = next((note for note, done in zip(line.kept[:-1], line.done, strict=False) if done > gone[-1][0]), None)
    remedy = "no kept version is young enough; repair sooner, or keep samples longer (docs/how-to/run-in-production.md)"
    if whole is not None:
        remedy = f"name a --since of {time_of(whole.event_ms)} or later: version {whole.version} can be gone on from"
    raise SnapshotError(
        f"samples since version {line.start.version} are gone: they begin at offset {span.offset}, "
        f"the topic at {first}",
        remedy,
    )


@dataclass(frozen=True, slots=True)
class Begun:
    """All that a repair needs of the store, since a running learner may remove older snapshots at any moment.
    ``beside`` is the state for training in the end's snapshot that is not of the model."""

    line: Lineage
    model: Learning
    beside: Mapping[str, Array]


def begin(store: ModelStore, find: Callable[[], Lineage], schema: Schema, named: str = "") -> Begun:
    """Reads start and end of a line.

    Args:
        find: finds the line; called again where a snapshot of it was removed meanwhile.

    Raises:
        SnapshotError: there is no such line, or it is of another schema.
        StoreError: a snapshot cannot be read.
    """
    for tries in reversed(range(_TRIES)):
        line = find()
        try:
            return Begun(
                line, resumed(schema, line.start, store.read_whole(line.start), named), _beside(store, line.end)
            )
        except AbsentError:
            if not tries:
                raise
    raise AssertionError  # not reached


def _beside(store: ModelStore, note: Announcement) -> dict[str, Array]:
    """The state for training in a snapshot that is of the trainer, and of the gate."""
    each = (training.items() for training in store.read_training(note))
    return {name: array for items in each for name, array in items if name.startswith((TRAINER, GATE))}


def repair(
    begun: Begun,
    source: Source,
    decode: Decode,
    without: Without,
    tick: Tick = lambda rows: None,
    dry_run: bool = False,
) -> Repaired:
    """Learns a line again: the model of ``begun`` becomes the result. ``dry_run``: it only reads what it would learn.

    Raises:
        SnapshotError: samples are gone.
        SchemaError: a message cannot be read.
    """
    check_there(begun.line, source)
    acts, minutes = begun.line.acts, RefusedMinutes()
    minutes.resume(known := below(_MINUTES, begun.beside))

    def leave_out(batch: SampleBatch, by: Counter[str]) -> NDArray[np.bool_]:
        out = without.rows(batch, by)
        minutes.left_out(batch.take(out))
        return out

    with closing(BatchReader(acts, source, decode, leave_out, tick)) as feed:
        learnt = sum(map(len, feed.batches(acts))) if dry_run else learn_again(begun.model, acts, feed.rows_of)
    now = {f"{_MINUTES}{name}": array for name, array in minutes.snapshot().items()} if known else {}
    return Repaired(begun.model, feed.read, feed.left_out, learnt, feed.by, {**begun.beside, **now})


def keep(to: ModelStore, begun: Begun, done: Repaired, without: Without, published_ms: int) -> Announcement:
    """Writes the result of a repair into the store ``to``, in place of an earlier one.

    ``trained`` goes down by the rows that were left out, and ``set_aside`` up, so the counts of samples balance.

    Raises:
        StoreError: it cannot be written.
    """
    before = to.store.names()
    line, end = begun.line, begun.line.end
    trained = line.start.trained + done.learnt
    counts: dict[str, Any] = dict(end.extra.get("counts", {}))
    counts["trained"] = trained
    counts["set_aside"] = counts.get("set_aside", 0) + end.trained - trained
    told = {
        "since_version": line.start.version,
        "since_ms": line.start.event_ms,
        "of_version": end.version,
        "without": without.told(),
        "rows": done.rows,
        "left_out": done.left_out,
    }
    extra = {n: v for n, v in end.extra.items() if n != "way_back"} | {"counts": counts, "repair": told}
    progress = Progress(trained, end.offset, end.samples_log, extra)
    highest = max(to.highest(), Place(0, end.version), key=lambda place: place.number).number
    versions = Versions(done.model, end.epoch, CLAIMANT, highest)
    note = write_root(to, versions, progress, done.beside, published_ms)
    to.store.remove(manifests_first(before))
    return note
