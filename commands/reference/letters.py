# core
"""Dead letters for people: how many of each reason, and the last of them with what was sent. Pure.

::

    values of the topic dead-letters ──► Letters.add ──► text: counts by reason, newest letters, remedies
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from millrace.contracts.dead_letter_reasons import REASONS
from millrace.contracts.events import BadEventError, DeadLetter, decode_dead_letter

RAW_SHOWN = 300
"""Bytes of a message that are printed."""


class Letters:
    """Takes the messages of the topic, in order.

    Args:
        reason: the only one that is looked at; empty: all.
        last: how many letters are printed.
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
            letter = decode_dead_letter(raw)
        except BadEventError:
            self.unreadable += 1
            return
        place = (letter.topic, letter.partition, letter.offset, letter.reason)
        if (self._reason and letter.reason != self._reason) or place in self._seen:
            return
        self._seen.add(place)
        self.counts[letter.reason] += 1
        self.exposures[letter.reason] += letter.exposures
        self._last.append(letter)

    def plain(self) -> dict[str, Any]:
        """What is printed, for programs."""
        counts = {"letters": dict(self.counts), "exposures": dict(self.exposures), "unreadable": self.unreadable}
        return counts | {"newest": list(self._last)}

    def text(self) -> str:
        """What is printed."""
        if not self.counts:
            what = f"no dead letter with the reason '{self._reason}'" if self._reason else "no dead letters"
            return "\n".join([what, *self._unread()])
        lines = [f"{'letters':>9}  {'exposures':>9}  reason"]
        for reason, n in self.counts.most_common():
            means = REASONS[reason].means if reason in REASONS else "not known to this version"
            lines.append(f"{n:>9,}  {self.exposures[reason]:>9,}  {reason}: {means}")
        lines += self._unread()
        for letter in self._last:
            lines += ["", f"{letter.reason}  {letter.topic}, partition {letter.partition}, offset {letter.offset}"]
            lines += [f"  {letter.detail}"]
            lines += [f"  {letter.exposures} exposures lost"] if letter.exposures else []
            lines += [f"  {_shown(letter)}"]
            lines += [f"  mend: {REASONS[letter.reason].mend}"] if letter.reason in REASONS else []
        return "\n".join(lines)

    def _unread(self) -> list[str]:
        return [f"{self.unreadable:>9,}  messages on the topic are no dead letters"] if self.unreadable else []


def _shown(letter: DeadLetter) -> str:
    if not letter.raw:
        return "(the message was empty)"
    start = letter.raw[:RAW_SHOWN]
    try:
        text = start.decode()
    except UnicodeDecodeError as error:
        cut = error.start >= len(start) - 3 and len(letter.raw) > RAW_SHOWN  # within a character
        text = start[: error.start].decode() if cut else ""
    # A message that is no text, or has marks that a terminal would obey, is shown as Python writes bytes.
    shown = text if text and text.isprintable() else repr(start)
    more = len(letter.raw) - len(start)
    return shown + (f" … and {more:,} bytes more" if more else "")
