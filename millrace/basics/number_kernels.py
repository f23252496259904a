# core
"""Compiled: the numbers of a row that follow from counts. Ranking, replay and page logs all inline these functions, so
the three agree to the bit.

For a window or half-life with counts c and sums S in steps, c0 the exposures, s the prior weight and r the rate of the
parent's block::

    count_j = c_j                           of a half-life: c_j / UNIT * 2^-(time of ts since its full unit / h)
    rate_j  = (count_j + s r) / (count_0 + s)         r where count_0 + s is 0
    mean_m  = S_m step_m / c_a              a: the mean's action; 0 where c_a is 0

Symbols: S spans (W windows, then half-lives), A actions, M means, C columns of counts (A + M), E = S (2 A - 1 + M)
numbers of one key. Compiled without fastmath: each operation rounds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

HOURS, DAY = np.float32(24), np.float32(1)
SLACK = np.float32(1e-3)  # nearly a step is one: ages that were rounded stay as they are


class BlockForm(NamedTuple):
    """What the numbers of one key are made of."""

    windows: int  # W
    actions: int  # A
    mean_of: Array  # (M,) int64: the action of each mean
    step: Array  # (M,) float64
    weight: np.float32  # s
    prior: Array  # (E,) float32: the block of a key without a parent's


@njit(inline="always")
def shrunk_rate(count: Any, exposed: Any, weight: Any, towards: Any) -> Any:
    """rate_j; ``exposed``: count_0 + s."""
    return (towards * weight + count) / exposed if exposed != 0 else towards


@njit(inline="always")
def fill_block(form: BlockForm, counts: Array, fade: Array, above: Array, out: Array) -> None:
    """Writes ``out`` (E,) float32 from ``counts`` (S or S + 1, C), with rates shrunk towards those of ``above`` (E,).
    ``fade``: what takes decayed counts to the row's time, of each half-life."""
    actions, means, weight = form.actions, len(form.mean_of), form.weight
    rates = 2 * actions - 1
    size = rates + means
    spans = len(out) // size  # counts may have one row more
    for s in range(spans):
        at = s * size
        for a in range(actions):
            if s < form.windows:
                out[at + a] = np.float32(counts[s, a])
            else:
                out[at + a] = np.float32(counts[s, a] * fade[s - form.windows])
        exposed = out[at] + weight
        for j in range(1, actions):
            rate = at + actions + j - 1
            out[rate] = shrunk_rate(out[at + j], exposed, weight, above[rate])
        for m in range(means):
            seen = counts[s, form.mean_of[m]]
            mean = counts[s, actions + m] * form.step[m] / seen if seen > 0 else 0.0
            out[at + rates + m] = np.float32(mean)


@njit(inline="always")
def whole_steps(age_days: Any, steps: Any) -> Any:
    """An age in days (float32), rounded down to a whole part of a day: ``steps`` (float32) a day, 24 as a rule. From
    one day on it is in whole hours at the finest, so that float32 keeps it.

    To the minute, an age is a clock where many goods came at one time. A late click is learnt minutes behind its
    exposure, among exposures that are minutes younger and have no click yet. So a clock tells which rows are clicks,
    and a model that reads it expects none of what is shown now.
    """
    part = steps if age_days < DAY else min(steps, HOURS)
    return np.floor(age_days * part + SLACK) / part
