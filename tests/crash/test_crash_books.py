"""The books find what is planted: rows that were lost, learnt twice, or never read."""

from __future__ import annotations

from typing import Any

import pytest

from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, POSITIVE
from millrace.versions.decisions import Decided, Learnt, Refused, Span, WentBack
from tests.crash.books import Balance, Told, account_archive, account_updates

ROWS = {
    0: [("a", 0, NEGATIVE), ("a", 1, POSITIVE), ("a", 1, FOLLOW_UP)],
    1: [("b", 0, NEGATIVE)],
    2: [("c", 0, NEGATIVE), ("b", 0, CORRECTION)],
}
FIRST, SECOND, THIRD = Span(0, 0, 2), Span(1, 0, 1), Span(2, 0, 2)


def account(*what: Any, rows: dict[int, Any] = ROWS, read: int = 3) -> Balance:
    found = Balance()
    account_updates(found, [Decided(n, 0, each, read) for n, each in enumerate(what, 1)], rows)
    return found


def test_each_labelled_row_in_one_micro_batch_is_a_balance() -> None:
    found = account(Learnt((FIRST, SECOND)), Learnt((THIRD,)))
    assert (found.lost, found.doubled, found.wrong, found.updates) == ([], [], [], 5)


def test_rows_in_quarantine_are_not_lost_nor_are_those_that_went_there_when_the_model_went_back() -> None:
    refused = Refused((SECOND,), "labels", 2.0, 1.0, back=1)
    found = account(Learnt((FIRST,)), Learnt((THIRD,)), refused, WentBack(1))
    assert (found.lost, found.doubled, found.updates) == ([], [], 2)
    released = account(Learnt((FIRST,)), Learnt((THIRD,)), refused, WentBack(1), Learnt((SECOND, THIRD), of="1"))
    assert (released.lost, released.doubled, released.updates) == ([], [], 5)


@pytest.mark.parametrize("left_out", [FIRST, SECOND, THIRD])
def test_a_row_in_no_micro_batch_is_lost(left_out: Span) -> None:
    found = account(Learnt(tuple(span for span in (FIRST, SECOND, THIRD) if span != left_out)))
    assert len(found.lost) == left_out.stop - left_out.first
    assert not found.doubled


def test_a_row_in_two_micro_batches_is_doubled_wherever_it_lies() -> None:
    found = account(Learnt((FIRST, SECOND, THIRD)), Learnt((SECOND,)))
    assert found.doubled == ["('b', 0, 0) is in 2 micro-batches"]
    again = account(Learnt((FIRST, SECOND, THIRD)), rows=ROWS | {3: ROWS[1]}, read=4)
    assert (again.lost, again.doubled) == ([], []), "a message that the stream wrote again is read, and not learnt"
    twice = account(
        Learnt((FIRST, SECOND, THIRD, Span(3, 0, 1))),
        rows=ROWS | {3: ROWS[1]},
        read=4,
    )
    assert len(twice.doubled) == 1


def test_a_message_that_was_not_read_is_lost() -> None:
    found = account(Learnt((FIRST,)), read=1)
    assert found.lost == ["samples at 1 were never read", "samples at 2 were never read"]


def test_what_the_archive_gives_is_what_was_sent() -> None:
    def told(*kinds: int, ts_ms: int = 7, policy: int = 2) -> Told:
        return Told(ts_ms, frozenset([policy]), frozenset(kinds))

    sent = {("a", 0): told(NEGATIVE), ("a", 1): told(NEGATIVE, CORRECTION), ("b", 0): told(POSITIVE)}
    found = Balance()
    account_archive(found, sent, sent | {("a", 1): told(POSITIVE)})
    assert (found.wrong, found.delayed) == ([], 1), "the watermark decides when a label is given"
    for other in (told(NEGATIVE), told(POSITIVE, ts_ms=8), told(POSITIVE, policy=1)):
        account_archive(wrong := Balance(), sent, sent | {("b", 0): other})
        assert len(wrong.wrong) == 1
    account_archive(lacking := Balance(), sent, {of: sent[of] for of in list(sent)[:2]} | {("c", 0): told(NEGATIVE)})
    assert lacking.wrong == ["('b', 0) is not in the archive", "('c', 0) is in the archive alone"]
