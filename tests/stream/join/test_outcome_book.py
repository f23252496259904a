"""Purchases that come after hours and weeks: each labels its click one time, or is a named dead letter."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from millrace.basics.store import Store
from millrace.contracts.events import decode_event
from millrace.contracts.schema import parse_schema
from stream.partition.journal import Journal, from_bytes, to_bytes
from stream.partition.partition import Partition
from stream.worker.outcome_files import OutcomeFiles
from tests.scenes.late_outcomes import LateStream
from tests.scenes.stream_world import DAY, HOUR, MINUTE, POLICY, T0, TEXT

LONG = 30 * DAY + 3 * HOUR  # an outcome is told within an hour and the lateness


@pytest.fixture
def stream(tmp_path: Path) -> LateStream:
    made = LateStream(str(tmp_path))
    made.page("a", T0)
    made.act("click", "a", T0 + MINUTE)
    return made


def test_a_purchase_of_two_weeks_later_labels_its_click(stream: LateStream) -> None:
    stream.act("click", "a", T0 + 2 * MINUTE, 1, 2)
    stream.until(T0 + 14 * DAY)
    stream.act("purchase", "a", T0 + 14 * DAY + MINUTE)
    assert stream.of("soon") == {("a", 0): 0, ("a", 1): 0}, "told after a day, without the purchase"
    stream.until(T0 + 29 * DAY)
    assert not stream.of("purchase")
    stream.until(T0 + LONG)
    assert stream.of("purchase") == {("a", 0): 1, ("a", 1): 0}
    assert not stream.dead


def test_what_is_told_has_the_features_of_the_page(stream: LateStream) -> None:
    samples = stream.did(stream.partition.advance(T0 + 45 * MINUTE)).samples
    assert samples is not None
    first = {id: samples.cat[r].tobytes() + samples.num[r].tobytes() for r, id in enumerate(samples.ids())}
    stream.act("click", "a", T0 + 2 * MINUTE, 2, 3)
    stream.until(T0 + LONG)
    assert stream.rows["a", 2] == first["a", 2]


@pytest.mark.parametrize("kind", ["named", "order"])
def test_a_purchase_within_a_day_tells_both(stream: LateStream, kind: str) -> None:
    stream.until(T0 + 10 * HOUR)
    if kind == "named":
        stream.act("purchase", "a", T0 + 9 * HOUR)
    else:
        stream.order(T0 + 9 * HOUR)
    stream.until(T0 + LONG)
    assert stream.of("soon") == stream.of("purchase") == {("a", 0): 1}


def test_an_order_belongs_to_the_last_click_before_it(stream: LateStream) -> None:
    stream.page("b", T0 + 2 * DAY)
    stream.act("click", "b", T0 + 2 * DAY + MINUTE)
    stream.page("c", T0 + 9 * DAY)
    stream.act("click", "c", T0 + 9 * DAY + MINUTE)
    stream.order(T0 + 5 * DAY)
    stream.order(T0 + 9 * DAY + 2 * MINUTE, item=2)  # never clicked
    stream.until(T0 + LONG + 9 * DAY)
    assert stream.of("purchase") == {("a", 0): 0, ("b", 0): 1, ("c", 0): 0}
    assert stream.reasons == {"no-click": 1}


def test_a_purchase_that_comes_before_its_click_waits_for_it(stream: LateStream) -> None:
    stream.order(T0 + 10 * MINUTE, item=2)
    stream.act("purchase", "a", T0 + 11 * MINUTE, 2, 3)
    stream.act("click", "a", T0 + 9 * MINUTE, 1, 2)
    stream.act("click", "a", T0 + 10 * MINUTE, 2, 3)
    stream.until(T0 + LONG)
    assert stream.of("purchase") == {("a", 0): 0, ("a", 1): 1, ("a", 2): 1}
    assert not stream.dead


def test_a_purchase_without_a_click_is_a_dead_letter(stream: LateStream) -> None:
    stream.act("purchase", "a", T0 + 5 * MINUTE, 1, 2)
    stream.until(T0 + LONG)
    assert stream.of("purchase") == {("a", 0): 0}
    assert stream.reasons == {"no-click": 1}


@pytest.mark.parametrize(
    ("request_id", "item", "user", "at"),
    [("a", 1, 7, 30 * DAY + HOUR), ("x", 1, 7, DAY), ("a", 2, 7, DAY), ("a", 1, 9, DAY)],
    ids=["after its window", "unknown page", "wrong item", "wrong user"],
)
def test_a_purchase_of_no_open_click_is_a_dead_letter(
    stream: LateStream, request_id: str, item: int, user: int, at: int
) -> None:
    stream.until(T0 + at)
    stream.act("purchase", request_id, T0 + at, item=item, user=user)
    stream.order(T0 + at, item=item, user=user) if item != 1 or user != 7 or request_id == "a" else None
    stream.until(T0 + LONG + at)
    assert stream.of("purchase") == {("a", 0): 0}
    assert sum(stream.reasons.values()) == (1 if request_id == "x" else 2)
    assert set(stream.reasons) <= {"no-click", "no-exposure", "late"}


def test_a_refund_takes_back_the_last_purchase_before_it(stream: LateStream) -> None:
    stream.act("click", "a", T0 + 2 * MINUTE, 1, 2)
    for item in (1, 2):
        stream.until(T0 + DAY * item)
        stream.order(T0 + DAY * item, item=item)
    stream.order(T0 + 20 * DAY, item=1, kind="refund")
    stream.order(T0 + 20 * DAY, item=2, kind="refund")
    stream.order(T0 + 21 * DAY, item=2)  # bought again
    stream.order(T0 + 21 * DAY, item=2)  # the same message twice
    stream.until(T0 + LONG)
    assert stream.of("purchase") == {("a", 0): 0, ("a", 1): 1}
    assert not stream.dead


def test_a_refund_before_its_purchase_waits_for_it(stream: LateStream) -> None:
    stream.until(T0 + 3 * DAY)
    stream.order(T0 + 3 * DAY, kind="refund")
    stream.order(T0 + 3 * DAY - MINUTE)
    stream.order(T0 + 3 * DAY, item=2, kind="refund")
    stream.until(T0 + LONG)
    assert stream.of("purchase") == {("a", 0): 0}
    assert stream.reasons == {"no-purchase": 1}, "that of the item that was never bought"


def test_a_second_purchase_on_the_page_counts_after_a_refund(stream: LateStream) -> None:
    stream.act("purchase", "a", T0 + 3 * MINUTE)
    stream.order(T0 + 4 * MINUTE, kind="refund")
    stream.act("purchase", "a", T0 + 5 * MINUTE)
    stream.until(T0 + LONG)
    assert stream.of("purchase") == {("a", 0): 1}


@pytest.mark.parametrize("sealed", [False, True])
def test_a_deleted_users_rows_are_neither_told_nor_kept(stream: LateStream, tmp_path: Path, sealed: bool) -> None:
    stream.page("o", T0, user=9)
    stream.act("click", "o", T0 + MINUTE, user=9)
    stream.until(T0 + (5 * HOUR if sealed else 5 * MINUTE))
    stream.forget(7)
    stream.order(T0 + 6 * HOUR)
    stream.order(T0 + 6 * HOUR, user=9)
    stream.until(T0 + 8 * HOUR)
    (file,) = tmp_path.glob("p00000-click-*.rows")
    rows = stream.files._read(0, ("click", int(file.stem[-12:])))
    assert rows is not None
    assert "a" not in rows.request
    assert sorted(r for r in rows.request if r) == ["o"]
    stream.until(T0 + LONG)
    assert stream.of("purchase") == {("o", 0): 1}
    assert stream.reasons == {"no-click": 1}


def test_files_go_a_day_after_the_last_telling(stream: LateStream, tmp_path: Path) -> None:
    stream.until(T0 + LONG)
    stream.checkpoint()
    assert len(list(tmp_path.glob("p00000-click-*.rows"))) == 1
    stream.until(T0 + LONG + DAY)
    stream.checkpoint()
    assert not list(tmp_path.glob("*.rows"))
    assert len(stream.partition.join.book or []) == 0


def test_a_lost_file_makes_dead_letters_of_its_purchases(stream: LateStream, tmp_path: Path) -> None:
    stream.until(T0 + DAY)
    stream.order(T0 + DAY)
    bought = stream.messages[-1].offset
    for file in tmp_path.glob("*.rows"):
        file.unlink()
    stream.until(T0 + LONG)
    assert not stream.of("purchase")
    assert [(one.reason, one.offset) for one in stream.dead] == [("rows-gone", bought)]


def test_outcomes_on_pages_are_told_of_every_exposure(tmp_path: Path) -> None:
    outcome = '[[outcome]]\nname = "{}"\non = "{}"\nevent = "{}"\nwithin = "{}"\n'
    both = outcome.format("cart", "page", "cart", "2h") + outcome.format("purchase", "click", "purchase", "2d")
    stream = LateStream(str(tmp_path), parse_schema(TEXT + both))
    stream.page("a", T0)
    stream.act("cart", "a", T0 + MINUTE, 1, 2)
    stream.act("click", "a", T0 + MINUTE, 2, 3)
    stream.until(T0 + 5 * HOUR)
    assert stream.of("cart") == {("a", 0): 0, ("a", 1): 1, ("a", 2): 0}
    stream.until(T0 + 3 * DAY)
    assert stream.of("purchase") == {("a", 2): 0}


def test_an_outcome_that_is_new_in_the_schema_is_not_told_of_older_clicks(stream: LateStream) -> None:
    """Its events were not noted, so a 0 would be a guess."""
    cart = '[[outcome]]\nname = "cart"\non = "click"\nevent = "cart"\nwithin = "2d"\n'
    month = '[[outcome]]\nname = "purchase"\non = "click"\nevent = "purchase"\nwithin = "30d"\n'
    before, stream.schema = stream.schema, parse_schema(TEXT + cart + month)
    checkpoint = stream.checkpoint()
    stream.partition = Partition(0, stream.schema, POLICY, history=(before,))
    stream.partition.resume(checkpoint)
    stream.files = OutcomeFiles(Store(stream.url), stream.schema, {before.id: before})
    stream.page("b", T0 + DAY)
    stream.act("click", "b", T0 + DAY + MINUTE)
    stream.act("cart", "b", T0 + DAY + 2 * MINUTE)
    stream.order(T0 + 2 * HOUR)
    stream.until(T0 + DAY + LONG)
    assert stream.of("cart") == {("b", 0): 1}
    assert stream.of("purchase") == {("a", 0): 1, ("b", 0): 0}


def test_orders_need_an_outcome(tmp_path: Path) -> None:
    stream = LateStream(str(tmp_path), parse_schema(TEXT))
    stream.order(T0)
    assert stream.reasons == {"no-outcome": 1}
    assert stream.partition.join.book is None


def test_each_purchase_labels_once_or_is_a_dead_letter_whatever_is_killed(tmp_path: Path) -> None:
    """Random lives against a plain reference. Each is cut at random: the state goes on from a checkpoint, some messages
    come again, and so do files and samples."""
    for seed in range(12):
        rng = random.Random(seed)
        calm, killed = LateStream(str(tmp_path / f"calm{seed}")), LateStream(str(tmp_path / f"killed{seed}"))
        clicks: dict[tuple[str, int], tuple[int, int, int]] = {}  # user, item, time
        bought: dict[tuple[int, int], list[int]] = {}
        for n in range(40):
            at, user, item = T0 + n * 20 * HOUR, rng.randrange(1, 4), rng.randrange(1, 4)
            calm.page(f"r{n}", at, [item], user=user)
            if rng.random() < 0.7:
                calm.act("click", f"r{n}", at + MINUTE, 0, item, user)
                clicks[f"r{n}", 0] = (user, item, at + MINUTE)
            if rng.random() < 0.6:
                user, item = rng.randrange(1, 4), rng.randrange(1, 4)
                calm.order(at + 2 * MINUTE, item, user)
                bought.setdefault((user, item), []).append(at + 2 * MINUTE)
        end = T0 + 100 * DAY
        calm.until(end)
        expected, unclaimed = dict.fromkeys(clicks, 0), 0
        for (user, item), times in bought.items():
            for ts in times:
                before = [(at, id) for id, (u, i, at) in clicks.items() if (u, i) == (user, item) and at <= ts]
                at, id = max(before, default=(0, None))
                if id is None or ts >= at + 30 * DAY:
                    unclaimed += 1
                else:
                    expected[id] = 1
        assert calm.of("purchase") == expected, seed
        assert calm.reasons == ({"no-click": unclaimed} if unclaimed else {}), seed

        at = 0
        checkpoint, base = killed.checkpoint(), 0
        while at < len(calm.messages):
            n = rng.randrange(1, 9)
            killed.take(*calm.messages[at : at + n])
            at += n
            fate = rng.random()
            if fate < 0.2:  # a checkpoint, after its output
                checkpoint, base = killed.checkpoint(), at
            elif fate < 0.4:  # a crash: all since then comes again
                killed.crash(checkpoint)
                at = base
        assert killed.book == calm.book
        assert set(killed.told) == set(calm.told), "what comes again comes the same"
        letters = {(one.reason, one.topic, one.offset) for one in killed.dead}
        assert letters == {(one.reason, one.topic, one.offset) for one in calm.dead}


def test_a_journal_restores_the_book(stream: LateStream) -> None:
    base = stream.partition.snapshot().to_bytes()
    stream.partition.journal = Journal()
    stream.act("click", "a", T0 + 2 * MINUTE, 1, 2)
    stream.until(T0 + 3 * DAY)
    stream.order(T0 + 3 * DAY, item=2)
    again = Partition(0, stream.schema, POLICY)
    again.resume(base)
    again.replay(from_bytes(to_bytes(stream.partition.journal.cut().entries)))
    stream.partition = again
    stream.until(T0 + LONG)
    assert stream.of("purchase") == {("a", 0): 0, ("a", 1): 1}


def test_a_message_of_an_order_is_read() -> None:
    order = decode_event(b'{"type":"order","event_id":"o","ts_ms":5,"user_id":1,"item_id":2}')
    refund = decode_event(b'{"type":"refund","event_id":"o","ts_ms":5,"user_id":1,"item_id":2}')
    assert (order.kind, refund.kind) == (5, 6)
