# shell
"""What a million page views take: processor time, memory, disk and bytes in Kafka, by role and by topic.

Processor time, files and counters of ``millrace up`` are read twice, some minutes apart; what was added is divided by
the pages. Shoppers of the simulated shop make the traffic, :data:`SPEED` times as fast as the wall's clock. They send
events to Kafka themselves, so the intake idles here: ``millrace dev bench intake`` measures what an event costs it.

Figures: ``cpu ROLE`` in core-seconds per million pages, ``memory ROLE`` at the end, ``kafka TOPIC``, ``disk archive``
in MiB per million pages; topics that grow by the hour in MiB an hour; ``written checkpoints``, also over what came on
the topics that they are of. Compiling and filling are over before the first look. What roles take at rest
(``millrace dev bench up``) is in ``cpu`` too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.bench_running import RunningRole
from benchmarks.tools.taken import Taken, folder_bytes, processes, topic_bytes
from experiments.runs import BenchError
from millrace.commands.loop.monitor import RoleMetrics, fetch
from millrace.commands.up.started import Started
from millrace.connections.redis_clients import redis_client
from millrace.contracts.clock import EventClock
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS, MODEL_DELTAS, PAGE_LOGS
from millrace.processes.role import ROLES
from millrace.processes.services import free_port
from millrace.processes.wall import wall_ms

READY_SECONDS = 300.0
SPEED = 40.0
SHOPPERS = 30_000
"""Who come on an average day: with :data:`SPEED`, some 20 pages a second."""
OPENS_MS = 1_772_442_000_000
"""Event time at the start: Monday, 2 March 2026, 9:00 UTC."""
MILLION, MIB, HOUR_S = 1e6, 2**20, 3600.0
BY_TIME = ("features.coclicks", MODEL_DELTAS)
"""Topics that grow by the hour rather than by the page."""

COUNTERS = (
    *("millrace_pages_total", "millrace_exposures_sent_total", "millrace_clicks_sent_total"),
    *("millrace_deltas_applied_total", "millrace_delta_bytes_total", "millrace_checkpoint_bytes_total"),
)


class Size(NamedTuple):
    """How long is measured."""

    seconds: float = 180.0
    warm_seconds: float = 30.0


SHORT = Size(10.0, 1.0)


class Look(NamedTuple):
    """The loop at one moment."""

    second: float
    taken: Taken
    topics: Mapping[str, int]  # bytes
    counts: Mapping[str, float]  # counters of all roles, summed over their labels
    redis_bytes: int


def run(out: Path, say: Say, size: Size) -> list[Figure]:
    """The figures of one run. Raises ServiceError where the loop or the shoppers did not come up, BenchError where
    there were no pages."""
    with TemporaryDirectory(prefix="millrace-capacity-") as folder:
        data, clock = Path(folder) / "data", EventClock(wall_ms(), OPENS_MS, SPEED).encode()
        shop_toml = resources.files("millrace.contracts").joinpath("shop.toml")
        with Started(data, "--schema", str(shop_toml), env={"MILLRACE_CLOCK": clock}) as loop:
            where = loop.where()
            port = free_port()
            settings = Settings(
                kafka=where["kafka"],
                redis=where["redis"],
                scorer=where["scorer"],
                clock=clock,
                data=str(Path(folder) / "shop"),
                shoppers=SHOPPERS,
                metrics_port=port,
            )
            targets = {**where["metrics"], "simulate": f"http://127.0.0.1:{port}/metrics"}
            roles = {name: RoleMetrics() for name in targets}
            look = partial(_look, where["pid"], data, targets, where["redis"], roles)
            with RunningRole("simulate", settings, port, out, "/metrics"):
                _await_pages(look, say)
                time.sleep(size.warm_seconds)
                first = look()
                say(f"measuring for {size.seconds:g} s")
                time.sleep(size.seconds)
                last = look()
    return figures_of(first, last)


def _await_pages(look: Callable[[], Look], say: Say) -> None:
    say(f"{SHOPPERS:,} shoppers, {SPEED:g} times as fast as the wall's clock; waiting for pages of the model")
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        counts = look().counts
        if counts["millrace_deltas_applied_total"] > 0 and counts["millrace_pages_total"] > 100:
            return
        time.sleep(1.0)
    raise BenchError(f"no pages of the model within {READY_SECONDS:g} s", "look at the logs of the roles")


def _look(root: int, data: Path, targets: Mapping[str, str], store: str, roles: Mapping[str, RoleMetrics]) -> Look:
    for name, address in targets.items():
        with suppress(OSError):  # it starts
            roles[name].update(fetch(address, 10.0))
    counts = {name: sum(role.total(name) for role in roles.values()) for name in COUNTERS}
    taken = processes(root, ROLES, "up")
    taken.folders = {path.name: folder_bytes(path) for path in sorted(data.iterdir()) if path.is_dir()}
    with redis_client(store) as client:
        facts: Any = client.info("memory")
    return Look(time.monotonic(), taken, topic_bytes(data / "broker"), counts, int(facts["used_memory"]))


def figures_of(first: Look, last: Look) -> list[Figure]:
    """What was added between two looks, over the pages between. Raises BenchError where there was none."""
    grown = {name: last.counts[name] - first.counts[name] for name in COUNTERS}
    pages, seconds = grown["millrace_pages_total"], last.second - first.second
    if pages <= 0:
        raise BenchError("no page was made while it was measured", "look at the logs of the roles")
    per, an_hour = MILLION / pages, HOUR_S / seconds
    found = [
        figure("pages", pages, "pages"),
        figure("pages_per_s", pages / seconds, "1/s"),
        figure("exposures_per_page", grown["millrace_exposures_sent_total"] / pages, "exposures"),
        figure("clicks_per_page", grown["millrace_clicks_sent_total"] / pages, "clicks"),
    ]

    def by_role(what: str, values: Mapping[str, float], unit: str) -> None:
        for name, value in {**dict(sorted(values.items())), "all": sum(values.values())}.items():
            found.append(figure(f"{what} {name}", value, unit))

    cpu = {name: (used - first.taken.cpu_s.get(name, 0.0)) * per for name, used in last.taken.cpu_s.items()}
    by_role("cpu", cpu, "core-s / million pages")
    by_role("memory", {name: held / MIB for name, held in last.taken.memory.items()}, "MiB")
    for name, size in sorted(last.topics.items()):
        # Deltas by what was sent: the learner lets go of old ones.
        added = grown["millrace_delta_bytes_total"] if name == MODEL_DELTAS else size - first.topics.get(name, 0)
        rate, unit = (an_hour, "MiB / h") if name in BY_TIME else (per, "MiB / million pages")
        found.append(figure(f"kafka {name}", added / MIB * rate, unit))
    archive = last.taken.folders.get("archive", 0) - first.taken.folders.get("archive", 0)
    written = grown["millrace_checkpoint_bytes_total"]
    came = sum(last.topics.get(name, 0) - first.topics.get(name, 0) for name in (EVENTS, PAGE_LOGS))
    over = (f"{EVENTS} and {PAGE_LOGS}", written / came) if came > 0 else ()
    return [
        *found,
        figure("written checkpoints", written / MIB * per, "MiB / million pages", *over),
        figure("disk archive", archive / MIB * per, "MiB / million pages"),
        figure("redis", last.redis_bytes / MIB, "MiB at the end"),
    ]
