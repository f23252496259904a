# core
"""``prompt``: a click at once, an exposure without one after the observation window, with the weights of ``es-dfm``.

The weights of ``es-dfm`` correct for exposures that are learnt twice. They do not depend on when early clicks are
learnt, so early clicks need not wait.

*At the start of traffic* only clicks would come for a whole observation window. With 200 exposures a second the
model would learn from thousands of rows that everything is clicked. So at first clicks and exposures without one
both wait four observation windows, by when most clicks are there. Both waits then shrink evenly, over fifteen times
as long::

    flowing     0 ────────────────────► 60 w
    hold        4 w ──────────────────► 0
    observe     4 w ──────────────────► w

While a wait shrinks, samples are denser than exposures by 4w / 60w, a fifteenth, clicks and negatives nearly alike.
A partition whose traffic stops for an attribution window begins again.
"""

from __future__ import annotations

from millrace.labels.es_dfm import elapsed_time_weights
from millrace.labels.policy import Codes, Floats, LabelPolicy, Promise, Waits

START = 4
"""Observation windows that the first exposures wait."""

SHRINKS = 15
"""Over so many times its length the first wait shrinks."""


class Prompt(LabelPolicy):
    name = "prompt"
    weighs = True
    asks = True

    def promise(self, waits: Waits, flowing_ms: int) -> Promise[int]:
        window = waits.window_ms
        first = min(START * window, waits.attribution_ms)
        left = max(0, SHRINKS * first - flowing_ms)  # of the time in which the wait shrinks
        hold = left // SHRINKS
        observe = window + (first - window) * left // max(1, SHRINKS * first)
        return Promise(self.code, hold, observe, waits.disorder_ms)

    def weights(self, kind: Codes, p: Floats, early: Floats) -> Floats:
        return elapsed_time_weights(kind, p, early)
