# shell
"""Retries with back-off and a log line a try, for every wait for a broker or a store (on ``tenacity``)::

Retrying(**patience(30.0, OSError, aloud))(call)     the result of ``call``, or its last OSError

async for attempt in AsyncRetrying(**patience(30.0, OSError, aloud)):
    with attempt:
        await call()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tenacity import RetryCallState, retry_if_exception_type, stop_after_delay, wait_exponential

from millrace.basics.errors import one_line

LONGEST_PAUSE_SECONDS = 5.0


def patience(
    seconds: float,
    errors: type[BaseException] | tuple[type[BaseException], ...],
    aloud: Callable[..., object],
    *,
    first_pause_seconds: float = 0.2,
) -> dict[str, Any]:
    """Arguments for ``Retrying`` and ``AsyncRetrying``: pauses double, and the last try is made when the time is over.

    Args:
        seconds: after this time the error goes to the caller, who names the problem and the remedy.
        errors: errors that are retried. Any other error goes to the caller immediately.
        aloud: called after each failed try, before the next one, with ``error`` and ``seconds_left``: a logger's method
            with a text.
        first_pause_seconds: 0 where a try itself waits.
    """
    growing = wait_exponential(multiplier=first_pause_seconds, max=LONGEST_PAUSE_SECONDS)

    def left(state: RetryCallState) -> float:
        return max(seconds - (state.seconds_since_start or 0.0), 0.0)

    def pause(state: RetryCallState) -> float:
        return min(growing(state), max(left(state), 0.05))

    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if error is not None:
            aloud(error=one_line(error), seconds_left=round(left(state)))

    return {
        "retry": retry_if_exception_type(errors),
        "stop": stop_after_delay(seconds),
        "wait": pause,
        "before_sleep": before_sleep,
        "reraise": True,
    }
