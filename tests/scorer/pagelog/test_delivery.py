"""From the spool to Kafka, with a producer that does what it is told; and from the ring on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from kafka.errors import InvalidTopicError, KafkaTimeoutError, MessageSizeTooLargeError, NotLeaderForPartitionError
from structlog.testing import capture_logs

from millrace.basics.errors import BrokerError, SettingError
from millrace.contracts.events import key_of
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.pagepack import Rates
from millrace.contracts.settings import Settings
from scorer.pagelog import delivery
from scorer.pagelog.delivery import REFUSED, RETRY_SECONDS, STUCK_SECONDS, TOO_LARGE, TRIES, Delivery
from scorer.pagelog.ring import RingReader, RingWriter
from scorer.pagelog.shipper import Drain, open_spool, rescue
from scorer.pagelog.spool import FULL, Spool
from tests.scenes.page_logs import SCHEMA, Losses, N, made, put

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


# -- Logs of pages from the ring to the topic, whatever ends meanwhile -------------------------------------------------


T = TypeVar("T")


class Line:
    """A ring, a spool, and the drain between them."""

    def __init__(self, folder: Path, ring: int = 1 << 20, most: int = 1 << 30, message: int = 1_000_000) -> None:
        self.lost = Losses()
        self.memory = np.zeros(ring, np.uint8)
        self.writer, self.reader = RingWriter(self.memory), RingReader(self.memory)
        self.spool = Spool(folder, most, self.lost)
        self.drain = Drain(self.spool, Rates.of(SCHEMA), message, self.lost, lambda: 0)

    def keys_and_values(self) -> list[tuple[bytes | None, bytes]]:
        found = []
        while (entry := self.spool.next()) is not None:
            found.append((entry.key, entry.value))
        return found


def test_pages_come_packed_and_in_order_under_their_users_key(tmp_path: Path) -> None:
    line = Line(tmp_path)
    pages = [made(i, i) for i in range(5)]
    for p in pages:
        assert line.writer.put(p)
    assert [line.drain.step(line.reader), line.drain.step(line.reader)] == [5, 0]
    line.memory[512:] = 255  # whoever has drained looks at the ring no more
    found = line.keys_and_values()
    assert [decode_page_log(value) for _, value in found] == pages
    assert [key for key, _ in found] == [key_of(p.user_id) for p in pages]
    assert not line.lost.pages


def test_each_lost_page_is_counted_once_with_its_exposures(tmp_path: Path) -> None:
    small = len(made(0, 1).num) * 3
    line = Line(tmp_path, ring=64 * 1024, message=small)
    with capture_logs() as said:
        for n in (1, 2 * N, 1, 2 * N, 1):
            assert line.writer.put(made(n, n))
            line.drain.step(line.reader)
        while line.writer.put(made(1, 1)):
            pass
        line.writer.put(made(3, 3))
        while line.drain.step(line.reader):
            pass
    assert line.lost.pages == {"too-large": 2, "ring-full": 2}
    assert line.lost.exposures == {"too-large": 4 * N, "ring-full": 4}
    assert [entry["reason"] for entry in said] == ["too-large", "ring-full"], "a line for the first of each"
    assert "ask for fewer items" in said[0]["detail"]


def test_beyond_the_spools_bound_every_exposure_is_counted(tmp_path: Path) -> None:
    line = Line(tmp_path, most=60_000)
    count = 60
    for number in range(count):
        assert line.writer.put(made(number, number % 7))
        line.drain.step(line.reader)
    found = [decode_page_log(value) for _, value in line.keys_and_values()]
    taken = len(found)
    assert 0 < taken < count
    assert line.lost.pages == {FULL: count - taken}
    assert line.lost.exposures[FULL] + sum(len(i.items) for i in found) == sum(i % 7 for i in range(count))


def test_a_page_that_cannot_be_packed_and_a_damaged_ring_cost_no_other_page(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.writer.put(msgspec.structs.replace(made(1), user_id=None))
    line.drain.step(line.reader)
    line.writer.put(made(2))
    line.memory[512:] = 255
    line.drain.step(line.reader)
    line.writer.put(made(3))
    line.drain.step(line.reader)
    assert [decode_page_log(value).request_id for _, value in line.keys_and_values()] == ["r3"]
    assert sum(line.lost.pages.values()) == 2


def test_where_the_spool_is(tmp_path: Path) -> None:
    spool = open_spool(Settings(data=str(tmp_path)), Losses())
    assert spool.folder.parent == tmp_path / "spool"
    spool.close()
    spool = open_spool(Settings(), Losses())
    folder = spool.folder.parent
    assert folder.exists()
    spool.close()
    del spool
    assert not folder.exists(), "what has no folder of its own leaves nothing behind"
    (tmp_path / "spool" / "0" / "lock").unlink()
    (tmp_path / "spool" / "0" / "lock").mkdir()
    with pytest.raises(SettingError, match="spool"):
        open_spool(Settings(data=str(tmp_path)), Losses())


def test_what_a_dead_feeder_had_not_drained_its_workers_write_down(tmp_path: Path) -> None:
    """Each of them finds a folder, also while the next scorer runs already."""
    lost, settings = Losses(), Settings(data=str(tmp_path))
    with contextlib.closing(open_spool(settings, lost)) as next_one:
        for first in (0, 10):
            memory = np.zeros(1 << 20, np.uint8)
            writer, reader = RingWriter(memory), RingReader(memory)
            for number in range(first, first + 4):
                writer.put(made(number))
            reader.take(1)
            reader.give_back()  # the feeder came as far as this
            rescue(settings, SCHEMA, RingReader(memory), lost)
            next_one.adopt()
        found = []
        while (entry := next_one.next()) is not None:
            found.append(decode_page_log(entry.value).request_id)
    assert found == [f"r{i}" for i in (1, 2, 3, 11, 12, 13)]
    assert not lost.pages
