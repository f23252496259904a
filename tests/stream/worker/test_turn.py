"""What is due for a partition, and when. Each bug of the stream's past is a story here, which fails without its rule.

The tests with real processes (tests/stream/worker/test_worker_loop.py) prove that the shell does as it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.errors import BrokerError
from millrace.contracts.clock import EventClock
from millrace.contracts.samples import CORRECTION, NEGATIVE, POLICIES, POSITIVE
from stream.join.join import InputMessage
from stream.join.topic_order import ReadTo
from stream.partition.partition import Partition
from stream.worker import turn as rules
from stream.worker.turn import (
    HELD_MESSAGES,
    RECALLED,
    Advance,
    Checkpoint,
    Now,
    Pace,
    Pause,
    Reads,
    Recall,
    ResetOffsets,
    Resume,
    Return,
    Take,
    Turn,
    Turns,
    arrival,
    other_logs,
)
from tests.scenes.exploring import examples
from tests.scenes.stream_world import POLICY, SCHEMA, T0
from tests.scenes.turn_scene import (
    CLOCK,
    CRASH,
    EMPTY_BROKER,
    LOST_REDIS,
    OTHER_RUN,
    PACE,
    REBALANCE,
    RUN,
    SILENCE,
    SLOW_PAGE_LOGS,
    STANDSTILL,
    UNREADABLE,
    WALL_S,
    Happening,
    Scene,
    click,
    forget,
    page,
)

# ---------------------------------------------------------------------- the bugs of the past, each with its rule


def no_broker_asked(self: Turn, reads: Reads, now: Now) -> float:
    """Silence by our own clock, as it was once."""
    return now.wall_s


def no_gate(self: Turn, reads: Reads, taken_now: Sequence[InputMessage], now: Now) -> list[InputMessage]:
    """Events go on as they come."""
    return self._gate.release(ReadTo(0, 0, float("inf"), 0), 0, now.steady_s)


def no_announcement(self: Turn, until_ms: int, now: Now) -> Iterator[Any]:
    """The checkpoint says nothing of the advance; the next one will hold what came of it."""
    yield from self._checkpoint(now)
    self._advance_ms, self._announced = until_ms, True


def no_sender(stamp_s: float, headers: Any, clock: EventClock) -> None:
    """An event is judged by the clock of whoever reads it, when it is read."""


def no_waiting(self: Turns) -> dict[tuple[str, int], int]:
    """Faust resumes at once, where the group has committed."""
    known = self._turns or {}
    return {(topic, n): t.partition.offsets.get(topic, 0) for n, t in known.items() for topic in rules.INPUTS}


def no_header(headers: Any) -> None:
    """Nobody asks which clock an event was sent by."""


def no_patience(self: Turn) -> bool:
    """The advance is made when it is announced, and not when that is written."""
    return False


def no_order(self: Turn, reads: Reads, now: Now) -> Iterator[Any]:
    """Messages are taken between the announcement of an advance and the advance."""
    if self._announcing():
        messages, self._waiting = self._waiting, []
        yield Take([*messages, *self._released(reads, messages, now)])
        return
    yield from inbound(self, reads, now)


inbound = Turn.inbound


@dataclass(frozen=True)
class Case:
    """A bug of the past: what happened, which rule prevents it, what the rule was replaced by then, and what became of
    that. Where the moment matters, there is a story for each moment."""

    stories: Sequence[Sequence[Happening]]
    rule: tuple[Any, str, Callable[..., Any]]
    became: str
    pace: Pace = PACE


CATCHING_UP = STANDSTILL(60, (*(page(f"p{number}") for number in range(40)), click("p39")))

CASES = {
    # A page is seen while the worker stands still; on waking it looks at its clock before it looks at the broker.
    "standing worker": Case(
        [[page("a"), RUN(0.8), STANDSTILL(30, (page("b"), click("b")))]],
        (Turn, "_silent_until", no_broker_asked),
        "'late': 2",
    ),
    # The same after a silence that the broker had confirmed: confirmed up to its last answer, not up to now.
    "standing worker that was idle before": Case(
        [[page("a"), SILENCE(3), STANDSTILL(30, (page("b"), click("b")))]],
        (Turn, "_silent_until", no_broker_asked),
        "'late': 2",
    ),
    # Silence gives a negative; the worker dies before its next checkpoint; the click was on its way.
    "label given to silence": Case(
        [[page("a"), SILENCE(9), CRASH, click("a", after_minutes=10)]],
        (Turn, "_announce", no_announcement),
        "page a, position 0: 2 labels",
        Pace(publish_s=0.2, checkpoint_s=3.0, idle_s=1.0),
    ),
    # The same, and it dies while the checkpoint that announces the advance is being written.
    "label given before its announcement": Case(
        [[page("a"), RUN(n / 10), CRASH, click("a", after_minutes=10)] for n in range(60, 100)],
        (Turn, "_announcing", no_patience),
        "page a, position 0: 2 labels",
    ),
    # The click comes between the announcement and the advance, and the worker dies right after.
    "click between announcement and advance": Case(
        [
            [page("a"), RUN(n / 10), click("a", after_minutes=10), RUN(m / 10), CRASH]
            for n in range(70, 100)
            for m in range(1, 4)
        ],
        (Turn, "inbound", no_order),
        "page a, position 0: 2 labels",
        Pace(publish_s=0.2, checkpoint_s=2.0, idle_s=1.0),
    ),
    # An event was hours ahead of the run that sent it; that run was a day behind ours.
    "another run's clock": Case(
        [[page("a"), OTHER_RUN(2.2, behind_hours=6), page("b"), click("b")]],
        (rules, "sent_by", no_header),
        "dead letters",
    ),
    # An event was hours ahead when it came to Kafka; when it is read, with its neighbours, the clock has come as far.
    "from the future, read late": Case(
        [[page("a"), STANDSTILL(34, (OTHER_RUN(2.2),)), STANDSTILL(2, (page("b"), click("b"))), STANDSTILL(20)]],
        (rules, "clock_at", no_sender),
        "'late': 2",
    ),
    # Messages are handed over while the checkpoint is still being loaded.
    "resumed too early": Case(
        [[page("a"), RUN(2), CRASH, page("b"), click("b"), click("a")]],
        (Turns, "positions", no_waiting),
        "'no-exposure': 1",
    ),
    # While a worker catches up, events come by the thousand and page logs one by one.
    "page logs lagging": Case(
        [[page("a"), SLOW_PAGE_LOGS(3), CATCHING_UP, RUN(16)]],
        (Turn, "_released", no_gate),
        "'no-page-log': ",
    ),
}


def outcomes(case: Case) -> Iterator[Scene]:
    for story in case.stories:
        yield Scene(pace=case.pace).play(story).finish()


@pytest.mark.parametrize("name", CASES)
def test_a_bug_of_the_past_stays_away(name: str) -> None:
    for scene in outcomes(CASES[name]):
        scene.check()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_case_fails_when_its_rule_is_taken_out(name: str) -> None:
    case = CASES[name]
    owner, rule, replacement = case.rule
    failed = []
    with patch.object(owner, rule, replacement):
        for scene in outcomes(case):
            try:
                scene.check()
            except AssertionError as error:
                failed.append(str(error))
    assert any(case.became in said for said in failed), failed


def test_the_case_of_the_label_given_to_silence_is_what_it_says() -> None:
    (scene,) = outcomes(CASES["label given to silence"])
    assert scene.kinds("a") == {NEGATIVE: 1, CORRECTION: 1}


@pytest.mark.parametrize("name", ["another run's clock", "from the future, read late"])
def test_an_event_from_the_future_is_that_whenever_it_is_read_and_by_whom(name: str) -> None:
    (scene,) = outcomes(CASES[name])
    assert scene.dead == {"future": 1}
    assert scene.kinds("b") == {POSITIVE: 1}


# ---------------------------------------------------------------------- other stories


@pytest.mark.parametrize(
    "story",
    [
        [page("a"), click("a")],
        [page("a"), click("a"), CRASH, page("b"), SILENCE(7), click("b")],
        [page("a"), SILENCE(9), REBALANCE, click("a"), page("b", 1), REBALANCE, CRASH],
        [page("a"), click("a"), RUN(1), LOST_REDIS, page("b", 1)],
        [page("a"), click("a"), RUN(1), LOST_REDIS, CRASH],
        [page("a"), RUN(1), LOST_REDIS, CRASH, SILENCE(2), LOST_REDIS, REBALANCE],
        [page("a"), click("a"), page("b"), RUN(1), forget(), click("b"), RUN(1), page("c"), click("c")],
        [page("a"), click("a"), RUN(1), forget(), RUN(1), CRASH, LOST_REDIS, RUN(1), page("b"), REBALANCE],
        [page("a"), page("b", 1), click("b"), forget(1), forget(1), CRASH, click("a"), LOST_REDIS],
    ],
    ids=str,
)
def test_each_exposure_has_one_label(story: list[Happening]) -> None:
    Scene().play(story).finish().check()


def test_a_click_before_the_end_of_attribution_makes_a_positive() -> None:
    scene = Scene().play([page("a"), click("a")]).finish().check()
    assert scene.kinds("a") == {POSITIVE: 1}
    assert scene.kinds("a", 1) == {NEGATIVE: 1}


@pytest.mark.parametrize(
    "story",
    [
        [page("b"), click("a", ahead_minutes=30.0), RUN(1), CRASH, RUN(1), page("c"), click("b"), RUN(1), click("c")],
        [page("b", 1), click("a", ahead_minutes=30.0), SILENCE(12), CRASH, SILENCE(1)],
        [
            click("a", ahead_minutes=30.0),
            page("b"),
            REBALANCE,
            click("b"),
            SILENCE(3),
            page("c"),
            click("c"),
            REBALANCE,
        ],
    ],
    ids=str,
)
def test_a_click_ahead_of_the_clock_costs_no_other_its_label(story: list[Happening]) -> None:
    """It is told as soon as its page is seen, and used when its time has come: half an hour later, after the label."""
    scene = Scene().play([page("a"), *story]).finish().check()
    assert scene.kinds("a") == {NEGATIVE: 1, CORRECTION: 1}
    assert [scene.kinds(name) for name in scene.reported_ms if name != "a"] == [{POSITIVE: 1}] * (
        len(scene.reported_ms) - 1
    )
    assert not scene.dead


# A page is exposed; after 9 s, 36 minutes of event time, silence has settled it. Then it is clicked.
LATE_CLICK = [page("a"), SILENCE(9), click("a")]


@pytest.mark.parametrize(
    "story",
    [
        LATE_CLICK,
        [*LATE_CLICK, CRASH],
        [*LATE_CLICK, REBALANCE],
        [page("a"), SILENCE(9), UNREADABLE(4), click("a")],
        [page("a"), SILENCE(9), UNREADABLE(4), click("a"), RUN(1), CRASH],
        [page("a"), SILENCE(9), UNREADABLE(4), click("a"), RUN(1), REBALANCE, RUN(1), CRASH],
        [page("a"), SILENCE(9), UNREADABLE(15), click("a"), RUN(20)],  # the page's time is over before it is read
        [page("a"), page("b"), SILENCE(9), click("a"), RUN(0.3), CRASH, click("b")],
    ],
    ids=str,
)
def test_a_late_click_finds_its_page_though_the_page_log_was_given_up(story: list[Happening]) -> None:
    scene = Scene().play(story).finish().check()
    assert scene.dues["Recall"]
    assert scene.kinds("a") == {NEGATIVE: 1, CORRECTION: 1}
    assert not any(turn.partition.wanted for turn in scene.turns)


def test_page_logs_are_asked_for_some_at_a_time_and_again_after_a_failure() -> None:
    partition = Partition(0, SCHEMA, POLICY, settles=True)
    one = turn(partition)
    wanted = {f"r{k}": k for k in range(RECALLED + 10)}
    partition.join.wanted.update(wanted)

    def asked(at_s: float) -> list[Any]:
        return [due for due in one.outbound({}, 0, Now(at_s, WALL_S + at_s)) if isinstance(due, Recall)]

    (due,) = asked(1.0)
    assert due.wanted == dict(list(wanted.items())[:RECALLED])
    assert not asked(2.0)  # it is being read
    one.recalled(None, Now(3.0, WALL_S + 3))
    assert not asked(3.9)
    assert asked(4.0) == [due]
    found = dict.fromkeys(due.wanted, b"")
    one.recalled(found, Now(5.0, WALL_S + 5))
    assert not asked(5.1)  # they are not returned yet
    assert [d for d in one.inbound({}, Now(5.1, WALL_S + 5)) if isinstance(d, Return)] == [Return(found)]


def test_an_advance_that_is_announced_comes_before_what_was_read() -> None:
    """A worker that recovers makes the advance first, so it must be first here too."""
    partition = Partition(0, SCHEMA, POLICY, settles=True)
    partition.advance_ms = T0
    one = Turn(partition, PACE, CLOCK, Now(0.0, WALL_S), reset=("events",))
    one._asked = 1
    one.recalled({"r": b""}, Now(0.0, WALL_S))
    assert list(one.inbound({}, Now(0.1, WALL_S))) == [Advance(T0), ResetOffsets(("events",)), Return({"r": b""})]


def test_who_goes_on_with_a_partition_that_was_given_up_makes_the_announced_advance() -> None:
    one = Turn(Partition(0, SCHEMA, POLICY, settles=True), PACE, CLOCK, Now(0.0, WALL_S))
    saved = next(due for due in one._announce(T0, Now(1.0, WALL_S)) if isinstance(due, Checkpoint))
    one.done(saved)
    assert list(one.last(Now(1.0, WALL_S))) == []
    again = Turn(one.given_up(), PACE, CLOCK, Now(2.0, WALL_S))
    assert list(again.inbound({}, Now(2.0, WALL_S))) == [Advance(T0)]


def test_an_empty_broker_is_read_from_its_beginning_with_the_state_at_hand() -> None:
    """What waits in memory goes on. A settled page's page log is gone, so its click is a dead letter that says so."""
    scene = Scene().play([page("old"), SILENCE(9), page("a"), page("b"), RUN(1), EMPTY_BROKER])
    scene.play([click("old"), click("a"), page("c"), click("c")]).finish()
    assert scene.dues["ResetOffsets"] == 1  # of the other partition nothing had been read
    assert [scene.kinds(name) for name in "abc"] == [{POSITIVE: 1}, {NEGATIVE: 1}, {POSITIVE: 1}]
    assert scene.kinds("old") == {NEGATIVE: 1}
    assert scene.dead == {"page-log-gone": 1}
    assert all(len(bodies) == 1 for bodies in scene.samples.values())
    for one in scene.turns:
        assert one.partition.pending == 0


