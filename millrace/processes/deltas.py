# shell
"""What a broker holds of a model: its deltas, for proofs that they add up to it, and its learner's decisions."""

from __future__ import annotations

import contextlib
from typing import Any

from millrace.basics.errors import SnapshotError
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import read_all
from millrace.versions.decisions import LogPart, decode_decisions
from millrace.versions.modellog import Assembler, Claimed, Decisions, Delta, Fence
from millrace.versions.versioning import Place


def read_deltas(settings: Settings) -> dict[Place, bytes]:
    """The bodies of all whole deltas on ``model.deltas``, by version. Raises BrokerError when the broker does not
    answer."""
    assembler, found = Assembler(), dict[Place, bytes]()

    def visit(record: Any) -> None:
        for entry in assembler.take(record.value):
            if isinstance(entry, Delta):
                found[entry.note.place] = entry.body

    read_all(settings, MODEL_DELTAS, visit)
    return found


def read_decisions(settings: Settings) -> list[LogPart]:
    """The decisions on ``model.deltas`` of those who had the epoch, in their order. Raises BrokerError when the broker
    does not answer."""
    assembler, fence, found = Assembler(), Fence(), list[LogPart]()

    def visit(record: Any) -> None:
        for entry in assembler.take(record.value):
            if isinstance(entry, Claimed):
                fence.claims(entry.claim)
            elif isinstance(entry, Delta | Decisions):
                note = entry.note
                if fence.admits(note.epoch, note.claimant) and note.decisions:
                    with contextlib.suppress(SnapshotError):  # of no use to anybody
                        found.append(decode_decisions(note.decisions))

    read_all(settings, MODEL_DELTAS, visit)
    return found
