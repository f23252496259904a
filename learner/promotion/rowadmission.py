# core
"""Which new rows of a message are learnt: not the absurd ones, nor held-out pages, nor what is beyond a limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from learner.gate.checks import Checks
from learner.gate.verdicts import GateRefusal
from learner.training.decisionlog import Places
from millrace.contracts.samples import SampleBatch


def admit(
    checks: Checks,
    counts: Counter[str],
    refused: Callable[[GateRefusal, SampleBatch, Places], None],
    batch: SampleBatch,
    places: Places,
) -> NDArray[np.bool_]:
    """Which rows are to be learnt, (B,). Held-out ones are kept. ``refused``: takes absurd rows."""
    checks.clock.meet(batch)
    absurd = checks.screen.absurd(batch)
    if absurd.any():
        refused(GateRefusal("absurd", float(absurd.sum()), 0.0), batch.take(absurd), places[absurd])
    held = checks.heldout.held(batch) & ~absurd
    if held.any():
        counts["held_out"] += int(held.sum())
        checks.heldout.take(batch.take(held))
    rest: NDArray[np.bool_] = ~(absurd | held)
    if not rest.any():
        return rest
    over = np.zeros(len(batch), np.bool_)
    over[rest] = checks.quota.over(batch if rest.all() else batch.take(rest))
    counts["over_limit"] += int(over.sum())
    return rest & ~over