def test_without_the_rule_an_empty_broker_is_not_read() -> None:
    """As it would be if nobody asked which log this is: what comes seems to have been taken already."""
    with patch("tests.scenes.turn_scene.other_logs", lambda *_: ()):
        scene = Scene().play([page("a"), RUN(1), EMPTY_BROKER, page("c"), RUN(12)])
    assert not scene.kinds("c")


@pytest.mark.parametrize("moment", range(1, 12))
def test_a_crash_right_after_an_empty_broker_reads_it_from_its_beginning_again(moment: int) -> None:
    """Whenever it comes: before the new topics' offsets are in a checkpoint, and after."""
    scene = Scene(rests=0).play([page("old"), SILENCE(9), page("a"), RUN(1), EMPTY_BROKER, page("c"), click("c")])
    scene.play([RUN(moment / 10), CRASH, click("a")]).finish()
    assert [scene.kinds(name) for name in ("old", "a", "c")] == [{NEGATIVE: 1}, {POSITIVE: 1}, {POSITIVE: 1}]
    assert all(len(bodies) == 1 for bodies in scene.samples.values())
    assert not scene.dead


@pytest.mark.parametrize(
    ("said", "ids", "ends", "others"),
    [
        ({"events": "A"}, {"events": "A"}, {"events": 3}, ()),  # the id is the same: an end that lags is no matter
        ({"events": "A"}, {"events": "B"}, {"events": 900}, ("events",)),  # grown beyond the offset already
        ({"events": "A"}, {"events": ""}, {"events": 3}, ("events",)),
        ({}, {"events": "B"}, {"events": 500}, ()),
        ({}, {}, {"events": 499}, ("events",)),
        ({}, {}, {}, ()),
        ({"users": "A"}, {"users": "B"}, {}, ()),  # nothing was read of it
    ],
)
def test_what_tells_another_log_from_the_one_that_was_read(
    said: dict[str, str], ids: dict[str, str], ends: dict[str, int], others: tuple[str, ...]
) -> None:
    assert other_logs(said, ids, {"events": 500}, ends) == others


