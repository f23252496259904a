# core
"""Chooses which samples are learnt from, and their weights, so that the model still predicts the true rate.

*Negative down-sampling* (He et al. 2014, "Practical lessons from predicting clicks on ads at Facebook", section 6.3):
a share w of the negatives is learnt from. A model of that stream predicts p; q is the rate in the whole stream::

    q = p / (p + (1 - p) / w)        as logits: logit(q) = logit(p) + ln w

*Fake negatives* (Ktena et al. 2019, arXiv 1907.06558, the fake negative weighted loss): each exposure is a negative
at once. When its click comes, it is also a second sample, a positive. Without weights, the model would predict a true
rate of p as ``p / (1 + p)``. With these weights it predicts p. The p in the weights is the model's own (corrected)
prediction, and no gradient flows through it::

    positive (a correction of its negative)   1 + p
    negative                                  (1 - p) (1 + p)
    positive that never was a negative        (1 - p) (1 + p)

The last weight is not in the paper. Some clicks are so fast that no negative comes before them. The weight keeps the
fixed point at the true rate, whatever the share of such clicks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.hashing import column_hash, combine, salt
from millrace.contracts.samples import CORRECTION, SampleBatch

_SALT = salt("negative")


def chosen(batch: SampleBatch, share: float) -> NDArray[np.bool_]:
    """Every positive, and about ``share`` of the negatives. (B,)

    The choice is a function of the sample's id, so a sample that comes again is treated as before.
    """
    requests = column_hash(np.array(batch.request, object))[batch.page]
    drawn = combine(_SALT, requests, batch.position.astype(np.uint64) + np.uint64(1))
    kept: NDArray[np.bool_] = (batch.label > 0) | ((drawn >> np.uint64(11)).astype(np.float64) < share * 2.0**53)
    return kept


def fake_negative_weights(
    kind: NDArray[np.uint8], label: NDArray[np.float32], p: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The weights above for samples of these kinds and labels, with the model's predictions p. All (B,)"""
    corrects = (kind == CORRECTION) & (label > 0)
    return np.where(corrects, 1 + p, (1 - p) * (1 + p)).astype(np.float32)
