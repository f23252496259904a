# shell
"""Takes partitions over: claims them at once, and resumes their states in a thread while heart-beats go on.

::

    assigned ──► claimed, within Faust's callback ──► resumed, one after another ──► the turns begin
                                                           │ lost meanwhile: the rest is left
    revoked ──► saved ──────────────────────────────► held ┴─► comes back: goes on as it is, or is read again

aiokafka sends no heart-beat before the callback of an assignment has returned. A state that takes longer than the
session would be given to others there, and be resumed again and again.

**What may be used.** A state is used only for the assignment that it was claimed for, or a later one of ours in the
same line. A partition that comes back goes on as it is held, if no line in the store is above ours: whoever owned it in
between would have claimed it (:meth:`~stream.partition.partition_checkpoint.CheckpointStore.claim`). Committed offsets
prove nothing more, since they follow the checkpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

import structlog

from millrace.contracts.settings import Settings
from stream.partition.journal import Journal
from stream.partition.partition import Partition
from stream.partition.partition_checkpoint import CheckpointLine, CheckpointStore, LoadedPartition
from stream.worker.logids import ends_of
from stream.worker.stream_metrics import AWAITED, RESUMED
from stream.worker.turn import other_logs

log = structlog.get_logger("stream")

Lines = Mapping[int, int]
"""The line of checkpoints in which each partition of an assignment goes on."""


class TakeOver:
    """All methods but :meth:`claim` run in one asyncio loop."""

    def __init__(self, settings: Settings, checkpoints: CheckpointStore) -> None:
        self._settings, self._checkpoints = settings, checkpoints
        self._lines: Lines = {}  # of the newest assignment
        self._held: dict[int, LoadedPartition] = {}  # as their newest checkpoint and their journal have them
        self._reading = asyncio.Lock()  # a thread that reads a state cannot be ended

    def claim(self, numbers: Iterable[int]) -> Lines:
        """The lines of an assignment's partitions. Blocks: for a thread. Raises StoreError."""
        self._lines = {n: self._checkpoints.claim(n, self._lines.get(n, 0)) for n in numbers}
        return self._lines

    def hold(self, partition: Partition, line: CheckpointLine) -> None:
        """Keeps a partition that was given up. Its last checkpoint is written."""
        self._held[partition.number] = LoadedPartition(partition, line)

    async def resume(
        self, fresh: Callable[[int], Partition], lines: Lines, logs: dict[str, str], lost: Callable[[], bool]
    ) -> dict[int, tuple[LoadedPartition, tuple[str, ...]]]:
        """The partitions of ``lines``, each with the topics that are other logs than those of its checkpoint.

        Args:
            fresh: makes a new partition.
            logs: ids of the input topics.
            lost: whether the assignment is over: the rest is not read then, and what is returned may not be used.

        Raises:
            MillraceError: a state, or the broker, cannot be used.
        """
        others: dict[int, tuple[str, ...]] = {}
        async with self._reading:
            self._held = {n: one for n, one in self._held.items() if n in lines}
            for done, number in enumerate(lines):
                if lost():
                    return {}
                AWAITED.set(len(lines) - done)
                new, held = fresh(number), self._held.get(number)
                if held is None or held.line.line != lines[number] or held.partition.partitions != new.partitions:
                    self._held.pop(number, None)
                    held = None  # else both states would be in memory
                    held = self._held[number] = await asyncio.to_thread(self._read, new, lines[number])
                others[number] = await asyncio.to_thread(self._compare, held, logs)
            if lost():
                return {}
            AWAITED.set(0)
            return {number: (self._held.pop(number), others[number]) for number in lines}

    def _read(self, fresh: Partition, line: int) -> LoadedPartition:
        loaded = self._checkpoints.load(fresh, self._settings.evolve, line)
        loaded.partition.journal = Journal()
        RESUMED.inc()
        return loaded

    def _compare(self, loaded: LoadedPartition, logs: dict[str, str]) -> tuple[str, ...]:
        """Compares the offsets with the broker's topics; returns those that are other logs."""
        partition, line = loaded.partition, loaded.line
        ends = ends_of(self._settings, partition.offsets, partition.number) if partition.offsets else {}
        others = other_logs(line.logs, logs, partition.offsets, ends)
        if not others:
            line.logs = logs
        lost = {t: (end, partition.offsets[t]) for t, end in ends.items() if end < partition.offsets[t]}
        lost = {t: place for t, place in lost.items() if t not in others}
        if lost:
            log.warning(
                "topics have lost their ends; reading goes on where they end now",
                partition=partition.number,
                topics="; ".join(f"{t} from {end} to {was}" for t, (end, was) in lost.items()),
            )
            partition.cut_back({t: end for t, (end, _) in lost.items()})
        return others
