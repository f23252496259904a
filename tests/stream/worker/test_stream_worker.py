"""What the stream role's shell does by itself: end, and wait, as it is told. One test joins a broker."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaError
from faust.types import TP

from millrace.basics.errors import BrokerError, ServiceError
from millrace.contracts.samples import CORRECTION
from millrace.contracts.settings import Settings, load_settings
from millrace.contracts.topics import EVENTS
from millrace.processes.kafka import create_topics
from millrace.processes.services import EmbeddedBroker
from millrace.processes.spawn import spawn, stop
from stream.partition.journal import Journal
from stream.partition.partition import InputMessage, Partition
from stream.partition.partition_checkpoint import CheckpointStore
from stream.worker.faustio import StreamApp
from stream.worker.stream_output import WorkerOutput
from stream.worker.stream_worker import StreamWorker, _as_expected, _until
from stream.worker.turn import INPUTS, Checkpoint, Now, Recall, Turn
from tests.scenes.stream_world import HOUR, POLICY, SCHEMA, T0, Log, action, exposure, page_log, rows
from tests.scenes.turn_scene import CLOCK, PACE, WALL_S
from tests.scenes.waiting import PATIENCE, until


def worker(folder: Path) -> StreamWorker:
    settings = load_settings({"kafka": "127.0.0.1:1", "redis": "127.0.0.1:1", "data": str(folder)}, environ={})
    return StreamWorker(settings, SCHEMA, settings.event_clock())


def test_the_broker_knows_prefixed_names_and_we_know_ours(tmp_path: Path) -> None:
    async def nothing(*_: Any) -> Any:
        return {}

    app = StreamApp(load_settings({"kafka": "127.0.0.1:1", "prefix": "b-shop."}, environ={}), nothing, tmp_path)
    app.feed(nothing)
    assert app.conf.id == "b-shop.millrace-stream"
    assert {t for agent in app.agents.values() for t in agent.channel.topics} == {f"b-shop.{t}" for t in INPUTS}
    assert app.at_broker(TP("events", 1)) == ("b-shop.events", 1)
    assert app.logical(TP("b-shop.events", 1)) == TP("events", 1)


async def test_positions_wait_for_the_state_and_are_none_once_it_was_given_up(tmp_path: Path) -> None:
    shell = worker(tmp_path)
    asked = asyncio.create_task(shell.positions())
    await asyncio.sleep(0)
    assert not asked.done()
    shell.turns.begin([Partition(0, SCHEMA, POLICY)], shell._now())
    shell._loaded.set()
    assert {(tp.topic, tp.partition): offset for tp, offset in (await asked).items()} == {(t, 0): 0 for t in INPUTS}
    await shell.give_up()
    assert await shell.positions() == {}  # Faust may still ask while it stops


async def test_a_task_that_ends_because_something_else_was_cancelled_is_a_failure(tmp_path: Path) -> None:
    shell, lost = worker(tmp_path), asyncio.get_running_loop().create_future()

    async def outlet() -> None:
        await lost

    task = asyncio.create_task(_as_expected(shell.settings, outlet(), "the outlet"))
    await asyncio.sleep(0)
    lost.cancel()
    with pytest.raises(ServiceError, match="the outlet ended by itself"):
        await task


async def test_an_outlet_ends_though_a_library_swallows_its_cancellation(tmp_path: Path) -> None:
    """As the Redis client does on Python 3.11, when its answer comes in the same moment."""
    outlet, began = worker(tmp_path).outlet, asyncio.Event()

    async def swallows() -> None:
        began.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)

    outlet._jobs.put_nowait(swallows)
    task: asyncio.Task[Any] = asyncio.create_task(outlet.run())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("answer", [None, KafkaError("no broker")])
def test_a_checkpoint_waits_until_its_samples_are_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: KafkaError | None
) -> None:
    """It says that they need not be made again. Where they cannot be delivered, there is none."""

    async def main() -> None:
        settings = load_settings({"redis": "127.0.0.1:1", "data": str(tmp_path)}, environ={})
        sent, committed = [], []

        class Withholds:
            async def send(self, *_: Any, **__: Any) -> asyncio.Future[None]:
                sent.append(asyncio.get_running_loop().create_future())
                return sent[-1]

        async def commit(offsets: dict[TP, int]) -> None:
            committed.append(offsets)

        async def at_once(call: Any, *args: Any) -> Any:
            return call(*args)

        monkeypatch.setattr(asyncio, "to_thread", at_once)
        outlet, partition, log = WorkerOutput(settings, SCHEMA, commit), Partition(0, SCHEMA, POLICY), Log()
        outlet._producer = Withholds()
        outlet.owns(0, outlet.checkpoints.load(partition).line)
        partition.journal = Journal()
        page = [*log.page_logs(page_log("a", T0, [1, 2])), *log.events(exposure("a", T0, [1, 2]))]
        partition.take([*page, *log.events(action("click", "a", T0, 0, 1))], T0)
        await outlet.emit(0, partition.advance(T0 + HOUR))
        before, turn = outlet.checkpoints.names(0), Turn(partition, PACE, CLOCK, Now(wall_s=WALL_S + 60, steady_s=0.0))
        await outlet.checkpoint(turn, Checkpoint(None))
        task: asyncio.Task[Any] = asyncio.create_task(outlet.run())
        for _ in range(100):  # all that it can do without an answer
            await asyncio.sleep(0)
        assert sent
        assert (outlet.checkpoints.names(0), committed) == (before, [])
        for one in sent:
            one.set_exception(answer) if answer else one.set_result(None)
        if answer:
            with pytest.raises(KafkaError):
                await task
            assert (outlet.checkpoints.names(0), committed) == (before, [])
            return
        await outlet.drained()
        assert len(outlet.checkpoints.names(0)) == len(before) + 1
        assert committed == [{TP("page_logs", 0): 1, TP("events", 0): 2}]
        task.cancel()

    asyncio.run(main())


@pytest.mark.parametrize("ids", [("A", "A", ""), ("A", "B", "")])
async def test_a_broker_that_came_back_with_other_topics_ends_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: tuple[str, ...]
) -> None:
    """After a silence it is asked, once. The next start begins again, with the state at hand."""
    shell, silent_s, asked = worker(tmp_path), [0.0, 2.0, 0.0, 0.0], list[int]()
    shell._logs = dict.fromkeys(INPUTS, "A")
    monkeypatch.setattr(shell.turns, "silent_s", lambda *_: silent_s.pop(0))

    def ask(_: Any) -> dict[str, str]:
        asked.append(1)
        return dict(zip(INPUTS, ids, strict=True))

    monkeypatch.setattr("stream.worker.stream_worker.ids_of_inputs", ask)
    while silent_s:
        shell._check_broker([])
    await asyncio.gather(*shell._tasks)
    assert len(asked) == 1
    if ids[1] == "A":
        assert shell.failure is None
    else:
        assert isinstance(shell.failure, BrokerError)
        assert f"topics {INPUTS[1]} of broker" in str(shell.failure)


async def test_page_logs_are_read_in_the_background_and_given_to_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell, log = worker(tmp_path), Log()
    partition = Partition(0, SCHEMA, POLICY, settles=True)
    raw = page_log("a", T0, [1, 2])
    partition.take([*log.page_logs(raw), *log.events(exposure("a", T0, [1, 2]))], T0)
    partition.advance(T0 + POLICY.attribution_ms + POLICY.disorder_ms)
    partition.take(log.events(action("click", "a", T0 + 5, 1, 2)), T0 + HOUR)
    shell.turns.begin([partition], shell._now())
    read: list[Any] = []

    def reads(number: int, offsets: Iterable[int]) -> dict[int, bytes]:
        read.append((number, list(offsets)))
        return {0: raw}

    monkeypatch.setattr(shell.recaller, "read", reads)
    (turn,) = shell.turns
    recall = next(due for due in turn.outbound({}, 0, shell._now()) if isinstance(due, Recall))
    await shell._do(turn, recall)
    await asyncio.gather(*shell._tasks)
    assert read == [(0, [0])]
    sent: list[Any] = []

    async def emit(_: int, output: Any) -> None:
        sent.append(output)

    monkeypatch.setattr(shell.outlet, "emit", emit)
    for due in turn.inbound({}, shell._now()):
        await shell._do(turn, due)
    assert [row.kind for output in sent for row in rows(output.samples)] == [CORRECTION]
    assert not partition.wanted


class Slow:
    """A worker whose states are read when the test says so."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shell, self.read, self.may_read = worker(folder), list[int](), threading.Event()
        load = self.shell.outlet.checkpoints.load

        def slow(fresh: Partition, *args: Any, **kwargs: Any) -> Any:
            self.read.append(fresh.number)
            assert self.may_read.wait(PATIENCE)
            return load(fresh, *args, **kwargs)

        monkeypatch.setattr(self.shell.outlet.checkpoints, "load", slow)
        monkeypatch.setattr("stream.worker.stream_worker.ids_of_inputs", lambda _: dict.fromkeys(INPUTS, ""))
        monkeypatch.setattr("stream.worker.takeover.ends_of", lambda *_: {})
        monkeypatch.setattr(self.shell.app, "partitions_of", lambda _: 2)

    async def given(self, *numbers: int) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.shell.assigned(self.shell.app, {TP(topic, number) for topic in INPUTS for number in numbers})

    async def reads(self, number: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while number not in self.read:
                await asyncio.sleep(0.001)

    async def positions(self) -> dict[int, int]:
        """Where reading of events begins, by partition."""
        async with asyncio.timeout(PATIENCE):
            return {tp.partition: at for tp, at in (await self.shell.positions()).items() if tp.topic == EVENTS}


async def test_states_are_read_once_whatever_rebalances_come_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faust's callback returns at once: until it does, the group gets no heart-beat."""
    slow = Slow(tmp_path, monkeypatch)
    await slow.given(0, 1)
    await slow.reads(0)
    await slow.shell.revoked()
    await slow.given(0, 1)
    slow.may_read.set()
    assert await slow.positions() == {0: 0, 1: 0}
    for turn in slow.shell.turns:
        turn.partition.take([InputMessage(EVENTS, 0, b"rubbish")], T0)
    await slow.shell.revoked()  # nothing is due: what it has taken is in the journal
    await slow.given(0, 1)
    assert await slow.positions() == {0: 1, 1: 1}
    assert slow.read == [0, 1]


async def test_a_partition_that_is_lost_while_its_state_is_read_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(tmp_path, monkeypatch)
    await slow.given(0, 1)
    await slow.reads(0)
    await slow.shell.revoked()
    await slow.given()
    slow.may_read.set()
    assert await slow.positions() == {}
    assert slow.read == [0], "the rest is not read either"


@pytest.mark.parametrize("begun", [False, True])
async def test_a_state_is_read_again_where_another_worker_has_owned_the_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Between two assignments of ours, of which the first had begun, or still read."""
    slow = Slow(tmp_path, monkeypatch)
    await slow.given(0, 1)
    await slow.reads(0)
    if begun:
        slow.may_read.set()
        assert await slow.positions() == {0: 0, 1: 0}
    await slow.shell.revoked()
    line = CheckpointStore(slow.shell.settings.place("checkpoints")).load(slow.shell._fresh(0)).line
    taken = slow.shell._fresh(0)
    taken.take([InputMessage(EVENTS, 0, b"rubbish")], T0)
    line.write([], taken.snapshot())
    await slow.given(0, 1)
    slow.may_read.set()
    assert await slow.positions() == {0: 1, 1: 0}
    assert sorted(slow.read) == [0, 0, 1]


_MEMBER = """
import asyncio, sys
from pathlib import Path
from millrace.contracts.settings import Settings
from stream.worker.faustio import StreamApp

async def main():
    async def nothing(*_, **__):
        return {}

    async def assigned(_, given, **__):
        print(len(given), flush=True)

    app = StreamApp(Settings(kafka=sys.argv[1]), nothing, Path(sys.argv[2]))
    app.feed(nothing)
    app.on_partitions_assigned.connect(assigned)
    await app.start()
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.services
def test_a_worker_that_joins_a_broker_without_topics_has_them_once_they_are_there(tmp_path: Path) -> None:
    """A broker that was just started again may not know its topics yet."""
    log = tmp_path / "member.log"

    def reported() -> list[int]:
        return [int(line) for line in log.read_text().splitlines() if line.isdigit()] if log.exists() else []

    with EmbeddedBroker(tmp_path / "broker") as broker:
        member = spawn([sys.executable, "-c", _MEMBER, broker.address, str(tmp_path / "faust")], None, log)
        try:
            until(lambda: reported()[-1:] == [0], "it joins, and is assigned nothing", more=log.read_text)
            create_topics(Settings(kafka=broker.address, partitions=2))
            until(lambda: reported()[-1] == 2 * len(INPUTS), "it is assigned all", more=log.read_text)
        finally:
            stop(member)


def test_a_worker_whose_consumer_group_is_lost_ends_and_says_why() -> None:
    """Found by chaos: fenced Kafka names no broker. Aiokafka's group task ends, and the stream never begins."""

    async def lost() -> None:
        raise KafkaError("Unexpected error during coordination AssertionError('Did we not perform bootstrap?')")

    async def life() -> None:
        task = asyncio.create_task(lost())
        consumer = SimpleNamespace(_coordinator=SimpleNamespace(_coordination_task=task))
        app = SimpleNamespace(crashed=False, _consumer=SimpleNamespace(_thread=SimpleNamespace(_consumer=consumer)))
        worker: Any = SimpleNamespace(failure=None, app=app, settings=Settings(kafka="127.0.0.1:1"))
        async with asyncio.timeout(60.0):
            await _until(worker, threading.Event())

    with pytest.raises(BrokerError, match=r"failed the consumer group .*Did we not perform bootstrap"):
        asyncio.run(life())