@st.composite
def stories(draw: st.DrawFn) -> list[Happening]:
    """Pages and clicks, and whatever may happen to a worker in between."""
    names, known, story = count(), list[str](), list[Happening]()

    def shop() -> page | click:
        if len(known) > 0 and draw(st.booleans()):
            clicked = draw(st.sampled_from(known))
            known.remove(clicked)
            return click(clicked, draw(st.sampled_from([None, 1, 10])), draw(st.sampled_from([0.0, 0.0, 5.0, 40.0])))
        made = page(f"p{next(names)}", draw(st.integers(0, 1)))
        known.append(made.name)
        return made

    for _ in range(draw(st.integers(1, 12))):
        match draw(st.integers(0, 11)):
            case 0 | 1 | 2:
                story.append(shop())
            case 3:
                story.append(SILENCE(draw(st.sampled_from([0.3, 1.2, 4.0, 9.0]))))
            case 4:
                meanwhile = tuple(shop() for _ in range(draw(st.integers(0, 3))))
                story.append(STANDSTILL(draw(st.sampled_from([0.5, 4.0, 30.0])), meanwhile))
            case 5:
                story.append(SLOW_PAGE_LOGS(draw(st.integers(0, 4))))
            case 9:
                story.append(RUN(draw(st.integers(1, 4)) / 10))
            case 11:
                story.append(forget(draw(st.integers(0, 1))))
            case 10:
                story.append(UNREADABLE(draw(st.sampled_from([0.5, 3.0, 20.0]))))
            case kind:
                story.append({6: CRASH, 7: REBALANCE, 8: LOST_REDIS}[kind])
    return story


