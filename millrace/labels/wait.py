# core
"""``wait``: a click at once, an exposure without one when its attribution window has passed.

Every micro-batch mixes fresh clicks with old exposures. So whatever moves with time (counts of a young shop above all)
gives the label away, and in the first attribution window there are clicks alone. It is kept to compare with, and for
logs whose labels come at once.
"""

from __future__ import annotations

from millrace.labels.policy import LabelPolicy, Promise, Waits


class Wait(LabelPolicy):
    name = "wait"

    def promise(self, waits: Waits, flowing_ms: int) -> Promise:
        return Promise(self.code, 0, waits.attribution_ms, 0)
