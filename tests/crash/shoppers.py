"""The simulator's shoppers, whose events go through the intake: ``python -m tests.crash.shoppers`` in place of
``millrace run simulate``.

An event is sent again until the intake has answered for it. So events may be in the topic twice after a kill, with one
id; none may be missing that was answered for.
"""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from kafka.future import Future
from kafka.producer.future import FutureRecordMetadata

from millrace.contracts.settings import Settings, load_settings
from millrace.contracts.topics import EVENTS
from millrace.processes.kafka import make_producer, open_broker
from millrace.processes.role import run_role
from simulator.live import LINGER_MS, ShopOptions, run
from simulator.outbox import FaultRates

MOST_LINES = 200
PAUSE_SECONDS = 0.1
REQUEST_SECONDS = 60.0


class ThroughIntake:
    """Sends events to the intake, in order, and everything else to Kafka."""

    def __init__(self, settings: Settings) -> None:
        self._kafka = make_producer(settings, linger_ms=LINGER_MS)
        self._port = urlsplit(settings.intake).port or 0
        self._line: queue.SimpleQueue[tuple[bytes, Future]] = queue.SimpleQueue()
        self._open, self._lock = 0, threading.Lock()
        threading.Thread(target=self._work, name="intake", daemon=True).start()

    def send(self, topic: str, *, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> Any:
        if topic != EVENTS:
            sent: FutureRecordMetadata = self._kafka.send(topic, key=key, value=value, headers=headers)
            return sent
        answered = Future()
        with self._lock:
            self._open += 1
        self._line.put((value, answered))
        return answered

    def flush(self, timeout: float | None = None) -> None:
        end = time.monotonic() + (timeout or REQUEST_SECONDS)
        while self._open and time.monotonic() < end:
            time.sleep(PAUSE_SECONDS)
        self._kafka.flush(timeout)

    def close(self, timeout: float | None = None) -> None:
        self._kafka.close(timeout)

    def _work(self) -> None:
        while True:
            batch = [self._line.get()]
            while len(batch) < MOST_LINES and not self._line.empty():
                batch.append(self._line.get())
            while not self._kept([value for value, _ in batch]):
                time.sleep(PAUSE_SECONDS)
            for _, answered in batch:
                answered.success(None)
            with self._lock:
                self._open -= len(batch)

    def _kept(self, lines: list[bytes]) -> bool:
        """Whether the intake has answered for all of them. Raises AssertionError where it refuses one."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_SECONDS)
        try:
            connection.request("POST", "/events", b"[" + b",".join(lines) + b"]")
            answer = connection.getresponse()
            status, body = answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        if status in (429, 500, 503):
            return False
        assert status == 200, (status, body[:500])
        refused = [verdict for verdict in json.loads(body)["verdicts"] if verdict["status"] == "refused"]
        assert not refused, refused[:3]
        return True


def shoppers(settings: Settings, stop: threading.Event) -> None:
    open_broker(settings)
    rates = FaultRates(duplicate=0.0, malformed=0.0)  # the intake refuses these, which is no event of the topic
    run(settings, stop, ShopOptions(rates=rates), ThroughIntake(settings))


if __name__ == "__main__":
    run_role("simulate", load_settings({}), shoppers)
