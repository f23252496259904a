# core
"""One log line, at most each minute, while most events cannot be learnt from as they should. Pure.

::

    outputs of take, advance ──► note ──► windows ──► line, when one is due ──► the worker's log

A loop that is connected wrongly gives no error: events are read, counted and put aside. Four causes do this to most
events at the same time.

===================  ==================================================================================================
``late``             behind the watermark: its label cannot wait as it should, or it is a dead letter
``future``           ahead of the event clock by more than is allowed
``no-page-log``    exposures whose page log is not there: they wait for it, in vain as a rule
``wrong-partition``  of users who belong to another partition: sent under a wrong key, or under none
===================  ==================================================================================================

A window of events is judged when it has at least :data:`ENOUGH` of them and is :data:`WINDOW_S` old, and then begins
again: a page may come some seconds before its page log. There is a window for all partitions together and one for
each, since one partition alone may be wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from millrace.basics.durations import utc
from millrace.contracts.events import DeadLetter
from millrace.contracts.topics import EVENTS
from stream.partition.partition import Partition, StepOutput

LATE, FUTURE, NO_PAGE_LOG, WRONG_PARTITION = CAUSES = ("late", "future", "no-page-log", "wrong-partition")
REMEDIES: Mapping[str, str] = {
    LATE: "give the stream the clock that the events are dated by (MILLRACE_CLOCK), send events in the order of their"
    " times, or raise MILLRACE_DISORDER_SECONDS",
    FUTURE: "date events by the event clock (MILLRACE_CLOCK) in Unix milliseconds, at most an hour ahead",
    NO_PAGE_LOG: "let events carry the request_id of a page that the scorer made, and let the scorer log its pages to"
    " the same broker",
    WRONG_PARTITION: "send events, page logs and users under the user's id as key, by Kafka's default partitioner"
    " (murmur2; librdkafka: partitioner=murmur2_random)",
}
ENOUGH = 36
"""Events that a window has at least when it is judged."""
WINDOW_S = 10.0
"""Seconds from the first event of a window to its judgement, at least."""
MOST = 0.5
"""A line is written for a greater share than this."""
QUIET_S = 60.0
"""Seconds between two lines, at least."""
_ALL = -1


class AlarmLine(NamedTuple):
    """A log line. ``counts`` are by cause, the greatest first; those of ``no-page-log`` are exposures."""

    share: float
    events: int
    counts: dict[str, int]
    example: str
    remedy: str


@dataclass(slots=True)
class _Window:
    """Events of some seconds, of one partition or of all."""

    since_s: float  # when its first event came
    came: int = 0
    taken: int = 0  # exposures that are not in dead letters
    matched: int = 0  # exposures that found their page log
    counts: Counter[str] = field(default_factory=Counter)
    dead_letters: dict[str, DeadLetter] = field(default_factory=dict)  # the newest, by cause
    late_in: int = -1  # a partition with late events

    def add(self, number: int, output: StepOutput) -> None:
        counts = output.counts
        dead = Counter[str]()
        self.taken += counts.get("exposures", 0)
        self.matched += counts.get("matched", 0)
        for dead_letter in output.dead:
            if dead_letter.topic != EVENTS:
                continue
            dead[dead_letter.reason] += 1
            if dead_letter.reason in CAUSES:
                self.dead_letters[dead_letter.reason] = dead_letter
            if dead_letter.reason != NO_PAGE_LOG:  # those were taken in hours ago
                self.taken -= dead_letter.exposures
        put_aside = dead[FUTURE] + dead[WRONG_PARTITION]
        self.came += put_aside + sum(n for name, n in counts.items() if name.startswith("events."))
        late = max(counts.get("late", 0), dead[LATE])
        if late:
            self.late_in = number
        self.counts.update({LATE: late, FUTURE: dead[FUTURE], WRONG_PARTITION: dead[WRONG_PARTITION]})

    @property
    def unserved(self) -> int:
        return max(0, self.taken - self.matched)

    def share(self, partitions: int | None) -> float:
        """The share of events with one of the four causes.

        With P partitions, one event in P with a wrong key falls into its user's partition by chance. So those found
        elsewhere count P / (P - 1) times.
        """
        counts, came = self.counts, self.came
        astray: float = counts[WRONG_PARTITION]
        if partitions is not None and partitions > 1:
            astray = min(astray * partitions / (partitions - 1), came - counts[FUTURE])
        rest = max(0, came - counts[LATE] - counts[FUTURE] - astray)
        unserved = rest * self.unserved / self.taken if self.taken > 0 else 0.0
        return min(1.0, (counts[LATE] + counts[FUTURE] + astray + unserved) / came) if came else 0.0


class Alarms:
    """The windows of a worker. ``partitions``: how many the topics have; None: not known."""

    def __init__(self, partitions: int | None = None) -> None:
        self.partitions = partitions
        self._windows: dict[int, _Window] = {}  # by partition, and of all
        self._written_s = float("-inf")

    def note(self, number: int, output: StepOutput, now_s: float) -> None:
        """Notes a partition's output. ``now_s``: steady time, seconds."""
        for whose in (number, _ALL):
            window = self._windows.get(whose)
            if window is None or not window.came:
                window = self._windows[whose] = _Window(now_s)
            window.add(number, output)

    def line(self, partitions: Iterable[Partition], clock_ms: int, now_s: float) -> AlarmLine | None:
        """The line that is due now; None: none is. Quick while nothing is due.

        Args:
            partitions: of this worker, to name an example.
            clock_ms: the event clock.
            now_s: steady time, seconds.
        """
        if now_s - self._written_s < QUIET_S:
            return None
        ready = {n: w for n, w in self._windows.items() if w.came >= ENOUGH and now_s - w.since_s >= WINDOW_S}
        if not ready:
            return None
        bad = [window for window in ready.values() if window.share(self.partitions) > MOST]
        if not bad:
            for whose in ready:
                del self._windows[whose]
            return None
        self._written_s, self._windows = now_s, {}
        worst = max(bad, key=lambda window: window.came)  # of all partitions, if it is one of them
        counts = worst.counts + Counter({NO_PAGE_LOG: worst.unserved})
        cause = counts.most_common(1)[0][0]
        example = _example(cause, worst, partitions, clock_ms)
        return AlarmLine(worst.share(self.partitions), worst.came, dict(counts.most_common()), example, REMEDIES[cause])


def _example(cause: str, window: _Window, partitions: Iterable[Partition], clock_ms: int) -> str:
    dead_letter = window.dead_letters.get(cause)
    if cause == LATE:
        reached_ms = next((p.watermark_ms for p in partitions if p.number == window.late_in), 0)
        return f"partition {window.late_in} has come to {utc(reached_ms)}, the event clock to {utc(clock_ms)}"
    if dead_letter is not None:
        return f"partition {dead_letter.partition}, offset {dead_letter.offset}: {dead_letter.detail}"
    for partition in partitions:
        for page in partition.join.pages.values():
            if page.parts and page.page_log is None:  # one of the oldest
                return f"request {page.request!r} in partition {partition.number} has no page log"
    return ""
