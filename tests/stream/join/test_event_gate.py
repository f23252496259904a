"""Events wait until the page logs before them were taken, whatever the paces of the two topics."""

from __future__ import annotations

from millrace.contracts.topics import EVENTS, PAGE_LOGS
from stream.join.join import InputMessage
from stream.join.topic_order import SETTLED_SECONDS, Arrival, ReadTo, TopicOrder, drained, silent_until


def event(offset: int, stamp_s: float, came_s: float) -> Arrival:
    return Arrival(0, stamp_s, came_s, InputMessage(EVENTS, offset, b""))


def page_log(offset: int, stamp_s: float) -> Arrival:
    return Arrival(0, stamp_s, 0.0, InputMessage(PAGE_LOGS, offset, b""))


def offsets(messages: list[InputMessage]) -> list[int]:
    return [m.offset for m in messages]


def test_an_event_follows_a_page_log_of_a_later_stamp() -> None:
    gate = TopicOrder()
    for offset in range(3):
        gate.hold(event(offset, 10.0 + offset, 100.0))
    assert gate.release(None, 0, 0.0) == []
    gate.served(page_log(0, 11.5))
    assert offsets(gate.release(None, 1, 0.0)) == [0, 1]
    assert len(gate) == 1


def test_an_event_follows_all_page_logs_that_were_there_when_it_came() -> None:
    gate = TopicOrder()
    gate.hold(event(0, 10.0, 100.0))
    gate.hold(event(1, 10.0, 100.2))
    assert gate.release(ReadTo(7, 8, 100.1, 7), 7, 0.0) == []  # one is unread
    assert offsets(gate.release(ReadTo(8, 8, 100.1, 8), 8, 0.0)) == [0]  # the second came after the broker was asked
    assert offsets(gate.release(ReadTo(8, 8, 100.3, 8), 8, 0.0)) == [1]


def test_page_logs_between_the_consumer_and_us_hold_events_back_however_long_they_take() -> None:
    gate = TopicOrder()
    gate.hold(event(0, 10.0, 100.0))
    for now in (0.0, 2 * SETTLED_SECONDS, 100 * SETTLED_SECONDS):
        assert gate.release(ReadTo(8, 8, 101.0, 8), 0, now) == []
        assert gate.release(ReadTo(8, 8, 101.0, 8), 7, now) == []
    assert offsets(gate.release(ReadTo(8, 8, 101.0, 8), 8, 100 * SETTLED_SECONDS)) == [0]


def test_a_position_that_has_just_moved_is_not_believed_before_it_is_known_what_was_handed_over() -> None:
    gate = TopicOrder()
    gate.hold(event(0, 10.0, 100.0))
    long_after = 50 * SETTLED_SECONDS  # after the partition was assigned
    assert gate.release(ReadTo(0, 8, 100.5, 0), 0, long_after) == []
    assert gate.release(ReadTo(8, 8, 101.0, 0), 0, long_after) == []  # fetched this instant, said in the next
    assert gate.release(ReadTo(8, 8, 101.0, 8), 0, long_after) == []
    assert offsets(gate.release(ReadTo(8, 8, 101.0, 8), 8, long_after)) == [0]


def test_an_end_without_a_message_holds_events_back_for_a_moment_only() -> None:
    gate = TopicOrder()
    gate.hold(event(0, 10.0, 100.0))
    read = ReadTo(9, 9, 101.0, 8)  # offset 8 is a transaction's marker
    assert gate.release(read, 8, 5.0) == []
    assert gate.release(read, 8, 5.0 + SETTLED_SECONDS) == []
    assert offsets(gate.release(read, 8, 5.1 + SETTLED_SECONDS)) == [0]


def test_what_an_earlier_assignment_handed_over_does_not_matter_after_a_seek_back() -> None:
    gate = TopicOrder()
    gate.hold(event(0, 10.0, 100.0))
    assert gate.release(ReadTo(5, 5, 101.0, 9), 4, 0.0) == []
    assert offsets(gate.release(ReadTo(5, 5, 101.0, 9), 5, 0.0)) == [0]


def test_drained() -> None:
    assert not drained(None, 0)
    assert not drained(ReadTo(4, 5, 0.0, 4), 4)
    assert not drained(ReadTo(5, 5, 0.0, 5), 4)
    assert drained(ReadTo(5, 5, 0.0, 5), 5)
    assert drained(ReadTo(5, 5, 0.0, 4), 4)


def test_silence_is_what_the_broker_says_not_that_we_did_not_look() -> None:
    def read(asked_s: float) -> ReadTo:
        return ReadTo(5, 5, asked_s, 5)

    assert silent_until([(read(107.0), 5), (read(109.0), 5)], 100.0) == 107.0
    # We stood still from 100 to 107: the broker was last asked before that.
    assert silent_until([(read(99.9), 5), (read(109.0), 5)], 100.0) == 100.0
    # Something is unread, or read and not taken yet, or nobody knows.
    assert silent_until([(read(107.0), 5), (ReadTo(5, 6, 107.0, 5), 5)], 100.0) == 100.0
    assert silent_until([(read(107.0), 5), (read(107.0), 4)], 100.0) == 100.0
    assert silent_until([(read(107.0), 5), (None, 0)], 100.0) == 100.0
