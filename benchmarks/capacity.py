# shell
"""What a million page views take: processor time, memory, disk and bytes in Kafka, by role and by topic.

::

    millrace up (all roles, its broker and Redis) ◄── events, pages ── millrace run simulate
       └── looked at twice, some minutes apart: processor time, files, counters ──► what was added, over the pages

Shoppers of the simulated shop make the traffic: pages of 20 items, of which the first ones are seen, and clicks. Their
clock runs :data:`SPEED` times as fast as the wall's, so that few shoppers make much traffic. They send events to Kafka
themselves, so the intake idles here: ``millrace dev bench intake`` measures what an event costs it.

Figures: ``cpu ROLE`` in core-seconds per million pages, ``memory ROLE`` at the end, ``kafka TOPIC`` and ``disk NAME``
in MiB per million pages; topics that grow by the hour, whatever the traffic, in MiB an hour. The roles warm up before
the first look, so compiling and filling are left out. ``idle ROLE`` is the share of a core that the role takes before
anybody comes. ``cpu`` has that too: a million pages cost less where they come faster.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.tools.bench_figures import Figure, figure
from commands.loop.monitor import fetch
from commands.up.started import Started
from experiments.runs import BenchError
from experiments.taken import Taken, folder_bytes, processes, topic_bytes
from millrace.basics.errors import ServiceError
from millrace.contracts.clock import EventClock
from millrace.contracts.online_layout import redis_url
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.role import ROLES
from millrace.processes.services import free_port, spawn, stop
from millrace.processes.wall import wall_ms

SECONDS = 180.0
WARM_SECONDS = 30.0
SETTLE_SECONDS = 5.0
"""After the roles are ready: their start is over."""
READY_SECONDS = 300.0
IDLE_SECONDS = 20.0
SPEED = 40.0
SHOPPERS = 30_000
"""Who come on an average day: with :data:`SPEED`, some 20 pages a second."""
OPENS_MS = 1_772_442_000_000
"""Event time at the start: Monday, 2 March 2026, 9:00 UTC."""
MILLION, MIB, HOUR_S = 1e6, 2**20, 3600.0
BY_TIME = ("features.coclicks",)
"""Topics that grow by the hour rather than by the page."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Look:
    """The loop at one moment."""

    second: float
    taken: Taken
    topics: Mapping[str, int]  # bytes
    counts: Mapping[str, float]  # counters of all roles, summed over their labels
    redis_bytes: int
    redis_keys: int


def run(out: Path, say: Say = print, seconds: float = SECONDS, warm_seconds: float = WARM_SECONDS) -> list[Figure]:
    """The figures of one run.

    Raises:
        BenchError: the loop or the shoppers did not come up, or ended.
    """
    with TemporaryDirectory(prefix="millrace-capacity-") as folder:
        data, clock = Path(folder) / "data", EventClock(wall_ms(), OPENS_MS, SPEED).encode()
        port = free_port()
        shop_toml = resources.files("millrace.contracts").joinpath("shop.toml")
        loop = Started(data, "--schema", str(shop_toml), env={"MILLRACE_CLOCK": clock})
        with loop:
            try:
                where = loop.where()
            except ServiceError as error:
                raise BenchError(error.problem, error.remedy) from None
            assert loop.process is not None
            root = loop.process.pid
            idle = _idle(lambda: _look(root, data, where["metrics"], where["redis"]), say)
            settings = Settings(
                kafka=where["kafka"],
                redis=where["redis"],
                scorer=where["scorer"],
                clock=clock,
                data=str(Path(folder) / "shop"),
                shoppers=SHOPPERS,
                metrics_port=port,
            )
            clean = {n: v for n, v in os.environ.items() if not n.startswith("MILLRACE_")}
            log = Path(out).absolute() / "simulate.log"
            argv = [sys.executable, "-m", "commands", "run", "simulate"]
            shop = spawn(argv, clean | settings.environment(), log)
            targets = {**where["metrics"], "simulate": f"http://127.0.0.1:{port}/metrics"}
            try:

                def look() -> Look:
                    if shop.poll() is not None:
                        raise BenchError(f"the shoppers ended with status {shop.returncode}", f"see {log}")
                    return _look(root, data, targets, where["redis"])

                _await_pages(look, say)
                time.sleep(warm_seconds)
                first = look()
                say(f"measuring for {seconds:g} s")
                time.sleep(seconds)
                last = look()
            finally:
                stop(shop, 20)
    return figures_of(first, last, idle)


