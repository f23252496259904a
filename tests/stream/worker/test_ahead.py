"""A state that is ahead of the event clock: refused aloud, set back, or, by the clock that made it, left alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from millrace.basics.errors import ClockError, MillraceError
from millrace.contracts.clock import EventClock
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE
from millrace.contracts.settings import load_settings
from stream.join.topic_order import ReadTo
from stream.partition import early_events
from stream.partition.partition import Partition
from stream.worker import turn as rules
from stream.worker.clock_check import SKEW_S, is_set_back
from stream.worker.stream_worker import StreamWorker
from stream.worker.turn import Advance, Now, Pace, SetBack, Take, Turn, arrival
from tests.scenes.stream_world import HOUR, MINUTE, POLICY, SCHEMA, T0, Log, Sum, action, exposure, page_log, resumed
from tests.scenes.turn_scene import CRASH, OTHER_CLOCK, RUN, SILENCE, WALL_S, Happening, Scene, click, page

SKEW_MS = round(SKEW_S * 1000)
PACE = Pace(publish_s=0.2, checkpoint_s=0.3, idle_s=1.0)


def at(event_ms: int, speed: float = 1.0) -> EventClock:
    """A clock that shows ``event_ms`` at ``WALL_S``."""
    return EventClock(round(WALL_S * 1000), event_ms, speed)


def seen_until(ts_ms: int) -> Partition:
    """A partition whose newest event is of ``ts_ms``, as that event's clock allowed it."""
    part, log = Partition(0, SCHEMA, POLICY), Log()
    part.take([*log.page_logs(page_log("r", ts_ms, [1])), *log.events(exposure("r", ts_ms, [1]))], ts_ms)
    assert part.newest_ms == ts_ms
    return part


# ---------------------------------------------------------------------- events ahead of the clock


def test_the_line_names_times_and_remedy() -> None:
    part = seen_until(T0 + 8 * HOUR + 30 * MINUTE)
    with pytest.raises(ClockError) as caught:
        is_set_back(part, at(T0), WALL_S)
    assert isinstance(caught.value, MillraceError)
    assert str(caught.value) == (
        "partition 0 has taken events up to 2024-10-04 08:30 UTC, 8.5 h ahead of the event clock (2024-10-04 00:00"
        " UTC), where 60 min are allowed: until then each event would be late; go on by the clock that the data"
        " folder was filled by (MILLRACE_CLOCK), or name a new data folder (MILLRACE_DATA): the topics are then read"
        " again, without the events that are ahead"
    )


@pytest.mark.parametrize("speed", [1.0, 240.0])
def test_only_what_no_clock_of_this_loop_can_have_allowed_is_refused(speed: float) -> None:
    most = T0 + POLICY.ahead_ms + round(SKEW_MS * speed)
    assert not is_set_back(seen_until(most), at(T0, speed), WALL_S)
    with pytest.raises(ClockError):
        is_set_back(seen_until(most + 1), at(T0, speed), WALL_S)
    later = WALL_S + 1 / speed  # the clock has come as far
    assert not is_set_back(seen_until(most + 1), at(T0, speed), later)


def test_the_remedy_of_a_new_data_folder_helps() -> None:
    """The topics are read again by the clock that is behind: what is ahead of it is left out, the rest is learnt."""
    part, log = Partition(0, SCHEMA, POLICY), Log()
    history = [
        m
        for hour in (0, 4, 8)
        for name, ts in [(f"r{hour}", T0 + hour * HOUR)]
        for m in (*log.page_logs(page_log(name, ts, [1])), *log.events(exposure(name, ts, [1])))
    ]
    now = T0 + 4 * HOUR
    out = part.take(history, now)
    assert [d.reason for d in out.dead] == ["future"]
    assert not is_set_back(part, at(now), WALL_S)
    live = [*log.page_logs(page_log("live", now + 1, [1])), *log.events(exposure("live", now + 1, [1]))]
    out = part.take(live, now + 1)
    assert "late" not in out.counts
    assert not out.dead


def test_a_log_of_long_ago_and_an_empty_partition_are_not_ahead() -> None:
    assert not is_set_back(seen_until(T0), at(T0 + 400 * 24 * HOUR), WALL_S)
    assert not is_set_back(Partition(0, SCHEMA, POLICY), EventClock(round(WALL_S * 1000), 0, 1.0), WALL_S)


# ---------------------------------------------------------------------- one event ahead of the clock


