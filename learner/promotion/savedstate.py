# core
"""What a snapshot keeps of a learner's state beside model and trainer, and going on from it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
import structlog
from msgspec import Struct

from learner.gate.checks import GATE, Checks
from learner.promotion.learnerstate import GateState, LearnerState
from learner.promotion.restorer import Base
from learner.ranker.interfaces import Learning
from learner.training.learner_versions import FoundSnapshot
from millrace.basics.errors import UNFIT, one_line
from millrace.basics.hashing import salt
from millrace.versions.image import Array, below

log = structlog.get_logger("learner")


class _Kept(Struct):
    """What is no array."""

    log: str
    newest: int  # decision
    standing: GateState
    quarantine: bytes
    rules: str


def saved_state(state: LearnerState) -> dict[str, Array]:
    """Arrays for a snapshot of what ``state`` is now. They share no memory with it."""
    checks = state.checks
    kept = _Kept(state.log.log, state.log.newest, state.standing, state.quarantine.snapshot(), rules_of(state))
    found: dict[str, Array] = {"kept": np.frombuffer(msgspec.msgpack.encode(kept), np.uint8)}
    if checks is not None:
        found["schema"] = _schema(state.trainer.model)
        found |= {f"{name}/{key}": a for name, part in checks.parts.items() for key, a in part.snapshot().items()}
    return {f"{GATE}{name}": array for name, array in found.items()}


def go_on(state: LearnerState, found: FoundSnapshot | None) -> bool:
    """Goes on from a snapshot. Called once, before samples are taken. Of a state of another
    schema what persons decided is kept, and quarantine: rows and figures are of other columns. Returns whether what was
    decided behind it can be done again: the rules are the same. Raises StoreError where quarantine cannot be read."""
    arrays = below(GATE, found.training if found is not None else {})
    kept = _read(arrays)
    if kept is None or found is None:
        same = False
        if others := state.quarantine.copies():
            log.warning("samples in quarantine are of no snapshot: they go with the next one", entries=len(others))
    else:
        state.log.go_on(kept.log, kept.newest, found.note.offset or 0)
        state.standing = kept.standing
        state.quarantine.resume(kept.quarantine)
        same = kept.rules == rules_of(state)
        if not same:
            log.warning("the model's or the gate's settings have changed: samples are judged anew")
    if found is not None:
        state.restorer.base = Base(found.note, state.log.newest)
    state.standing.mark = state.published = state.log.newest
    if state.checks is None:  # nobody is left who could let it pass
        state.standing.probation, state.standing.since = False, {}
    if state.checks is not None and not (kept is not None and _resume(state.checks, arrays, state.trainer.model)):
        state.checks.shift.rebase(state.trainer.model)
    return same


def quarantine_of(found: FoundSnapshot) -> bytes | None:
    """What was in quarantine as a snapshot was made; None: it does not say."""
    kept = _read(below(GATE, found.training))
    return None if kept is None else kept.quarantine


def rules_of(state: LearnerState) -> str:
    """What decisions depend on, beside samples: with other rules others would have been made."""
    checks, model = state.checks, state.trainer.model
    limits = {} if checks is None else checks.quota.limits | checks.visitors.limits
    gate = None if checks is None else (checks.heldout.base, sorted(limits.items()))
    own = (model.schema.id, model.spec, state.trainer.batch_rows, gate)
    return msgspec.json.encode(own, order="deterministic").hex()


def _resume(checks: Checks, arrays: Mapping[str, Array], model: Learning) -> bool:
    """Whether the checks are as they were."""
    if not np.array_equal(arrays.get("schema", ()), _schema(model)):
        log.warning("the gate's state is of another schema: it warms up anew")
        return False
    try:
        for name, part in checks.parts.items():
            part.resume(below(f"{name}/", arrays))
    except UNFIT as error:
        log.warning("the gate's state cannot be used: it warms up anew", error=str(error))
        return False
    return True


def _read(arrays: Mapping[str, Array]) -> _Kept | None:
    if "kept" not in arrays:
        return None
    try:
        return msgspec.msgpack.decode(arrays["kept"].tobytes(), type=_Kept)
    except UNFIT as error:
        log.warning("the state beside the model cannot be read", error=one_line(error))
        return None


def _schema(model: Learning) -> Array:
    """What a state is bound to. (1,)"""
    return np.array([salt("gate", model.schema.id)], np.uint64)