@examples(100)
@given(stories(), st.sampled_from([0.3, 1.0, 3.0]), st.sampled_from(POLICIES))
def test_whatever_happens_each_exposure_has_one_label(story: list[Happening], checkpoint_s: float, label: str) -> None:
    """Under every label policy, and one that was given before a crash is given again."""
    Scene(pace=Pace(0.2, checkpoint_s, 1.0), rests=0, label=label).play(story).finish().check()


# What that test found: each was a failure once.
FOUND: dict[str, tuple[list[Happening], float]] = {
    "click that waits for a page log that cannot be read, to the story's end": (
        [*map(page, ("a", "b", "c")), SILENCE(9.0), click("a"), RUN(0.2), page("d"), UNREADABLE(20.0)],
        0.3,
    ),
    "the same click, when its page's time is over": (
        [page("a"), page("b"), STANDSTILL(4.0), SILENCE(9.3), click("a", 1), RUN(0.2), page("c"), UNREADABLE(20.0)],
        3.0,
    ),
    "tombstone that comes before the user's clicks, after a crash": (
        [*map(page, ("a", "b", "c")), click("a"), click("b"), SILENCE(1.2), CRASH, forget(0), SILENCE(0.3)],
        1.0,
    ),
    "click on a forgotten user's page, whose page log is read when nobody else's page is so old": (
        [page("a"), RUN(0.4), forget(0), SILENCE(9.0), STANDSTILL(30.0, (click("a", 1), page("b")))],
        0.3,
    ),
}


