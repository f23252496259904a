# shell
"""The feeder: the role's main process. It reads Kafka, keeps the item index and the model's versions, delivers page
logs, and runs the workers that answer requests.

::

    feeds: items, item counts, model versions (threads)      link         worker 1..N
    item index ── what changed, lists ─────────────────────► (Unix ─────► item tables, lists
    co-clicks ── neighbours of items ──────────────────────►              the same memory
    versions in shared memory ── where they lie ───────────►  socket) ──► the same memory
    vectors of the items, one version of them ─────────────►              the same memory
    rings of page logs ◄── shared memory ──────────────────────────────── pages
      └► spool on disk ► Kafka
    metrics port: the figures of all ◄── when asked ─────────────────────
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any
from uuid import uuid4

import msgspec
import numpy as np
import structlog
from prometheus_client import generate_latest

from millrace.basics.store import Store
from millrace.contracts.settings import Settings
from millrace.processes.kafka import open_broker
from millrace.processes.metrics import READY, serve_metrics, show
from millrace.processes.shared import Pool
from millrace.processes.wall import event_now_ms, wall_ms
from scorer.feeder.arithmetic import ArithmeticChoice
from scorer.feeder.cofeed import CoFeed
from scorer.feeder.feeder_publisher import IndexPublisher
from scorer.feeder.index_keeper import IndexKeeper
from scorer.feeder.kafka_feed import ItemFeed, TileFeed, TopicFeed
from scorer.feeder.modelfeed import ModelFeed
from scorer.feeder.primary import Primary
from scorer.feeder.rerank_file import RerankFile
from scorer.feeder.state import FeederState
from scorer.feeder.towerhost import TowerHost
from scorer.feeder.versionhost import VersionHost
from scorer.feeder.workerpool import Sender, WorkerPool
from scorer.ipc.meters import FRESHNESS, ITEM_KEYS, ITEMS, RETRIEVAL_AGE, RETRIEVAL_LAG, LearnerMeters, ScorerMeters
from scorer.ipc.scorer_metrics import Sums
from scorer.pagelog.ring import RingReader
from scorer.pagelog.shipper import Shipper, open_spool
from scorer.users.user_reader import connect
from scorer.worker.door import Door
from scorer.worker.page_app import model_facts
from scorer.worker.template import Template

log = structlog.get_logger("scorer")

LOOK_SECONDS = 0.25
WORKERS_END_SECONDS = 8.0
DELIVER_SECONDS = 10.0


class Feeder:
    """See the module's text. :meth:`run` may be called once. ``door``: what workers accept from. ``template``: the
    process that workers are forked from. Raises BrokerError, StoreError or SettingError for an unusable address or
    folder, or a missing package."""

    def __init__(self, settings: Settings, door: Door, template: Template, stop: threading.Event) -> None:
        connect(settings)  # refuses an address that is none
        open_broker(settings)
        self.settings, self._door, self._stop = settings, door, stop
        self._ending = threading.Event()
        schema = settings.load_schema()
        self.meters, self.sums = ScorerMeters(), Sums()
        self.primary = Primary(settings, schema, settings.event_clock(), wall_ms)
        state = self._state = FeederState(self.primary, self.meters, self._ending)
        beside = {name: LearnerMeters(name) for name in settings.served_learners}
        self._served = {"": ServedLearner(state)} | {
            name: ServedLearner(FeederState(self.primary.of_learner(name), meters, self._ending))
            for name, meters in beside.items()
        }
        self._first = self._served[""]
        self._publisher = IndexPublisher(state, self._first.host, *(each.towers for each in self._served.values()))
        self._keeper = IndexKeeper(state, uuid4().hex[:8])
        of_index = [kind(state, self._keeper.load) for kind in (ItemFeed, TileFeed)]
        self._keeper.feeds = {feed.topic: feed for feed in of_index}
        self._feeds: list[TopicFeed] = [self._first.feed, *of_index]
        self.primary.to_read = {feed.what: -1 for feed in self._feeds}
        self._feeds += [self._served[name].feed for name in beside]
        self._coclicks = CoFeed(state, self._publisher.keep)
        self._spool = open_spool(settings, self.meters.lost)
        self._shipper = Shipper(settings, schema, self._spool, self.meters.lost)
        served, hosts = self._served.values(), {name: each.host for name, each in self._served.items()}
        # Vectors come behind the items, whose rows they name.
        self._rerank = RerankFile(self.primary, self.meters.error)
        senders: list[Sender] = [self._rerank, *hosts.values(), self._publisher, *(each.towers for each in served)]
        bell = self._shipper.bell
        self.pool = WorkerPool(state, door, template, hosts, senders, self.sums, self._answer, bell)
        for slot in range(settings.workers):
            self._shipper.add(RingReader(self.pool.ring(slot)))

    def run(self) -> None:
        """Works until ``stop`` is set, then drains: workers answer open requests, and page logs are delivered. Raises
        PortError: the metrics port is taken; ServiceError: no worker can be started."""
        sys.setswitchinterval(0.001)
        show(self.sums)
        set_gauges(self.primary)
        set_retrieval_gauges(self.primary, self._first.towers)
        towers = [each.towers.thread for each in self._served.values()]
        threads = [*self._feeds, self._coclicks, self._keeper, self._publisher, *towers]
        try:
            for thread in threads:
                thread.start()
            for each in self._served.values():
                each.host.start()
            self._shipper.start()
            self.pool.start()
            port = serve_metrics("serve", self.settings.metrics_port, self.settings.host)
            host, http_port = self._door.listener.getsockname()[:2]
            log.info(
                "scorer listens", url=f"http://{host}:{http_port}", metrics_port=port, workers=self.settings.workers
            )
            while not self._stop.wait(LOOK_SECONDS):
                READY.set(1 if self.pool.ready else 0)
                self._rerank.look(self.pool.broadcast)
        finally:
            READY.set(0)
            self._door.close()
            self.pool.end(WORKERS_END_SECONDS)
            self._ending.set()
            self._state.changed.set()
            for feed in (*self._feeds, self._coclicks):
                feed.interrupt()
            self._shipper.end(DELIVER_SECONDS)
            for thread in threads:
                if thread.is_alive():
                    thread.join(3)

    # -- what workers and others ask --------------------------------------------------------------------------

    def model_facts(self) -> dict[str, Any]:
        """The facts of GET /model."""
        note, meters = self.primary.note, self.meters
        self.pool.measure()
        errors = {dict(labels)["what"]: int(n) for labels, n in self.sums.total("millrace_errors").items()}
        facts = model_facts(note, self.primary.schema.id, meters, errors, self._first.towers.facts())
        choice = self._first.arithmetic.choice
        beside = {name: each.facts() for name, each in self._served.items() if name}
        facts |= {"workers": self.settings.workers, "arithmetic": msgspec.to_builtins(choice)}
        return facts | ({"learners": beside} if beside else {})

    def _answer(self, what: str, facts: Any) -> tuple[Any, dict[str, Any]]:
        if what == "model":
            return self.model_facts(), {}
        if what == "metrics":
            self.pool.measure()
            return generate_latest(self.sums), {}
        if what == "counts":
            rows = np.frombuffer(facts["rows"], "<i4").astype(np.intp)
            known = rows[rows < len(self.primary.index)]
            return None, {"counts": self._state.alone(self.primary.index.counts_at, known, facts["ts_ms"])}
        raise ValueError(f"'{what}' is nothing that a worker may ask")


class ServedLearner:
    """What a feeder has of a learner whose model makes pages: its feed, its versions, its vectors."""

    def __init__(self, state: FeederState) -> None:
        self._primary = state.primary
        self.host, self.towers = VersionHost(state, Pool()), TowerHost(state)
        store = Store(state.primary.settings.place("models"), writes=False)
        self.arithmetic = ArithmeticChoice(time.thread_time, store)
        self.feed = ModelFeed(state, self.host, towers=self.towers, choose=self.arithmetic)

    def facts(self) -> dict[str, Any]:
        """Its entry of GET /model."""
        note = self._primary.note
        of = (note.version, note.hash, note.spec) if note else (-1, "", {})
        return dict(zip(("version", "hash", "spec", "retrieval"), (*of, self.towers.facts()), strict=True))


def set_gauges(primary: Primary) -> None:
    """Connects the gauges of the index and of the model's age to ``primary``."""

    def freshness() -> float:
        newest_ms = primary.newest_ms
        if newest_ms is None:
            return float("nan")
        return (event_now_ms(primary.clock) - newest_ms) / 1000 / primary.clock.speed

    FRESHNESS.set_function(freshness)
    ITEMS.set_function(lambda: len(primary.index))
    ITEM_KEYS.set_function(lambda: primary.index.counts.held)


def set_retrieval_gauges(primary: Primary, towers: TowerHost) -> None:
    """Connects the gauges of the vectors' age."""

    def lag() -> float:
        facts, note = towers.facts(), primary.note
        return float("nan") if facts is None or note is None else max(0, note.version - facts["version"])

    def age() -> float:
        published_ms = towers.published_ms
        return float("nan") if published_ms is None else (wall_ms() - published_ms) / 1000

    RETRIEVAL_LAG.set_function(lag)
    RETRIEVAL_AGE.set_function(age)
