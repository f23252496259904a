# shell
"""``millrace dev bench scorer``: how long a page takes, whatever arrives meanwhile.

::

    this process                             millrace run serve        load generator (a process)
      catalogue, counts, users, snapshot ──►   ready                     Poisson, open loop
      deltas of 50,000 rows/s, counts ─────►   pages of 20 and 600 ◄──── latency from the intended time
      reads impressions after each run ◄────   the log of each page

The shop's schema, 100,000 items, 5,000,000 table rows, an embedded broker and Redis, or those that ``MILLRACE_KAFKA``
and ``MILLRACE_REDIS`` name (their topics must be new). Runs with and without deltas alternate. Every page that was
answered has to be in the topic ``impressions``; of every twentieth, version, items and scores are compared.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import RunningRole
from benchmarks.tools.latency import Ms, chunks, cost_ms, latencies_ms, percentile
from benchmarks.tools.modelwire import ModelWire
from benchmarks.tools.openloop import Asking, Outcome, Plan
from benchmarks.tools.pagewire import PageLog, ShopWire, Steadily, fill_users
from learner.role.learnloop import PACE
from millrace.contracts.settings import Settings, load_settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import create_topics, make_producer, topic_ids
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port

DELTA_ROWS_A_SECOND = 50_000
FEW, MANY = 20, 600
DELIVERY_S = 15.0
"""How long the log of a run may be silent whose pages are not all there."""
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


@dataclass(slots=True)
class Block:
    """One run of the load generator."""

    size: int
    deltas: bool
    outcome: Outcome
    cpu_s: float  # of all of the scorer's processes

    @property
    def ms(self) -> Ms:
        return latencies_ms(self.outcome)


@dataclass(slots=True)
class Counted:
    """What must not happen, over all runs."""

    asked: int = 0
    failed: int = 0
    noted: int = 0
    lost: int = 0
    late_ms: list[float] = field(default_factory=list)


def run(out: Path, say: Say, size: Size | None = None) -> list[Figure]:
    """The figures, as in the module's text.

    Raises:
        ServiceError: the scorer, the broker or Redis did not start, or a scorer does not follow the model.
    """
    size = size or Size()
    figures: list[Figure] = []
    with stage(out, size, say) as bench, RunningRole.scorer(bench.settings, out) as scorer:
        say("scorer ready")
        for pages in (FEW, MANY):
            bench.run(scorer, pages, seconds=size.warm_s)
        figures += _page_figures(bench.pages(scorer))
        for resync, name in ((False, "snapshot"), (True, "resync")):
            within, outside, took = bench.change(scorer, resync)
            say(f"{name}: served after {', '.join(f'{s:.1f}' for s in took)} s")
            figures += _cost(f"{name}_cost_p99_ms", within, outside, "the same run outside of the loads")
            figures.append(figure(f"{name}_seconds", float(np.median(took)), "s"))
        figures.append(figure("capacity_20", bench.capacity(scorer), "pages/s"))
        return figures + _counted(bench.counted, bench.log)


@contextlib.contextmanager
def stage(out: Path, size: Size, say: Say) -> Iterator[Bench]:
    """Broker, Redis, shop and model, as a scorer finds them; files in a folder in ``out`` that is removed."""
    given = load_settings()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="run-", dir=out.resolve())))
        kafka = given.kafka or stack.enter_context(EmbeddedBroker(folder / "broker")).address
        at_redis = given.redis or stack.enter_context(EmbeddedRedis(folder / "redis")).address
        settings = msgspec.structs.replace(
            given,
            kafka=kafka,
            redis=at_redis,
            data=str(folder / "data"),
            port=free_port(),
            metrics_port=0,
            control_share=0.0,
        )
        create_topics(settings)
        producer = stack.enter_context(contextlib.closing(make_producer(settings)))
        say(f"writing {size.users:,} users, {size.items:,} items and their counts")
        fill_users(settings, size.users, size.items)
        shop = ShopWire(settings, producer, size.items)
        shop.publish()
        say(f"a snapshot of {size.rows:,} rows, and deltas of {DELTA_ROWS_A_SECOND:,} rows a second")
        log_id = topic_ids(settings)[MODEL_DELTAS]
        model = ModelWire(settings, producer, size.rows, size.items, DELTA_ROWS_A_SECOND, log_id)
        model.new_root()
        yield Bench(settings, size, shop, model, stack.enter_context(PageLog(settings)), say)


class Bench:
    """A shop and a model, and what is asked of a scorer that follows them."""

    def __init__(
        self, settings: Settings, size: Size, shop: ShopWire, model: ModelWire, log: PageLog, say: Say
    ) -> None:
        self.settings, self.size, self.shop, self.model, self.log, self.say = settings, size, shop, model, log, say
        self.counted = Counted()
        self._runs = 0

    def plan(self, size: int, rate: float, seconds: float) -> Plan:
        self._runs += 1
        return Plan(
            port=self.settings.port,
            rate=rate,
            seconds=seconds,
            seed=self._runs,
            prefix=f"{time.time_ns():x}-{self._runs}",
            users=self.size.users,
            size=size,
        )

    @contextlib.contextmanager
    def learning(self, deltas: bool = True) -> Iterator[None]:
        """Counts come meanwhile, and deltas if so."""
        every_s = PACE.delta_seconds
        with contextlib.ExitStack() as stack:
            stack.enter_context(Steadily(self.shop.publish_changes, 1.0))
            if deltas:
                stack.enter_context(Steadily(self.model.delta, every_s))
                time.sleep(every_s)
            yield

    def run(self, scorer: RunningRole, size: int, *, deltas: bool = True, seconds: float = 0.0) -> Block:
        """One run, and a look whether its pages were logged."""
        plan = self.plan(size, self.size.rate, seconds or self.size.seconds)
        with self.learning(deltas):
            before = scorer.cpu_s()
            outcome = Asking(plan).outcome()
            used = scorer.cpu_s() - before
        self.check(plan, outcome)
        return Block(size, deltas, outcome, used)

    def check(self, plan: Plan, outcome: Outcome, overload: bool = False) -> None:
        """Counts failures of a run, and reads its log.

        Args:
            overload: whether a failure is none, since more was asked than it has to bear.
        """
        c = self.counted
        c.asked += len(outcome.whole)
        c.failed += 0 if overload else len(outcome.whole) - sum(outcome.whole)
        c.noted += sum(noted and whole for noted, whole in zip(outcome.noted, outcome.whole, strict=True))
        seen = zip(outcome.seen_s, outcome.intended_s, strict=True)
        c.late_ms += [1000 * (at - due) for at, due in seen if at is not None]
        answered = {f"{plan.prefix}-{i}" for i, whole in enumerate(outcome.whole) if whole}
        lost = self.log.missing(answered, outcome.kept, DELIVERY_S)
        c.lost += len(lost)
        if lost:
            self.say(f"{len(lost)} of {len(answered)} pages are not in the log of this run, as {min(lost)}")

    # -- what is measured ----------------------------------------------------------------------------------------

    def pages(self, scorer: RunningRole) -> list[Block]:
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

    def change(self, scorer: RunningRole, resync: bool) -> tuple[list[Any], list[Any], list[float]]:
        """Pages while a snapshot is loaded: a new root, or (``resync``) the one that mends a lost delta.

        Returns:
            Latencies by second within and outside of the loads, and how many seconds each load took.
        """
        within, outside, took = [], [], []
        for _ in range(self.size.loads):
            plan = self.plan(FEW, self.size.rate, self.size.seconds)
            with self.learning():
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

    def capacity(self, scorer: RunningRole) -> float:
        """The highest rate of pages of 20 that is borne: first in strides, then by halving."""
        borne, beyond, rate = 0.0, float("inf"), self.size.first_rate
        for _ in range(self.size.steps):
            plan = self.plan(FEW, rate, self.size.step_s)
            with self.learning():
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


def _page_figures(blocks: list[Block]) -> list[Figure]:
    """Pages with deltas, what deltas cost, and the CPU of a page."""
    found = []
    for size, name, cost in (
        (FEW, "page_20", "delta_cost_p99_ms"),
        (MANY, "page_600", "delta_cost_600_p99_ms"),
    ):
        of_size = [b for b in blocks if b.size == size]
        parts = {
            on: [c for b in of_size if b.deltas == on for c in chunks(b.outcome.intended_s, b.ms)]
            for on in (True, False)
        }
        ms = np.concatenate(parts[True])
        found += [figure(f"{name}_p{p}_ms", percentile(ms, p / 100), "ms") for p in (50, 99)]
        found += _cost(cost, parts[True], parts[False], "without deltas")
        used = sum(b.cpu_s for b in of_size if b.deltas)
        found.append(figure(f"{name}_cpu_ms", 1000 * used / len(ms), "ms CPU / page"))
    return found


def _cost(name: str, with_it: list[Any], without: list[Any], against: str) -> list[Figure]:
    """A difference of the 99th percentiles and its 95% interval; the ratio is that of the percentiles themselves."""
    if not with_it or not without:  # a run so short that nothing was asked meanwhile
        return []
    cost, low, high = cost_ms(with_it, without, 0.99)
    base = percentile(np.concatenate(without), 0.99)
    return [
        figure(name, cost, "ms", against, (base + cost) / base),
        figure(name.replace("_ms", "_low_ms"), low, "ms"),
        figure(name.replace("_ms", "_high_ms"), high, "ms"),
    ]


def _counted(c: Counted, log: PageLog) -> list[Figure]:
    return [
        figure("failed_answers", c.failed, "answers"),
        figure("noted_answers", c.noted, "answers"),
        figure("lost_impressions", c.lost, "pages"),
        figure("unlike_impressions", log.unlike + log.unreadable, "pages"),
        figure("compared_pages", log.compared, "pages"),
        figure("pages_asked", c.asked, "pages"),
        figure("generator_late_p99_ms", percentile(np.array(c.late_ms), 0.99), "ms"),
    ]