@pytest.mark.parametrize("label", POLICIES)
@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_stays_away(name: str, label: str) -> None:
    story, checkpoint_s = FOUND[name]
    scene = Scene(pace=Pace(0.2, checkpoint_s, 1.0), rests=0, label=label).play(story).finish().check()
    assert scene.reported_ms.keys() <= {"a", "b"}
    assert not scene.dead


# ---------------------------------------------------------------------- single decisions


def turn(partition: Partition | None = None) -> Turn:
    return Turn(partition or Partition(0, SCHEMA, POLICY), PACE, CLOCK, Now(0.0, WALL_S))


def test_fetching_pauses_while_too_many_events_wait_and_resumes_at_half() -> None:
    one, now = turn(), Now(1.0, WALL_S + 1)
    for offset in range(HELD_MESSAGES + 1):
        one.arrived(arrival(0, "events", offset, b"{}", WALL_S + offset / 1e6, None, CLOCK, WALL_S), now)
    unread: Reads = {"page_logs": ReadTo(0, 5, WALL_S, 0)}
    assert list(one.inbound(unread, now)) == [Pause()]
    assert list(one.inbound(unread, now)) == []
    one.arrived(arrival(0, "page_logs", 0, b"", WALL_S + HELD_MESSAGES / 1e6 / 4, None, CLOCK, WALL_S), now)
    assert Resume() not in list(one.inbound(unread, now))
    one.arrived(arrival(0, "page_logs", 1, b"", WALL_S + HELD_MESSAGES / 1e6, None, CLOCK, WALL_S), now)
    assert Resume() in list(one.inbound(unread, now))


