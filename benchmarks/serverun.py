# shell
"""Runs of the load generator against a scorer, while a shop and a learner go on: what ``bench scorer`` measures.

A run is open-loop, and each is followed by a look into the topic ``impressions``: every page that was answered has to
be there, and some are compared with their answers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.latency import chunks, latencies_ms, percentile
from benchmarks.modelwire import ModelWire
from benchmarks.openloop import Outcome, Plan
from benchmarks.pagewire import PageLog, ShopWire, Steadily
from benchmarks.runner import Say
from benchmarks.serveunder import Asking, RunningScorer
from millrace.contracts.settings import Settings
from millrace.processes.services import EmbeddedBroker

FEW, MANY = 20, 600
DELIVERY_S = 15.0
BEHIND_S = 1.0
"""How long behind a load its requests still count as within: memory is given back, caches are cold."""
BEARABLE_MS = 50.0
"""A rate is borne if 99 of 100 answers come within so many milliseconds."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large and how long."""

    rows: int = 5_000_000
    items: int = 100_000
    users: int = 20_000
    rate: float = 50.0  # pages a second
    seconds: float = 15.0  # of a run
    rounds: int = 3  # of runs with and without deltas, of either page
    warm_s: float = 4.0
    loads: int = 3  # snapshots, and lost deltas
    step_s: float = 8.0  # of a run in the search for the capacity
    first_rate: float = 80.0  # of that search
    steps: int = 8  # of that search
    pairs: int = 2  # of starts with one worker and with two; 0: none
    away_s: float = 20.0  # how long the broker is away; 0: never
    others: bool = True  # figures of the model alone, which need no scorer


@dataclass(slots=True)
class Block:
    """One run of the load generator."""

    size: int
    deltas: bool
    outcome: Outcome
    cpu_s: dict[int, float]  # of each of the scorer's processes, the first that was started first

    @property
    def ms(self) -> Any:
        return latencies_ms(self.outcome)

    @property
    def main_cpu_s(self) -> float:
        """Of the process that was started; the others are its children."""
        return next(iter(self.cpu_s.values()), 0.0)

    @property
    def chunks(self) -> list[Any]:
        return chunks(self.outcome.intended_s, self.ms)


@dataclass(slots=True)
class Counted:
    """What must not happen, over all runs."""

    asked: int = 0
    failed: int = 0
    noted: int = 0
    lost: int = 0
    generator_s: float = 0.0
    late_ms: list[float] = field(default_factory=list)


