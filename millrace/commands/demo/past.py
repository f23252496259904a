# shell
"""The past that a demo begins with, and what earlier runs left.

``millrace log bootstrap`` replays the simulated days before the opening into the folder. They are of the same world,
seed and shoppers, in open loop: the previous recommender made their pages. The replay is a process of its own, so its
memory is free again when the roles start.

A broker that the demo does not start itself keeps its topics, so the next demo goes on there: the shop opens on the
working day after the newest event, the roles read what is there (with a new data folder, from the beginning, which
gives the same labels), and the audit begins at the offsets found here. Where the topics are empty and the store is
not, the day is the one after what the model has learnt from.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from millrace.basics.errors import ServiceError, SettingError
from millrace.commands.history.attempt import check_empty
from millrace.commands.loop.host import TICK_SECONDS, Host
from millrace.connections.redis_clients import redis_client
from millrace.contracts.clock import EventClock
from millrace.contracts.events import BadEventError, Exposure, decode_event
from millrace.contracts.online_layout import FILLED, filled_key
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS
from millrace.processes.kafka import read_all
from millrace.processes.spawn import spawn, stop, tail
from millrace.processes.supervisor import PYTHON
from millrace.processes.wall import wall_ms
from millrace.reports.lines import LEFT
from millrace.reports.progress import bars
from millrace.versions.modelstore import ModelStore
from simulator.daylog import write_days

MOST_DAYS = 60
_CLEAN_SECONDS = 10.0
LOCAL = timedelta(hours=8)
OPENS_HOUR = 9
FIRST_DAY = datetime(2026, 3, 4, tzinfo=UTC)
"""Local day of a demo on empty topics: a Wednesday."""


def check_days(days: int) -> None:
    """Raises SettingError where there are too many days, or fewer than none."""
    if not 0 <= days <= MOST_DAYS:
        raise SettingError(f"--history-days {days}", f"give 1 to {MOST_DAYS}, or 0 to begin with nothing")


def live_through(run: Host, days: int) -> float:
    """Replays the ``days`` before the opening into the folder of a run, and returns the seconds that it took. At the
    run's end it stops early and leaves nothing.

    Raises:
        SettingError: a loop has lived in the folder or at the broker.
        ServiceError: the replay failed.
    """
    began, settings = time.monotonic(), run.settings
    check_empty(settings)
    start, count = FIRST_DAY - timedelta(days=days), f"{days} day{'s' if days > 1 else ''}"
    log_path = run.folder / "logs" / "history.log"
    log_path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="millrace-past-") as folder:
        run.say(f"the {count} before the opening are written and replayed; then the shop opens")
        ends = run.ending.is_set
        with bars() as tick:
            write_days(folder, days, settings.seed, f"{start:%Y-%m-%d}", settings.shoppers, tick, ends)
        if ends():
            return time.monotonic() - began
        child = spawn(_command(folder, settings), _environment(settings, run.speed), log_path)
        try:
            if not _watch(run, child, log_path):
                child.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(_CLEAN_SECONDS)
                return time.monotonic() - began
        finally:
            stop(child)
    if child.returncode:
        raise ServiceError(f"the replay of the days before failed: {tail(log_path, 1)}", f"see {log_path}")
    seconds = time.monotonic() - began
    run.say(f"the loop has lived through {count} in {seconds:.0f} s")
    return seconds


def filled(settings: Settings) -> bool:
    """Whether the stream has written all users of the past to Redis."""
    try:
        with redis_client(settings.redis, socket_timeout=5.0) as client:
            return all(client.get(settings.key(filled_key(p))) == FILLED for p in range(settings.partitions))
    except RedisError:
        return False


def _watch(run: Host, child: subprocess.Popen[bytes], log_path: Path) -> bool:
    """Shows the child's output until it has ended (True) or the run's end is asked for (False). The page shows its
    newest line only."""
    first, shown = len(run.notes), 0
    while True:
        ended = child.poll() is not None
        lines = log_path.read_text(errors="replace").splitlines(keepends=True)
        whole = [line.strip() for line in lines if line.endswith("\n")]
        for line in whole[shown:]:
            run.say(line)
        shown = len(whole)
        run.notes[first:-1] = [note for note in run.notes[first:-1] if not note.endswith(LEFT)]
        if ended:
            return True
        if run.ending.wait(TICK_SECONDS):
            return False


def _command(folder: str, settings: Settings) -> list[str]:
    schema = settings.schema or str(resources.files("millrace.contracts").joinpath("shop.toml"))
    command = [*PYTHON, "millrace", "log", "bootstrap", folder, "--schema", schema, "--no-people"]
    return [*command, "--data", settings.data, "--seed", str(settings.seed)]


def _environment(settings: Settings, speed: float) -> Mapping[str, str]:
    clock = EventClock(wall_ms(), round(opening(PastEvents()).timestamp() * 1000), speed)
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    return ours | settings.environment() | {"MILLRACE_CLOCK": clock.encode()}


@dataclass(slots=True)
class PastEvents:
    events: int = 0
    offsets: dict[int, int] = field(default_factory=dict)  # next offset, by partition
    newest_ms: int = 0  # newest exposure: actions may be dated anywhere by mischief

    def message(self, record: Any) -> None:
        self.events += 1
        self.offsets[record.partition] = record.offset + 1
        try:
            event = decode_event(record.value)
        except BadEventError:
            return
        if isinstance(event, Exposure):
            self.newest_ms = max(self.newest_ms, event.ts_ms)


def held_by(settings: Settings) -> PastEvents:
    held = PastEvents()
    read_all(settings, EVENTS, held.message)
    return held


def learnt_until(settings: Settings) -> int:
    """The event time (ms) up to which the roles' state may reach according to the model store; 0: the store is empty.
    Raises StoreError if the store cannot be read."""
    note = ModelStore(settings.place("models"), writes=False).latest()
    if note is None or not note.event_ms:
        return 0
    return note.event_ms + round((settings.attribution_minutes + settings.lateness_minutes) * 60_000)


def opening(held: PastEvents, learnt_ms: int = 0) -> datetime:
    """When the shop opens: 09:00 (UTC+8) on the first demo day, or the working day after what is held and learnt."""
    day = FIRST_DAY
    if held.newest_ms or learnt_ms:
        newest = datetime.fromtimestamp(max(held.newest_ms, learnt_ms) / 1000, UTC) + LOCAL
        day = max(day, newest.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1))
    while day.weekday() >= 5:
        day += timedelta(days=1)
    return day + timedelta(hours=OPENS_HOUR) - LOCAL
