"""A small exposure log of every form of file, and its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from millrace.contracts.schema import Schema, parse_schema

MS = 1_650_812_400_000  # 2022-04-24 15:00:00 UTC
TEXT = """
name = "t"
utc_offset = "+08:00"
[[fields]]
name = "who"
of = "user"
[[fields]]
name = "what"
of = "item"
[windows]
actions = ["exposure", "click"]
[log]
time = "at"
user = "who"
item = "what"
label = "clicked"
"""


def schema(log: str = "") -> Schema:
    return parse_schema(TEXT + log)


def written(folder: Path, rows: list[dict[str, Any]], name: str = "log.parquet") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name.endswith(".csv"):
        pacsv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


PAGES: list[dict[str, Any]] = [
    {"at": MS, "who": 1, "shown": [7, 9, 4], "hit": [0, 1, 0], "liked": [9], "pairs": "7-0 9-1 4-0"},
    {"at": MS + 60_000, "who": 2, "shown": [9], "hit": [0], "liked": [], "pairs": "9-0"},
    {"at": MS + 120_000, "who": 1, "shown": [4, 7], "hit": [1, 1], "liked": [7, 4], "pairs": "4-1 7-1"},
]
ROWS: list[dict[str, Any]] = [{"at": MS + 1000 * n, "who": n % 3, "what": f"i{n}", "clicked": n % 2} for n in range(6)]
