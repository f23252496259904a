# shell
"""A demo that begins with a past: the simulated days before its opening are replayed into its folder.

::

    simulator.daylog.write_days ──► day logs (removed again) ──► millrace replay LOG --into DATA ──► roles

The days are those of the same world, seed and shoppers, in open loop: their pages are the previous recommender's. The
replay is a process of its own, so its memory is free again when the roles start.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from importlib import resources
from pathlib import Path

import redis
from redis.exceptions import RedisError

from millrace.contracts.clock import EventClock
from millrace.contracts.errors import ServiceError, SettingError
from millrace.contracts.online import FILLED, filled_key, redis_url
from millrace.contracts.settings import Settings
from millrace.demo.preflight import FIRST_DAY, Held, opening
from millrace.processes.wall import wall_ms
from simulator.daylog import write_days

MOST_DAYS = 60


def live_through(settings: Settings, days: int, speed: float, say: Callable[[str], None]) -> None:
    """Replays the ``days`` before the opening into the folder of ``settings``.

    Raises:
        SettingError: there are too many days, or none.
        ServiceError: the replay failed; it has said why.
    """
    if not 1 <= days <= MOST_DAYS:
        raise SettingError(f"--history-days {days}", f"give 1 to {MOST_DAYS}")
    began = time.monotonic()
    start = FIRST_DAY - timedelta(days=days)
    with tempfile.TemporaryDirectory(prefix="millrace-past-") as folder:
        say(f"the {days} days before the opening are written and replayed")
        write_days(folder, days, settings.seed, f"{start:%Y-%m-%d}", settings.shoppers)
        schema = settings.schema or str(resources.files("millrace.contracts").joinpath("shop.toml"))
        clock = EventClock(wall_ms(), round(opening(Held()).timestamp() * 1000), speed)
        command = [sys.executable, "-m", "millrace", "replay", folder, "--schema", schema, "--no-people"]
        command += ["--into", str(Path(settings.data)), "--seed", str(settings.seed)]
        child = subprocess.run(command, env=_environment(settings, clock), check=False)
    if child.returncode:
        raise ServiceError(f"the replay of the days before ended with {child.returncode}", "see its line above")
    say(f"the loop has lived through {days} days in {time.monotonic() - began:.0f} s")


def filled(settings: Settings) -> bool:
    """Whether the stream has written all users of the past to Redis."""
    try:
        with redis.Redis.from_url(redis_url(settings.redis), socket_timeout=5.0) as client:
            return all(client.get(settings.key(filled_key(p))) == FILLED for p in range(settings.partitions))
    except RedisError:
        return False


def _environment(settings: Settings, clock: EventClock) -> dict[str, str]:
    import os

    ours = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    return ours | settings.environment() | {"MILLRACE_CLOCK": clock.encode()}
