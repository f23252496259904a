# core
"""A user's affinity to items and the heat of an item: one formula for the scorer's recall and for the shop's lists.

::

    clicks a day = 1 / W * sum over the W windows of  clicks in the window / its days

A click of today weighs most: it lies in every window, and a short window has few days. Windows shorter than a day
are left out where there are longer ones: one click in 15 minutes would be 96 a day.

A window key of the item alone gives the item's *heat*. A key of user and item columns, such as
``user_id * category``, gives the user's *affinity* to items with these values. Decayed counts take no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MIN
from millrace.basics.hashing import U64, value_hash
from millrace.contracts.online_layout import window_fields
from millrace.contracts.schema import Windows
from millrace.windows.features import FeatureBuilder
from millrace.windows.tiles import counts_of

ACTION, EXPOSED = "click", "exposure"


def clicks_a_day(counts: NDArray[np.integer[Any]], windows: Windows) -> NDArray[np.float64]:
    """The mean over the windows of the clicks a day in each; zeros for a schema that counts no clicks. (n,)

    Args:
        counts: (n, W + H, A) as :class:`millrace.windows.tiles.TileStore` gives them.

    >>> counts = np.array([[[9, 2], [50, 7]], [[4, 0], [9, 7]]])  # [exposures, clicks] in a day, in a week
    >>> clicks_a_day(counts, Windows(days=(1, 7), actions=("exposure", "click"))).tolist()
    [1.5, 0.5]
    """
    return events_a_day(counts, windows, ACTION)


def events_a_day(counts: NDArray[np.integer[Any]], windows: Windows, action: str) -> NDArray[np.float64]:
    """The same of any action. (n,)"""
    if action not in windows.actions:
        return np.zeros(len(counts))
    first, days = _counted(windows)
    events = counts[:, first : first + len(days), windows.actions.index(action)]  # (n, W)
    mean: NDArray[np.float64] = (events / days).mean(axis=1)
    return mean


def _counted(windows: Windows) -> tuple[int, NDArray[np.float64]]:
    """The first window of a day and more (the first of all where none is as long), and the days of it and of longer
    ones."""
    minutes = np.array(windows.minutes, np.float64)
    short = int(np.count_nonzero(minutes < DAY_MIN))
    first = short if short < len(minutes) else 0
    return first, minutes[first:] / DAY_MIN


def smoothed_rate(
    clicks: NDArray[np.float64],
    exposures: NDArray[np.float64],
    rate: float | NDArray[np.float64],
    prior: float,
    windows: Windows,
) -> NDArray[np.float64]:
    """Clicks over exposures, shrunk towards ``rate`` where exposures are few. (n,) ::

        (clicks + s r) / (exposures + s)

    Args:
        clicks, exposures: (n,) a day, as :func:`events_a_day` gives them.
        rate: r, the expected rate of an item without exposures.
        prior: weight of ``rate``, in exposures of today. One of them counts the mean over windows of 1 / days, so s is
            ``prior`` times that.

    >>> windows = Windows(days=(1, 2))  # an exposure of today counts (1 + 1 / 2) / 2
    >>> smoothed_rate(np.array([0.0, 6.0, 0.75]), np.array([0.0, 12.0, 0.75]), 0.1, 8, windows).round(3).tolist()
    [0.1, 0.367, 0.2]
    """
    s = prior * float(np.mean(1 / _counted(windows)[1]))
    out: NDArray[np.float64] = (clicks + s * rate) / (exposures + s)
    return out


def taste_keys(builder: FeatureBuilder) -> list[int]:
    """The window keys, as columns of ``keys``, of user and item columns alone, without the item's id: a user's
    affinities."""
    users, items = set(builder.needs("user")), set(builder.needs("item")) - {builder.item_column}
    found = []
    for k, key in enumerate(builder.schema.windows.keys):
        columns = set(key.columns)
        if columns & users and columns & items and columns <= users | items:
            found.append(k)
    return found


def taste_columns(builder: FeatureBuilder) -> dict[str, int]:
    """The item columns that alone form a key of :func:`taste_keys` with user columns: column -> the first such key."""
    found: dict[str, int] = {}
    items = set(builder.needs("item"))
    for k in taste_keys(builder):
        of_item = [column for column in builder.schema.windows.keys[k].columns if column in items]
        if len(of_item) == 1:
            found.setdefault(of_item[0], k)
    return found


def preferences(
    builder: FeatureBuilder,
    column: str,
    values: Sequence[str | int],
    user: Mapping[str, U64],
    record: Mapping[bytes, bytes],
    ts_ms: int,
) -> list[tuple[str | int, float]]:
    """The values of an item column that a user has clicked in, and the affinity to each; best first.

    Args:
        column: one of :func:`taste_columns`.
        values: the values to choose from.
        user: the user's columns, of (1,) hashes.
        record: the user's hash in the online store (:mod:`millrace.contracts.online_layout`).
        ts_ms: event time, after the newest event.

    Raises:
        StoreError: a tile list in ``record`` is damaged.
    """
    windows = builder.schema.windows
    hashes = np.array([value_hash(value) for value in values], np.uint64)
    keys = builder.keys({**user, column: hashes}, len(values))[:, taste_columns(builder)[column]]
    held = [record.get(field) for field in window_fields(keys)]
    affinity = clicks_a_day(counts_of(held, ts_ms, windows.durations, windows.columns), windows)
    order = np.argsort(-affinity, kind="stable")[: np.count_nonzero(affinity)]
    return [(values[i], float(affinity[i])) for i in order.tolist()]
