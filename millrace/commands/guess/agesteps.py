# core
"""How fine ages of items may be in a guessed schema: fine enough for how fast click rates fall with age, and no clock.

A click is learnt behind its exposure by its delay. Where most delays lie well within one step, a click and the
exposures that are learnt beside it have one age, so the age does not tell them apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import HOUR_MS, MINUTE_MS, text_of

STEPS = (5, 10, 15, 20, 30)
"""Minutes: what is proposed in place of hours."""
DELAYS, PARTS = 4.0, 6.0
"""A step is at least so many times the delay of nine in ten clicks, and so many steps are in the time in which rates
halve; if no such step is long enough, the shortest that is."""
LEAST_CLICKS, SURE = 200, 3.0


def age_step(age_ms: NDArray[np.int64], clicked: NDArray[np.bool_], delay_ms: NDArray[np.int64]) -> tuple[str, str]:
    """The step as a schema writes it, empty for hours, and what was weighed.

    Args:
        age_ms: of the item at each exposure of a sample, (n,).
        clicked: whether it was clicked, (n,).
        delay_ms: of clicks with a time, (m,).
    """
    first, second = (age_ms >= 0) & (age_ms < HOUR_MS // 2), (age_ms >= HOUR_MS // 2) & (age_ms < HOUR_MS)
    hits, shown = np.array([clicked[first].sum(), clicked[second].sum()]), np.array([first.sum(), second.sum()])
    if hits.sum() < LEAST_CLICKS or not (shown.all() and hits[1]):
        return "", f"{hits.sum()} clicks in the first hour of items: too few to weigh finer ages than hours"
    fall = float(np.log(hits[0] / shown[0] * shown[1] / hits[1]))
    if fall < SURE * np.sqrt((1 / hits).sum()):
        return "", "click rates do not fall within the first hour of items: ages in hours lose nothing"
    half = 30 * np.log(2) / fall
    weighed = f"click rates of the first hour halve in {half:.0f} min"
    if len(delay_ms) < LEAST_CLICKS:
        return "", f'{weighed}, but no delays of clicks are known: if most come within a minute, age = "5min"'
    late = float(np.percentile(delay_ms, 90)) / MINUTE_MS
    weighed += f"; nine in ten clicks come within {late:.1f} min"
    fit = [step for step in STEPS if step >= DELAYS * late]
    if not fit:
        return "", f"{weighed}: finer ages than hours would tell late clicks"
    step = max([step for step in fit if step * PARTS <= half], default=fit[0])
    told = [f"{(delay_ms >= minutes * MINUTE_MS).mean():.1%} with '{text_of(minutes)}'" for minutes in (step, 1)]
    return text_of(step), f"{weighed}; clicks that come a whole step late: {', '.join(told)}"
