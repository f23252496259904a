# core
"""The same samples with the labels of another policy, as far as samples allow it.

Samples report when the stream's policy gave a label, and later whether that was wrong. So a reader can give the labels
of a policy that waits longer, but of none that waits less::

    of the stream       a click at once  P            a negative N after the observation window    a click after it  C
    ``wait``            P at once                     N when the window of attribution has passed  P at once, no N
    ``equal-wait``      P or N when the window of attribution has passed                           C, if still later

A shadow may therefore have the stream's own policy, ``wait`` or ``equal-wait``: the others learn exposures sooner than
a stream that waits reports them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import structlog
from numpy.typing import NDArray

from learner.ranker.repeats import exposure_ids
from learner.samples.batch_reader import SampleMessage
from learner.samples.eventtime import EventTime
from millrace.basics.errors import SettingError
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, NEGATIVE, PAGE, POSITIVE, SampleBatch
from millrace.labels import Waits, policy_named

log = structlog.get_logger("shadow")

POSSIBLE = ("wait", "equal-wait")
"""Policies whose labels can be made of any other's."""

MOST_ROWS = 100_000
"""The most rows that wait: the shop's take 2.3 KB each. Beyond it the oldest get the label that is known."""


@dataclass(slots=True)
class _Message:
    """A message with waiting rows: those whose ``waits`` is set."""

    batch: SampleBatch
    partition: int
    offset: int
    ids: NDArray[np.int64]  # (B,) of exposures
    waits: NDArray[np.bool_]  # (B,)
    clicked: NDArray[np.bool_]  # (B,)


class Relabel:
    """Holds samples until a ``policy`` of :data:`POSSIBLE` would give them, else raises SettingError. One thread.
    ``waits``: event times of the stream's label policies."""

    def __init__(self, policy: str, waits: Waits, most_rows: int = MOST_ROWS) -> None:
        if policy not in POSSIBLE:
            policy_named(policy)
            raise SettingError(
                f"label policy '{policy}' of a shadow: it gives labels sooner than samples may tell of them",
                f"choose {' or '.join(POSSIBLE)}, or none for the stream's own",
            )
        self.time = EventTime(waits)
        self.hurried = 0  # rows that got their label too soon, since too many waited
        self._at_once, self._code = policy == "wait", policy_named(policy).code
        self._settled_ms, self._most = waits.settled_ms, most_rows
        self._messages: list[_Message] = []
        self._at: dict[int, tuple[_Message, int]] = {}  # of each exposure that waits

    @property
    def waiting(self) -> int:
        return len(self._at)

    def offsets(self, next: dict[int, int]) -> dict[int, int]:
        """Where to read on so that no waiting row is lost: at the oldest message of a partition that has such rows."""
        found = dict(next)
        for message in self._messages:
            found[message.partition] = min(found.get(message.partition, message.offset), message.offset)
        return found

    def take(self, batch: SampleBatch, partition: int, offset: int) -> Iterable[SampleMessage]:
        """Takes a message; gives the rows to learn at once."""
        self.time.hear(batch, partition)
        ids = exposure_ids(batch).view(np.int64)
        now = np.zeros(len(batch), np.bool_)
        kind = batch.kind.copy()
        message = _Message(batch, partition, offset, ids, now.copy(), now.copy())
        for row in np.flatnonzero(kind != FOLLOW_UP).tolist():
            id, known = int(ids[row]), self._at.get(int(ids[row]))
            if kind[row] == PAGE or (kind[row] == CORRECTION and known is None):
                now[row] = True  # its label is final; its negative was learnt
            elif kind[row] == CORRECTION and known is not None:
                if self._at_once:
                    self._forget(id)
                    kind[row], now[row] = POSITIVE, True
                else:
                    known[0].clicked[known[1]] = True
            elif known is not None:  # sent again
                continue
            elif kind[row] == POSITIVE and self._at_once:
                now[row] = True
            else:
                message.waits[row], message.clicked[row] = True, kind[row] == POSITIVE
                self._at[id] = (message, row)
        if message.waits.any():
            self._messages.append(message)
        if now.any():
            yield self._labelled(message, now, kind)

    def due(self) -> Iterable[SampleMessage]:
        """Rows whose labels are final by now, in the order of their messages; and the oldest where too many wait."""
        settled_ms = self.time.advance() - self._settled_ms
        left = []
        for message in self._messages:
            out = message.waits & (message.batch.ts_ms <= settled_ms)
            if self.waiting > self._most and (early := message.waits & ~out).any():
                self.hurried += int(early.sum())
                out |= early
            if out.any():
                for id in message.ids[out].tolist():
                    self._at.pop(id, None)
                message.waits &= ~out
                kind = np.where(message.clicked, POSITIVE, NEGATIVE).astype(np.uint8)
                yield self._labelled(message, out, kind)
            if message.waits.any():
                left.append(message)
        self._messages = left

    def _forget(self, id: int) -> None:
        message, row = self._at.pop(id)
        message.waits[row] = False

    def _labelled(self, message: _Message, rows: NDArray[np.bool_], kind: NDArray[np.uint8]) -> SampleMessage:
        at = np.flatnonzero(rows)
        part, kinds = message.batch.take(at), kind[at]
        policy = np.full(len(at), self._code, np.uint8)
        label = np.where(kinds == part.kind, part.label, np.float32(1))  # another kind: a click has come
        return SampleMessage(replace(part, kind=kinds, label=label, policy=policy), message.partition, message.offset)
