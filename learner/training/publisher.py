# shell
"""Sends a learner's messages to ``model.deltas``: claims, deltas in chunks, announcements. Tracks the topic's offsets.

A snapshot names the offset that follows it (``follows``), from which its reader goes on. Any offset will do that is not
behind the first delta after the snapshot. So where the delta of the snapshot's version was lost, the offset of the
delivery before it serves.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog
from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from millrace.basics.errors import BrokerError, one_line
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import REMEDY, make_admin
from millrace.versions.decisions import LogPart
from millrace.versions.modellog import encode_claim, encode_decision_notes, encode_delta, encode_snapshot
from millrace.versions.versioning import Announcement, Claim

log = structlog.get_logger("learner")

_DELIVERY_S = 30.0


class Publisher:
    """The only producer to ``model.deltas``. The producer's own thread reports deliveries, so counts are locked.
    ``log_id``: id of the topic, empty where the broker gives none."""

    def __init__(self, settings: Settings, producer: KafkaProducer, log_id: str) -> None:
        self.log_id = log_id
        self._settings, self._producer = settings, producer
        self._lock = threading.Lock()
        self._follows = 0
        self._lost = 0
        self._newest: Any = None  # future of the newest message of a delta
        self._sent = 0  # messages of versions and decisions
        self._open: deque[list[bool]] = deque()  # the outcome of each of the last, once it is known
        self._refusals = self._passes = 0

    def claim(self, claim: Claim) -> int:
        """Sends a claim and waits for its offset. Raises BrokerError where it was not delivered."""
        try:
            offset: int = self._producer.send(MODEL_DELTAS, encode_claim(claim)).get(_DELIVERY_S).offset
        except KafkaError as error:
            raise BrokerError(f"epoch {claim.epoch} cannot be claimed ({error})", REMEDY) from None
        self._delivered(offset)
        return offset

    def still_here(self, claim: Claim) -> None:
        """Sends a heartbeat. It waits for nothing, and its loss does no harm."""
        self._producer.send(MODEL_DELTAS, encode_claim(claim))

    def delta(self, note: Announcement, body: bytes) -> None:
        """Sends a delta, its messages one after another."""
        for message in encode_delta(note, body):
            self._newest = self._send(message, "delta lost; the next snapshot mends it")

    def decisions(self, epoch: int, claimant: str, part: LogPart) -> None:
        """Sends decisions in messages of their own."""
        for message in encode_decision_notes(epoch, claimant, part):
            self._send(message, "decisions lost; they are sent again")

    def _send(self, message: bytes, if_lost: str) -> Any:
        outcome: list[bool] = []  # whether it was delivered, when that is known
        with self._lock:
            self._sent += 1
            self._open.append(outcome)
        future = self._producer.send(MODEL_DELTAS, message)
        future.add_callback(lambda sent: self._delivered(sent.offset, outcome))
        future.add_errback(lambda error: self._missed(if_lost, error, outcome))
        return future

    @property
    def sent(self) -> int:
        """Messages of versions and decisions that were sent."""
        return self._sent

    def heard(self) -> tuple[bool, int]:
        """Whether one was lost since the last call: the next snapshot repairs that. And of how many of them, the first
        ones, it is known what became of them: one answer, since a delivery may fail between two."""
        with self._lock:
            while self._open and self._open[0]:
                self._open.popleft()
            lost, self._lost = self._lost > 0, 0
            return lost, self._sent - len(self._open)

    def settled(self) -> int:
        """Waits until all that was sent is there: the newest offset. Raises BrokerError where that cannot be."""
        try:
            self._producer.flush(timeout=_DELIVERY_S)
        except KafkaError as error:
            why = type(error).__name__
        else:
            with self._lock:
                why = "a message was lost" if self._lost else ""
        if why:
            raise BrokerError(f"what was decided is not durable ({why}): a restart would not know it", REMEDY)
        with self._lock:
            return self._follows - 1

    def snapshot(self, note: Announcement) -> None:
        self._producer.send(MODEL_DELTAS, encode_snapshot(note)).add_errback(
            lambda error: log.error("announcement lost; the snapshot is found in the store", error=str(error))
        )

    def behind_newest(self) -> Callable[[], dict[str, Any]]:
        """A function that gives ``follows`` and ``log`` of a snapshot of the newest version. Call this before the next
        delta is sent. The function waits until the newest delta is delivered, or lost; another thread may call it."""
        newest = self._newest
        with self._lock:
            known = self._follows

        def where() -> dict[str, Any]:
            follows = known
            if newest is not None:
                try:
                    follows = max(follows, newest.get(_DELIVERY_S).offset + 1)
                except KafkaError as error:
                    log.warning("a snapshot follows a delta that was not delivered", error=type(error).__name__)
            return {"follows": follows, "log": self.log_id}

        return where

    def forget_before(self, offset: int) -> None:
        """Lets the broker delete what no snapshot needs any more. A refusal is logged one time, and retried behind the
        second, fourth, eighth ... snapshot: the broker may only have been away."""
        self._passes -= 1
        if self._passes > 0 or offset <= 0:
            return
        try:
            with contextlib.closing(make_admin(self._settings)) as admin:
                admin.delete_records({TopicPartition(self._settings.topic(MODEL_DELTAS), 0): offset})
            self._refusals = 0
        except Exception as error:  # whatever an old broker answers: its own retention will do
            self._refusals += 1
            self._passes = 2 ** min(self._refusals, 7)
            if self._refusals == 1:
                log.warning(
                    "the broker deletes no records; its retention will", topic=MODEL_DELTAS, error=one_line(error)
                )

    def _delivered(self, offset: int, outcome: list[bool] | None = None) -> None:
        with self._lock:
            self._follows = max(self._follows, offset + 1)
            if outcome is not None:
                outcome.append(True)

    def _missed(self, what: str, error: Any, outcome: list[bool]) -> None:
        with self._lock:
            self._lost += 1
            outcome.append(False)
        log.error(what, error=str(error))
