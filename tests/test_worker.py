"""What the stream role's shell does by itself: end, and wait, as it is told. No service runs here."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from millrace.contracts.errors import ServiceError
from millrace.contracts.settings import load_settings
from stream.partition import Partition
from stream.turn import INPUTS
from stream.worker import Worker
from tests.stream_world import POLICY, SCHEMA


def worker(folder: Path) -> Worker:
    settings = load_settings({"kafka": "127.0.0.1:1", "redis": "127.0.0.1:1", "data": str(folder)}, environ={})
    return Worker(settings, SCHEMA, settings.event_clock())


def test_positions_wait_for_the_state_and_are_none_once_it_was_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        shell = worker(tmp_path)
        asked = asyncio.create_task(shell.positions())
        await asyncio.sleep(0)
        assert not asked.done()
        shell.turns.begin([Partition(0, SCHEMA, POLICY)], shell._now())
        shell._loaded.set()
        assert {(tp.topic, tp.partition): offset for tp, offset in (await asked).items()} == {(t, 0): 0 for t in INPUTS}
        await shell._give_up()
        assert await shell.positions() == {}  # Faust may still ask while it stops

    asyncio.run(main())


def test_a_task_that_ends_because_something_else_was_cancelled_is_a_failure(tmp_path: Path) -> None:
    async def main() -> None:
        shell, lost = worker(tmp_path), asyncio.get_running_loop().create_future()

        async def outlet() -> None:
            await lost

        task = asyncio.create_task(shell._as_expected(outlet(), "the outlet"))
        await asyncio.sleep(0)
        lost.cancel()
        with pytest.raises(ServiceError, match="the outlet ended by itself"):
            await task

    asyncio.run(main())


def test_an_outlet_ends_though_a_library_swallows_its_cancellation(tmp_path: Path) -> None:
    """As the Redis client does on Python 3.11, when its answer comes in the same moment."""

    async def main() -> None:
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

    asyncio.run(main())