def _idle(look: Callable[[], Look], say: Say) -> dict[str, float]:
    """Shares of a core by role, while nobody is there."""
    say(f"idle for {IDLE_SECONDS:g} s")
    time.sleep(SETTLE_SECONDS)
    first = look()
    time.sleep(IDLE_SECONDS)
    last = look()
    seconds = last.second - first.second
    return {n: (used - first.taken.cpu_s.get(n, 0.0)) / seconds for n, used in sorted(last.taken.cpu_s.items())}


def _await_pages(look: Callable[[], Look], say: Say) -> None:
    say(f"{SHOPPERS:,} shoppers, {SPEED:g} times as fast as the wall's clock; waiting for pages of the model")
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        counts = look().counts
        if counts.get("millrace_deltas_applied_total", 0) > 0 and counts.get("millrace_pages_total", 0) > 100:
            return
        time.sleep(1.0)
    raise BenchError(f"no pages of the model within {READY_SECONDS:g} s", "look at the logs of the roles")


def _look(root: int, data: Path, targets: Mapping[str, str], store: str) -> Look:
    counts: dict[str, float] = {}
    for address in targets.values():
        try:
            text = fetch(address, 10.0)
        except OSError:  # it starts
            continue
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if family.type == "counter" and sample.name.endswith("_total"):
                    counts[sample.name] = counts.get(sample.name, 0.0) + sample.value
    taken = processes(root, ROLES, "up")
    taken.folders = {path.name: folder_bytes(path) for path in sorted(data.iterdir()) if path.is_dir()}
    with redis.Redis.from_url(redis_url(store)) as client:
        facts: Any = client.info("memory")
        keys = int(client.dbsize())
    return Look(time.monotonic(), taken, topic_bytes(data / "broker"), counts, int(facts["used_memory"]), keys)


def _grown(first: Look, last: Look, name: str) -> float:
    return last.counts.get(name, 0.0) - first.counts.get(name, 0.0)


def figures_of(first: Look, last: Look, idle: Mapping[str, float]) -> list[Figure]:
    """What was added between two looks, over the pages between.

    Args:
        idle: shares of a core that roles take while nobody is there.

    Raises:
        BenchError: there was no page.
    """
    pages, seconds = _grown(first, last, "millrace_pages_total"), last.second - first.second
    if pages <= 0:
        raise BenchError("no page was made while it was measured", "look at the logs of the roles")
    exposures = _grown(first, last, "millrace_exposures_sent_total")
    found = [
        figure("pages", pages, "pages"),
        figure("pages_per_s", pages / seconds, "1/s"),
        figure("exposures_per_page", exposures / pages, "exposures"),
        figure("clicks_per_page", _grown(first, last, "millrace_clicks_sent_total") / pages, "clicks"),
    ]
    per = MILLION / pages
    cpu = {n: last.taken.cpu_s[n] - first.taken.cpu_s.get(n, 0.0) for n in sorted(last.taken.cpu_s)}
    found += [figure(f"cpu {name}", used * per, "core-s / million pages") for name, used in cpu.items()]
    found.append(figure("cpu all", sum(cpu.values()) * per, "core-s / million pages"))
    found += [figure(f"idle {name}", 100 * share, "% of a core") for name, share in idle.items()]
    found.append(figure("idle all", 100 * sum(idle.values()), "% of a core"))
    found += [figure(f"memory {name}", held / MIB, "MiB") for name, held in sorted(last.taken.memory.items())]
    found.append(figure("memory all", sum(last.taken.memory.values()) / MIB, "MiB"))
    deltas = _grown(first, last, "millrace_delta_bytes_total") / MIB  # the learner lets go of old ones
    found.append(figure("kafka model.deltas", deltas * HOUR_S / seconds, "MiB / h"))
    found.append(figure("held model.deltas", last.topics.get(MODEL_DELTAS, 0) / MIB, "MiB at the end"))
    for name, size in sorted(last.topics.items()):
        if name == MODEL_DELTAS:
            continue
        grown = (size - first.topics.get(name, 0)) / MIB
        by_time = name in BY_TIME
        value, unit = (grown * HOUR_S / seconds, "MiB / h") if by_time else (grown * per, "MiB / million pages")
        found.append(figure(f"kafka {name}", value, unit))
    for name, size in sorted(last.taken.folders.items()):
        found.append(figure(f"held {name}", size / MIB, "MiB at the end"))
    written = _grown(first, last, "millrace_checkpoint_bytes_total") / MIB
    found.append(figure("written checkpoints", written * per, "MiB / million pages"))
    archive = last.taken.folders.get("archive", 0) - first.taken.folders.get("archive", 0)
    found.append(figure("disk archive", archive / MIB * per, "MiB / million pages"))
    found.append(figure("redis", last.redis_bytes / MIB, "MiB at the end"))
    found.append(figure("redis keys", last.redis_keys, "keys at the end"))
    return found
