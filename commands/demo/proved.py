# shell
"""The audit's other half: are the versions that the scorers were given the ones that the learner had?"""

from __future__ import annotations

from typing import Any

from millrace.basics.errors import SnapshotError
from millrace.contracts.settings import Settings
from millrace.processes.deltas import read_deltas
from millrace.versions.modelstore import ModelStore
from millrace.versions.proof import prove


def proved(settings: Settings) -> tuple[dict[str, Any], SnapshotError | None]:
    """What the store and the topic prove, once the learner has ended and left its last snapshot.

    Returns:
        ``snapshots`` and ``deltas`` that were proved bit for bit, ``heads``: how many of these deltas carried the
        retrieval head, ``rows`` of the newest, ``unproved``: pairs of snapshots whose deltas are gone; and what is
        wrong, or None.
    """
    try:
        found = prove(ModelStore(settings.place("models"), writes=False), read_deltas(settings))
    except SnapshotError as error:
        return {"snapshots": 0, "deltas": 0, "heads": 0, "rows": 0, "unproved": 0}, error
    return {
        "snapshots": len(found.proofs),
        "deltas": sum(proof.deltas for proof in found.proofs),
        "heads": sum(proof.heads for proof in found.proofs),
        "rows": found.proofs[-1].rows if found.proofs else 0,
        "unproved": len(found.unproved),
    }, None