def test_a_topic_that_ends_before_the_checkpoint_is_another_topic() -> None:
    partition = Partition(0, SCHEMA, POLICY)
    partition.take([InputMessage("events", 499, b"rubbish")], T0)
    one, ends = turn(partition), {"events": ReadTo(3, 3, WALL_S, 3)}
    list(one.outbound(ends, 0, Now(1.0, WALL_S + 1)))
    list(one.outbound({"events": ReadTo(500, 500, WALL_S, 500)}, 0, Now(3.0, WALL_S + 3)))  # it was late to know
    list(one.outbound(ends, 0, Now(9.0, WALL_S + 9)))
    list(one.outbound(ends, 0, Now(12.0, WALL_S + 12)))
    with pytest.raises(BrokerError, match=r"topic 'events' partition 0 ends before offset 500 .*start the role again"):
        list(one.outbound(ends, 0, Now(12.1, WALL_S + 12.1)))


def test_a_broker_that_answers_no_fetch_is_noticed_by_looking() -> None:
    turns = Turns(PACE, CLOCK)
    turns.begin([Partition(0, SCHEMA, POLICY)], Now(0.0, WALL_S))

    def looked(steady_s: float, asked_s: float) -> float:
        return turns.silent_s([ReadTo(0, 0, asked_s, 0), None], Now(steady_s, WALL_S))

    assert looked(0.0, 1.0) == 0
    assert looked(0.5, 1.0) == 0.5
    assert looked(1000.0, 1.0) == 1.5  # we did not look in between
    assert looked(1000.5, 2.0) == 0


def test_no_positions_before_the_state_is_loaded() -> None:
    turns = Turns(PACE, CLOCK)
    assert turns.positions() is None
    partition = Partition(0, SCHEMA, POLICY)
    partition.take([InputMessage("events", 499, b"rubbish")], T0)
    turns.begin([partition], Now(0.0, WALL_S))
    found = turns.positions()
    assert found is not None
    assert found["events", 0] == 500
    turns.let_go()
    assert turns.positions() is None


@pytest.mark.parametrize("what", [CRASH, REBALANCE, LOST_REDIS])
def test_last_clicks_and_co_clicks_are_what_they_were_whatever_happens_between(what: str) -> None:
    """Pages whose first items are two: a click on one is counted with those on the other."""
    story: list[Happening] = []
    for name in "abcd":
        story += [page(name), click(name), RUN(0.5), what]
    scene = Scene().play([*story, RUN(1.0)]).finish().check()
    assert len(scene.coclicks) == 2
    (days,) = (counts for near in [*scene.coclicks.values()][:1] for counts in near.values())
    assert sum(days.values()) == 3, "b with a; c with b, and not twice with a, which is the same item; d with c"
