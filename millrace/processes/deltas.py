# shell
"""The deltas that a broker holds, for proofs of the model that they add up to."""

from __future__ import annotations

from typing import Any

from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import read_all
from millrace.versions.modellog import Assembler, Delta
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
