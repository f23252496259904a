"""``millrace up`` with a clock that runs ahead, and the simulated shop's shoppers beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.commands.up.started import Started
from millrace.contracts.clock import EventClock
from millrace.processes.services import free_port
from millrace.processes.spawn import spawn, stop
from millrace.processes.supervisor import role_argv
from millrace.processes.wall import wall_ms
from tests.architecture import ROOT
from tests.scenes.demo_process import PATIENT
from tests.scenes.waiting import PATIENCE

SCHEMA = ROOT / "millrace" / "contracts" / "shop.toml"
CART = '[[outcome]]\nname = "cart"\non = "click"\nevent = "cart"\nwithin = "10min"\n'
"""The shop's schema has no outcome; this one is told within a minute at this speed."""
SPEED = 240.0


@dataclass(frozen=True, slots=True)
class SimulatedLoop:
    """A loop that runs. ``where``: its addresses; ``targets``: where each role serves its metrics."""

    up: Started
    where: dict[str, Any]
    targets: dict[str, str]


@contextmanager
def simulated_loop(folder: Path, **settings: str) -> Iterator[SimulatedLoop]:
    """All roles of ``up`` and the simulator. ``settings``: variables without ``MILLRACE_``."""
    now = wall_ms()
    clock = EventClock(now, now, SPEED).encode()
    env = PATIENT | {"MILLRACE_CLOCK": clock} | {f"MILLRACE_{name}": value for name, value in settings.items()}
    schema = folder / "shop.toml"
    schema.write_text(f"{SCHEMA.read_text()}\n{CART}")
    with Started(folder / "data", "--schema", str(schema), env=env, cwd=folder) as loop:
        where, port = loop.where(PATIENCE), free_port()
        own = {"MILLRACE_KAFKA": where["kafka"], "MILLRACE_SCORER": where["scorer"], "MILLRACE_METRICS_PORT": str(port)}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
        shoppers = spawn(role_argv("simulate"), clean | env | own, folder / "simulate.log", cwd=folder)
        try:
            targets = where["metrics"] | {"simulate": f"http://127.0.0.1:{port}/metrics"}
            yield SimulatedLoop(loop, where, targets)
        finally:
            stop(shoppers)
