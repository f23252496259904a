"""The audit: what adds up, and that each kind of loss, doubling and disagreement is named. And when a run is
over."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from millrace.basics.errors import BrokerError, ConservationError
from millrace.commands.demo import settle as module
from millrace.commands.demo.conservation import Apart, Ledger, Reported, check
from millrace.commands.demo.past import PastEvents, opening
from millrace.commands.demo.personclicks import PersonClicks
from millrace.commands.demo.servedrows import auc_of
from millrace.commands.demo.settle import Drained, settle
from millrace.commands.loop import host as hosts
from millrace.commands.loop.host import READS, Host, made
from millrace.commands.loop.monitor import Picture
from millrace.commands.loop.status import RunStatus
from millrace.contracts.clock import EventClock
from millrace.contracts.events import Click, DeadLetter, Event, Exposure, Truth, to_json, to_msgpack
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, OUTCOME, PAGE, POSITIVE
from millrace.contracts.settings import Settings
from tests.scenes.learning import labelled

NOW = 1_772_600_000_000
AHEAD = 3_600_000


class Topics:
    """A small run, told to a ledger as the topics would."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.samples: list[bytes] = []
        self.dead_letters: list[bytes] = []
        self.truth: list[bytes] = []

    def event(self, event: Event | bytes, times: int = 1) -> int:
        self.events += [event if isinstance(event, bytes) else to_json(event)] * times
        return len(self.events) - 1

    def page(self, request: str, items: int, offset: int = 0, times: int = 1, ts_ms: int = NOW) -> int:
        page = Exposure(f"{request}/{offset}", request, ts_ms, 1, list(range(1, items + 1)), offset)
        return self.event(page, times)

    def click(self, request: str, position: int, times: int = 1) -> None:
        self.event(Click(f"{request}/{position}/c", request, NOW, 1, 1, position), times)

    def label(self, request: str, *rows: tuple[int, int]) -> None:
        self.samples.append(labelled(request, NOW, rows).to_bytes())

    def dead(self, offset: int, reason: str, exposures: int = 0, times: int = 1) -> None:
        dead_letter = DeadLetter(reason, "", "events", 0, offset, exposures, b"")
        self.dead_letters += [to_json(dead_letter)] * times

    def ledger(self, since: dict[int, int] | None = None) -> Ledger:
        ledger = Ledger(EventClock(), AHEAD, since or {})
        for visit, messages in (
            (ledger.dead_letter_message, self.dead_letters),
            (ledger.event_message, self.events),
            (ledger.sample_message, self.samples),
            (ledger.truth_message, self.truth),
        ):
            for offset, value in enumerate(messages):
                record: Any = SimpleNamespace(partition=0, offset=offset, timestamp=NOW, value=value)
                visit(record)
        return ledger


@pytest.fixture
def shop() -> Topics:
    """Two pages of four, one page lost, a duplicate of each kind, two bad messages; one exposure is still pending."""
    made = Topics()
    made.page("a", 4, times=2)
    made.page("b", 4)
    made.click("a", 1, times=2)
    made.click("b", 0)
    lost = made.page("c", 3)
    made.dead(lost, "late", exposures=3)
    made.dead(made.event(b'{"type":"exp'), "malformed")
    made.dead(made.page("f", 2, ts_ms=NOW + 2 * AHEAD), "future", exposures=2)
    made.label("a", (1, POSITIVE))
    made.label("a", (0, NEGATIVE), (2, NEGATIVE), (3, NEGATIVE))
    made.label("b", (0, NEGATIVE), (1, NEGATIVE), (2, NEGATIVE))
    made.label("b", (0, CORRECTION), (0, FOLLOW_UP))
    made.truth.append(to_msgpack(Truth("a", NOW, 0, np.array([0.1, 0.9, 0.2, 0.3], "<f4").tobytes())))
    made.truth.append(to_msgpack(Truth("b", NOW, 0, np.array([0.8, 0.1, 0.2, 0.3], "<f4").tobytes())))
    return made


def reported(ledger: Ledger) -> Reported:
    """What honest roles would say."""
    labelled = ledger.count("positive") + ledger.count("negative") + ledger.count("corrected")
    return Reported(
        pending=ledger.count("pending"),
        trained=labelled,
        refused=0,
        skipped=0,
        exposures=ledger.exposures,
        clicks=ledger.clicks,
        malformed=ledger.malformed,
        duplicates=ledger.duplicates,
    )