class Shop:
    """A partition that hears of each page and click when they happen, by a clock that is right."""

    def __init__(self) -> None:
        self.part, self.log, self.total = Partition(0, SCHEMA, POLICY), Log(), Sum()
        self.now_ms = T0

    def comes(self, topic: str, raw: bytes) -> None:
        self.total += self.part.take([self.log(topic, raw)._replace(clock_ms=self.now_ms)], self.now_ms)

    def page(self, name: str, user: int, ahead_ms: int = 0) -> None:
        """A page of two items; the telephone's clock may be wrong."""
        self.comes("page_logs", page_log(name, self.now_ms, [1, 2], user=user))
        self.comes("events", exposure(name, self.now_ms + ahead_ms, [1, 2], user_id=user))

    def click(self, name: str, user: int, position: int = 0, ahead_ms: int = 0) -> None:
        self.comes("events", action("click", name, self.now_ms + ahead_ms, position, position + 1, user_id=user))

    def kinds(self, name: str, position: int = 0) -> list[int]:
        return [row.kind for row in self.total.samples if (row.request, row.position) == (name, position)]


@pytest.mark.parametrize("saved", [False, True])
def test_one_click_ahead_of_the_clock_moves_nobody_elses_time_and_is_used_when_its_time_comes(saved: bool) -> None:
    shop = Shop()
    for minute in range(60):
        shop.now_ms = T0 + minute * MINUTE
        shop.page(f"p{minute}", minute % 5)
        if minute >= 2:  # each page is clicked two minutes later
            shop.click(f"p{minute - 2}", (minute - 2) % 5)
        if minute == 10:
            shop.click("p10", 0, position=1, ahead_ms=30 * MINUTE)
            if saved:
                shop.part = resumed(shop.part.snapshot().to_bytes())
        assert shop.part.newest_ms == shop.now_ms
        assert shop.part.ahead_ms == (T0 + 40 * MINUTE if 10 <= minute < 40 else 0)
    shop.total += shop.part.advance(T0 + 5 * HOUR)
    assert shop.total.counts["ahead"] == 1
    assert not shop.total.counts["late"]
    assert not shop.total.dead
    assert [shop.kinds(f"p{minute}") for minute in range(58)] == [[POSITIVE]] * 58
    assert shop.kinds("p10", 1) == [NEGATIVE, CORRECTION]  # by its own date it came half an hour after its page


def test_silence_brings_what_is_ahead_when_its_time_comes_even_to_a_partition_that_has_nothing_else() -> None:
    shop = Shop()
    shop.page("p", 7, ahead_ms=10 * MINUTE)
    assert (shop.part.newest_ms, shop.part.pending) == (0, 0)
    one = Turn(shop.part, PACE, at(T0), Now(0.0, WALL_S))
    for seconds, expected in ((540.0, 0), (600.0, 2)):
        read = {t: ReadTo(1, 1, WALL_S + seconds, 1) for t in ("events", "page_logs")}
        dues = list(one.outbound(read, one.partition.newest_ms, Now(seconds, WALL_S + seconds)))
        for due in dues:
            one.done(due)
        for due in one.inbound(read, Now(seconds, WALL_S + seconds)):
            assert isinstance(due, Advance)
            shop.total += shop.part.advance(due.until_ms)
        assert shop.part.pending == expected


def test_most_users_move_the_time_and_one_user_does_not_however_many_pages_there_are() -> None:
    one, some = Shop(), Shop()
    for n in range(60):
        for shop, user in ((one, 7), (some, n)):
            shop.now_ms = T0 + n * 1000
            shop.page(f"a{n}", user, ahead_ms=30 * MINUTE)
            if shop is some or n % 10 == 0:  # the clocks of others are right
                shop.page(f"b{n}", 1000 + n)
                shop.page(f"c{n}", 2000 + n)
    for shop in (one, some):  # most pages, of one user; pages of a third of the users
        assert shop.part.newest_ms <= shop.now_ms
        assert shop.total.counts["ahead"] == 60
    for n in range(31):
        some.now_ms += 1000
        some.page(f"d{n}", 3000 + n, ahead_ms=30 * MINUTE)
    assert some.now_ms + 29 * MINUTE < some.part.newest_ms <= some.now_ms + 30 * MINUTE
    assert not some.total.counts["late"]


