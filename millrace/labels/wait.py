# core
"""``wait``: a click at once, an exposure without one when its attribution window has passed.

Every micro-batch mixes fresh clicks with old exposures. So whatever moves with time (counts of a young shop above all)
gives the label away, and in the first attribution window there are clicks alone. It is kept to compare with, and for
logs whose labels come at once.
"""

from __future__ import annotations

from millrace.contracts.samples import POLICIES
from millrace.labels.policy import Codes, Floats, Promise, Waits, ones


class Wait:
    name = "wait"
    weighs = False
    asks = False

    def promise(self, waits: Waits, flowing_ms: int) -> Promise:
        return Promise(POLICIES.index(self.name), 0, waits.attribution_ms, 0)

    def weights(self, kind: Codes, p: Floats, early: Floats) -> Floats:
        return ones(kind)
