# core
"""Which new rows of a message are learnt: not the absurd ones, nor held-out pages, nor what is beyond a limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from learner.gate.checks import Checks
from learner.gate.verdicts import GateRefusal
from learner.ranker.repeats import page_hashes
from learner.training.decisionlog import Places
from millrace.contracts.samples import CORRECTION, PAGE, SampleBatch

Refused = Callable[[GateRefusal, SampleBatch, Places], None]


def admit(
    checks: Checks, counts: Counter[str], refused: Refused, batch: SampleBatch, places: Places
) -> NDArray[np.bool_]:
    """Which rows are to be learnt, (B,). Held-out ones are kept. ``refused``: takes rows for quarantine.

    Exposures that are sent again count for nothing, and teach nothing where the exposure did not: on held-out pages, of
    ids at their limit, and of a minute that was refused.
    """
    again = batch.kind >= PAGE
    if not again.any():
        return _admit_labelled(checks, counts, refused, batch, places)
    admitted = np.zeros(len(batch), np.bool_)
    if not again.all():
        admitted[~again] = _admit_labelled(checks, counts, refused, batch.take(~again), places[~again])
    batch, places = batch.take(again), places[again]
    held = checks.heldout.holds(page_hashes(batch), batch.ts_ms)
    doubtful = (checks.screen.absurd(batch) | checks.minutes.of(batch.ts_ms)) & ~held
    over = checks.quota.over(batch, counts=False) & ~(held | doubtful)
    if doubtful.any():
        refused(GateRefusal("page", float(doubtful.sum()), 0.0), batch.take(doubtful), places[doubtful])
    counts["held_out"] += int(held.sum())
    counts["over_limit"] += int(over.sum())
    admitted[again] = ~(held | doubtful | over)
    return admitted


def beyond(checks: Checks, batch: SampleBatch) -> NDArray[np.bool_]:
    """Rows of users beyond their limit, (B,). To be asked of all new rows of a message, before all else. Exposures that
    are sent again count for nothing."""
    again, over = batch.kind >= PAGE, np.zeros(len(batch), np.bool_)
    for rows, counts in ((~again, True), (again, False)):
        if rows.any():
            over[rows] = checks.visitors.over(batch if rows.all() else batch.take(rows), counts)
    return over


def without_exposure(checks: Checks, batch: SampleBatch) -> NDArray[np.bool_]:
    """Late clicks of minutes that were refused, (B,): they correct a negative that was never learnt. To be asked of a
    micro-batch that passed: that they are there is as usual."""
    late: NDArray[np.bool_] = batch.kind == CORRECTION
    if late.any():
        late &= checks.minutes.of(batch.ts_ms) & (not checks.observe)
    return late


def _admit_labelled(
    checks: Checks, counts: Counter[str], refused: Refused, batch: SampleBatch, places: Places
) -> NDArray[np.bool_]:
    checks.clock.meet(batch)
    absurd = checks.screen.absurd(batch)
    held = checks.heldout.held(batch)
    admitted: NDArray[np.bool_] = ~(absurd | held)
    if admitted.all():
        over = checks.quota.over(batch)
    else:
        held &= ~absurd
        if absurd.any():
            refused(GateRefusal("absurd", float(absurd.sum()), 0.0), batch.take(absurd), places[absurd])
        if held.any():
            counts["held_out"] += int(held.sum())
            checks.heldout.take(batch.take(held))
        over = np.zeros(len(batch), np.bool_)
        over[admitted] = checks.quota.over(batch.take(admitted))
    counts["over_limit"] += int(np.count_nonzero(over))
    return admitted & ~over
