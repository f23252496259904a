# shell
"""Sends a learner's messages to ``model.deltas``: claims, deltas in chunks, announcements. Tracks the topic's offsets.

A snapshot names the offset that follows it (``follows``), from which its reader goes on. Any offset will do that is not
behind the first delta after the snapshot. So where the delta of the snapshot's version was lost, the offset of the
delivery before it serves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import structlog
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from millrace.basics.errors import BrokerError
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import REMEDY
from millrace.versions.modellog import encode_claim, encode_delta, encode_snapshot
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
            self._newest = self._producer.send(MODEL_DELTAS, message)
            self._newest.add_callback(lambda sent: self._delivered(sent.offset))
            self._newest.add_errback(lambda error: self._missed(note, error))

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

    def take_lost(self) -> int:
        """Deltas' messages lost since the last call. The next snapshot repairs that."""
        with self._lock:
            lost, self._lost = self._lost, 0
        return lost

    def forget_before(self, offset: int) -> None:
        """Lets the broker delete what no snapshot needs any more. A refusal is logged one time, and retried behind the
        second, fourth, eighth ... snapshot: the broker may only have been away."""
        self._passes -= 1
        if self._passes > 0 or offset <= 0:
            return
        try:
            admin = KafkaAdminClient(bootstrap_servers=self._settings.brokers)
            try:
                admin.delete_records({TopicPartition(self._settings.topic(MODEL_DELTAS), 0): offset})
            finally:
                admin.close()
            self._refusals = 0
        except Exception as error:  # whatever an old broker answers: its own retention will do
            self._refusals += 1
            self._passes = 2 ** min(self._refusals, 7)
            if self._refusals == 1:
                log.warning(
                    "the broker deletes no records; its retention will", topic=MODEL_DELTAS, error=type(error).__name__
                )

    def _delivered(self, offset: int) -> None:
        with self._lock:
            self._follows = max(self._follows, offset + 1)

    def _missed(self, note: Announcement, error: Any) -> None:
        with self._lock:
            self._lost += 1
        log.error("delta lost; the next snapshot mends it", version=note.version, error=str(error))