def test_a_page_shown_otherwise_than_answered_is_accounted_for_by_what_was_shown(shop: Topics) -> None:
    shop.event(Exposure("g/0", "g", NOW, 1, [7, 9], slots=[5, 2]))
    ledger = shop.ledger()
    assert (ledger.exposures, ledger.count("pending")) == (15, 3)
    shop.label("g", (5, NEGATIVE), (2, POSITIVE))
    ledger = shop.ledger()
    assert (ledger.exposures, ledger.count("pending")) == (15, 1)
    check(ledger, reported(ledger))


def test_a_run_in_order(shop: Topics) -> None:
    ledger = shop.ledger()
    assert (ledger.exposures, ledger.clicks, ledger.duplicates, ledger.malformed) == (13, 2, 2, 2)
    assert [ledger.count(n) for n in ("positive", "negative", "pending", "corrected")] == [1, 6, 1, 1]
    assert (ledger.dead_only, ledger.dead_exposures) == (5, 5)
    assert ledger.dead == {"late": 1, "malformed": 1, "future": 1}
    check(ledger, reported(ledger))
    rows = ledger.rows()
    assert auc_of(rows.true, rows.label) == 1.0
    assert rows.label.sum() == 2  # the correction counts as a click


def test_repeats_after_a_crash_are_counted_and_change_nothing(shop: Topics) -> None:
    before = shop.ledger()
    shop.samples += shop.samples[:2] + shop.samples[3:]
    shop.dead_letters += shop.dead_letters[:1]
    after = shop.ledger()
    assert after.repeated_samples == 1 + 3 + 2
    assert after.repeated_dead == 1
    assert after.pages == before.pages
    assert after.follow_ups == 1
    check(after, reported(after))


def test_what_is_sent_again_of_a_page_that_was_lost_is_a_duplicate_not_pending(shop: Topics) -> None:
    lost = shop.page("g", 3)
    shop.page("g", 3)
    shop.dead(lost, "no-page-log", exposures=3)
    ledger = shop.ledger()
    check(ledger, replace(reported(ledger), pending=1))
    assert ledger.dead_only == 3 + 2 + 3
    assert ledger.duplicates == 2 + 1


def test_a_duplicate_that_came_as_late_as_its_event_is_one(shop: Topics) -> None:
    """Half a minute without a broker is two hours by a lapsed clock: then both are dead letters."""
    for _ in range(2):
        shop.dead(shop.page("g", 3), "late", exposures=3)
    ledger = shop.ledger()
    assert ledger.dead_only == 3 + 2 + 3
    check(ledger, replace(reported(ledger), duplicates=2 + 1))


def test_what_was_from_the_future_may_come_again_and_wait_for_its_label(shop: Topics) -> None:
    shop.page("f", 2)
    ledger = shop.ledger()
    check(ledger, replace(reported(ledger), pending=1 + 2))
    assert ledger.dead_only == 3


def test_messages_that_nobody_can_read_are_counted_and_are_no_pages(shop: Topics) -> None:
    plain = shop.ledger()
    for topic in (shop.dead_letters, shop.samples, shop.truth):
        topic += [b"", b"[]", b"\xc1"]
    ledger = shop.ledger()
    check(ledger, reported(ledger))
    assert ledger.unread == {"dead-letters": 3, "samples": 3, "truth": 3}
    assert (ledger.exposures, ledger.dead) == (plain.exposures, plain.dead)


def test_an_exposure_whose_label_is_due_and_is_not_there_is_named_with_where_it_was_sent(shop: Topics) -> None:
    ledger = shop.ledger()
    assert ledger.missing == [], "nothing tells that its time has passed"
    later = NOW + ledger.waits.settled_ms + 1
    shop.page("z", 1, ts_ms=later)
    shop.samples.append(labelled("z", later, [(0, POSITIVE)]).to_bytes())
    (missing,) = shop.ledger().missing
    assert missing["page"] == "b"
    assert (missing["exposures"], missing["partition"], missing["offset"], missing["ts_ms"]) == (1, 0, 2, NOW)
    assert missing["ago_ms"] == later - NOW


