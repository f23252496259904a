"""What a learner sends to model.deltas: where a snapshot stands on it, whatever is delivered, when, or never."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaTimeoutError
from structlog.testing import capture_logs

from learner.training import publisher
from learner.training.publisher import Publisher
from millrace.basics.errors import BrokerError
from millrace.contracts.settings import Settings
from millrace.versions.decisions import Decided, Learnt, LogPart, Span, decode_decisions
from millrace.versions.modellog import DECISION_BYTES, PIECE_BYTES, Assembler, Decisions
from millrace.versions.versioning import Announcement, Claim
from tests.scenes.planned_producer import Producer


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> tuple[Publisher, Producer]:
    monkeypatch.setattr(publisher, "_DELIVERY_S", 0.01)
    producer = Producer()
    return Publisher(Settings(kafka="nowhere:1"), cast(KafkaProducer, producer), "the log"), producer


def delta(version: int, size: int = 3) -> tuple[Announcement, bytes]:
    body = bytes(size)
    note = Announcement(
        kind="delta", epoch=1, version=version, claimant="a", parent="", hash="", schema_id="s", spec={}, event_ms=0,
        digest=hashlib.sha256(body).hexdigest(), size=size, trained=0, published_ms=0,
    )  # fmt: skip
    return note, body


def test_a_snapshot_follows_the_delta_of_its_version_however_late_it_is_written(
    made: tuple[Publisher, Producer],
) -> None:
    out, producer = made
    out.delta(*delta(1))
    where = out.behind_newest()
    out.delta(*delta(2))
    producer.deliver(0, 10)
    producer.deliver(1, 11)
    assert where() == {"follows": 11, "log": "the log"}
    assert out.behind_newest()() == {"follows": 12, "log": "the log"}


def test_a_snapshot_follows_the_last_chunk(made: tuple[Publisher, Producer]) -> None:
    out, producer = made
    out.delta(*delta(1, 2 * PIECE_BYTES))
    assert len(producer.sent) == 2
    producer.deliver(0, 10)
    producer.deliver(1, 15)
    assert out.behind_newest()()["follows"] == 16


def test_behind_a_delta_that_was_lost_what_was_delivered_before_it_will_do(made: tuple[Publisher, Producer]) -> None:
    out, producer = made
    out.delta(*delta(1))
    producer.deliver(0, 10)
    out.delta(*delta(2))
    with capture_logs() as lines:
        producer.fail(1)
        assert out.behind_newest()()["follows"] == 11
    assert [line["event"] for line in lines] == [
        "delta lost; the next snapshot mends it",
        "a snapshot follows a delta that was not delivered",
    ]
    assert out.heard() == (True, 2)
    assert out.heard() == (False, 2)


# -- decisions ---------------------------------------------------------------------------------------------------


def part_of(count: int, spans: int = 1) -> LogPart:
    return LogPart("one", [Decided(n, n, Learnt((Span(0, n, 0, 9),) * spans, 9)) for n in range(1, count + 1)])


def test_decisions_go_in_messages_of_their_own_that_have_a_bound(made: tuple[Publisher, Producer]) -> None:
    out, producer = made
    part = part_of(200, spans=DECISION_BYTES // 500)
    out.decisions(3, "a", part)
    assert len(producer.values) > 1
    assert max(map(len, producer.values)) < 2 * DECISION_BYTES
    found = [entry for value in producer.values for entry in Assembler().take(value)]
    assert all(isinstance(entry, Decisions) and entry.note.claimant == "a" and entry.note.epoch == 3 for entry in found)
    parts = [decode_decisions(entry.note.decisions) for entry in found if isinstance(entry, Decisions)]
    assert {each.log for each in parts} == {"one"}
    assert [decided for each in parts for decided in each.decided] == part.decided, "in order, each one time"


def test_what_was_sent_is_not_there_before_it_is_delivered(made: tuple[Publisher, Producer]) -> None:
    out, producer = made
    counts = [(out.sent, *out.heard())]
    out.decisions(1, "a", part_of(1))
    out.delta(*delta(1))
    counts.append((out.sent, *out.heard()))
    for number in (1, 0):  # the decisions last
        producer.deliver(number, 10 + number)
        counts.append((out.sent, *out.heard()))
    assert counts == [(0, False, 0), (2, False, 0), (2, False, 0), (2, False, 2)]
    assert out.behind_newest()()["follows"] == 12


def test_who_waits_for_all_hears_the_newest_offset(made: tuple[Publisher, Producer]) -> None:
    out, producer = made
    producer.delivers = True
    out.delta(*delta(1))
    out.decisions(1, "a", part_of(1))
    assert out.settled() == 11
    assert out.settled() == 11, "nothing was sent since"
    assert (out.sent, *out.heard()) == (2, False, 2)


def test_a_broker_that_is_away_makes_nothing_durable(made: tuple[Publisher, Producer]) -> None:
    out, producer = made
    out.decisions(1, "a", part_of(1))
    with pytest.raises(BrokerError, match=r"not durable \(KafkaTimeoutError\): a restart would not know it"):
        out.settled()
    producer.delivers = True
    assert out.settled() == 10, "the message was only late"


def test_a_lost_message_is_not_durable_until_somebody_has_heard_of_it(made: tuple[Publisher, Producer]) -> None:
    out, producer = made
    producer.delivers = True
    out.decisions(1, "a", part_of(1))
    with capture_logs() as lines:
        producer.fail(0)
    assert [line["event"] for line in lines] == ["decisions lost; they are sent again"]
    producer.delivered = 1
    with pytest.raises(BrokerError, match=r"not durable \(a message was lost\)"):
        out.settled()
    assert out.heard() == (True, 1)
    out.decisions(1, "a", part_of(1))
    assert out.settled() == 11


# -- the broker --------------------------------------------------------------------------------------------------


def test_a_claim_that_is_not_delivered_is_one_line(made: tuple[Publisher, Producer]) -> None:
    out, _ = made
    with pytest.raises(BrokerError, match="epoch 4 cannot be claimed"):
        out.claim(Claim(4, "a"))


def test_a_broker_that_deletes_no_records_is_reported_once(
    made: tuple[Publisher, Producer], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = made
    asked = []

    def refuse(*_: Any, **more: Any) -> None:
        asked.append(more)
        raise KafkaTimeoutError("unsupported")

    monkeypatch.setattr(KafkaAdminClient, "__init__", refuse)
    with capture_logs() as lines:
        out.forget_before(0)
        out.forget_before(5)
        out.forget_before(6)
    assert len(asked) == 1
    assert [line["event"] for line in lines] == ["the broker deletes no records; its retention will"]
