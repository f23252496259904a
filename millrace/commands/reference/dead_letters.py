# core
"""Dead letters for people: how many of each reason, and the last of them with what was sent. Pure.

::

    values of the topic dead-letters ──► DeadLetterReport.add ──► text: counts by reason, newest ones, remedies
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from millrace.contracts.dead_letter_reasons import REASONS
from millrace.contracts.events import BadEventError, DeadLetter, decode_dead_letter

RAW_SHOWN = 300
"""Bytes of a message that are printed."""


class DeadLetterReport:
    """Takes the messages of the topic, in order.

    Args:
        reason: the only one that is looked at; empty: all.
        last: how many of them are printed.
    """

    def __init__(self, reason: str = "", last: int = 10) -> None:
        self.counts: Counter[str] = Counter()
        self.exposures: Counter[str] = Counter()
        self.unreadable = 0
        self._reason = reason
        self._last: deque[DeadLetter] = deque(maxlen=max(0, last))
        self._seen: set[tuple[str, int, int, str]] = set()

    def add(self, raw: bytes | None) -> None:
        """A message. One that came twice, as after a crash, counts once."""
        try:
            dead_letter = decode_dead_letter(raw)
        except BadEventError:
            self.unreadable += 1
            return
        place = (dead_letter.topic, dead_letter.partition, dead_letter.offset, dead_letter.reason)
        if (self._reason and dead_letter.reason != self._reason) or place in self._seen:
            return
        self._seen.add(place)
        self.counts[dead_letter.reason] += 1
        self.exposures[dead_letter.reason] += dead_letter.exposures
        self._last.append(dead_letter)

    def plain(self) -> dict[str, Any]:
        """What is printed, for programs."""
        counts = {"dead_letters": dict(self.counts), "exposures": dict(self.exposures), "unreadable": self.unreadable}
        return counts | {"newest": list(self._last)}

    def text(self) -> str:
        """What is printed."""
        if not self.counts:
            what = f"no dead letter with the reason '{self._reason}'" if self._reason else "no dead letters"
            return "\n".join([what, *self._unread()])
        lines = [f"{'dead letters':>12}  {'exposures':>9}  reason"]
        for reason, n in self.counts.most_common():
            means = REASONS[reason].means if reason in REASONS else "not known to this version"
            lines.append(f"{n:>12,}  {self.exposures[reason]:>9,}  {reason}: {means}")
        lines += self._unread()
        for dead_letter in self._last:
            place = f"{dead_letter.topic}, partition {dead_letter.partition}, offset {dead_letter.offset}"
            lines += ["", f"{dead_letter.reason}  {place}"]
            lines += [f"  {dead_letter.detail}"]
            lines += [f"  {dead_letter.exposures} exposures lost"] if dead_letter.exposures else []
            lines += [f"  {_shown(dead_letter)}"]
            lines += [f"  mend: {REASONS[dead_letter.reason].mend}"] if dead_letter.reason in REASONS else []
        return "\n".join(lines)

    def _unread(self) -> list[str]:
        return [f"{self.unreadable:>12,}  messages on the topic are no dead letters"] if self.unreadable else []


def _shown(dead_letter: DeadLetter) -> str:
    if not dead_letter.raw:
        return "(the message was empty)"
    start = dead_letter.raw[:RAW_SHOWN]
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        cut = error.start >= len(start) - 3 and len(dead_letter.raw) > RAW_SHOWN  # within a character
        text = start[: error.start].decode() if cut else ""
    # A message that is no text, or has marks that a terminal would obey, is shown as Python writes bytes.
    shown = text if text and text.isprintable() else repr(start)
    more = len(dead_letter.raw) - len(start)
    return shown + (f" … and {more:,} bytes more" if more else "")
