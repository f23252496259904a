# shell
"""How long it takes to take an hour back: ``millrace repair`` on the busiest hour of a simulated day.

::

    day 1 of the shop ──► learnt ──► root                                        (not measured)
    busiest hour of day 2 ──► messages on an embedded broker ──► learnt live, a snapshot every ten minutes
                                   └──► repair: without every fiftieth user, from the root ──► a snapshot in the store
                                   └──► twin: the same messages without their rows, the same cuts

The model is the learner's own with its retrieval head, in as many threads as the role has. The live pass learns and
publishes nothing to a broker, so its rows a second are what learning alone makes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runner import BenchError, Figure, Say, figure
from commands.offline.dataset import Dataset, prepare
from commands.repair.again import keep, repair
from commands.repair.run import Scene, as_learner
from commands.repair.without import Without, time_of
from learner.custom import ownclass
from learner.evaluation.progressive import Progressive
from learner.gate.promotion import Promotion
from learner.ranker.repeats import Repeats
from learner.ranker.slices import merge
from learner.ranker.verbs import Learning
from learner.role.making import model_of, wanted_spec
from learner.training.ledger import Learnt, places_of
from learner.training.trainer import Trainer
from learner.training.versions import Progress, Versions
from millrace.contracts import schemabook
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema, shop_schema
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import Settings
from millrace.contracts.topics import SAMPLES
from millrace.processes.kafka import create_topics, make_producer
from millrace.processes.services import EmbeddedBroker
from millrace.versions.modelstore import Announcement, ModelStore
from simulator.daylog import write_days

USERS = 4000
PAGE_ROWS = 30
SNAPSHOTS = 6
EVERY = 50
"""Of so many users one is left out."""
HOUR_MS = 3_600_000

Sent = list[tuple[int, int, SampleBatch]]
"""Messages as the learner takes them: partition, offset, rows."""


def hour_of(data: Dataset) -> slice:
    """The rows of the busiest hour of the last day."""
    rows = data.rows([len(data.days) - 1])
    hours = data.ts_ms[rows] // HOUR_MS
    _, first, counts = np.unique(hours, return_index=True, return_counts=True)
    k = int(np.argmax(counts))
    return slice(rows.start + int(first[k]), rows.start + int(first[k]) + int(counts[k]))


def messages(data: Dataset, rows: slice) -> Iterator[SampleBatch]:
    """The rows in messages of one page each."""
    for k, batch in enumerate(data.batches(rows, PAGE_ROWS, data.num)):
        yield replace(batch, request=(f"page{k}",), position=np.arange(len(batch), dtype=np.int32))


def send(settings: Settings, data: Dataset, rows: slice) -> Sent:
    """Puts the rows on ``samples``, page after page to the next partition."""
    producer, sent = make_producer(settings), []
    for k, batch in enumerate(messages(data, rows)):
        partition = k % settings.partitions
        producer.send(SAMPLES, batch.to_bytes(), partition=partition)
        sent.append((partition, k // settings.partitions, batch))
    producer.flush()
    producer.close()
    return sent


class Live:
    """A learner that has learnt a day, and learns an hour from messages."""

    def __init__(self, settings: Settings, schema: Schema, data: Dataset) -> None:
        self.settings = settings
        self.store = ModelStore(settings.place("models"))
        self.model: Learning = model_of(schema, wanted_spec(settings, schema), settings.seed)
        for batch in data.batches(data.rows([0]), 512, data.num):
            self.model.learn(batch)
        self.trainer = Trainer(self.model, Progressive(10_000), Repeats(3 * HOUR_MS), settings.batch_rows)
        self.offsets = dict.fromkeys(range(settings.partitions), 0)
        self.versions = Versions(self.model, 1)
        self.gate = Promotion(
            self.trainer, self.versions, self.store, None, lambda note, parts: self.model, self.progress
        )
        self.gate.begin(None)
        self.root: Announcement = self.gate.start(None, 0).note

    def progress(self) -> Progress:
        """What a version says of itself."""
        return Progress(self.trainer.counts["trained"], dict(self.offsets), {}, {"counts": dict(self.trainer.counts)})

    def learn(self, sent: Sent) -> float:
        """Learns the messages; seconds of it, snapshots aside."""
        seconds = 0.0
        for part in np.array_split(np.arange(len(sent)), SNAPSHOTS):
            began = time.perf_counter()
            for k in part.tolist():
                partition, offset, batch = sent[k]
                self.trainer.take(batch, partition, 0, offset)
                self.offsets[partition] = offset + 1
                self._steps(drain=False)
            self._steps(drain=True)
            seconds += time.perf_counter() - began
            self._snapshot()
        return seconds

    def _steps(self, drain: bool) -> None:
        while self.gate.step(drain) is not None:
            self.gate.take_clicks()  # nobody waits for them here

    def _snapshot(self) -> None:
        self.gate.delta(0)
        self.gate.write_snapshot(0)


def twin(
    store: ModelStore, root: Announcement, schema: Schema, sent: Sent, acts: list[Any], without: Without
) -> Learning:
    """The model of a learner that was given the messages without the rows, with the same cuts."""
    model = model_of(schema, root.spec, 0)
    model.resume(store.read_whole(root))
    trainer = Trainer(model, Progressive(10_000), Repeats(3 * HOUR_MS), 1)
    gone = {(p, o): without.rows(batch) for p, o, batch in sent}
    waiting = iter(sent)
    for act in acts:
        if not isinstance(act, Learnt):
            if model.head is not None:
                model.head.flush()
            continue
        places = places_of(act.spans)
        trainer.batch_rows = sum(not gone[p, o][row] for p, o, row in places.tolist())
        while trainer.pending < trainer.batch_rows:
            partition, offset, batch = next(waiting)
            trainer.take(batch.take(~gone[partition, offset]), partition, 0, offset)
        if trainer.batch_rows:
            trainer.step(drain=True)
    return model


def differs(store: ModelStore, note: Announcement, model: Learning) -> str:
    """Empty where a snapshot has just what a model has, to the bit; else a name."""
    image, training = merge(store.read_whole(note))
    expected, own = model.snapshot()
    return image.same_bits(expected) or ownclass.differs({n: training[n] for n in own if n in training}, own)


def measure(folder: Path, say: Say, users: int = USERS) -> list[Figure]:
    """The figures.

    Raises:
        BenchError: the repair is not what the twin is.
    """
    schema = shop_schema()
    data = prepare(write_days(folder / "logs", 2, 0, users=users), schema, folder / "data")
    hour = hour_of(data)
    with EmbeddedBroker(folder / "broker") as broker, as_learner():
        settings = Settings(kafka=broker.address, data=str(folder / "loop"))
        create_topics(settings)
        SchemaBook(settings.place(schemabook.PLACE)).enter(schema)
        live = Live(settings, schema, data)
        sent = send(settings, data, hour)
        rows = sum(len(batch) for _, _, batch in sent)
        say(f"an hour of {rows:,} rows, {len(sent):,} messages")
        live_s = live.learn(sent)
        left_out = np.unique(data.user[hour])[::EVERY]
        without = Without(users=left_out)
        scene = Scene(settings, time_of(live.root.event_ms))
        began = time.perf_counter()
        begun = scene.begin()
        line = begun.line
        done = repair(begun, scene.source, scene.decode, without)
        to = ModelStore(settings.place("repair"))
        note = keep(to, begun, done, without, 0)
        took_s = time.perf_counter() - began
        say(f"repaired in {took_s:.1f} s: {done.rows:,} rows read, {done.left_out:,} left out, {done.learnt:,} learnt")
        if (line.start.version, done.rows) != (live.root.version, rows):
            raise BenchError(f"{done.rows:,} of {rows:,} rows were repaired", "report this")
        model = twin(live.store, live.root, schema, sent, line.acts, without)
        different = differs(to, note, model)
    if different:
        raise BenchError(f"'{different}' of the repaired model is another one than the twin's", "report this")
    say("bit-equal to a learner that was given the hour without these rows")
    return [
        figure("repair_hour_seconds", took_s, "s"),
        figure(
            "repair_rows_per_second",
            done.rows / took_s,
            "rows/s",
            "learning live",
            done.rows / took_s / (rows / live_s),
        ),
        figure("hour_rows", rows, "rows"),
        figure("left_out_rows", done.left_out, "rows"),
        figure("bit_equal", 1, "1: yes"),
    ]


def run(out: Path, say: Callable[[str], None]) -> list[Figure]:
    """The figures of ``millrace bench repair``."""
    with tempfile.TemporaryDirectory(prefix="millrace-repair-") as name:
        return measure(Path(name), say)
