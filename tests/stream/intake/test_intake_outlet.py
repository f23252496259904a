"""The way to Kafka with a producer that fails as told: nothing is lost, the order stays, another producer is made."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError, OutOfOrderSequenceNumber

from stream.intake import intake_producer as module
from stream.intake.intake_queue import Parcel
from stream.intake.intake_wire import OutMessage
from tests.scenes import faulty_producer
from tests.scenes.faulty_producer import Broker, Faulty, Producer
from tests.scenes.waiting import PATIENCE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LINGER_SECONDS", "FIRST_PAUSE_SECONDS", "LONGEST_PAUSE_SECONDS"):
        monkeypatch.setattr(module, name, 0.0)
    monkeypatch.setattr(module, "ensure_topics", lambda settings: None)


def story(outlet: Faulty, values: list[bytes]) -> list[str]:
    """Sends each value in a request of its own, waits until all have a verdict, and returns these."""

    async def run() -> list[str]:
        await outlet.open(1, 1)
        task = asyncio.create_task(outlet.run())
        parcels = []
        for value in values:
            parcel = Parcel(lambda: None)
            outlet.wake(outlet.keeper.admit(parcel, [OutMessage("events", b"7", value, value[:9].decode(), 1)]))
            parcels.append(parcel)
        async with asyncio.timeout(PATIENCE):
            while any(parcel.left for parcel in parcels):
                await asyncio.sleep(0)
            assert await outlet.finished(1.0) == 0
        task.cancel()
        await asyncio.wait([task])
        await outlet.close()
        assert all(producer.stopped for producer in outlet.broker.producers)
        return [verdict.status for parcel in parcels for verdict in parcel.verdicts if verdict is not None]

    return asyncio.run(run())


VALUES = [b"%03d" % n for n in range(40)]


FAILURES: dict[str, tuple[list[KafkaError | ValueError], int]] = {
    "none": ([], 0),
    "errors one after another": ([OutOfOrderSequenceNumber(), KafkaConnectionError(), ValueError()], 0),
    "then the broker lets nobody in": ([OutOfOrderSequenceNumber()], 5),
}
"""What sends fail with (the ValueError is somebody's bug), and how many producers the broker refuses after that."""


@pytest.mark.parametrize("name", FAILURES)
def test_all_is_kept_in_order_and_after_an_error_another_producer_goes_on_where_the_first_was(name: str) -> None:
    errors, refused = [*FAILURES[name][0]], FAILURES[name][1]

    def fault(values: list[bytes]) -> Any:
        if not errors:
            return None
        broker.refuses = refused
        return errors.pop()

    broker = Broker(fault)
    assert story(Faulty(broker), VALUES) == ["kept"] * 40
    assert broker.log == VALUES
    assert len(broker.producers) == 1 + len(FAILURES[name][0])


def test_what_the_broker_had_taken_before_it_failed_is_sent_again_and_answered_once() -> None:
    lost_answers = [KafkaConnectionError()]

    def fault(values: list[bytes]) -> KafkaError | None:
        if not lost_answers:
            return None
        broker.log += values
        return lost_answers.pop()

    broker = Broker(fault)
    assert story(Faulty(broker), VALUES) == ["kept"] * 40
    assert sorted(set(broker.log)) == VALUES


def test_a_message_that_is_too_large_for_the_broker_is_refused_alone() -> None:
    huge = b"huge" + b"x" * 600
    broker = Broker(lambda v: MessageSizeTooLargeError() if sum(map(len, v)) > 500 else None)
    values = [*VALUES[:20], huge, *VALUES[20:]]
    assert story(Faulty(broker), values) == ["kept"] * 20 + ["refused"] + ["kept"] * 20
    assert broker.log == VALUES


def test_a_producer_that_stands_still_while_the_broker_answers_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_SECONDS", "AWAY_SECONDS", "STUCK_SECONDS"):
        monkeypatch.setattr(module, name, {"LOOK_SECONDS": 0.001, "AWAY_SECONDS": 0.01, "STUCK_SECONDS": 0.03}[name])

    class Still(Producer):
        async def _sent(self, values: list[bytes]) -> None:
            if len(self.broker.producers) == 1:
                await asyncio.Event().wait()
            await super()._sent(values)

    broker = Broker()
    monkeypatch.setattr(faulty_producer, "Producer", Still)
    outlet = Faulty(broker)
    away: list[str] = []
    monkeypatch.setattr(outlet, "_is_away", away.append)
    assert story(outlet, VALUES) == ["kept"] * 40
    assert broker.log == VALUES
    assert "it acknowledges nothing" in away
