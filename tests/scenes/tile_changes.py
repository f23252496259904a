"""What tests of tile stores ask of them: which keys have changed, and how coarse their windows are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MIN, grain_minutes
from millrace.windows.tiles import TileStore


def changes(store: TileStore) -> tuple[NDArray[np.uint64], list[bytes]]:
    """The keys that changed since they were last settled, ascending, and their packed lists; settles them."""
    table = store._memory.arena.table
    changed = np.sort(table[(table[:, 0] != 0) & (table[:, 1] & np.uint64(1) != 0), 0])
    return changed, store.export(changed, settle=True)


def grain_hours(days: int) -> int:
    """The grain of a window of ``days`` days, in hours: how far its tail may reach beyond its length."""
    return grain_minutes(days * DAY_MIN) // 60
