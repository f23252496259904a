# shell
"""Before a demo: see what earlier runs left in the topics and the store, and when the shop opens.

A broker of one's own keeps its topics. The next demo then goes on where the last one ended: the shop opens on the
working day after the newest event, the roles read what is there (with a new data folder they read it again, which
gives the same labels), and the audit of this run begins at the offsets found here. Where the topics are empty and the
store is not, the day is the one after what the model has learnt from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from millrace.contracts.events import BadEventError, Exposure, decode_event
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS
from millrace.processes.kafka import read_all
from millrace.versions.modelstore import ModelStore

LOCAL = timedelta(hours=8)
OPENS_HOUR = 9
FIRST_DAY = datetime(2026, 3, 4, tzinfo=UTC)
"""Local day of a demo on empty topics: a Wednesday."""


@dataclass(slots=True)
class Held:
    """What the topic ``events`` held before this run."""

    events: int = 0
    offsets: dict[int, int] = field(default_factory=dict)  # next offset, by partition
    newest_ms: int = 0  # newest exposure: actions may be dated anywhere by mischief

    def message(self, record: Any) -> None:
        """A record of ``events``."""
        self.events += 1
        self.offsets[record.partition] = record.offset + 1
        try:
            event = decode_event(record.value)
        except BadEventError:
            return
        if isinstance(event, Exposure):
            self.newest_ms = max(self.newest_ms, event.ts_ms)


def held_by(settings: Settings) -> Held:
    """Reads ``events`` once."""
    held = Held()
    read_all(settings, EVENTS, held.message)
    return held


def learnt_until(settings: Settings) -> int:
    """Until when (event time, in ms) the roles' state may reach by what the model store says; 0: it is empty.

    Raises:
        StoreError: the store cannot be read.
    """
    note = ModelStore(settings.place("models"), writes=False).latest()
    if note is None or not note.event_ms:
        return 0
    return note.event_ms + round((settings.attribution_minutes + settings.lateness_minutes) * 60_000)


def opening(held: Held, learnt_ms: int = 0) -> datetime:
    """When the shop opens: 09:00 (UTC+8) on the first demo day, or on the working day after what is held and learnt."""
    day = FIRST_DAY
    if held.newest_ms or learnt_ms:
        newest = datetime.fromtimestamp(max(held.newest_ms, learnt_ms) / 1000, UTC) + LOCAL
        day = max(day, newest.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1))
    while day.weekday() >= 5:
        day += timedelta(days=1)
    return day + timedelta(hours=OPENS_HOUR) - LOCAL
