# core
"""What a client is made with, and what becomes of refused events: the same for both clients."""

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
"""Seconds that the end waits for events that are not yet kept."""
MOST_REFUSALS, QUIET_S = 1000, 60.0
log = logging.getLogger("millrace_client")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a client behaves; each has a default that suits a web shop.

    Args:
        batch_size: events are sent when so many wait (at most 1,000) ...
        batch_seconds: ... or when the oldest has waited so long.
        queue_size: events that may wait here, those on their way included.
        when_full: what an event does that finds the queue full: ``block`` waits for room, ``raise`` raises QueueFull.
        timeout_s: seconds until a request to the intake counts as not answered. The intake itself gives up after 10.
        patience_s: seconds within which items, users and deletions are tried again, and that ``flush`` waits.
        page_s: seconds for a page, with everything that is tried again.
        on_refused: called with each event that was refused, on the sender's loop: it may report events, and wait for
            nothing.
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
    """What went wrong with queued events, for whoever asks later.

    Attributes:
        refused: the newest events that were not taken, with the reason of each.
        refused_total: how many there were since the start.
        failed: the first error since the last ``flush`` for which events were handed back.
        latest: why the batch that waits now was not taken yet; None: nothing is wrong.
    """

    on_refused: Callable[[Refusal], None] | None = None
    refused: deque[Refusal] = field(default_factory=lambda: deque(maxlen=MOST_REFUSALS))
    refused_total: int = 0
    failed: MillraceClientError | None = None
    latest: MillraceClientError | None = None
    _said_s: float = float("-inf")

    def refuse(self, refusals: Sequence[Refusal], now_s: float) -> None:
        """Keeps refused events, says so, and hands each to the callback. A callback that fails is logged."""
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
        """Events of a batch that would fail again: each becomes a refusal with the error as its reason."""
        self.failed = self.failed or error
        self.refuse([Refusal(line, type(error).__name__, str(error)) for line in lines], now_s)

    def say(self, text: str, now_s: float) -> None:
        """A warning in the log, at most one a minute."""
        if now_s - self._said_s >= QUIET_S:
            self._said_s = now_s
            log.warning("%s", text)


def addresses(intake: str | None, scorer: str | None, token: str | None) -> Addresses:
    """What was given; else what the environment names; else where ``millrace up`` answers."""
    env = os.environ
    return Addresses(
        intake or env.get("MILLRACE_INTAKE") or INTAKE,
        scorer or env.get("MILLRACE_SCORER") or SCORER,
        token or env.get("MILLRACE_TOKEN") or None,
    )


def expected(error: Exception) -> MillraceClientError:
    """The error itself, or one that says that it is a bug of the client."""
    if isinstance(error, MillraceClientError):
        return error
    log.error("a batch of events failed", exc_info=error)
    return MillraceClientError(f"{type(error).__name__}: {error}", "this is a bug of the client: report it")


def unsent(n: int, latest: MillraceClientError | None) -> TooMuch | Unavailable:
    """The error of a flush that found no end in time: of the kind of what holds the events up."""
    kind = TooMuch if isinstance(latest, TooMuch) else Unavailable
    why = f": {latest.problem}" if latest is not None else ""
    return kind(f"{n} events are not kept yet{why}", "they still wait: flush again, or look at the intake's log")
