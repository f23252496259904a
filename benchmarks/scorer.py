# shell
"""``millrace dev bench scorer``: how long a page takes, whatever arrives meanwhile.

::

    this process                             millrace run serve        load generator (a process)
      catalogue, counts, users, snapshot ──►   ready                     Poisson, open loop
      deltas of 50,000 rows/s, counts ─────►   pages of 20 and 600 ◄──── latency from the intended time
      reads page logs after each run ◄─────    the log of each page

The simulated shop with 100,000 items, 5,000,000 table rows, an embedded broker and Redis, or those that
``MILLRACE_KAFKA`` and ``MILLRACE_REDIS`` name (their topics must be new). Runs with and without deltas alternate. Every
page that was answered must have its log on the topic ``page_logs``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import RunningRole
from benchmarks.tools.latency import Ms, chunks, cost_ms, latencies_ms, percentile
from benchmarks.tools.madeloop import MadeLoop, made_loop
from benchmarks.tools.openloop import Asking, Outcome, Plan
from benchmarks.tools.pagewire import PageLogCheck, steadily
from learner.role.learnloop import PACE

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
    users: int = 7000  # who come on a day of the shop; three times as many have been there
    rate: float = 50.0  # pages a second
    seconds: float = 15.0  # of a run
    rounds: int = 3  # of runs with and without deltas, of either page
    warm_s: float = 4.0
    loads: int = 3  # of snapshots
    step_s: float = 8.0  # of a run in the search for the capacity
    first_rate: float = 80.0  # of that search
    steps: int = 8  # of that search


SHORT = Size(
    20_000, 700, 30, rate=10.0, seconds=2.0, rounds=1, warm_s=0.5, loads=1, step_s=0.5, first_rate=10.0, steps=1
)


def run(out: Path, say: Say, size: Size | None = None) -> list[Figure]:
    """The figures, as in the module's text. Raises ServiceError where the scorer, the broker or Redis did not start, or
    a scorer does not follow the model."""
    size = size or Size()
    figures: list[Figure] = []
    with (
        made_loop(out, size.items, size.users, size.rows, DELTA_ROWS_A_SECOND, say) as made,
        PageLogCheck(made.settings) as log,
        RunningRole("serve", made.settings, made.settings.port, out, "/readyz") as scorer,
    ):
        say("scorer ready")
        bench = Bench(made, size, log, say)
        for pages in (FEW, MANY):
            bench.run(scorer, pages, seconds=size.warm_s)
        figures += bench.pages(scorer, FEW, "page_20", "delta_cost_p99_ms")
        figures += bench.pages(scorer, MANY, "page_600", "delta_cost_600_p99_ms")
        within, outside, took = bench.loads(scorer)
        say(f"snapshot: served after {', '.join(f'{s:.1f}' for s in took)} s")
        figures += _cost("snapshot_cost_p99_ms", within, outside, "the same run outside of the loads")
        figures.append(figure("snapshot_seconds", float(np.median(took)), "s"))
        figures.append(figure("capacity_20", bench.capacity(scorer), "pages/s"))
        return [
            *figures,
            figure("failed_answers", bench.failed, "answers"),
            figure("lost_pages", bench.lost, "pages"),
            figure("pages_asked", bench.asked, "pages"),
            figure("generator_late_p99_ms", percentile(np.array(bench.late_ms), 0.99), "ms"),
        ]


class Bench:
    """A shop and a model, and what is asked of a scorer that follows them.

    Attributes:
        asked, failed, lost: pages: asked for; not answered, or otherwise; answered and not in the log.
        late_ms: how late the load generator was with each.
    """

    def __init__(self, made: MadeLoop, size: Size, log: PageLogCheck, say: Say) -> None:
        self.made, self.size, self.log, self.say = made, size, log, say
        self.asked = self.failed = self.lost = self._runs = 0
        self.late_ms: list[float] = []

    def plan(self, size: int, rate: float, seconds: float) -> Plan:
        self._runs += 1
        return Plan(
            port=self.made.settings.port,
            rate=rate,
            seconds=seconds,
            seed=self._runs,
            prefix=f"{time.time_ns():x}-{self._runs}",
            users=self.made.shop.users,
            size=size,
        )

    @contextmanager
    def learning(self, deltas: bool = True) -> Iterator[None]:
        """Counts come meanwhile, and deltas if so."""
        every_s = PACE.delta_seconds
        with ExitStack() as stack:
            stack.enter_context(steadily(self.made.shop.publish_changes, 1.0))
            if deltas:
                stack.enter_context(steadily(self.made.model.delta, every_s))
                time.sleep(every_s)
            yield

    def run(
        self, scorer: RunningRole, size: int, *, deltas: bool = True, seconds: float = 0.0
    ) -> tuple[Outcome, float]:
        """One run, and a look whether its pages were logged; and the CPU seconds of all of the scorer's processes."""
        plan = self.plan(size, self.size.rate, seconds or self.size.seconds)
        with self.learning(deltas):
            before = scorer.cpu_s()
            outcome = Asking(plan).outcome()
            used = scorer.cpu_s() - before
        self.check(plan, outcome)
        return outcome, used

    def check(self, plan: Plan, outcome: Outcome, overload: bool = False) -> None:
        """Counts failures of a run, and reads its log. ``overload``: whether a failure is none, since more was asked
        than it has to bear."""
        self.asked += len(outcome.whole)
        self.failed += 0 if overload else outcome.whole.count(False)
        seen = zip(outcome.seen_s, outcome.intended_s, strict=True)
        self.late_ms += [1000 * (at - due) for at, due in seen if at is not None]
        answered = {f"{plan.prefix}-{i}" for i, whole in enumerate(outcome.whole) if whole}
        lost = self.log.missing(answered, DELIVERY_S)
        self.lost += len(lost)
        if lost:
            self.say(f"{len(lost)} of {len(answered)} pages are not in the log of this run, as {min(lost)}")

    def pages(self, scorer: RunningRole, size: int, name: str, cost: str) -> list[Figure]:
        """Pages with deltas and without in turn: those with deltas, what deltas cost, and the CPU of a page."""
        parts: dict[bool, list[Ms]] = {True: [], False: []}
        cpu_s = 0.0
        for number in range(self.size.rounds):
            for deltas in (True, False) if number % 2 == 0 else (False, True):
                outcome, used = self.run(scorer, size, deltas=deltas)
                ms = latencies_ms(outcome)
                parts[deltas] += chunks(outcome.intended_s, ms)
                cpu_s += used if deltas else 0.0
                self.say(
                    f"pages of {size} {'with' if deltas else 'without'} deltas: p50 {percentile(ms, 0.5):.1f} ms, "
                    f"p99 {percentile(ms, 0.99):.1f} ms"
                )
        ms = np.concatenate(parts[True])
        return [
            *(figure(f"{name}_p{p}_ms", percentile(ms, p / 100), "ms") for p in (50, 99)),
            *_cost(cost, parts[True], parts[False], "without deltas"),
            figure(f"{name}_cpu_ms", 1000 * cpu_s / len(ms), "ms CPU / page"),
        ]

    def loads(self, scorer: RunningRole) -> tuple[list[Ms], list[Ms], list[float]]:
        """Pages while the snapshot of a new root is loaded: latencies by second within and outside of the loads, and
        how many seconds each load took."""
        within, outside, took = [], [], []
        for _ in range(self.size.loads):
            plan = self.plan(FEW, self.size.rate, self.size.seconds)
            with self.learning():
                asking = Asking(plan)
                time.sleep(self.size.seconds / 4)
                began = time.monotonic()
                took.append(scorer.await_version(self.made.model.new_root()))
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


def _cost(name: str, with_it: Sequence[Ms], without: Sequence[Ms], against: str) -> list[Figure]:
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
