"""A loop in one process that lives through a log, message by message: what a start from history is compared with.

::

    in the order of time
    page ──► features (counts of the partitions) ──► scores (the model) ──► page log, exposure ───┐
    act ──────────────────────────────────────────────────────────────────► click, cart, ... ─────┤
                                                                                                 ▼
                      model  ◄── Trainer, in micro-batches ◄── samples ◄── Partition.take, of the user's partition

It is the stream's :class:`~stream.partition.partition.Partition` and the learner's
:class:`~learner.training.trainer.Trainer`, without Kafka, Redis and HTTP. Counts and model are those of the moment:
nothing waits for a publication. Pages are the log's, so two such loops are shown the same pages, and differ by what
they know alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from learner.evaluation.progressive import Progressive
from learner.ranker.repeats import Repeats
from learner.role.model_factory import model_of, wanted_spec
from learner.training.learner_versions import newest_valid
from learner.training.trainer import Trainer
from millrace.basics.hashing import kafka_partition
from millrace.commands.history.logevents import LogEvents, Rows
from millrace.commands.replay.logfeatures import LogRows
from millrace.contracts.events import (
    ACTIONS,
    CART,
    CLICK,
    COLLECT,
    MODEL,
    Cart,
    Click,
    Collect,
    Exposure,
    PageLog,
    Purchase,
    key_of,
    to_json,
)
from millrace.contracts.page_logs import page_log_bytes
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, PAGE_LOGS
from millrace.logs import LogTable
from millrace.versions.modelstore import ModelStore
from stream.partition.partition import InputMessage, Partition, Policy
from stream.partition.partition_checkpoint import CheckpointStore


class Model(Protocol):
    """What a page is scored by."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]: ...


class Page(Protocol):
    """Hears of each page as it is served."""

    def __call__(
        self, rows: Rows, cat: NDArray[np.int64], num: NDArray[np.float32], p: NDArray[np.float32], /
    ) -> None: ...


