# core
"""One client request as its handler gets it, and the parts of the broker that handlers use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import structlog

from millrace.broker.groups import Answers, Group, Ticket
from millrace.broker.offsets import Offsets
from millrace.broker.topic_store import BrokerTopic, Topics

log = structlog.get_logger("broker")

NODE = 0
HOST = "127.0.0.1"


class Broker(Protocol):
    """The broker, as its calls use it."""

    topics: Topics
    offsets: Offsets
    groups: dict[str, Group]
    port: int

    def now_ms(self) -> int:
        """The wall clock."""

    def steady_ms(self) -> int:
        """A clock that never goes back, for sessions."""

    def group(self, name: str) -> Group:
        """The group of this name, made if missing."""

    def settle(self, group: Group, answers: Answers) -> None:
        """Sends a group's answers, and plans its next deadline."""

    def forget_topic(self, topic: BrokerTopic) -> None:
        """Answers the fetches that wait for the topic."""


class Call(NamedTuple):
    broker: Broker
    request: Any
    version: int
    client: str
    ticket: Ticket  # identifies this request in a group's answers


Handler = Callable[[Call], Any]
"""Returns the answer (a message class without version), or None when the answer comes later by the ticket."""