class Bench:
    """A shop, a model and a scorer, and what is asked of it."""

    def __init__(
        self,
        settings: Settings,
        size: Size,
        shop: ShopWire,
        model: ModelWire,
        log: PageLog,
        say: Say,
        broker: EmbeddedBroker | None,
    ) -> None:
        self.settings, self.size, self.shop, self.model, self.log, self.say = settings, size, shop, model, log, say
        self.broker = broker
        self.counted = Counted()
        self._runs = 0
        self._mark = f"{time.time_ns():x}"

    def plan(self, size: int, rate: float, seconds: float) -> Plan:
        self._runs += 1
        return Plan(
            port=self.settings.port,
            rate=rate,
            seconds=seconds,
            seed=self._runs,
            prefix=f"{self._mark}-{self._runs}",
            users=self.size.users,
            size=size,
        )

    @contextlib.contextmanager
    def learning(self, deltas: bool) -> Iterator[None]:
        """Counts come meanwhile, and deltas if so."""
        every_s = self.settings.delta_seconds
        with contextlib.ExitStack() as stack:
            stack.enter_context(Steadily(self.shop.publish_changes, 1.0))
            if deltas:
                stack.enter_context(Steadily(self.model.delta, every_s))
                time.sleep(every_s)
            yield

    def run(
        self, scorer: RunningScorer, size: int, *, deltas: bool = True, rate: float = 0.0, seconds: float = 0.0
    ) -> Block:
        """One run, and a look whether its pages were logged."""
        plan = self.plan(size, rate or self.size.rate, seconds or self.size.seconds)
        with self.learning(deltas):
            before = scorer.cpu_s()
            outcome = Asking(plan).outcome()
            used = {process: s - before.get(process, 0.0) for process, s in scorer.cpu_s().items()}
        self.check(plan, outcome)
        return Block(size, deltas, outcome, used)

    def check(self, plan: Plan, outcome: Outcome, overload: bool = False, patience_s: float = DELIVERY_S) -> None:
        """Counts failures of a run, and reads its log.

        Args:
            overload: whether a failure is none, since more was asked than it has to bear.
            patience_s: how long a log may be silent whose pages are not all there.
        """
        c = self.counted
        c.asked += len(outcome.whole)
        c.failed += 0 if overload else len(outcome.whole) - sum(outcome.whole)
        c.noted += sum(noted and whole for noted, whole in zip(outcome.noted, outcome.whole, strict=True))
        c.generator_s += outcome.cpu_s
        c.late_ms += [
            1000 * (seen - due)
            for seen, due in zip(outcome.seen_s, outcome.intended_s, strict=True)
            if seen is not None
        ]
        answered = {f"{plan.prefix}-{i}" for i, whole in enumerate(outcome.whole) if whole}
        lost = self.log.missing(answered, outcome.kept, patience_s)
        c.lost += len(lost)
        if lost:
            self.say(f"{len(lost)} of {len(answered)} pages are not in the log of this run, as {min(lost)}")

    # -- what is measured ----------------------------------------------------------------------------------------

    def pages(self, scorer: RunningScorer) -> list[Block]:
        """Pages of both sizes, with deltas and without in turn."""
        blocks = []
        for number in range(self.size.rounds):
            for size in (FEW, MANY):
                for deltas in (True, False) if number % 2 == 0 else (False, True):
                    block = self.run(scorer, size, deltas=deltas)
                    blocks.append(block)
                    self.say(
                        f"pages of {size} {'with' if deltas else 'without'} deltas: p50 {percentile(block.ms, 0.5):.1f}"
                        f" ms, p99 {percentile(block.ms, 0.99):.1f} ms"
                    )
        return blocks

    def change(self, scorer: RunningScorer, resync: bool) -> tuple[list[Any], list[Any], list[float]]:
        """Pages while a snapshot is loaded: a new root, or (``resync``) the one that mends a lost delta.

        Returns:
            Latencies by second within and outside of the loads, and how many seconds each load took.
        """
        within, outside, took = [], [], []
        for _ in range(self.size.loads):
            plan = self.plan(FEW, self.size.rate, self.size.seconds)
            with self.learning(deltas=True):
                asking = Asking(plan)
                time.sleep(self.size.seconds / 4)
                began = time.monotonic()
                if resync:
                    self.model.lose_delta()
                    time.sleep(min(2.0, self.size.seconds / 8))
                version = self.model.snapshot() if resync else self.model.new_root()
                took.append(scorer.await_version(version))
                ended = time.monotonic()
                outcome = asking.outcome()
            self.check(plan, outcome)
            ms, due = latencies_ms(outcome), np.array(outcome.intended_s)
            during = (due >= began) & (due <= ended + BEHIND_S)
            within += chunks(due[during], ms[during])
            outside += chunks(due[~during], ms[~during])
        return within, outside, took

    def capacity(self, scorer: RunningScorer) -> float:
        """The highest rate of pages of 20 that is borne: first in strides, then by halving."""
        borne, beyond, rate = 0.0, float("inf"), self.size.first_rate
        for _ in range(self.size.steps):
            plan = self.plan(FEW, rate, self.size.step_s)
            with self.learning(deltas=True):
                outcome = Asking(plan).outcome()
            self.check(plan, outcome, overload=True)
            p99 = percentile(latencies_ms(outcome), 0.99)
            self.say(f"{rate:.0f} pages/s: p99 {p99:.1f} ms")
            if p99 < BEARABLE_MS:
                borne = max(borne, rate)
            else:
                beyond = min(beyond, rate)
                scorer.await_calm()
            if beyond < np.inf and beyond - borne < 0.04 * beyond:
                break
            rate = (borne + beyond) / 2 if beyond < np.inf else borne * 1.5
        return borne
