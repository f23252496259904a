# shell
"""``millrace log bootstrap LOG --schema S --data DATA``: leaves in a folder what a live loop goes on from.

::

    log ─┬─► windows, labels, learning, as replay does it ──► models/        a snapshot: weights, optimiser, head
         │            └── features of the last pages ──┐
         └─► pages and acts, by partition ─────────────┴──► checkpoints/   windows, join, last clicks, co-clicks
                     │                                 └──► index/         counts of items, and their rows
                     └── users and items ─────────────────► history/       for the topics, at the first start
                                                            schemas/       which schema all of it is of

The stream fills Redis from its state when it starts. Offsets are those of unread topics.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.evaluation.progressive import Progressive
from learner.network.dense import threads
from learner.ranker.repeats import Repeats, keep_ms_of
from learner.retrieval.tower import Sides
from learner.role.model_factory import model_of, wanted_spec
from learner.training.learner_versions import Progress, Versions, write_root
from learner.training.trainer import Trainer
from millrace.basics.durations import span_name
from millrace.basics.errors import LogError, SchemaError
from millrace.basics.ranking_metrics import ROLLING_ROWS, auc
from millrace.basics.store import Store
from millrace.commands.history.fill import RecentRows, cut_ms, fill
from millrace.commands.history.logevents import LogEvents
from millrace.commands.history.people import items_of, users_of
from millrace.commands.replay.logfeatures import LogRows
from millrace.commands.replay.logsamples import KnownSamples, LabelSettings
from millrace.commands.replay.replayrun import BATCH_ROWS, THREADS, run_log
from millrace.contracts import schemabook
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import Settings
from millrace.logs import LogTable
from millrace.processes.profiles import PLACE, leave_partitions, leave_profiles
from millrace.processes.wall import event_now_ms, wall_ms
from millrace.reports.lines import Tick
from millrace.versions.modelstore import ModelStore
from millrace.windows.features import FeatureBuilder
from scorer.catalog.index_checkpoint import Writer
from scorer.catalog.item_index import ItemIndex
from stream.partition.partition import Partition, Policy
from stream.partition.partition_checkpoint import CheckpointStore

ROW_SLICE = 4096
_NAME = "history"


@dataclass(frozen=True, slots=True)
class Left:
    exposures: int
    end_ms: int  # event time of the newest event
    auc: float  # progressive, over the whole log
    users: int
    items: int
    window_keys: int
    learnt: int
    early: int  # exposures without a positive label that might still have got one when the log ended
    seconds: dict[str, float]


def check_schema(schema: Schema) -> None:
    """Raises SchemaError where a live loop cannot go on from a log of this schema."""
    if schema.log is None:
        raise SchemaError(f"schema '{schema.name}' has no [log] section", "say there which columns mean what")
    if not Sides.fits(schema):
        raise SchemaError(
            f"schema '{schema.name}' has no fields of users, or none of items: a live loop could not find items",
            'give fields of both sides (of = "user", of = "item"); their ids are enough',
        )


def leave(
    check: Callable[[], None],
    log: LogTable,
    schema: Schema,
    settings: Settings,
    *,
    people: bool = True,
    tick: Tick = lambda what, done, of: None,
) -> Left:
    """Replays a log and leaves its end in the store of ``settings``.

    Args:
        check: of the attempt (:func:`millrace.commands.history.attempt.attempt`) that began before the log was read;
            called before each place is written.
        people: leave users and items too. The simulator publishes its own.

    Raises:
        SettingError: as ``check``.
        LogError: the log ends in the future: a live loop would take its events for those of another clock.
        StoreError: the store cannot be written.
    """
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(what: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[what], clock = round(now - clock, 2), now

    policy = Policy.of(settings)
    rows = LogRows(log, schema)
    events = LogEvents(log, schema, rows, policy.life_ms)
    ahead_ms = events.end_ms - event_now_ms(settings.event_clock())
    if ahead_ms > 0:
        raise LogError(
            f"the log's last event is {span_name(ahead_ms)} after now",
            "correct its times, or their zone (utc_offset in the schema): a live loop cannot go on before its history",
        )
    from_ms = cut_ms(events.end_ms, policy)
    first = int(np.searchsorted(rows.ts_ms, from_ms))
    lap("prepare")
    with threads(THREADS):
        pupil = _Pupil(schema, settings, first, rows.n)
        p = run_log(
            log,
            schema,
            pupil.model,
            BATCH_ROWS,
            lambda done: tick("learning", done, rows.n),
            how=LabelSettings.of(settings),
            observer=pupil,
        )
        recent = RecentRows(first, pupil.num, pupil.last, p[first:])
        lap("learn")
    pages = events.pages
    partitions = fill(
        events,
        rows,
        schema,
        policy,
        settings.partitions,
        recent,
        from_ms,
        lambda done: tick("counting", done, pages),
    )
    lap("count")
    users, items = users_of(log, schema, rows), items_of(log, schema, rows)
    check()
    SchemaBook(settings.place(schemabook.PLACE)).enter(schema)
    check()
    checkpoints = CheckpointStore(settings.place("checkpoints"))
    for done, partition in enumerate(partitions):
        checkpoints.load(partition)  # nothing is there, so it begins with this
        tick("writing", done + 1, len(partitions))
    check()
    _write_index(settings, schema, partitions, _index_of(schema, items) if people else None, events.end_ms)
    check()
    if people:
        leave_profiles(Store(settings.place(PLACE)), users, items)
    leave_partitions(Store(settings.place(PLACE)), settings.partitions)
    check()
    pupil.write(settings)
    lap("write")
    return Left(
        rows.n,
        events.end_ms,
        auc(p, rows.label),
        len(users),
        len(items),
        sum(len(partition.windows) for partition in partitions),
        pupil.learnt_rows,
        int(((rows.label == 0) & (rows.ts_ms > events.end_ms - policy.attribution_ms)).sum()),
        seconds,
    )


class _Pupil:
    """The learner's model in a replay; it keeps the last rows' numbers, and what their users did last."""

    def __init__(self, schema: Schema, settings: Settings, first: int, n: int) -> None:
        self.model = model_of(schema, wanted_spec(settings, schema), settings.seed)
        self.first, self.learnt_rows = first, 0
        self.num: NDArray[np.float32] = np.zeros((n - first, schema.layout.N), np.float32)
        self._columns = schema.layout.last_columns
        self.last: NDArray[np.int64] = np.zeros((n - first, len(self._columns)), np.int64)
        repeats = Repeats(keep_ms_of(settings))
        self.trainer = Trainer(self.model, Progressive(ROLLING_ROWS), repeats)

    def scored(
        self, rows: NDArray[np.intp], cat: NDArray[np.int64], num: NDArray[np.float32], p: NDArray[np.float32]
    ) -> None:
        late = rows >= self.first
        if late.any():
            self.num[rows[late] - self.first] = num[late]
            self.last[rows[late] - self.first] = cat[late][:, self._columns]

    def learnt(self, samples: KnownSamples, part: slice, batch: SampleBatch) -> None:
        self.learnt_rows += len(batch)

    def write(self, settings: Settings) -> None:
        self.trainer.counts["trained"] = self.learnt_rows
        extra: dict[str, Any] = {
            "counts": dict(self.trainer.counts),
            "columns": msgspec.to_builtins(self.model.columns),
        }
        progress = Progress(self.learnt_rows, extra=extra)
        write_root(
            ModelStore(settings.place("models")),
            Versions(self.model, claimant=_NAME),
            progress,
            self.trainer.snapshot(False),
            wall_ms(),
        )


def _index_of(schema: Schema, items: list[Any]) -> ItemIndex:
    index = ItemIndex(FeatureBuilder(schema))
    for start in range(0, len(items), ROW_SLICE):
        index.put([index.prepare(item) for item in items[start : start + ROW_SLICE]])
    return index


def _write_index(
    settings: Settings, schema: Schema, partitions: list[Partition], index: ItemIndex | None, newest_counted_ms: int
) -> None:
    """Writes what a scorer needs before it has read a topic."""
    writer = Writer(Store(settings.place("index")), 1, _NAME)
    start = 0
    while index is not None and (image := index.image(start, start + ROW_SLICE)).ids:
        writer.rows(image)
        start += ROW_SLICE
    for partition in partitions:
        keys = np.unique(partition.counters.log.item_keys())
        writer.tiles(partition.number, partition.windows.newest_unit, keys, partition.windows.export(keys))
    writer.finish(
        schema_id=schema.id,
        filters=[],
        written_ms=wall_ms(),
        newest_counted_ms=newest_counted_ms,
        topics={},
    )
