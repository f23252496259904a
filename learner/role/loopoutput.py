# core
"""What a learner's loop gives to the world, whatever that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from learner.ranker.model import LearnReport
from learner.training.trainer import ClickCounts
from millrace.versions.decisions import LogPart
from millrace.versions.modelstore import Announcement


class LoopOutput:
    """Receives what a loop does; this one ignores it. One thread, but for :meth:`snapshot` and :meth:`forget_before`,
    which the thread that writes snapshots calls.

    ::

        check            before each publication; an exception ends the loop
        delta            a version to send
        root, snapshot   one that lies in the store: without a delta before it, or behind its own
        decided          decisions that no delta takes
        settled          all that was sent is durable when it returns, or BrokerError
        sent             messages that were sent so far
        heard            whether one was not delivered since the last call: a snapshot is due at once; and of how many
                         of them it is known what became of them
        behind_newest    returns a function that gives ``follows`` and ``log`` of a snapshot of the newest version
        forget_before    messages of ``model.deltas`` before this offset are no longer needed
        learnt           a micro-batch was learnt or refused, in so many seconds
        held_up          copying a slice held learning up for so many seconds
        between          between two rounds of the loop, at a monotonic time: other work
        at_work          between two steps of long work: that this learner is still there
        report           once a second: how many messages are not read yet
    """

    def check(self) -> None: ...
    def delta(self, note: Announcement, body: bytes) -> None: ...
    def root(self, note: Announcement) -> None: ...
    def snapshot(self, note: Announcement) -> None: ...
    def decided(self, part: LogPart) -> None: ...
    def settled(self) -> None: ...
    @property
    def sent(self) -> int:
        return 0

    def heard(self) -> tuple[bool, int]:
        return False, 0

    def behind_newest(self) -> Callable[[], dict[str, Any]]:
        return dict

    def forget_before(self, offset: int) -> None: ...
    def learnt(self, report: LearnReport, clicks: list[ClickCounts], seconds: float) -> None: ...
    def held_up(self, seconds: float) -> None: ...
    def between(self, now: float) -> None: ...
    def at_work(self, now: float) -> None: ...
    def report(self, lag: int) -> None: ...
