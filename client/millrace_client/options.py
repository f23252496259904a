# core
"""Options of a client and its handling of refused events, for both clients."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from millrace_client.calls import Addresses
from millrace_client.errors import BadRequest, MillraceClientError, TooMuch, Unavailable
from millrace_client.messages import Refusal

INTAKE, SCORER = "http://127.0.0.1:8720", "http://127.0.0.1:8700"
"""Where ``millrace up`` answers."""
CLOSE_S = 10.0
"""Seconds that :meth:`close` waits for unsent events."""
MOST_REFUSALS, QUIET_S = 1000, 60.0
log = logging.getLogger("millrace_client")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Behaviour of a client. The defaults suit a web shop.

    Args:
        batch_size: events are sent when so many wait (at most 1,000) ...
        batch_seconds: ... or when the oldest has waited so long.
        queue_size: limit of queued events, including those in flight.
        when_full: for a full queue: ``block`` waits for space, ``raise`` raises QueueFull.
        timeout_s: timeout in seconds for a request to the intake. The intake itself gives up after 10.
        patience_s: seconds for retries of items, users and deletions, and for ``flush``.
        page_s: seconds for a page, including retries.
        on_refused: called with each refused event, on the sender's loop: it may report events, but must not wait.
    """

    batch_size: int = 200
    batch_seconds: float = 0.2
    queue_size: int = 10_000
    when_full: Literal["block", "raise"] = "block"
    timeout_s: float = 15.0
    patience_s: float = 30.0
    page_s: float = 2.0
    on_refused: Callable[[Refusal], None] | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "queue_size", "timeout_s", "patience_s", "page_s"):
            if not getattr(self, name) > 0:
                raise BadRequest(f"{name} {getattr(self, name)!r} is not above 0", f"give {name} a positive number")
        if not self.batch_seconds >= 0:
            raise BadRequest(f"batch_seconds {self.batch_seconds!r} is below 0", "give seconds, or 0")
        if self.when_full not in ("block", "raise"):
            raise BadRequest(f"when_full {self.when_full!r} is unknown", "give 'block' or 'raise'")


@dataclass(slots=True)
class Troubles:
    """Failures of queued events, for later questions.

    Attributes:
        refused: the newest refused events, with their reasons.
        refused_total: their number since the start.
        failed: the first error since the last ``flush`` that made the client give up events.
        latest: why the current batch is not stored yet; None: no error.
    """

    on_refused: Callable[[Refusal], None] | None = None
    refused: deque[Refusal] = field(default_factory=lambda: deque(maxlen=MOST_REFUSALS))
    refused_total: int = 0
    failed: MillraceClientError | None = None
    latest: MillraceClientError | None = None
    _said_s: float = float("-inf")

    def refuse(self, refusals: Sequence[Refusal], now_s: float) -> None:
        """Keeps and logs refused events, and calls the callback with each. A failing callback is logged."""
        for refusal in refusals:
            self.refused.append(refusal)
            self.refused_total += 1
            if self.on_refused is not None:
                try:
                    self.on_refused(refusal)
                except Exception:
                    log.exception("on_refused failed for an event; mend the callback")
        if refusals:
            self.say(f"{len(refusals)} events were refused: {refusals[0].reason}: {refusals[0].detail}", now_s)

    def hand_back(self, lines: Sequence[bytes], error: MillraceClientError, now_s: float) -> None:
        """Gives up events of a batch that would fail again: each becomes a refusal with the error as its reason."""
        self.failed = self.failed or error
        self.refuse([Refusal(line, type(error).__name__, str(error)) for line in lines], now_s)

    def say(self, text: str, now_s: float) -> None:
        """A warning in the log, at most one a minute."""
        if now_s - self._said_s >= QUIET_S:
            self._said_s = now_s
            log.warning("%s", text)


def addresses(intake: str | None, scorer: str | None, token: str | None) -> Addresses:
    """The given values; else those of the environment; else where ``millrace up`` answers."""
    env = os.environ
    return Addresses(
        intake or env.get("MILLRACE_INTAKE") or INTAKE,
        scorer or env.get("MILLRACE_SCORER") or SCORER,
        token or env.get("MILLRACE_TOKEN") or None,
    )


def expected(error: Exception) -> MillraceClientError:
    """The error itself if it is an expected one, else one that reports a bug of the client."""
    if isinstance(error, MillraceClientError):
        return error
    log.error("a batch of events failed", exc_info=error)
    return MillraceClientError(f"{type(error).__name__}: {error}", "this is a bug of the client: report it")


def unsent(n: int, latest: MillraceClientError | None) -> TooMuch | Unavailable:
    """The error of a flush that ran out of time, of the kind of its cause."""
    kind = TooMuch if isinstance(latest, TooMuch) else Unavailable
    why = f": {latest.problem}" if latest is not None else ""
    return kind(f"{n} events are not kept yet{why}", "they still wait: flush again, or look at the intake's log")
