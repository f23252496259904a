"""The line for the log when most of what comes is of no use: when it is due, what it says, and when there is none."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from millrace.basics.hashing import kafka_partition
from millrace.contracts.events import key_of
from millrace.contracts.settings import load_settings
from stream.partition.partition import InputMessage, Partition, StepOutput
from stream.worker.alarms import CAUSES, ENOUGH, QUIET_S, REMEDIES, WINDOW_S, AlarmLine, Alarms
from stream.worker.stream_worker import StreamWorker
from stream.worker.turn import Now, Take, Turn
from tests.scenes.stream_world import HOUR, MINUTE, POLICY, SCHEMA, T0, exposure, page_log

PARTITIONS = 4
Place = Callable[[int, int], int]  # (user, how many partitions) -> partition


def by_key(user: int, partitions: int) -> int:
    return kafka_partition(key_of(user), partitions)


def by_crc32(user: int, partitions: int) -> int:
    return zlib.crc32(key_of(user)) % partitions


class World:
    """Pages of many users through partitions and alarms, a page a second."""

    def __init__(self, partitions: int = PARTITIONS) -> None:
        self.partitions = [Partition(number, SCHEMA, POLICY, partitions) for number in range(partitions)]
        self.alarms = Alarms(partitions)
        self.now_s = 100.0
        self.pages = 0
        self.lines: list[tuple[float, AlarmLine]] = []

    @property
    def clock_ms(self) -> int:
        return T0 + round(self.now_s * 1000)

    def put(self, topic: str, number: int, raw: bytes) -> StepOutput:
        partition = self.partitions[number]
        message = InputMessage(topic, partition.offsets.get(topic, 0), raw)
        output = partition.take([message], self.clock_ms)
        self.alarms.note(number, output, self.now_s)
        return output

    def look(self) -> None:
        line = self.alarms.line(self.partitions, self.clock_ms, self.now_s)
        if line is not None:
            self.lines.append((self.now_s, line))

    def page(self, *, served: bool = True, ahead_ms: int = 0, place: Place = by_key) -> StepOutput:
        user, request, ts_ms = self.pages, f"r{self.pages}", self.clock_ms + ahead_ms
        self.pages += 1
        if served:
            self.put("page_logs", by_key(user, len(self.partitions)), page_log(request, ts_ms, [1, 2], user))
        number = place(user, len(self.partitions))
        output = self.put("events", number, exposure(request, ts_ms, [1, 2], user_id=user))
        self.look()
        self.now_s += 1.0
        return output

    def pages_of(self, seconds: int, **how: object) -> World:
        for _ in range(seconds):
            self.page(**how)  # type: ignore[arg-type]
        return self


def test_a_loop_in_order_says_nothing() -> None:
    assert not World().pages_of(300).lines


def late(world: World) -> None:
    """Another clock has left every watermark hours ahead."""
    for partition in world.partitions:
        partition.advance(T0 + 9 * HOUR)
    world.pages_of(200)


def future(world: World) -> None:
    world.pages_of(200, ahead_ms=3 * HOUR)


def unserved(world: World) -> None:
    world.pages_of(200, served=False)


def keyless(world: World) -> None:
    """Round and round, as a producer does without a key."""
    turn = iter(range(10**6))
    world.pages_of(200, place=lambda _, partitions: next(turn) % partitions)


def other_hash(world: World) -> None:
    world.pages_of(200, place=by_crc32)


CASES: dict[str, tuple[Callable[[World], None], str, str]] = {
    "late": (late, "late", "has come to 2024-10-04 08:59 UTC, the event clock to 2024-10-04 00:0"),
    "future": (future, "future", "beyond what is allowed ahead of the clock"),
    "unserved": (unserved, "no-page-log", "has no page log"),
    "no key": (keyless, "wrong-partition", "belongs to partition"),
    "CRC-32": (other_hash, "wrong-partition", "belongs to partition"),
}


@pytest.mark.parametrize("partitions", [2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_most_events_of_no_use_are_a_line_at_most_each_minute(name: str, partitions: int) -> None:
    happen, cause, example = CASES[name]
    world = World(partitions)
    happen(world)
    times = [at_s for at_s, _ in world.lines]
    assert times
    assert times[0] <= 100 + max(WINDOW_S, ENOUGH) + 1
    assert [b - a for a, b in pairwise(times)] == [QUIET_S] * (len(times) - 1)
    assert len(times) == 1 + (299 - int(times[0])) // QUIET_S
    line = world.lines[0][1]
    assert next(iter(line.counts)) == cause
    assert line.events >= ENOUGH
    assert 0.5 < line.share <= 1.0
    assert example in line.example
    assert line.remedy == REMEDIES[cause]


def test_each_cause_has_its_remedy() -> None:
    assert tuple(REMEDIES) == CAUSES
    assert not any("\n" in remedy for remedy in REMEDIES.values())


def test_the_example_of_a_wrong_partition_names_user_and_both_partitions() -> None:
    world = World()
    other_hash(world)
    astray = [u for u in range(world.pages) if by_crc32(u, PARTITIONS) != by_key(u, PARTITIONS)]
    assert any(
        f"user {u} came in partition {by_crc32(u, PARTITIONS)}, but belongs to partition {by_key(u, PARTITIONS)} of 4"
        in world.lines[0][1].example
        for u in astray
    )


def test_a_minority_is_no_line_and_few_events_are_none() -> None:
    world = World()
    for number in range(300):
        world.page(served=number % 3 != 0, ahead_ms=3 * HOUR if number % 12 == 1 else 0)  # 4 and 1 of 12
    few = World().pages_of(ENOUGH - 1, served=False)
    few.now_s += 1000.0
    few.look()
    assert not world.lines
    assert not few.lines
    few.pages_of(1, served=False)
    assert len(few.lines) == 1, "the window has only lasted longer"


def test_causes_add_up() -> None:
    world = World()
    for number in range(200):
        world.page(served=number % 3 != 0, ahead_ms=3 * HOUR if number % 3 == 1 else 0)
    line = world.lines[0][1]
    assert set(line.counts) == {"no-page-log", "future"}
    assert line.share == pytest.approx(2 / 3, abs=0.5 * 3 / line.events + 0.05)


def test_one_partition_of_many_is_reported_alone() -> None:
    world = World()
    world.partitions[2].advance(T0 + 9 * HOUR)
    world.pages_of(1000)
    assert world.lines
    for _, line in world.lines:
        assert line.counts == {"late": line.events}
        assert line.example.startswith("partition 2 has come to")
        assert line.events < 1000 / 2


def test_a_page_that_comes_before_its_page_log_is_no_case() -> None:
    """The page log follows each page some seconds later, as from a scorer that is slow to log."""
    world = World()
    for number in range(300):
        world.page(served=False)
        if number >= 4:
            user = number - 4
            raw = page_log(f"r{user}", world.clock_ms, [1, 2], user)
            world.put("page_logs", by_key(user, PARTITIONS), raw)
    assert not world.lines


def test_silence_and_the_end_of_what_waited_are_no_events() -> None:
    """Hours later the exposures without a page log become dead letters: they were told of when they came."""
    world = World().pages_of(2 * ENOUGH, served=False)
    world.now_s += QUIET_S
    world.look()
    reported = len(world.lines)
    world.now_s += 3 * HOUR / 1000
    for partition in world.partitions:
        world.alarms.note(partition.number, partition.advance(world.clock_ms), world.now_s)
    assert sum(partition.pending for partition in world.partitions) == 0
    world.look()
    world.pages_of(200)
    assert len(world.lines) == reported


def test_the_worker_logs_the_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({"kafka": "127.0.0.1:1", "redis": "127.0.0.1:1", "data": str(tmp_path)}, environ={})
    ticks: Iterator[float] = iter([*range(100, 200), *([1000.0] * 100)])

    async def main() -> None:
        shell = StreamWorker(settings, SCHEMA, settings.event_clock())
        emitted: list[StepOutput] = []

        async def emit(_: int, output: StepOutput) -> None:
            emitted.append(output)

        monkeypatch.setattr(shell, "_now", lambda: Now(next(ticks), 1e9))
        monkeypatch.setattr(shell.outlet, "emit", emit)
        shell.alarms.partitions = PARTITIONS
        turn = Turn(Partition(0, SCHEMA, POLICY, PARTITIONS), shell.turns._pace, shell.clock, Now(0.0, 1e9))
        strangers = [user for user in range(200) if by_key(user, PARTITIONS) != 0][: 2 * ENOUGH]
        for offset, user in enumerate(strangers):
            raw = exposure(f"r{offset}", T0 + MINUTE, [1, 2], user_id=user)
            await shell._do(turn, Take([InputMessage("events", offset, raw)]))
        shell._alarm()
        shell._alarm()
        assert sum(len(output.dead) for output in emitted) == len(strangers)

    with capture_logs() as logs:
        asyncio.run(main())
    (line,) = [one for one in logs if "share" in one]
    assert (line["log_level"], line["event"]) == ("warning", "most events cannot be learnt from as they should be")
    of_reasons = [one for one in logs if one is not line]
    assert [(one["reason"], one["count"]) for one in of_reasons] == [("wrong-partition", 2 * ENOUGH)]
    assert (line["share"], line["events"], line["wrong-partition"]) == ("100%", 2 * ENOUGH, 2 * ENOUGH)
    assert "came in partition 0, but belongs to partition" in line["example"]
    assert line["remedy"] == REMEDIES["wrong-partition"]
    assert not any("\n" in str(value) for value in line.values())