def test_a_user_who_comes_again_is_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three pages, two must be ahead. When the fifth page comes, that of the user 2 is the oldest of four."""
    monkeypatch.setattr("millrace.contracts.clock.PAGES", 3)
    shop = Shop()
    for n, (user, ahead) in enumerate([(1, False), (2, True), (1, False), (3, False), (4, True)]):
        shop.page(f"p{n}", user, ahead_ms=30 * MINUTE * ahead)
    assert shop.part.newest_ms == shop.now_ms
    shop.page("p5", 5, ahead_ms=30 * MINUTE)
    assert shop.part.newest_ms == shop.now_ms + 30 * MINUTE


def test_more_that_is_ahead_than_can_be_held_is_from_the_future(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_events, "MOST_BYTES", 1000)
    shop = Shop()
    for n in range(10):
        shop.page(f"p{n}", 7, ahead_ms=30 * MINUTE + n)
    held = shop.total.counts["ahead"]
    assert 0 < held < 10
    assert [dead_letter.reason for dead_letter in shop.total.dead] == ["future"] * (10 - held)
    assert f"30 min ahead of the clock, where {held} such events wait already" == shop.total.dead[-1].detail
    shop.now_ms += HOUR
    shop.total += shop.part.advance(shop.now_ms)
    assert shop.total.counts["exposures"] == 20 == 2 * held + shop.total.lost
    assert not shop.part.ahead_ms
    shop.page("again", 7, ahead_ms=30 * MINUTE)  # there is room again
    assert shop.part.ahead_ms


# ---------------------------------------------------------------------- a watermark that silence moved


def moved_by_silence(announced_only: bool) -> Partition:
    """Newest event at T0; silence has moved on by two hours, or a checkpoint announces that it will."""
    part = seen_until(T0)
    if announced_only:
        return resumed(part.snapshot(T0 + 2 * HOUR).to_bytes())
    part.advance(T0 + 2 * HOUR)
    return part


@pytest.mark.parametrize("announced_only", [False, True])
def test_a_watermark_that_silence_moved_is_set_back_after_the_announced_advance(announced_only: bool) -> None:
    part = moved_by_silence(announced_only)
    now = Now(0.0, WALL_S)
    clock = at(T0 + 5 * MINUTE)
    turn = Turn(part, PACE, clock, now)
    live = exposure("live", T0 + 4 * MINUTE, [1])
    turn.arrived(arrival(0, "page_logs", 1, page_log("live", T0 + 4 * MINUTE, [1]), WALL_S, None, clock, WALL_S), now)
    dues, outputs = [], []
    for due in turn.inbound({}, now):
        dues.append(type(due))
        match due:
            case Advance(until_ms):
                outputs.append(part.advance(until_ms))
            case SetBack():
                part.set_back()
            case Take(messages):
                outputs.append(part.take(messages, T0 + 5 * MINUTE))
    assert dues == [*([Advance] if announced_only else []), SetBack, Take]
    assert part.watermark_ms == T0 - POLICY.disorder_ms
    if announced_only:  # the promise of the checkpoint is kept
        assert outputs[0].samples is not None
        assert outputs[0].samples.kind.tolist() == [NEGATIVE]
    assert SetBack() not in list(turn.inbound({}, now))
    out = part.take([*Log().events(b"", live)][1:], T0 + 5 * MINUTE)
    assert "late" not in out.counts
    assert part.pending == 1
    again = resumed(part.snapshot().to_bytes())
    assert not is_set_back(again, clock, WALL_S)


def test_within_what_wall_clocks_differ_nothing_is_set_back() -> None:
    part = moved_by_silence(False)
    assert not is_set_back(part, at(T0 + 2 * HOUR - SKEW_MS), WALL_S)
    assert is_set_back(part, at(T0 + 2 * HOUR - SKEW_MS - 1), WALL_S)


def never(*_: Any) -> bool:
    """Nobody looks at the clock at a start."""
    return False


LIVE: list[Happening] = [RUN(1), page("b"), click("b"), page("c"), RUN(2), click("c")]


def test_a_loop_whose_events_are_ahead_does_not_go_on_and_without_the_rule_all_is_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other clock is more than a day behind."""
    story = [page("a"), click("a"), SILENCE(14), OTHER_CLOCK(30), *LIVE]
    with pytest.raises(ClockError, match=r"partition 0 .*ahead of the event clock"):
        Scene().play(story)
    monkeypatch.setattr(rules, "is_set_back", never)
    assert Scene().play(story).finish().dead["late"] == 4