class LiveLoop:
    """See the module's text. One thread.

    Args:
        partitions: all of them, of any past; the loop changes them.
        trainer: with the model.
    """

    def __init__(self, schema: Schema, partitions: Sequence[Partition], trainer: Trainer) -> None:
        self.schema, self.partitions, self.trainer = schema, partitions, trainer
        self._bias = schema.layout.bias_columns
        self._of_user = np.array([schema.key_side(key) == "user" for key in schema.windows.keys], np.bool_)
        self._offset = max((n for p in partitions for n in p.offsets.values()), default=0)

    def live(
        self,
        events: LogEvents,
        rows: LogRows,
        page: Page = lambda rows, cat, num, p: None,
        tick: Callable[[int], None] = lambda pages: None,
        most_rows: int | None = None,
    ) -> None:
        """Lives through a log.

        Args:
            page: hears of each page.
            tick: is told how many pages are done.
            most_rows: exposures after which it ends; None: all of them.
        """
        shown = 0
        names: dict[int, str] = {}
        P = events.pages
        order = np.argsort(np.concatenate([events.page_ms, events.act_ms]), kind="stable")
        for number in order.tolist():
            if number >= P:
                act = number - P
                row = int(events.act_row[act])
                if int(events.page_of[row]) in names:
                    self._act(events, act, row, names[int(events.page_of[row])])
                continue
            mine = events.order[events.starts[number] : events.starts[number + 1]]
            name = names[number] = events.names(slice(number, number + 1))[0]
            cat, num, p = self._serve(events, rows, number, mine, name)
            page(mine, cat, num, p)
            shown += len(mine)
            if most_rows is not None and shown >= most_rows:
                return
            if number % 256 == 0:
                tick(number)

    def rest(self, until_ms: int) -> None:
        """Nothing happens until then."""
        for partition in self.partitions:
            if partition.newest_ms:
                self._learn(partition.advance(until_ms).samples)
        while self.trainer.step(drain=True) is not None:
            pass

    def features(self, rows: LogRows, mine: Rows, home: int) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
        """(window keys (n, K), numbers (n, N)) of the rows of one page, of a user of partition ``home``, by the counts
        of now. User-side keys are counted in that partition; item-side ones are the sum over all."""
        n, builder, layout = len(mine), rows.builder, self.schema.layout
        columns, plain = rows.columns(mine)
        ts_ms = int(rows.ts_ms[mine[0]])
        keys = builder.keys(columns, n)
        store = self.partitions[home].windows
        counts = np.zeros((n, layout.K, store.spans, store.columns), store.dtype)
        if self._of_user.any():
            own = keys[:, self._of_user]
            counts[:, self._of_user] = store.counts(own.reshape(-1), ts_ms).reshape(*own.shape, *counts.shape[2:])
        other = ~self._of_user
        if other.any():
            flat = keys[:, other].reshape(-1)
            for partition in self.partitions:
                found = partition.windows.counts(flat, ts_ms)
                counts[:, other] += found.reshape(n, int(other.sum()), *counts.shape[2:])
        return keys, builder.num(plain, counts, n, ts_ms)

    def _serve(
        self, events: LogEvents, rows: LogRows, number: int, mine: Rows, name: str
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        user, items, ts_ms = events.users(slice(number, number + 1))[0], events.items(mine), int(events.page_ms[number])
        home = kafka_partition(key_of(user), len(self.partitions))
        keys, num = self.features(rows, mine, home)
        cat = rows.builder.cat(rows.columns(mine)[0], len(mine))
        ranked = cat.copy()
        ranked[:, self._bias] = 0
        p = np.asarray(self.trainer.model.score(ranked, num), np.float32)
        arrays = (p.tobytes(), keys.tobytes(), cat.tobytes(), num.tobytes())
        page_log = PageLog(name, ts_ms, user, MODEL, 0, self.schema.id, items, *arrays)
        exposure = Exposure(f"{name}/e", name, ts_ms, user, items)
        self._take(home, ts_ms, (PAGE_LOGS, page_log_bytes(page_log)), (EVENTS, to_json(exposure)))
        return cat, num, p

    def _act(self, events: LogEvents, act: int, row: int, name: str) -> None:
        page, place, kind = int(events.page_of[row]), int(events.place_of[row]), int(events.act_kind[act])
        user, item = events.users(slice(page, page + 1))[0], events.items(np.array([row]))[0]
        what = {CLICK: Click, COLLECT: Collect, CART: Cart}.get(kind, Purchase)
        ts_ms = int(events.act_ms[act])
        action = what(f"{name}/{place}/{ACTIONS[kind]}", name, ts_ms, user, item, place)
        self._take(kafka_partition(key_of(user), len(self.partitions)), ts_ms, (EVENTS, to_json(action)))

    def _take(self, home: int, now_ms: int, *messages: tuple[str, bytes]) -> None:
        reported = []
        for topic, raw in messages:
            self._offset += 1
            reported.append(InputMessage(topic, self._offset, raw, now_ms))
        self._learn(self.partitions[home].take(reported, now_ms).samples)

    def _learn(self, samples: SampleBatch | None) -> None:
        if samples is not None:
            self.trainer.take(samples)
        while self.trainer.step() is not None:
            pass


@dataclass(slots=True)
class Pages:
    """What a loop served."""

    rows: list[NDArray[np.intp]] = field(default_factory=list)
    features: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = field(default_factory=list)
    p: list[NDArray[np.float32]] = field(default_factory=list)

    def __call__(
        self, rows: NDArray[np.intp], cat: NDArray[np.int64], num: NDArray[np.float32], p: NDArray[np.float32], /
    ) -> None:
        self.rows.append(rows)
        self.features.append((cat, num))
        self.p.append(p)


def later(log: LogTable, from_ms: int) -> LogTable:
    first = int(np.searchsorted(log.table["ts_ms"].to_numpy(), from_ms))
    table = log.table.slice(first)
    return LogTable(table, log.user, log.item, log.label, table.num_rows, 0)


def live(loop: LiveLoop, log: LogTable, schema: Schema, pages: Pages | None = None, most: int | None = None) -> None:
    """Plays a log through a loop."""
    rows = LogRows(log, schema)
    events = LogEvents(log, schema, rows, loop.partitions[0].policy.life_ms)
    loop.live(events, rows, pages or (lambda *_: None), most_rows=most)


def from_store(settings: Settings, schema: Schema) -> LiveLoop:
    """The loop that goes on from what the replay left, read as the roles read it."""
    checkpoints = CheckpointStore(settings.place("checkpoints"))
    policy = Policy.of(settings)
    partitions = [
        checkpoints.load(Partition(n, schema, policy, settings.partitions)).partition
        for n in range(settings.partitions)
    ]
    wanted = wanted_spec(settings, schema)

    def build(note: object, parts: object) -> object:
        model = model_of(schema, wanted, settings.seed)
        model.resume(parts)  # type: ignore[arg-type]
        return model

    found = newest_valid(ModelStore(settings.place("models")), schema.id, wanted, build)  # type: ignore[arg-type]
    assert found is not None, "the replay left no model"
    trainer = Trainer(found.model, Progressive(1000), Repeats(3 * 3_600_000))
    trainer.resume(found.training, found.note.extra.get("counts", {}))
    return LiveLoop(schema, partitions, trainer)
