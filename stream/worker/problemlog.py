# core
"""The lines of a stream worker about messages that cannot be used, or that have warnings: one a minute a kind.

::

    dead letters ──► Kinds ──► "messages cannot be used"   reason, count since the last line, example, remedy
    doubts ────────► Kinds ──► "messages are doubtful"     the same, an hour apart

:mod:`stream.worker.alarms` reports when *most* messages cannot be used. The worker and the thread that keeps the
lists have one each.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from millrace.contracts.dead_letter_reasons import DOUBTS, REASONS
from millrace.contracts.events import DeadLetter
from millrace.contracts.profile_warnings import Doubt
from millrace.processes.kinds import Kinds

log = structlog.get_logger("stream")

DOUBT_S = 3600.0
"""Seconds between two lines of one kind of warning. Some shops have good reasons for such values."""


class ProblemLog:
    """One thread at a time."""

    def __init__(self) -> None:
        self._letters, self._doubts = Kinds(), Kinds(DOUBT_S)

    def note(self, letters: Iterable[DeadLetter], doubts: Iterable[Doubt] = ()) -> None:
        for letter in letters:
            where = f"{letter.topic}, partition {letter.partition}, offset {letter.offset}"
            self._letters.note(letter.reason, f"{where}: {letter.detail}")
        for doubt in doubts:
            self._doubts.note(doubt.kind, doubt.detail)

    def write(self, now_s: float) -> None:
        """Writes the lines that are due. Quick while none is. ``now_s``: steady time, seconds."""
        for kind in self._letters.due(now_s):
            reason = REASONS.get(kind.kind)
            log.warning(
                "messages cannot be used: dead letters",
                reason=kind.kind,
                count=kind.times,
                example=kind.example,
                remedy="see docs/reference/dead-letters.md" if reason is None else reason.mend,
            )
        for kind in self._doubts.due(now_s):
            doubt = DOUBTS[kind.kind]
            log.warning(
                "messages are used, but may not mean what they should",
                kind=kind.kind,
                count=kind.times,
                means=doubt.means,
                example=kind.example,
                remedy=doubt.mend,
            )
