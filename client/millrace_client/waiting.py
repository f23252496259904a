# core
"""The queue of unsent events, and the times of retries. Callers pass the clock's time.

::

    add ──► lines ──► take: a batch, when batch_lines wait or the oldest has waited batch_s ──► settled
            at most ``most``, those in flight included
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

from millrace_client.calls import MOST_BYTES, MOST_LINES, parts
from millrace_client.errors import TooMuch, Unavailable

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
"""Back-off: the first pause, doubled after each failure up to the longest."""


class Waiting:
    """A queue that gives batches, of at most ``most`` events including the batch in flight. A batch is due when
    ``batch_lines`` wait, or when the oldest has waited ``batch_s``."""

    def __init__(self, most: int, batch_lines: int, batch_s: float) -> None:
        self.most, self.batch_lines, self.batch_s = most, min(batch_lines, MOST_LINES), batch_s
        self.added = self.settled = 0
        self.hurried = 0
        """Events up to this number are due at once, because a caller waits for them."""
        self._lines: deque[tuple[bytes, float]] = deque()
        self._taken: list[tuple[bytes, float]] = []

    def __len__(self) -> int:
        return self.added - self.settled

    @property
    def full(self) -> bool:
        return len(self) >= self.most

    def add(self, line: bytes, now_s: float) -> None:
        """Adds an event. The caller has checked ``full``."""
        self._lines.append((line, now_s))
        self.added += 1

    def hurry(self) -> int:
        """Makes all queued events due at once. Returns the number that ``settled`` reaches when they are done."""
        self.hurried = self.added
        return self.added

    def due_s(self, now_s: float) -> float | None:
        """Seconds until a batch is due; None: the queue is empty."""
        if not self._lines:
            return None
        first = self.settled + len(self._taken)
        if len(self._lines) >= self.batch_lines or first < self.hurried:
            return 0.0
        return max(0.0, self._lines[0][1] + self.batch_s - now_s)

    def take(self) -> list[bytes]:
        """The next batch. It counts as waiting until it is :meth:`settle`-d."""
        lines = (line for line, _ in islice(self._lines, self.batch_lines))
        batch = next(parts(lines, self.batch_lines, MOST_BYTES), [])
        self._taken = [self._lines.popleft() for _ in batch]
        return batch

    def settle(self) -> None:
        """The batch in flight is done: stored, or given up."""
        self.settled += len(self._taken)
        self._taken = []


class Tries:
    """Times of retries: back-off with jitter, never before ``Retry-After``. No try begins after ``until_s`` by the
    caller's clock; None: for ever. ``random`` gives numbers in [0, 1)."""

    def __init__(self, until_s: float | None, random: Callable[[], float], first_s: float = FIRST_PAUSE_S) -> None:
        self.until_s, self._random, self._pause_s = until_s, random, first_s

    def pause_s(self, error: TooMuch | Unavailable, now_s: float) -> float | None:
        """Seconds until the next try; None: no time is left. The jitter spreads clients that failed together."""
        jitter = self._random() * self._pause_s / 2
        pause = max(self._pause_s / 2, error.retry_after_s or 0.0) + jitter
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        return None if self.until_s is not None and now_s + pause >= self.until_s else pause
