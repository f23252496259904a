# core
"""Chooses which samples are learnt from, and their weights, so that the model still predicts the true rate.

*Negative down-sampling* (He et al. 2014, "Practical lessons from predicting clicks on ads at Facebook", section 6.3):
a share w of the negatives is learnt from. A model of that stream predicts p; q is the rate in the whole stream::

    q = p / (p + (1 - p) / w)        as logits: logit(q) = logit(p) + ln w
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.ranker.repeats import page_hashes
from millrace.basics.hashing import combine, salt
from millrace.contracts.samples import SampleBatch

_SALT = salt("negative")


def chosen(batch: SampleBatch, share: float) -> NDArray[np.bool_]:
    """Every positive, and about ``share`` of the negatives. (B,)

    The choice is a function of the sample's id, so a sample that comes again is treated as before.
    """
    drawn = combine(_SALT, page_hashes(batch), batch.position.astype(np.uint64) + np.uint64(1))
    kept: NDArray[np.bool_] = (batch.label > 0) | ((drawn >> np.uint64(11)).astype(np.float64) < share * 2.0**53)
    return kept
