# core
"""``wait``: a click at once, an exposure without one when its attribution window has passed.

Every micro-batch mixes fresh clicks with old exposures. So every feature that moves with time (above all counts of a
young shop) gives the label away, and the first attribution window has clicks alone. Use it for comparisons, and for
logs whose labels come at once.
"""

from __future__ import annotations

from millrace.labels.policy import LabelPolicy, Promise, Waits


class Wait(LabelPolicy):
    name = "wait"

    def promise(self, waits: Waits, flowing_ms: int) -> Promise[int]:
        return Promise(self.code, 0, waits.attribution_ms, 0)
