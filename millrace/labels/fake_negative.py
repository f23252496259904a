# core
"""``fake-negative-weighted``: each exposure is a negative at once, and its click a second sample, a positive.

Ktena et al. 2019, arXiv 1907.06558, the fake negative weighted loss. Without weights the model would predict a true
rate of p as ``p / (1 + p)``. With these it predicts p::

    CORRECTION (a click)                1 + p
    NEGATIVE                            (1 - p) (1 + p)
    POSITIVE that was no negative       (1 - p) (1 + p)

The last is not in the paper, whose positives all were negatives first. It keeps the fixed point at the true rate,
whatever the share g of clicks that come before the label. A prediction q of a true rate p is at rest when

    g p (1 - p)(1 - q) + (1 - g) p (1 - q)  =  (1 - g p)(1 - p) q      at q = p, for every g.
"""

from __future__ import annotations

import numpy as np

from millrace.contracts.samples import CORRECTION
from millrace.labels.policy import MOST, Codes, Floats, LabelPolicy, Promise, Waits


class FakeNegativeWeighted(LabelPolicy):
    name = "fake-negative-weighted"
    weighs = True
    early = True

    def promise(self, waits: Waits, flowing_ms: int) -> Promise[int]:
        return Promise(self.code, 0, 0, waits.disorder_ms)

    def weights(self, kind: Codes, p: Floats, early: Floats) -> Floats:
        p = np.minimum(p, MOST)
        return np.where(kind == CORRECTION, 1 + p, (1 - p) * (1 + p)).astype(np.float32)
