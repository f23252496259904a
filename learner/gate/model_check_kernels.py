# core
"""The compiled look at rows of a table, for :mod:`learner.gate.model_checks`. Symbols as in
:mod:`learner.tables.table_kernels`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.compiled import compiled

Array = NDArray[Any]

SOUND = -1
EMBEDDING, SQUARE, Z, N, WIDE, SEEN = range(6)
"""Which part of a row is unsound."""


@compiled
def look(
    data: Array,
    marks: Array,
    ids: Array,
    first: int,
    width: int,
    total: int,
    at: int,
    mark: int,
    rows: Array,
    most: Any,
    most_sum: Any,
    newest_min: int,
    found: Array,
    alpha: Any,
    beta: Any,
    l1: Any,
    l2: Any,
) -> int:
    """The first of ``rows`` (U,) that is not finite or breaks a bound: its place among them, and which part of it as
    ``found[0]``; SOUND where none does. Rows that are free are passed over. The columns are as in ``kernels.step``.

    A comparison with NaN is false, so each test says what must hold.
    """
    for u in range(len(rows)):
        row = rows[u]
        if ids[row, 0] == 0:
            continue
        part = SOUND
        for d in range(width):
            if not abs(data[row, first + d]) <= most:
                part = EMBEDDING
        if width and not (data[row, total] >= 0 and data[row, total] <= most_sum):
            part = SQUARE
        z, n = data[row, at], data[row, at + 1]
        if not abs(z) <= most_sum:
            part = Z
        elif not (n >= 0 and n <= most_sum):
            part = N
        elif not max(abs(z) - l1, np.float32(0)) <= most * ((beta + np.sqrt(n)) / alpha + l2):
            part = WIDE
        seen = marks[row, mark] >> 2
        if seen < 0 or seen > newest_min:
            part = SEEN
        if part != SOUND:
            found[0] = part
            return u
    return SOUND
