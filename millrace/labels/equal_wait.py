# core
"""``equal-wait``: clicks wait as long as exposures without one, until the attribution window has passed.

Nothing is bent, since labels come in the order of exposure. The price is that the model is an attribution window old.
"""

from __future__ import annotations

from millrace.contracts.samples import POLICIES
from millrace.labels.policy import Codes, Floats, Promise, Waits, ones


class EqualWait:
    name = "equal-wait"
    weighs = False
    asks = False

    def promise(self, waits: Waits, flowing_ms: int) -> Promise:
        return Promise(POLICIES.index(self.name), waits.attribution_ms, waits.attribution_ms, 0)

    def weights(self, kind: Codes, p: Floats, early: Floats) -> Floats:
        return ones(kind)