@pytest.mark.parametrize(
    ("page", "row", "problem"),
    [
        ("a", (0, POSITIVE), r"1 exposures have two labels \(first: a/0\)"),
        ("a", (9, NEGATIVE), r"nobody sent \(pages a\)"),
        ("c", (0, NEGATIVE), r"dead letters too \(c; dead letters: 1 future, 1 late, 1 malformed\)"),
        ("a", (1, CORRECTION), "1 corrections of what was no negative"),
    ],
)
def test_a_label_that_should_not_be_is_found(shop: Topics, page: str, row: tuple[int, int], problem: str) -> None:
    shop.label(page, row)
    ledger = shop.ledger()
    with pytest.raises(ConservationError, match=problem):
        check(ledger, reported(ledger))


def test_an_event_nobody_can_read_and_nobody_buried_is_found(shop: Topics) -> None:
    shop.event(b"garbage")
    ledger = shop.ledger()
    with pytest.raises(ConservationError, match="2 events are unreadable, but 1 dead letters say so"):
        check(ledger, reported(ledger))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pending": 0}, "1 exposures have no label, but the stream holds 0 pending"),
        ({"pending": None}, "does not say how many exposures are pending"),
        ({"trained": 7}, "learnt from 7 samples and refused 0 where there are 8"),
        ({"trained": 9}, "learnt from 9 samples"),
        ({"exposures": 12}, "sent 12 exposures, but 13 are in the topic"),
        ({"clicks": 3}, "sent 3 clicks, but 2"),
        ({"malformed": 1}, "sent 1 malformed events, but 2"),
        ({"duplicates": 0}, "sent 0 duplicates, but 2"),
    ],
)
def test_a_role_that_says_otherwise_is_named(shop: Topics, change: dict[str, Any], named: str) -> None:
    ledger = shop.ledger()
    with pytest.raises(ConservationError, match=named):
        check(ledger, replace(reported(ledger), **change))


def test_what_a_restarted_role_has_forgotten_is_not_held_against_it(shop: Topics) -> None:
    ledger = shop.ledger()
    check(ledger, replace(reported(ledger), trained=None, exposures=None, clicks=None, malformed=None, duplicates=None))


def test_refused_samples_and_skipped_batches_are_accounted_for(shop: Topics) -> None:
    ledger = shop.ledger()
    check(ledger, replace(reported(ledger), trained=6, refused=2))
    check(ledger, replace(reported(ledger), trained=3, skipped=1))


def test_a_page_that_is_sent_again_counts_as_samples_and_as_no_exposures(shop: Topics) -> None:
    before = shop.ledger()
    shop.label("a", (1, PAGE), (0, PAGE))
    shop.label("a", (1, PAGE))
    ledger = shop.ledger()
    assert ledger.exposures == before.exposures
    assert (ledger.count("again"), ledger.repeated_samples) == (2, before.repeated_samples + 1)
    check(ledger, reported(ledger))  # by a model that learns none of it
    ledger.by_page = True
    with pytest.raises(ConservationError, match="the learner learnt from 8 samples"):
        check(ledger, reported(ledger))
    check(ledger, replace(reported(ledger), trained=10))


def test_outcomes_that_are_told_count_as_samples_and_as_no_exposures(shop: Topics) -> None:
    before = shop.ledger()
    told = replace(labelled("a", NOW, [(1, OUTCOME), (0, OUTCOME)]), outcomes=np.ones((2, 1), np.float32))
    shop.samples += [told.to_bytes(), told.take(slice(1)).to_bytes()]
    ledger = shop.ledger()
    assert (ledger.exposures, ledger.repeated_samples) == (before.exposures, before.repeated_samples + 1)
    with pytest.raises(ConservationError, match="the learner learnt from 8 samples"):
        check(ledger, reported(ledger))
    check(ledger, replace(reported(ledger), trained=10))


def test_what_the_gate_keeps_out_of_the_model_is_accounted_for(shop: Topics) -> None:
    ledger = shop.ledger()
    apart = Apart(held_out=1, over_limit=1, quarantined=3, released=2, rolled_back=1)
    check(ledger, replace(reported(ledger), trained=4, apart=apart))
    for wrong in ({"held_out": 0}, {"released": 1}, {"rolled_back": 2}, {"over_limit": 0}):
        with pytest.raises(ConservationError, match=r"4 samples and refused 0 \(.* quarantined less .*\) where .* 8"):
            check(ledger, replace(reported(ledger), trained=4, apart=replace(apart, **wrong)))


def test_what_a_restarted_learner_held_out_twice_proves_no_loss_and_hides_none(shop: Topics) -> None:
    ledger = shop.ledger()
    twice = replace(reported(ledger), trained=6, apart=Apart(held_out=4), one_life=False)
    check(ledger, twice)
    for trained in (3, 9):  # one is lost; more than there are
        with pytest.raises(ConservationError, match="where there are 8"):
            check(ledger, replace(twice, trained=trained))


