# core
"""Chooses the samples to learn from, and their weights, so that the model still predicts the true rate.

*Negative down-sampling* (He et al. 2014, "Practical lessons from predicting clicks on ads at Facebook", section 6.3):
the model learns a share w of the negatives. It then predicts p; q is the rate in the whole stream::

    q = p / (p + (1 - p) / w)        as logits: logit(q) = logit(p) + ln w
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.ranker.repeats import page_hashes
from millrace.basics.hashing import combine, salt
from millrace.contracts.samples import FOLLOW_UP, OUTCOME, PAGE, SampleBatch

_SALT = salt("negative")


def usable(batch: SampleBatch, by_page: bool = False, by_outcome: bool = False) -> tuple[SampleBatch, int]:
    """The rows that a model may learn, without follow-ups, and how many are refused for their label or weight.
    ``by_page``, ``by_outcome``: those that were sent again for their page, or with an outcome, too."""
    shown = batch.kind < FOLLOW_UP  # (B,)
    if by_page:
        shown |= batch.kind == PAGE
    if by_outcome:
        shown |= batch.kind == OUTCOME
    valid = fit(batch)  # (B,)
    kept = shown & valid
    return (batch if kept.all() else batch.take(kept)), int((shown & ~valid).sum())


def fit(batch: SampleBatch) -> NDArray[np.bool_]:
    """Rows whose label and weight a model can learn from. (B,)"""
    label, weight = batch.label, batch.weight
    with np.errstate(invalid="ignore"):
        valid: NDArray[np.bool_] = (label >= 0) & (label <= 1) & (weight > 0) & np.isfinite(weight)
    return valid


def chosen(batch: SampleBatch, share: float) -> NDArray[np.bool_]:
    """Every positive, every row that was sent again, and about ``share`` of the negatives, by the sample's id, so that
    repeats are treated alike. (B,)"""
    drawn = combine(_SALT, page_hashes(batch), batch.position.astype(np.uint64) + np.uint64(1))
    kept: NDArray[np.bool_] = (batch.label > 0) | (batch.kind >= PAGE)
    kept |= (drawn >> np.uint64(11)).astype(np.float64) < share * 2.0**53
    return kept
