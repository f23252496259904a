"""Trying again with back-off: how long the pauses are, what is told, and whose error the caller gets at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tenacity import AsyncRetrying, Retrying

from millrace.processes.patience import patience


def failing(times: int, error: type[BaseException] = OSError) -> Callable[[], int]:
    """Raises so many times, then returns how often it was called."""
    calls = 0

    def call() -> int:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise error(f"try {calls}")
        return calls

    return call


def tries(seconds: float, pauses: list[float], reported: list[str], **options: float) -> dict[str, Any]:
    def aloud(error: str, seconds_left: int) -> None:
        assert 0 <= seconds_left <= seconds
        reported.append(error)

    return patience(seconds, OSError, aloud, **options) | {"sleep": pauses.append}


def test_pauses_double_up_to_the_longest_and_each_failed_try_is_reported() -> None:
    pauses: list[float] = []
    reported: list[str] = []
    assert Retrying(**tries(1e9, pauses, reported))(failing(7)) == 8
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert reported == [f"OSError: try {n}" for n in range(1, 8)]


def test_a_try_that_waits_by_itself_has_no_pauses() -> None:
    pauses: list[float] = []
    assert Retrying(**tries(1e9, pauses, [], first_pause_seconds=0.0))(failing(3)) == 4
    assert pauses == [0.0] * 3


def test_no_pause_reaches_beyond_the_patience() -> None:
    pauses: list[float] = []
    Retrying(**tries(0.5, pauses, [], first_pause_seconds=60.0))(failing(1))
    (pause,) = pauses
    assert 0.05 <= pause <= 0.5


def test_at_the_end_of_the_patience_the_caller_gets_the_last_error() -> None:
    with pytest.raises(OSError, match="try 1"):
        Retrying(**tries(0.0, [], []))(failing(1))


def test_an_error_of_another_kind_is_not_tried_again() -> None:
    reported: list[str] = []
    with pytest.raises(KeyError, match="try 1"):
        Retrying(**tries(1e9, [], reported))(failing(1, KeyError))
    assert reported == []


def test_a_coroutine_is_tried_again_too() -> None:
    reported: list[str] = []

    def aloud(error: str, seconds_left: int) -> None:
        reported.append(error)

    async def main() -> int:
        call = failing(2)
        async for attempt in AsyncRetrying(**patience(60.0, OSError, aloud, first_pause_seconds=0.001)):
            with attempt:
                return call()
        raise AssertionError

    assert asyncio.run(main()) == 3
    assert reported == ["OSError: try 1", "OSError: try 2"]
