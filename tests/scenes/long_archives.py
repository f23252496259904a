"""Archives made longer, and the memory that reading them takes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def prolong(folder: Path, times: int) -> None:
    """Files of the same rows again, of other pages in later time, until there are so many times as many."""
    for file in sorted(folder.glob("*.parquet")):
        table = pq.read_table(file)
        for more in range(1, times):
            request = pc.binary_join_element_wise(table["request_id"], str(more), "-")
            later = table.set_column(table.column_names.index("request_id"), "request_id", request)
            for name in (name for name in table.column_names if name in ("time_ms", "click_ms")):
                moved = pc.add(table[name], more * 10 * 86_400_000)
                later = later.set_column(table.column_names.index(name), name, moved)
            pq.write_table(later, file.with_stem(f"{int(file.stem) + 100 * more:010d}"))


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes that it has at a time, Arrow's included."""
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] + (pool.max_memory() or 0)
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)
