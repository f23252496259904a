# core
"""The lines of a stream worker about messages that cannot be used, or that have warnings: one a minute a kind.

::

    dead letters ──► Kinds ──► "messages cannot be used"   reason, count since the last line, example, remedy
    warnings ──────► Kinds ──► "messages are used, but"    the same, an hour apart

:mod:`stream.worker.alarms` reports when *most* messages cannot be used. The worker and the thread that keeps the
lists have one each.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from millrace.contracts.dead_letter_reasons import REASONS, WARNINGS
from millrace.contracts.events import DeadLetter
from millrace.contracts.profile_warnings import ProfileWarning
from millrace.processes.repeated_warnings import Kinds

log = structlog.get_logger("stream")

WARNING_S = 3600.0
"""Seconds between two lines of one kind of warning. Some shops have good reasons for such values."""


class ProblemLog:
    """One thread at a time."""

    def __init__(self) -> None:
        self._dead_letters, self._warnings = Kinds(), Kinds(WARNING_S)

    def note(self, dead_letters: Iterable[DeadLetter], warnings: Iterable[ProfileWarning] = ()) -> None:
        for dead_letter in dead_letters:
            where = f"{dead_letter.topic}, partition {dead_letter.partition}, offset {dead_letter.offset}"
            self._dead_letters.note(dead_letter.reason, f"{where}: {dead_letter.detail}")
        for warning in warnings:
            self._warnings.note(warning.kind, warning.detail)

    def write(self, now_s: float) -> None:
        """Writes the lines that are due. Quick while none is. ``now_s``: steady time, seconds."""
        for kind in self._dead_letters.due(now_s):
            reason = REASONS.get(kind.kind)
            log.warning(
                "messages cannot be used: dead letters",
                reason=kind.kind,
                count=kind.times,
                example=kind.example,
                remedy="see docs/reference/dead-letters.md" if reason is None else reason.mend,
            )
        for kind in self._warnings.due(now_s):
            warning = WARNINGS[kind.kind]
            log.warning(
                "messages are used, but may not mean what they should",
                kind=kind.kind,
                count=kind.times,
                means=warning.means,
                example=kind.example,
                remedy=warning.mend,
            )
