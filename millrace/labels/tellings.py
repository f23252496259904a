# core
"""Outcomes that come days after their click, told by age: when, with what value, with what weights.

::

    age       within / 32   / 16   / 8   / 4   / 2   within
    telling        1          2      3     4     5     6

A row has its turn at one of these ages. Till then it is told when the outcome comes; then, if it has not come, as a 0;
and after that when something changes::

    value    1   it came before its turn                  -1   that 1 is taken back (a refund), and a 0 told
             0   it is its turn, and nothing came
             2   it came after its 0: a correction        -2   that correction is taken back

So the tellings of a row add up to what is true of it: a 1, or a 0, or a 0 with a correction. Under ``wait`` an outcome
is told one time, when its window is over; that telling has the number 0.

*Turns.* If all rows had their turn at first, those of great ages would be ones alone. Each feature that moves with time
would tell them apart, and the model learn that the old is bought. So half of the rows have their turn at the first age,
half of the rest at the next, and so on, drawn by a hash. Zeros are about as old as ones then.

*Weights* are those of the label policies for clicks (:mod:`millrace.labels.policy`), with the turn as the time of the
label: a 0 is a NEGATIVE, a 1 a POSITIVE, and a 2 a CORRECTION. B tellings.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE
from millrace.labels.policy import Codes, Floats, LabelPolicy
from millrace.labels.registry import REGISTRY, weigh

TELLINGS = 6

UNTOLD, ZERO, ONE, LATER = range(4)
"""What stands of a row's tellings: nothing, a 0, a 1 before its turn, or a correction."""

_KINDS = np.array([NEGATIVE, NEGATIVE, NEGATIVE, POSITIVE, CORRECTION], np.uint8)  # by value, from -2 on


def ages_ms(policy: LabelPolicy, within_ms: int) -> list[int]:
    """The ages at which rows are told."""
    return [within_ms >> k for k in reversed(range(TELLINGS if policy.early else 1))]


def place_hash(request: str, position: int) -> int:
    """Of an exposure, uint32, for :func:`turns`: so it has its turn at one telling, live and in a replay."""
    return crc32(f"{request}\0{position}".encode())


def turns(hashes: NDArray[np.uint32]) -> Codes:
    """The number of the telling at which each row has its turn: 1 for half of them, 2 for a quarter, and so on. (B,)"""
    limits = np.uint32(1) << np.arange(32 - TELLINGS + 1, 32, dtype=np.uint32)
    spread = hashes * np.uint32(0x9E3779B1)  # CRCs of a page's positions differ by the same bits on all pages
    found: Codes = (TELLINGS - np.searchsorted(limits, spread, side="right")).astype(np.uint8)
    return found


def tell(stands: Codes, came: NDArray[np.bool_], turn: NDArray[np.bool_]) -> tuple[Floats, Codes]:
    """The values of a telling, NaN where nothing is told, and what stands then. (B,) each

    Args:
        stands: what stood before.
        came: whether the outcome has come, and was not taken back.
        turn: whether the row's turn has come.
    """
    value, after = np.full(len(came), np.nan, np.float32), stands.copy()
    for before, now, said, then in (
        (UNTOLD, came, 1, ONE),
        (UNTOLD, turn & ~came, 0, ZERO),
        (ZERO, came, 2, LATER),
        (LATER, ~came, -2, ZERO),
        (ONE, ~came, -1, ZERO),
    ):
        which = now & (stands == before)
        value[which], after[which] = said, then
    return value, after


def kinds(value: Floats) -> Codes:
    """What each telling would be of a click. (B,)"""
    found: Codes = _KINDS[value.astype(np.intp) + 2]
    return found


def told_weights(policy: Codes, telling: Codes, value: Floats, q: Floats, early: Floats) -> tuple[Floats, Floats]:
    """The weights with which each telling is learnt as a 1, and as a 0; below 0 where something is taken back. (B,)

    The gradient of the loss by the logit of a prediction q is ``(ones + zeros) q - ones``.

    Args:
        policy: codes; what is told one time has weight 1.
        value: as above.
        q: predictions, of which no gradient flows.
        early: P(an outcome comes before the row's turn | it comes, the exposure).
    """
    policy = np.where(telling > 0, policy, REGISTRY["wait"].code).astype(np.uint8)
    positive, negative, correction = (
        weigh(policy, np.full(len(value), kind, np.uint8), q, early) for kind in (POSITIVE, NEGATIVE, CORRECTION)
    )
    ones = np.where(np.abs(value) > 1, value / 2 * correction, value * positive)
    zeros = np.where(value == -1, negative, np.where((value >= 0) & (value <= 1), (1 - value) * negative, 0))
    return ones.astype(np.float32), zeros.astype(np.float32)
