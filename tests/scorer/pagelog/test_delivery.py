"""From the spool to Kafka, with a producer that does what it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import InvalidTopicError, KafkaTimeoutError, MessageSizeTooLargeError, NotLeaderForPartitionError
from structlog.testing import capture_logs

from millrace.basics.errors import BrokerError
from scorer.pagelog import delivery
from scorer.pagelog.delivery import REFUSED, RETRY_SECONDS, STUCK_SECONDS, TOO_LARGE, TRIES, Delivery
from scorer.pagelog.spool import Spool
from tests.scenes.page_logs import Losses, put

AGAIN, NEVER, TOO_LATE = NotLeaderForPartitionError(), InvalidTopicError("no"), KafkaTimeoutError("too late")


class Future:
    """What became of a record; nothing until somebody says so."""

    def __init__(self) -> None:
        self.open = True
        self._ok: Callable[[Any], Any] = print
        self._bad: Callable[[BaseException], Any] = print

    def add_callback(self, call: Callable[[Any], Any]) -> None:
        self._ok = call

    def add_errback(self, call: Callable[[BaseException], Any]) -> None:
        self._bad = call

    def ok(self) -> None:
        self.open = False
        self._ok(None)

    def bad(self, error: BaseException) -> None:
        self.open = False
        self._bad(error)


class Producer:
    """Keeps what it was given, by number of the record."""

    def __init__(self, refuses: Exception | None = None) -> None:
        self.refuses, self.closed = refuses, False
        self.sent: dict[int, Future] = {}
        self.asked: list[int] = []

    def send(self, topic: str, value: bytes, key: bytes) -> Future:
        assert topic == "page_logs"
        assert key == b"k" + value.split(b"|")[0]
        number = int(value.split(b"|")[0])
        self.asked.append(number)
        if self.refuses:
            raise self.refuses
        self.sent[number] = Future()
        return self.sent[number]

    def close(self, timeout: float) -> None:
        if any(future.open for future in self.sent.values()):
            raise KafkaTimeoutError("as kafka-python does while it has something to send")
        self.closed = True

    @property
    def _sender(self) -> Producer:
        return self

    def force_close(self) -> None:
        self.closed = True

    def join(self, seconds: float) -> None:
        assert self.closed


class Scene:
    """A delivery and what is around it."""

    def __init__(self, folder: Path) -> None:
        self.lost, self.now, self.producers = Losses(), 0.0, [Producer()]
        self.spool = Spool(folder, 1 << 30, self.lost)
        self.broken: list[Exception] = []  # what the next producers fail with
        self.wake = threading.Event()
        self.delivery = Delivery(self.spool, self.producer, self._make, self.lost, self.wake, lambda: self.now)

    def _make(self) -> Producer:
        if self.broken:
            raise self.broken.pop()
        self.producers.append(Producer())
        return self.producers[-1]

    @property
    def producer(self) -> Producer:
        return self.producers[-1]

    def later(self) -> None:
        self.now += RETRY_SECONDS
        self.delivery.step()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.spool.close()


def test_what_is_acknowledged_in_any_order_is_done(scene: Scene) -> None:
    for number in range(5):
        put(scene.spool, number)
    scene.delivery.step()
    assert scene.producer.asked == [0, 1, 2, 3, 4]
    for number in (3, 0, 4, 1, 2):
        assert not scene.delivery.done
        scene.producer.sent[number].ok()
        assert scene.wake.is_set()
        scene.delivery.step()
    assert scene.delivery.done
    assert scene.producer.asked == [0, 1, 2, 3, 4], "once each"
    assert scene.delivery.delivered == 5


def test_what_is_under_way_is_bounded_and_the_rest_waits_on_disk(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "MOST_BYTES", 250)
    for number in range(5):
        put(scene.spool, number)  # 100 bytes each
    scene.delivery.step()
    assert scene.producer.asked == [0, 1, 2]
    scene.producer.sent[1].ok()
    scene.delivery.step()
    assert scene.producer.asked == [0, 1, 2, 3]


def test_what_failed_is_tried_again_after_a_pause_and_said_once(scene: Scene) -> None:
    for number in range(3):
        put(scene.spool, number)
    with capture_logs() as said:
        scene.delivery.step()
        for number in (0, 2):
            scene.producer.sent[number].bad(AGAIN)
        scene.producer.sent[1].ok()
        scene.delivery.step()
        put(scene.spool, 3)
        scene.delivery.step()
        assert scene.producer.asked == [0, 1, 2], "nothing is sent while it pauses"
        scene.later()
        assert scene.producer.asked == [0, 1, 2, 0, 2, 3]
        for number in (0, 2, 3):
            scene.producer.sent[number].ok()
        scene.delivery.step()
    assert scene.delivery.done
    assert not scene.lost.pages
    assert [line["log_level"] for line in said] == ["warning", "info"]


def test_a_producer_that_gave_a_record_up_is_replaced(scene: Scene) -> None:
    for number in range(3):
        put(scene.spool, number)
    scene.delivery.step()
    for number in range(3):
        scene.producer.sent[number].bad(TOO_LATE)
    scene.delivery.step()
    scene.later()
    assert sorted(scene.producer.asked) == [0, 1, 2]
    assert len(scene.producers) == 2
    assert scene.producers[0].closed
    assert not scene.lost.pages


def test_a_client_that_raises_costs_a_pause_and_no_record(scene: Scene) -> None:
    for number in range(3):
        put(scene.spool, number)
    scene.producer.refuses = TOO_LATE  # it has no partitions of the topic yet
    scene.delivery.step()
    assert scene.producer.asked == [0], "it may have blocked: one try"
    scene.producer.refuses = None
    scene.later()
    assert scene.producer.asked == [0, 0, 1, 2]
    assert len(scene.producers) == 1


def test_a_message_that_the_broker_finds_too_large_is_given_up_and_the_client_with_it(scene: Scene) -> None:
    for number in range(3):
        put(scene.spool, number)
    scene.delivery.step()
    first = scene.producer
    first.sent[1].bad(MessageSizeTooLargeError())
    scene.delivery.step()
    assert (scene.lost.pages, scene.lost.exposures) == ({TOO_LARGE: 1}, {TOO_LARGE: 1})
    scene.later()
    assert first.closed
    assert scene.producer.asked == [0, 2]
    first.sent[0].bad(AGAIN)  # what the old one says of failures is of no interest
    scene.delivery.step()
    first.sent[2].ok()  # but what it delivered it did deliver
    scene.producer.sent[0].ok()
    scene.delivery.step()
    assert scene.delivery.done
    assert scene.producer.asked == [0, 2]


def test_a_record_is_given_up_when_it_alone_is_refused(scene: Scene) -> None:
    for number in range(TRIES + 1):
        put(scene.spool, number + 1)
    scene.delivery.step()
    for number in range(TRIES):
        assert not scene.lost.pages
        scene.producer.sent[number + 2].ok()
        scene.producer.sent[1].bad(NEVER)
        scene.delivery.step()
        scene.later()
    assert (scene.lost.pages, scene.lost.exposures) == ({REFUSED: 1}, {REFUSED: 1})
    assert scene.delivery.done


def test_while_everything_is_refused_nothing_is_given_up(scene: Scene) -> None:
    for number in range(3):
        put(scene.spool, number)
    scene.delivery.step()
    for _ in range(4 * TRIES):
        for future in scene.producer.sent.values():
            future.bad(NEVER)
        scene.delivery.step()
        scene.later()
    assert not scene.lost.pages
    for future in scene.producer.sent.values():
        future.ok()
    scene.delivery.step()
    assert scene.delivery.done


def test_a_producer_that_cannot_be_made_is_tried_for_again(scene: Scene) -> None:
    put(scene.spool, 0)
    scene.delivery.step()
    scene.broken = [BrokerError("away", "start it"), BrokerError("away", "start it")]
    scene.producer.sent[0].bad(NEVER)
    scene.delivery.step()
    for _ in range(2):
        scene.later()
        assert len(scene.producers) == 1
    scene.later()
    assert scene.producers[1].asked == [0]


def test_a_producer_that_says_nothing_is_replaced(scene: Scene) -> None:
    put(scene.spool, 0)
    scene.delivery.step()
    scene.now += STUCK_SECONDS
    scene.delivery.step()
    assert len(scene.producers) == 1
    scene.now += 1
    scene.delivery.step()
    scene.later()
    assert [p.asked for p in scene.producers] == [[0], [0]]
    assert scene.producers[0].closed


def test_what_is_not_delivered_at_the_end_is_there_for_the_next(scene: Scene, tmp_path: Path) -> None:
    for number in range(3):
        put(scene.spool, number)
    scene.delivery.step()
    scene.producer.sent[0].ok()
    scene.delivery.close(1.0)
    scene.spool.close()
    scene.spool = Spool(tmp_path, 1 << 30, scene.lost)
    entries = [scene.spool.next() for _ in range(3)]
    assert [e and e.exposures for e in entries] == [1, 2, None]
