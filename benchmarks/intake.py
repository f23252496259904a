# shell
"""``millrace dev bench intake``: 5,000 events a second through one intake on one core.

::

    load generator (core 1) ──► run intake (core 0) ──► embedded broker (core 1)
      Poisson, open loop          its share of the core          the topic is read at the end: is all there that was
      latency from the            is measured                    acknowledged, and how often?
      intended time

Requests of 1, 20 and 100 events. Figures, by events of a request:

- ``events_per_s`` kept, and ``held 5000``: the share of all events that were kept within a second of their intended
  time; ``p50`` and ``p99`` of the answer;
- ``cpu``, the intake's share of its core, and ``events_per_cpu_s``, what it keeps in a second of processor time, which
  depends little on what else the machine does.

``most`` is what is kept a second where four times as much is offered. ``lost`` counts acknowledged events that the
topic does not have, ``twice`` those that it has twice.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import RunningRole
from benchmarks.tools.openloop import Asking, Outcome, Plan, event_ids, latencies_ms, percentile
from millrace.contracts.events import decode_event
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS
from millrace.processes.kafka import create_topics, read_all
from millrace.processes.resident_memory import measured_bytes
from millrace.processes.services import EmbeddedBroker, free_port

HELD_MS = 1000.0
"""An event that is kept later than this after its intended time was not held."""


class Size(NamedTuple):
    """How much is measured."""

    rate: float = 5000.0  # events a second
    seconds: float = 15.0
    sizes: tuple[int, ...] = (1, 20, 100)
    above: float = 4.0  # times the rate


SHORT = Size(200.0, 1.0)


def run(out: Path, say: Say, size: Size) -> list[Figure]:
    """The figures, as in the module's text. Raises ServiceError where the broker or the intake did not start."""
    cores = sorted(os.sched_getaffinity(0))
    own, others = cores[0], set(cores[1:]) or set(cores)
    figures: list[Figure] = []
    acknowledged: set[str] = set()
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="run-", dir=out))
        broker = stack.enter_context(EmbeddedBroker(Path(folder) / "broker"))
        assert broker.pid is not None
        os.sched_setaffinity(broker.pid, others)
        settings = Settings(kafka=broker.address, data=folder, intake_port=free_port(), metrics_port=0)
        create_topics(settings)
        intake = stack.enter_context(RunningRole("intake", settings, settings.intake_port, out, core=own))
        Asking(_plan(settings, 20, size.rate, 2.0, 99), others).outcome()  # the first find nothing in any cache
        for events in size.sizes:
            plan = _plan(settings, events, size.rate, size.seconds, events)
            used, began = intake.cpu_s()[0], time.monotonic()
            outcome = Asking(plan, others).outcome()
            used, spent = intake.cpu_s()[0] - used, time.monotonic() - began
            ms, kept = latencies_ms(outcome), _kept(plan, outcome)
            acknowledged |= kept
            offered = len(outcome.whole) * events
            held = events * int((ms <= HELD_MS).sum()) / offered
            figures += [
                figure(f"events_per_s {events}", len(kept) / _took(outcome, size.seconds), "events/s"),
                figure(f"held {size.rate:.0f} {events}", held, "of the events"),
                figure(f"p50 {events}", percentile(ms, 0.5), "ms"),
                figure(f"p99 {events}", percentile(ms, 0.99), "ms"),
                figure(f"cpu {events}", used / spent, "of a core"),
                figure(f"events_per_cpu_s {events}", len(kept) / used, "events"),
            ]
            say(f"{events} events a request: {held:.2%} of {size.rate:.0f}/s held, p99 {percentile(ms, 0.99):.0f} ms")
        plan = _plan(settings, max(size.sizes), size.above * size.rate, size.seconds / 2, 7)
        outcome = Asking(plan, others).outcome()
        kept = _kept(plan, outcome)
        acknowledged |= kept
        figures += [
            figure(f"most {plan.size}", len(kept) / _took(outcome, size.seconds / 2), "events/s"),
            figure("memory", measured_bytes(intake.pid) / 2**20, "MiB"),
        ]
        found = Counter[str]()
        read_all(settings, EVENTS, lambda record: found.update([decode_event(record.value).event_id]))
        figures += [
            figure("acknowledged", len(acknowledged), "events"),
            figure("lost", sum(1 for id in acknowledged if not found[id]), "events"),
            figure("twice", sum(1 for id in acknowledged if found[id] > 1), "events"),
        ]
    return figures


def _plan(settings: Settings, events: int, rate: float, seconds: float, seed: int) -> Plan:
    return Plan(
        port=settings.intake_port,
        rate=rate / events,
        seconds=seconds,
        seed=seed,
        prefix=f"bench-{seed}",
        users=10_000,
        size=events,
        path="/events",
        connections=64,
    )


def _kept(plan: Plan, outcome: Outcome) -> set[str]:
    """Ids of the events whose request said that all of it is kept."""
    return {id for i, whole in enumerate(outcome.whole) if whole for id in event_ids(plan, i)}


def _took(outcome: Outcome, planned_s: float) -> float:
    """Seconds from the first intended time to the last answer, as long as planned at least."""
    done = [at for at in outcome.done_s if at is not None]
    return max(planned_s, max(done, default=0.0) - min(outcome.intended_s, default=0.0))
