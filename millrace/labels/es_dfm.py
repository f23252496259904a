# core
"""``es-dfm``: each exposure is labelled after an observation window; a later click is learnt when it comes.

Yang et al., AAAI 2021, arXiv 2012.03245, "elapsed-time sampling". With w the observation window::

    p_dp = P(click, delay > w | x)              a click that its negative has come before
    p_rn = P(no click | x) / P(no click within w | x)      how true a negative is
    weight of a click                1 + p_dp
    weight of a negative             (1 + p_dp) p_rn

The paper estimates p_dp and p_rn by two models. Here, both come from the model's click probability p and from a
model of delays, ``g = P(delay <= w | click, x)`` (learner/network/models/delays.py)::

    p_dp = (1 - g) p        p_rn = (1 - p) / (1 - g p)
"""

from __future__ import annotations

import numpy as np

from millrace.contracts.samples import NEGATIVE
from millrace.labels.policy import MOST, Codes, Floats, LabelPolicy, Promise, Waits


def elapsed_time_weights(kind: Codes, p: Floats, early: Floats) -> Floats:
    """The weights above. (B,)"""
    p = np.minimum(p, MOST)
    delayed = (1 - early) * p  # p_dp
    real = (1 - p) / (1 - early * p)  # p_rn
    return np.where(kind == NEGATIVE, (1 + delayed) * real, 1 + delayed).astype(np.float32)


class EsDfm(LabelPolicy):
    name = "es-dfm"
    weighs = True
    asks = True
    early = True

    def promise(self, waits: Waits, flowing_ms: int) -> Promise[int]:
        return Promise(self.code, waits.window_ms, waits.window_ms, waits.disorder_ms)

    def weights(self, kind: Codes, p: Floats, early: Floats) -> Floats:
        return elapsed_time_weights(kind, p, early)
