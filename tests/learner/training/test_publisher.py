"""What a learner sends to model.deltas: where a snapshot stands on it, whatever is delivered, when, or
never. Decisions and their order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaTimeoutError
from structlog.testing import capture_logs

from learner.training import publisher
from learner.training.decisionlog import DecisionLog, places_of, rows_in, spans_of
from learner.training.publisher import Publisher
from millrace.basics.errors import BrokerError, SnapshotError
from millrace.contracts.settings import Settings
from millrace.versions.decisions import (
    Began,
    Decided,
    HeldBack,
    Learnt,
    LogPart,
    Passed,
    Rebased,
    Refused,
    Released,
    Span,
    WentBack,
    decode_decisions,
    encode_decisions,
    in_force,
)
from millrace.versions.modellog import DECISION_BYTES, PIECE_BYTES, Assembler, Decisions
from millrace.versions.versioning import Announcement, Claim
from tests.scenes.exploring import examples
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
    return LogPart("one", [Decided(n, n, Learnt((Span(n, 0, 9),) * spans, 9)) for n in range(1, count + 1)])


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


# -- The log of decisions ----------------------------------------------------------------------------------------------
# Decisions have numbers that never change, each is sent until it is durable, and what led on is told from what did not.


def learnt(n: int) -> Learnt:
    return Learnt((Span(n, 0, 10),), 10)


def numbers(line: list[Decided]) -> list[int]:
    return [decided.n for decided in line]


# -- the line ----------------------------------------------------------------------------------------------------


def test_numbers_stay_when_older_ones_are_let_go() -> None:
    log = DecisionLog()
    for n in range(1, 3001):
        assert log.append(learnt(n), n) == n
    log.forget(1500)
    assert numbers(log.line(1600, 1602)) == [1601, 1602]
    assert numbers(log.line(-1)) == list(range(1501, 3001))
    assert numbers(log.cut(2990)) == list(range(2991, 3001))
    assert log.append(learnt(0), 0) == 3001, "no number is given twice"
    assert numbers(log.line(2988)) == [2989, 2990, 3001]


def test_a_decision_says_how_far_samples_had_been_read() -> None:
    log = DecisionLog()
    for read in (7, 7, 9):
        log.read = read
        log.append(Passed(), 9)
    assert [(d.n, d.read) for d in log.unsent] == [(1, 7), (2, 7), (3, 9)]


def test_what_led_on_from_a_snapshot_has_the_line_and_what_people_ask_for() -> None:
    log = DecisionLog()
    log.log = "one"
    log.append(learnt(1), 0)
    log.append(Rebased("time"), 0)
    log.append(learnt(2), 0)
    assert numbers(log.line(1)) == [3], "a rebase changes nothing of the model itself"
    assert numbers(log.cut(2)) == [3]
    assert log.kept == LogPart("one", [Decided(1, 0, learnt(1)), Decided(2, 0, Rebased("time"))])


def test_a_log_goes_on_behind_a_snapshot() -> None:
    log = DecisionLog()
    log.append(learnt(1), 0)
    log.go_on("two", 41, 7)
    assert (log.log, log.newest, log.line(-1), log.unsent) == ("two", 41, [], [])
    log.at(50)  # as where others were made, and are void
    assert log.append(Began(41), 7) == 50
    assert log.unsent == [Decided(50, 7, Began(41), 7)]


# -- sending -----------------------------------------------------------------------------------------------------


def test_what_was_sent_waits_until_it_is_durable() -> None:
    log = DecisionLog()
    log.log = "one"
    log.append(learnt(1), 7)
    assert log.take_unsent() == LogPart("one", [Decided(1, 7, learnt(1))])
    assert (log.take_unsent().decided, log.waiting) == ([], 1)
    log.append(learnt(2), 8)
    assert (numbers(log.unsent), log.waiting) == ([2], 2)
    log.durable(log.newest_sent)
    assert (numbers(log.unsent), log.waiting) == ([2], 1), "that one was never sent"


def test_what_a_lost_message_may_have_had_is_sent_again_in_order() -> None:
    log = DecisionLog()
    for n in (1, 2):
        log.append(learnt(n), 0)
        log.take_unsent()
    log.append(learnt(3), 0)
    log.send_again()
    assert numbers(log.unsent) == [1, 2, 3]
    log.send_again()
    assert numbers(log.take_unsent().decided) == [1, 2, 3], "none twice"
    log.durable(log.newest_sent)
    log.send_again()
    assert (log.unsent, log.waiting) == ([], 0)


def test_what_is_done_once_more_is_not_sent_once_more() -> None:
    log = DecisionLog()
    log.again = True
    assert log.append(learnt(1), 0) == 1
    assert (log.unsent, numbers(log.line(0))) == ([], [1])
    log.again = False
    log.append(Began(1), 0)
    assert numbers(log.unsent) == [2]


def test_decisions_travel_as_they_are() -> None:
    part = LogPart(
        "one",
        [
            *(Decided(1, 7, learnt(3)), Decided(2, 8, Rebased("person")), Decided(3, 8, Began(1))),
            *(Decided(4, 9, Refused((Span(3, 1, 2),), "auc", 0.5, 0.6, "", 1)), Decided(5, 9, WentBack(1))),
            Decided(6, 9, Released(("00000004-auc",), "person")),
        ],
    )
    raw = encode_decisions(*part)
    assert decode_decisions(raw) == part
    with pytest.raises(SnapshotError, match="a log of decisions cannot be read"):
        decode_decisions(raw[:-1])


# -- what led on -------------------------------------------------------------------------------------------------


def logged(*parts: tuple[int, int | None]) -> list[Decided]:
    """Decisions of these numbers; with a second number it is Began behind that one."""
    return [Decided(n, 0, Passed() if after is None else Began(after)) for n, after in parts]


def in_order(decided: list[Decided], after: int) -> tuple[list[int], list[int]]:
    found, behind_gap = in_force(decided, after)
    return numbers(found), numbers(behind_gap)


def plain(*some: int) -> list[Decided]:
    return logged(*((n, None) for n in some))


@pytest.mark.parametrize(
    ("decided", "after", "found", "behind_gap"),
    [
        (plain(6, 4, 5, 4, 3, 6), 3, [4, 5, 6], []),  # order and repeats make no difference
        (plain(1, 2, 3), 3, [], []),  # the snapshot has them
        ([], 3, [], []),
        (plain(4, 5, 7, 8), 3, [4, 5], [7, 8]),  # behind a gap nothing is in force
        (plain(5, 6), 3, [], [5, 6]),
        # A life makes void what another decided behind its beginning.
        ([*plain(4, 5, 6), *logged((7, 5)), *plain(8)], 3, [4, 5, 7, 8], []),
        ([*logged((7, 5)), *plain(8), *plain(4, 5, 6)], 3, [4, 5, 7, 8], []),
        ([*plain(4, 5, 6), *logged((7, 5)), *plain(8), *logged((9, 4)), *plain(10)], 3, [4, 9, 10], []),
        ([*plain(4), *logged((5, 3)), *plain(6)], 3, [5, 6], []),  # it began at the snapshot
        # A message with 6 was lost: who restarted knew it no more than we do, and went on behind 5.
        ([*plain(4, 5, 7), *logged((8, 5)), *plain(9)], 3, [4, 5, 8, 9], []),
        # A message with 6 was lost for us alone: who restarted had it, and what followed is not ours to do.
        ([*plain(4, 5, 7), *logged((8, 7)), *plain(9)], 3, [4, 5], [7, 8, 9]),
        ([*plain(4, 5), *logged((8, 6)), *plain(9)], 3, [4, 5], [8, 9]),
        ([*plain(7), *logged((8, 2)), *plain(9)], 6, [], [8, 9]),  # it began before the snapshot, on another line
    ],
)
def test_what_is_in_force(decided: list[Decided], after: int, found: list[int], behind_gap: list[int]) -> None:
    assert in_order(decided, after) == (found, behind_gap)


@dataclass
class Lives:
    """Decisions of one life after another, as a naive reader knows them: a list that each Began cuts."""

    newest: int = 0
    line: list[int] = field(default_factory=list)
    all: list[Decided] = field(default_factory=list)

    def decide(self) -> None:
        self.newest += 1
        self.line.append(self.newest)
        self.all.append(Decided(self.newest, 0, HeldBack("x")))

    def begin(self, at: int) -> None:
        """The next life knows so many of the line."""
        self.line = self.line[:at]
        self.newest += 1
        self.all.append(Decided(self.newest, 0, Began(self.line[-1] if self.line else 0)))
        self.line.append(self.newest)


@given(
    steps=st.lists(st.one_of(st.none(), st.integers(0, 12)), max_size=40),
    order=st.randoms(use_true_random=False),
    base=st.integers(0, 40),
)
@examples(300)
def test_lives_that_knew_all_of_the_line_or_less(steps: list[int | None], order: object, base: int) -> None:
    lives = Lives()
    for step in steps:
        if step is None:
            lives.decide()
        else:
            lives.begin(min(step, len(lives.line)))
    shuffled = [*lives.all, *lives.all[::3]]
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    line = lives.line[min(base, len(lives.line)) :]
    after = lives.line[min(base, len(lives.line)) - 1] if base and lives.line else 0
    assert in_order(shuffled, after) == (line, [])


# -- places ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_spans_are_places_in_their_order(rows: list[tuple[int, int]]) -> None:
    places = np.array(rows, np.int64).reshape(-1, 2)
    spans = spans_of(places)
    assert np.array_equal(places_of(spans), places)
    assert rows_in(spans) == len(rows)
    assert not any(a.offset == b.offset and a.stop == b.first for a, b in pairwise(spans)), "no two of them are one"
