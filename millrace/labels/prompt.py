# core
"""``prompt``: a click at once, an exposure without one after the observation window, with the weights of ``es-dfm``.

The weights of ``es-dfm`` make up for what is learnt twice. They do not depend on when the early clicks are learnt, so
these need not wait. Freshness of clicks is what learning online is for.

*At the start of traffic* clicks would come alone for a whole observation window. With 200 exposures a second that is
thousands of rows, and the model would learn that everything is clicked. So at first clicks wait as long as exposures
without one, and four times the observation window, so that most clicks are there by then. From then on both waits
shrink evenly, over fifteen times as long, to nothing and to the observation window::

    flowing     0 ────────────────────► 60 w
    hold        4 w ──────────────────► 0
    observe     4 w ──────────────────► w

While a wait shrinks, samples come denser than exposures by 4w / 60w, a fifteenth, and clicks and negatives nearly
alike. Traffic of a partition that stops for as long as the attribution window starts anew.
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

    def promise(self, waits: Waits, flowing_ms: int) -> Promise:
        window = waits.window_ms
        first = min(START * window, waits.attribution_ms)
        left = max(0, SHRINKS * first - flowing_ms)  # of the time in which the wait shrinks
        hold = left // SHRINKS
        observe = window + (first - window) * left // max(1, SHRINKS * first)
        return Promise(self.code, hold, observe, waits.disorder_ms)

    def weights(self, kind: Codes, p: Floats, early: Floats) -> Floats:
        return elapsed_time_weights(kind, p, early)
