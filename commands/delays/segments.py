# core
"""Exposures by slot and by the values of a log's column."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.basics.errors import SettingError
from millrace.logs import LogTable

MOST_VALUES = 12
"""Values of a segment that have a row of their own; numbers with more are cut into quarters."""

OTHER, MISSING = "other", "missing"

Grouping = tuple[NDArray[np.intp], list[str]]
"""The number of each row's group (n,), and the groups' names."""


def grouped_by(log: LogTable, name: str, weight: NDArray[Any]) -> Grouping:
    """The rows by the values of a column; of texts those with most ``weight`` (n,), the rest together.

    Raises:
        SettingError: the log has no such column, or it holds lists.
    """
    if name not in log.table.column_names:
        raise SettingError(f"segment '{name}'", f"name a column of the schema: {', '.join(log.table.column_names)}")
    column = log.table[name]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if kind.num_fields:
        raise SettingError(f"segment '{name}' holds lists", "name a column with one value a row")
    if pa.types.is_dictionary(column.type):
        column = column.cast(kind)
    distinct = pc.unique(column).drop_null()
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        if len(distinct) > MOST_VALUES:
            return _quarters(np.asarray(column.cast(pa.float64()).to_numpy(), np.float64))
        distinct = distinct.take(pc.sort_indices(distinct))
    codes = pc.index_in(column, value_set=distinct).fill_null(len(distinct)).to_numpy().astype(np.intp)
    names = [*map(_text, distinct.to_pylist()), MISSING]
    if len(distinct) <= MOST_VALUES:
        return codes, names
    heavy = np.bincount(codes, weights=np.asarray(weight, np.float64), minlength=len(names))[:-1]
    kept = np.argsort(-heavy, kind="stable")[:MOST_VALUES]
    renamed = np.full(len(names), MOST_VALUES, np.intp)
    renamed[kept] = np.arange(MOST_VALUES)
    renamed[-1] = MOST_VALUES + 1
    return renamed[codes], [*(names[k] for k in kept), OTHER, MISSING]


def slots_of(position: NDArray[np.int64], most: int) -> Grouping:
    """The rows by slot from 0 on; slots beyond ``most`` together, and those that the log does not tell."""
    last = f"{most} and on"
    codes = np.where(position < 0, most + 1, np.minimum(position, most)).astype(np.intp)
    return codes, [*map(str, range(most)), last, MISSING]


def _quarters(values: NDArray[np.float64]) -> Grouping:
    known = values[np.isfinite(values)]
    cuts: Sequence[float] = np.unique(np.quantile(known, [0.25, 0.5, 0.75])).tolist()
    codes = np.searchsorted(cuts, values, side="left")
    names = [
        f"to {cuts[0]:g}",
        *(f"{a:g} to {b:g}" for a, b in itertools.pairwise(cuts)),
        f"above {cuts[-1]:g}",
    ]
    return np.where(np.isfinite(values), codes, len(names)).astype(np.intp), [*names, MISSING]


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)