def test_what_an_earlier_run_left_in_the_topics_is_balanced_and_not_counted(shop: Topics) -> None:
    began = len(shop.events)
    shop.page("z", 2)
    shop.click("z", 1)
    shop.event(b"garbage")
    shop.dead(began + 2, "malformed")
    shop.label("z", (1, POSITIVE))
    whole = shop.ledger()
    ledger = shop.ledger({0: began})
    assert (ledger.exposures, ledger.clicks, ledger.duplicates, ledger.malformed) == (2, 1, 0, 1)
    assert [ledger.count(n) for n in ("positive", "negative", "pending")] == [1, 0, 1]
    assert [ledger.count_all(n) for n in ("positive", "negative", "pending")] == [2, 6, 2]
    assert ledger.dead == {"malformed": 1}
    rows = ledger.rows()
    assert len(rows.where(rows.own)) == 1
    check(ledger, replace(reported(ledger), pending=2, trained=None))
    with pytest.raises(ConservationError, match="2 exposures have no label, but the stream holds 1"):
        check(ledger, replace(reported(ledger), trained=None))
    check(whole, reported(whole))


@pytest.mark.parametrize(
    ("newest", "opens"),
    [
        (None, "2026-03-04T01:00"),  # Wednesday, 09:00 in UTC+8
        ("2026-03-04T09:30", "2026-03-05T01:00"),
        ("2026-03-04T23:30", "2026-03-06T01:00"),  # the 5th already, in the shop
        ("2026-03-06T09:00", "2026-03-09T01:00"),  # after Friday comes Monday
        ("2020-01-01T00:00", "2026-03-04T01:00"),
    ],
)
def test_the_shop_opens_on_the_working_day_after_what_the_topics_hold(newest: str | None, opens: str) -> None:
    held = PastEvents()
    if newest:
        held.newest_ms = round(datetime.fromisoformat(newest).replace(tzinfo=UTC).timestamp() * 1000)
    assert opening(held) == datetime.fromisoformat(opens).replace(tzinfo=UTC)


# -- When a run is over ------------------------------------------------------------------------------------------------
# Nothing waits to be read, no figure moves, and the roles that say so are awake. And what happens when something dies
# while the topics are read.


T0_MS = 1_800_000_000_000


def picture(after_s: float, stood_still_s: float = 0.0, **figures: float) -> Picture:
    wall_ms = T0_MS + round(after_s * 1000)
    known: dict[str, float | None] = {
        "stream_lag": 0.0, "learner_lag": 0.0, "pending": 0.0, "trained": 5.0,
        "stream_loop_s": wall_ms / 1000 - 0.1, "learn_loop_s": wall_ms / 1000 - stood_still_s,
        **figures,
    }  # fmt: skip
    ready = {"stream": True, "learn": True}
    return Picture(wall_ms, known, ready, ready, {}, {})


def read_after(*pictures: Picture) -> bool:
    monitor: Any = SimpleNamespace(picture=pictures[0])
    dry = Drained(monitor, idle_seconds=5.0)
    answer = False
    for monitor.picture in pictures:
        answer = dry.read()
    return answer


def drained_after(*pictures: Picture, roles: tuple[str, ...] = ("stream", "learn")) -> tuple[bool, str]:
    monitor: Any = SimpleNamespace(picture=pictures[0])
    dry = Drained(monitor, 5.0, roles)
    answer = False
    for monitor.picture in pictures:
        answer = dry()
    return answer, dry.why


def test_a_loop_in_which_nothing_moves_has_drained() -> None:
    assert drained_after(picture(0.0), picture(9.0))[0]
    assert drained_after(picture(0.0, pending=2.0), picture(9.0, pending=2.0))[0]
    assert not drained_after(picture(0.0), picture(9.0, trained=6.0))[0]
    assert not drained_after(picture(0.0), picture(9.0, learner_lag=1.0))[0]


def test_a_partition_that_falls_silent_is_waited_for() -> None:
    assert not drained_after(picture(0.0), picture(5.0))[0]
    assert not drained_after(picture(0.0, pending=2.0), picture(5.0, pending=2.0))[0]


