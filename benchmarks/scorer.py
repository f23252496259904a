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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.parts.pagestages import ONNX, OnnxForward, page_stages
from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import RunningRole
from benchmarks.tools.modelwire import MadeLoop, made_loop
from benchmarks.tools.openloop import Asking, Ms, Outcome, Plan, chunks, cost_ms, latencies_ms, percentile
from benchmarks.tools.pagewire import PageLogCheck, steadily
from learner.role.learnloop import PACE

DELTA_ROWS_A_SECOND = 50_000
FEW, MANY = 20, 600
DELIVERY_S = 15.0  # how long the log of a run may be silent whose pages are not all there
BEHIND_S = 1.0  # behind a load, its requests still count as within: memory is given back, caches are cold
ONNX_S = 0.25  # between two passes of ONNX Runtime beside a run
BEARABLE_MS = 50.0  # a rate is borne if 99 of 100 answers come within it


class Size(NamedTuple):
    """How large and how long."""

    rows: int = 5_000_000
    items: int = 100_000
    users: int = 7000  # who come on a day of the shop; three times as many have been there
    rate: float = 20.0  # pages a second
    seconds: float = 15.0  # of a run
    rounds: int = 3  # of runs with and without deltas, of either page
    warm_s: float = 4.0
    loads: int = 3  # of snapshots
    step_s: float = 8.0  # of a run in the search for the capacity
    first_rate: float = 80.0  # of that search
    steps: int = 8  # of that search
    pages: int = 500  # whose stages are timed
    busy_s: float = 400.0  # of the run at 80% of the capacity: some 30,000 pages, since one in 10,000 is to be seen


SHORT = Size(20_000, 700, 30, 10.0, 2.0, 1, 0.5, 1, 0.5, 10.0, 1, 5, 1.0)


def run(out: Path, say: Say, size: Size) -> Iterator[Figure]:
    """The figures, as in the module's text. Raises ServiceError where the scorer, the broker or Redis did not start, or
    a scorer does not follow the model."""
    with made_loop(out, size.items, size.users, size.rows, DELTA_ROWS_A_SECOND, say) as made:
        with (
            PageLogCheck(made.settings) as log,
            RunningRole("serve", made.settings, made.settings.port, out, "/readyz") as scorer,
        ):
            yield from Bench(made, size, log, say).figures(scorer)
        yield from page_stages(made.shop.shop, made.model.learnt, size.pages, say)


