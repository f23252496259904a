# core
"""The slices of a freshness report: rows of new and of known users and items, days, hours, and values of columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from millrace.commands.offline.dataset import Dataset
from millrace.commands.offline.slicing import local_hours

Places = NDArray[np.intp]


def day_slices(data: Dataset, rows: slice) -> dict[str, Places]:
    """Places, counted from the first of ``rows``, of each of their days."""
    day = data.day[rows]
    return {data.days[d]: np.flatnonzero(day == d) for d in np.unique(day).tolist()}


def hour_slices(data: Dataset, rows: slice) -> dict[str, Places]:
    hour = local_hours(np.asarray(data.ts_ms[rows]), data.schema)
    return {f"{h:02d}": np.flatnonzero(hour == h) for h in np.unique(hour).tolist()}


def value_slices(data: Dataset, rows: slice) -> dict[tuple[str, str], Places]:
    """Slices of new and known users and items, and of each value of the dataset's own slices, by (column, value).

    A user or item is new without an exposure before the row's local day: a model of the day before cannot know it.
    """
    out: dict[tuple[str, str], Places] = {}
    for name, ids in (("user", data.user), ("item", data.item)):
        _, first, own = np.unique(np.asarray(ids[: rows.stop]), return_index=True, return_inverse=True)
        new = (data.day[first[own]] == data.day[: rows.stop])[rows.start :]
        out[name, "new"], out[name, "known"] = np.flatnonzero(new), np.flatnonzero(~new)
    for column, one in data.slices.items():
        code = np.asarray(one.code[rows])
        for c in np.unique(code).tolist():
            out[column, one.values[c]] = np.flatnonzero(code == c)
    return {key: places for key, places in out.items() if len(places)}