def test_by_a_slow_clock_all_is_read_while_labels_still_come() -> None:
    looks = [picture(float(s), trained=float(s)) for s in range(4)]
    assert not drained_after(*looks)[0]
    assert read_after(*looks)
    assert not read_after(*looks[:2])
    assert not read_after(*looks[:3], picture(3.0, stream_lag=1.0))
    assert not read_after(*looks[:3], picture(3.0, stood_still_s=3.0))


def test_a_role_that_was_stopped_is_not_waited_for() -> None:
    ended = [Picture(p.wall_ms, p.figures, {}, {"learn": True}, {}, {}) for p in (picture(0.0), picture(9.0))]
    assert not drained_after(*ended)[0]
    assert drained_after(*ended, roles=("learn",))[0]


def test_a_role_that_stands_still_has_not_drained_though_its_last_figures_say_so() -> None:
    answer, why = drained_after(*(picture(s, stood_still_s=s) for s in (0.0, 3.0, 30.0)))
    assert not answer
    assert why == "learn silent"


# -- what dies while the topics are read --------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(Settings(data=str(tmp_path)), made(tmp_path), threading.Event(), RunStatus(()))


def test_a_broker_that_dies_while_it_is_read_from_is_started_again_meanwhile(host: Host) -> None:
    started = threading.Event()
    dead = SimpleNamespace(poll=lambda: -9, returncode=-9)
    service: Any = SimpleNamespace(name="broker", process=dead, pid=None)

    def again() -> None:
        service.process = None
        started.set()

    service.again = again
    host.services.append(service)
    assert host.read(lambda: started.wait(60.0)), "the reader would have waited for ever"


def test_what_a_broker_has_is_read_again_when_it_went_away_and_is_back(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(hosts, "wait_for_broker", lambda settings, seconds: seen.append("waited"))

    def work() -> int:
        seen.append("read")
        if len(seen) < 4:
            raise BrokerError("no consumer", "start Kafka")
        return len(seen)

    assert host.read(work) == 5
    assert seen == ["read", "waited", "read", "waited", "read"]
    seen.clear()

    def never() -> None:
        seen.append("read")
        raise BrokerError("no consumer", "start Kafka")

    with pytest.raises(BrokerError, match="no consumer"):
        host.read(never)
    assert seen.count("read") == READS


def test_the_books_are_read_again_until_the_loop_is_dry_and_nothing_moves(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time a role had died: its last figures stand still, and say nothing. The second time they move."""
    figures = iter([1.0, 1.0, 2.0, 3.0, 4.0, 4.0])
    dry = iter([False, True, True])
    reads: list[Ledger] = []
    roles = {"learn": SimpleNamespace(lives=1, total=lambda name: 0.0)}

    def look() -> Picture:
        return Picture(T0_MS, {"pending": next(figures), "trained": 0.0}, {}, {}, {}, {})

    def read(settings: Settings, since: Any) -> Ledger:
        reads.append(Ledger())
        return reads[-1]

    monkeypatch.setattr(module, "read_ledger", read)
    monkeypatch.setattr(module, "forgotten", lambda settings, since: "")
    monkeypatch.setattr(host, "wait", lambda until, seconds, **_: next(dry) if until is drained else True)
    monkeypatch.setattr(host, "read", lambda work: work())
    host.monitor = SimpleNamespace(look=look, roles=roles)  # type: ignore[assignment]
    drained: Any = SimpleNamespace(why="stream silent")
    ledger, found = settle(host, drained)
    assert ledger is reads[2]
    assert len(reads) == 3
    assert found.picture.figures["pending"] == 4.0
    assert found.problem is not None
    assert "the stream holds 4 pending" in str(found.problem)
    assert host.notes == ["not drained after 60 s: stream silent"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "no click: "),
        (b'{"request_id": "p", "user_id": 7, "ts_ms": 1, "item": 3}', 400, "fields: request_id, user_id, ts_ms, items"),
        (
            b'{"request_id": "p", "user_id": 7, "ts_ms": 1, "items": [3], "position": 1}',
            400,
            "position 1 of a page of 1",
        ),
        (b'{"request_id": "p", "user_id": 7, "ts_ms": 1, "items": [3]}', 409, "the shop is not open"),
    ],
)
def test_a_persons_click_is_refused_in_one_line_where_it_cannot_be_counted(body: bytes, status: int, said: str) -> None:
    person = PersonClicks()
    found, answer = person.send(body)
    assert (found, said in answer.decode()) == (status, True), answer
    assert b"\n" not in answer
    assert (person.exposures, person.clicks) == (0, 0)
