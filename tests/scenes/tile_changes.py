"""Which keys of a tile store have changed, and their lists: what a partition knows from ``TileStore.add``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from millrace.windows.tiles import TileStore


def changes(store: TileStore) -> tuple[NDArray[np.uint64], list[bytes]]:
    """The keys that changed since they were last settled, ascending, and their packed lists; settles them."""
    table = store._memory.arena.table
    changed = np.sort(table[(table[:, 0] != 0) & (table[:, 1] & np.uint64(1) != 0), 0])
    return changed, store.export(changed, settle=True)
