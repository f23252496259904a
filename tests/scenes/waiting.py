"""How tests wait: for a condition, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import ParamSpec

P = ParamSpec("P")


PATIENCE = 280.0
"""Seconds until we say that something does not come about. It only ends a broken run: in a fresh clone a role compiles
before it is ready, another's work may keep all cores busy meanwhile, and nothing is asserted about how long it takes.
"""

LONG = 1500
"""Seconds that a test may take (``pytest.mark.timeout``) that waits so several times, one after the other."""


def until(
    condition: Callable[[], bool],
    what: str,
    patience: float = PATIENCE,
    every: float = 0.02,
    more: Callable[[], str] = lambda: "",
) -> None:
    """Waits until the condition holds.

    Args:
        condition: what is looked at; it raises when it can never hold.
        what: the condition in words, for the failure.
        patience: seconds until it fails.
        every: seconds between two looks.
        more: what else the failure says, such as a log.
    """
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}\n{more()}"
        time.sleep(every)


def in_loop(story: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Makes a test of a coroutine: in an event loop of its own, and no longer than :data:`PATIENCE`."""

    @wraps(story)
    def test(*args: P.args, **others: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(story(*args, **others), PATIENCE))

    return test