BEHIND: list[Happening] = [page("a"), SILENCE(14), OTHER_CLOCK(14 * 240 / 3600 - 0.1)]
"""Event time runs at 240, so silence moves the watermark the better part of an hour. Then a clock shows the time of the
last event and six minutes."""


@pytest.mark.parametrize("crashes", [[], [CRASH], [RUN(0.3), CRASH], [RUN(0.6), CRASH, RUN(0.6), CRASH]], ids=str)
def test_a_loop_goes_on_by_a_clock_that_is_behind_its_silence(
    crashes: list[Happening], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream.worker.clock_check.SKEW_S", 1.0)  # 4 minutes by this scene's clock
    scene = Scene().play([*BEHIND, *crashes, *LIVE]).finish().check()
    assert scene.dues["SetBack"] >= 1
    assert (scene.kinds("a"), scene.kinds("b"), scene.kinds("c")) == ({NEGATIVE: 1}, {POSITIVE: 1}, {POSITIVE: 1})


def test_without_the_rule_no_label_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "is_set_back", never)
    scene = Scene().play([*BEHIND, *LIVE]).finish()
    assert scene.kinds("b") + scene.kinds("c") == {NEGATIVE: 2, CORRECTION: 2}


# ---------------------------------------------------------------------- by its own clock


@st.composite
def calm_stories(draw: st.DrawFn) -> list[Happening]:
    number, story = 0, list[Happening]()
    for _ in range(draw(st.integers(1, 10))):
        kind = draw(st.integers(0, 4))
        if kind == 0 or not number:
            story.append(page(f"p{number}", draw(st.integers(0, 1))))
            number += 1
        elif kind == 1:
            story.append(SILENCE(draw(st.sampled_from([0.3, 4.0, 14.0]))))
        else:
            story.append(CRASH)
    return story


@given(calm_stories())
def test_a_crash_under_the_same_clock_is_never_refused_and_sets_nothing_back(story: list[Happening]) -> None:
    assert not Scene(rests=0).play(story).finish().check().dues["SetBack"]


# ---------------------------------------------------------------------- the worker


def worker(folder: Path, clock: EventClock) -> StreamWorker:
    settings = load_settings(
        {"kafka": "127.0.0.1:1", "redis": "127.0.0.1:1", "data": str(folder), "clock": clock.encode()}, environ={}
    )
    return StreamWorker(settings, SCHEMA, settings.event_clock())


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    """The moment that the workers of a test live in."""
    moment = Now(0.0, WALL_S)
    monkeypatch.setattr(StreamWorker, "_now", lambda _: moment)
    monkeypatch.setattr("millrace.processes.wall.wall_ms", lambda: round(WALL_S * 1000))
    return moment


async def test_a_worker_that_is_given_partitions_ahead_of_its_clock_ends_with_the_line(
    tmp_path: Path, now: Now, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell = worker(tmp_path, at(T0))
    part = seen_until(T0 + 9 * HOUR)
    shell.outlet.checkpoints.load(Partition(0, SCHEMA, POLICY)).line.write([], part.snapshot())
    assigned = {TP(topic, 0) for topic in rules.INPUTS}
    monkeypatch.setattr(shell.app, "partitions_of", lambda _: 1)
    monkeypatch.setattr("stream.worker.stream_worker.ids_of_inputs", lambda _: dict.fromkeys(rules.INPUTS, "id"))
    monkeypatch.setattr("stream.worker.takeover.ends_of", lambda *_: {})
    await shell.assigned(shell.app, assigned)
    assert await shell.positions() == {}, "Faust waits for nothing"
    assert isinstance(shell.failure, ClockError)
    assert shell.turns.positions() is None, "and nothing that it reads is taken"


async def test_a_worker_says_that_it_sets_a_watermark_back(tmp_path: Path, now: Now) -> None:
    shell = worker(tmp_path, at(T0 + 5 * MINUTE))
    shell.turns.begin([moved_by_silence(False)], now)
    with capture_logs() as logs:
        for turn in shell.turns:
            for due in turn.inbound({}, now):
                await shell._do(turn, due)
    (line,) = logs
    assert line["log_level"] == "warning"
    assert re.match("another event clock had moved the watermark ahead", line["event"])
    assert (line["watermark"], line["set_back_to"]) == ("2024-10-04 01:59 UTC", "2024-10-03 23:59 UTC")
    assert [turn.partition.watermark_ms for turn in shell.turns] == [T0 - POLICY.disorder_ms]
