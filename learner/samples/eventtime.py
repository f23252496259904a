# core
"""How far event time has come, as the samples themselves prove it.

The learner has no clock of the shop. But a negative that was promised after the attribution window cannot come before
the window has passed. So each kind of sample proves an event time, by the promise of its label policy
(:class:`~millrace.labels.policy.Promise`), counted from its exposure::

    negative, correction    observe + disorder - slack
    positive                hold + disorder - slack, where clicks are held; else 0: it comes at once
    sent again for a page   attribution + disorder

A partition of the stream's input has the latest event time that any of its samples has proved. It holds whole users,
and its samples come in the order of its events. So the label of an exposure is final when *its own* partition's time
has passed the exposure by attribution + disorder: every click within the window and the allowed disorder has come.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.samples import CORRECTION, NEGATIVE, OUTCOME, PAGE, POLICIES, POSITIVE, SampleBatch
from millrace.labels import Waits, policy_named

_LONG_MS = 1 << 50
"""After such a long flow of traffic each policy has its shortest waits."""


def proofs(waits: Waits) -> NDArray[np.int64]:
    """By policy and kind, how long after its exposure a sample comes at least, in ms. (policies, kinds)"""
    table = np.zeros((len(POLICIES), OUTCOME + 1), np.int64)
    table[:, PAGE] = waits.settled_ms
    for code, name in enumerate(POLICIES):
        promise = policy_named(name).promise(waits, _LONG_MS)
        kept = waits.disorder_ms - promise.slack_ms
        table[code, [NEGATIVE, CORRECTION]] = promise.observe_ms + kept
        table[code, POSITIVE] = promise.hold_ms + kept if promise.hold_ms else 0
    return table


class EventTime:
    """Event time over all partitions: a watermark (Akidau et al. 2015), the smallest of the partitions' times. A silent
    partition does not hold it back, else nothing would settle; its later samples may be behind the watermark. An
    expected partition holds it until it has sent or is silent: its worker may be behind another. Snapshots do not keep
    it; it restarts with a process."""

    def __init__(self, waits: Waits) -> None:
        self.now_ms = 0  # all partitions that are not silent have passed it; 0: nothing is known
        self._proofs = proofs(waits)
        self._by_partition: dict[int, int] = {}
        self._silent: set[int] = set()

    def expect(self, partitions: Iterable[int]) -> None:
        """Names the existing partitions, before any of their samples has come."""
        for partition in partitions:
            self._by_partition.setdefault(partition, 0)

    def hear(self, batch: SampleBatch) -> None:
        """Takes samples, in their order. They end the silence of their partitions."""
        proved = batch.ts_ms + self._proofs[batch.policy, batch.kind]  # (B,)
        for partition in np.unique(batch.partition).tolist():
            newest_ms = int(proved[batch.partition == partition].max())
            self._by_partition[partition] = max(self._by_partition.get(partition, 0), newest_ms)
            self._silent.discard(partition)

    def silent(self, partitions: Iterable[int]) -> None:
        """Names the partitions from which nothing has come for long: all their samples have come."""
        self._silent.update(partitions)

    def advance(self) -> int:
        """Moves :attr:`now_ms` to what is known now, and returns it. It never goes back."""
        times = self._by_partition
        if times:
            speaking = [ms for partition, ms in times.items() if partition not in self._silent]
            self.now_ms = max(self.now_ms, min(speaking) if speaking else max(times.values()))
        return self.now_ms
