# core
"""``equal-wait``: clicks and exposures without one are labelled when the attribution window has passed.

This is unbiased, since labels come in the order of exposure. The price is a model that is one window old.
"""

from __future__ import annotations

from millrace.labels.policy import LabelPolicy, Promise, Waits


class EqualWait(LabelPolicy):
    name = "equal-wait"
    final = True

    def promise(self, waits: Waits, flowing_ms: int) -> Promise[int]:
        return Promise(self.code, waits.attribution_ms, waits.attribution_ms, 0)
