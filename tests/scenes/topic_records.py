"""What a topic holds."""

from __future__ import annotations

from typing import Any

from millrace.contracts.settings import Settings
from millrace.processes.kafka import read_all


def records(settings: Settings, topic: str) -> list[Any]:
    """All of a topic's messages, partition by partition in order."""
    found: list[Any] = []
    read_all(settings, topic, found.append)
    return found
