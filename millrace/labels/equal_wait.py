# core
"""``equal-wait``: clicks wait as long as exposures without one, until the attribution window has passed.

Nothing is bent, since labels come in the order of exposure. The price is that the model is an attribution window old.
"""

from __future__ import annotations

from millrace.labels.policy import LabelPolicy, Promise, Waits


class EqualWait(LabelPolicy):
    name = "equal-wait"

    def promise(self, waits: Waits, flowing_ms: int) -> Promise:
        return Promise(self.code, waits.attribution_ms, waits.attribution_ms, 0)
