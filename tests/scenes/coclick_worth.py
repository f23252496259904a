"""What neighbours of an item are worth, as whole arrays: the kernels of the stream and the scorer count the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.coclick_message import DAYS, WEIGHTS, WINDOWS

UNIT = 1 / (105 * len(WINDOWS))


def worth(counts: NDArray[np.integer[Any]], age: int | NDArray[np.int64] = 0) -> NDArray[np.int64]:
    """What neighbours are worth: the mean over :data:`WINDOWS` of the common clicks a day in each, as
    :func:`millrace.windows.affinity.clicks_a_day`, in units of :data:`UNIT`. (m,)

    Args:
        counts: (m, DAYS) by days before some day.
        age: how many days ago that day is; or (m,), for each row.

    >>> (worth(np.array([[1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 7]])) * UNIT).round(4).tolist()
    [0.419, 0.25]
    >>> worth(np.array([[1, 0, 0, 0, 0, 0, 0]]), 7).tolist()
    [0]
    """
    padded = np.array([*WEIGHTS, *(0,) * DAYS], np.int64)
    shift = np.minimum(np.maximum(np.asarray(age, np.int64), 0), DAYS)
    weights = padded[np.arange(DAYS) + shift[..., None]]  # (DAYS,) or (m, DAYS)
    total: NDArray[np.int64] = (counts * weights).sum(axis=1)
    return total
