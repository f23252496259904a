# core
"""Figures by which ``millrace model bisect`` compares a model with itself at other times.

All points use the same rows: exposures before the version to begin at, with the labels known then. Later events cannot
be in these labels, so the cause of a move is what was learnt between two points.

``heldout_auc``, ``log_loss`` and ``calibration`` are of held-out pages, which no model has learnt. ``auc`` is of the
rows learnt last. A model forgets them, so it declines a little even where nothing is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learner.gate.heldout import MOST_ROWS, Heldout
from learner.ranker.interfaces import Learning
from learner.ranker.repeats import exposure_ids, page_hashes
from millrace.basics.errors import SnapshotError
from millrace.basics.ranking_metrics import auc, calibration, log_loss
from millrace.contracts.samples import FOLLOW_UP, SampleBatch

SMALL: Mapping[str, float] = {"heldout_auc": 0.01, "auc": 0.01, "log_loss": 0.005, "calibration": 0.1}
"""Moves below this are no harm that the gate would refuse a version for, and may be chance."""


class JudgedRows(NamedTuple):
    """Rows to judge by: cat (n, F), num (n, N), label (n,)."""

    cat: NDArray[Any]
    num: NDArray[Any]
    label: NDArray[Any]


_OF: Mapping[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
    "heldout_auc": auc,
    "log_loss": log_loss,
    "calibration": calibration,
    "auc": auc,
}
FIGURES = tuple(_OF)


def figure_on(name: str, model: Learning, rows: JudgedRows) -> float:
    """A figure of a model on some rows; NaN where they do not suffice."""
    return _OF[name](model.score(rows.cat, rows.num), rows.label)


def worse(name: str, before: float, after: float) -> float:
    """By how much a figure became worse; below 0: better. A calibration moves by its logarithm, up or down.

    >>> worse("auc", 0.75, 0.5), worse("log_loss", 0.25, 0.5), round(worse("calibration", 1.0, 0.5), 2)
    (0.25, 0.25, 0.69)
    """
    if name == "calibration":
        return abs(math.log(max(after, 1e-9))) - abs(math.log(max(before, 1e-9)))
    return after - before if name == "log_loss" else before - after


def members_of(told: Mapping[str, Any]) -> Heldout:
    """The rule by which pages were held out, from a snapshot's ``extra["heldout"]``. Raises SnapshotError if it has
    none."""
    members = Heldout(0.0)
    try:
        members.follow(told)
    except (KeyError, ValueError, TypeError):
        raise SnapshotError("the snapshot does not say which pages were held out", "take --figure auc") from None
    return members


def rows_until(
    batches: Iterable[SampleBatch], until_ms: int, members: Heldout | None = None, most: int = MOST_ROWS
) -> JudgedRows:
    """The newest ``most`` exposures up to a time, each with its last known label.

    Args:
        batches: messages, in order.
        members: exposures that it holds out, no others; None: all.
    """
    found: list[SampleBatch] = []
    for batch in batches:
        wanted = (batch.kind < FOLLOW_UP) & (batch.ts_ms <= until_ms)
        if members is not None:
            wanted &= members.holds(page_hashes(batch), batch.ts_ms)
        if wanted.any():
            found.append(batch.take(wanted))
            if sum(map(len, found)) > 4 * most:
                found = [_newest(found, 2 * most)]
    if not found:
        return JudgedRows(np.empty((0, 0), np.int64), np.empty((0, 0), np.float32), np.empty(0, np.float32))
    whole = _newest(found, most)
    return JudgedRows(whole.cat, whole.num, whole.label)


def _newest(found: Sequence[SampleBatch], most: int) -> SampleBatch:
    whole = SampleBatch.concat(found)
    ids = exposure_ids(whole)
    last = len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]  # a correction comes after its negative
    return whole.take(last[np.argsort(whole.ts_ms[last], kind="stable")][-most:])