class Bench:
    """A shop and a model, and what is asked of a scorer that follows them. Pages are counted: ``asked`` for;
    ``failed``, not answered or otherwise; ``lost``, answered and not in the log."""

    def __init__(self, made: MadeLoop, size: Size, log: PageLogCheck, say: Say) -> None:
        self.made, self.size, self.log, self.say = made, size, log, say
        self.asked = self.failed = self.lost = self._runs = 0
        self.late_ms: list[float] = []  # of the load generator
        self.onnx = OnnxForward(made.model.learnt, say)
        self.worker_ms = 0.0  # CPU of a page, in the last runs without deltas

    def figures(self, scorer: RunningRole) -> Iterator[Figure]:
        for pages in (FEW, MANY):
            self.run(scorer, pages, seconds=self.size.warm_s)
        yield from self.other_pages()
        yield from self.pages(scorer, MANY, "page_600")
        yield from self.pages(scorer, FEW, "page_20")
        yield from self.loads(scorer)
        capacity, allowed = self.capacity(scorer), 1000 / self.worker_ms
        yield figure("capacity_20", capacity, "pages/s", "what a page's CPU allows", capacity / allowed)
        yield self.without_user(0.8 * (capacity or self.size.rate))
        for name in ("failed", "lost", "asked"):
            yield figure(f"{name}_pages", getattr(self, name), "pages")
        yield figure("generator_late_p99_ms", percentile(np.array(self.late_ms), 0.99), "ms")

    def plan(self, size: int, rate: float, seconds: float, path: str = "/recommend") -> Plan:
        self._runs += 1
        return Plan(
            port=self.made.settings.port,
            rate=rate,
            seconds=seconds,
            seed=self._runs,
            prefix=f"{time.time_ns():x}-{self._runs}",
            users=self.made.shop.users,
            size=size,
            path=path,
            items=self.made.shop.shop.index.ids[: self.size.items // 10],
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

    def run(self, scorer: RunningRole, size: int, *, deltas: bool = True, seconds: float = 0.0) -> tuple[Outcome, Ms]:
        """One run with ONNX Runtime's pass now and then beside it, and a look whether its pages were logged; and the
        CPU of the scorer's processes and of its workers, in milliseconds."""
        plan = self.plan(size, self.size.rate, seconds or self.size.seconds)
        with self.learning(deltas), steadily(self.onnx.run, ONNX_S):
            before = np.array(scorer.cpu_s())
            outcome = Asking(plan).outcome()
            used = 1000 * (np.array(scorer.cpu_s()) - before)
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

    def pages(self, scorer: RunningRole, size: int, name: str) -> list[Figure]:
        """Pages with deltas and without in turn: latencies with deltas, and the processor time of a page."""
        ms: dict[bool, list[Ms]] = {True: [], False: []}
        cpu_ms = {True: np.zeros(2), False: np.zeros(2)}  # of all processes, of the workers
        self.onnx.take_ms()
        for number in range(self.size.rounds):
            for deltas in (True, False) if number % 2 == 0 else (False, True):
                outcome, used = self.run(scorer, size, deltas=deltas)
                ms[deltas].append(latencies_ms(outcome))
                cpu_ms[deltas] += used
                p50, p99 = (percentile(ms[deltas][-1], share) for share in (0.5, 0.99))
                self.say(f"pages of {size}, deltas {'on' if deltas else 'off'}: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        for deltas, parts in ms.items():
            cpu_ms[deltas] /= max(1, sum(map(len, parts)))
        pass_ms, (all_ms, self.worker_ms) = self.onnx.take_ms(), cpu_ms[False].tolist()
        p50, p99 = (percentile(np.concatenate(ms[True]), share) for share in (0.5, 0.99))
        return [
            figure(f"{name}_p50_ms", p50, "ms"),
            figure(f"{name}_p99_ms", p99, "ms", "p50", p99 / p50),
            figure(f"{name}_cpu_ms", self.worker_ms, "ms CPU of workers / page"),
            figure(f"{name}_cpu_ratio", self.worker_ms / pass_ms, "x", ONNX),
            figure(f"{name}_delta_cpu_ratio", (float(cpu_ms[True][0]) - all_ms) / pass_ms, "x", ONNX),
        ]

    def other_pages(self) -> list[Figure]:
        """Pages of items like one, popular ones, and the model's in turn."""
        size, paths = self.size, ("/similar", "/popular", "/recommend")
        runs = [[self.busy_ms(size.rate, size.seconds, path)[0] for path in paths] for _ in range(size.rounds)]
        *found, base = (percentile(np.concatenate(ms), 0.99) for ms in zip(*runs, strict=True))
        return [figure(f"{p[1:]}_20_p99_ms", x, "ms", paths[-1], x / base) for p, x in zip(paths, found, strict=False)]

    def loads(self, scorer: RunningRole) -> Iterator[Figure]:
        """Pages while the snapshot of a new root is loaded, against those outside of the loads."""
        within, outside, took = list[Ms](), list[Ms](), list[float]()
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
        yield figure("snapshot_seconds", float(np.median(took)), "s")
        if within and outside:  # in a short run nothing may have been asked meanwhile
            base = percentile(np.concatenate(outside), 0.99)
            for name, cost in zip(("", "_low", "_high"), cost_ms(within, outside, 0.99), strict=True):
                yield figure(f"snapshot_cost_p99{name}_ms", cost, "ms", "the same run outside", (base + cost) / base)

    def without_user(self, rate: float) -> Figure:
        """The share of pages of 20 that are made without their user at a rate."""
        ms, prefix = self.busy_ms(rate, self.size.busy_s)
        without = sum(name.startswith(f"{prefix}-") for name in self.log.without_user)
        return figure("without_user", without / max(1, len(ms)), f"of {len(ms)} pages")

    def busy_ms(self, rate: float, seconds: float, path: str = "/recommend", overload: bool = False) -> tuple[Ms, str]:
        """Latencies of pages of 20 while the scorer learns, and the prefix of their ids; see :meth:`check`."""
        plan = self.plan(FEW, rate, seconds, path)
        with self.learning():
            outcome = Asking(plan).outcome()
        self.check(plan, outcome, overload)
        return latencies_ms(outcome), plan.prefix

    def capacity(self, scorer: RunningRole) -> float:
        """The highest rate of pages of 20 that is borne: first in strides, then by halving."""
        borne, beyond, rate = 0.0, float("inf"), self.size.first_rate
        for _ in range(self.size.steps):
            p99 = percentile(self.busy_ms(rate, self.size.step_s, overload=True)[0], 0.99)
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
