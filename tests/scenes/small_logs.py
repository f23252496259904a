"""A small exposure log of every form of file, and its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
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

LISTED = """
name = "t"
[[fields]]
name = "who"
of = "user"
[[fields]]
name = "shown"
of = "item"
[windows]
actions = ["exposure", "click"]
[log]
time = "at"
user = "who"
item = "shown"
label = "clicked"
"""
MORE = """
action_times = { click = "click_at" }
request = "page"
position = "slot"
day = "date"
disorder = "10min"
[[fields]]
name = "price"
of = "item"
kind = "numeric"
[[fields]]
name = "shop"
of = "item"
"""


def plan(log: str = "") -> Schema:
    text, fields = (log + MORE).split("[[fields]]", 1)
    return schema(text + "[[fields]]" + fields)


def traffic(rows: int, seed: int, late_ms: int = 300_000) -> pa.Table:
    """Rows about a second apart, up to ``late_ms`` too late in the file, some of them twice."""
    rng = np.random.default_rng(seed)
    at = MS + np.sort(rng.integers(0, rows * 1000, rows))
    clicked = rng.random(rows) < 0.3
    table = pa.table(
        {
            "at": at,
            "who": rng.integers(0, 50, rows),
            "what": [f"i{n}" for n in rng.integers(0, 40, rows)],
            "clicked": clicked.astype(np.int64),
            "click_at": pa.array(at + rng.integers(0, 9000, rows), mask=~clicked),
            "page": rng.integers(0, rows // 4 + 1, rows),
            "slot": rng.integers(0, 10, rows),
            "date": 20220424 + (at - MS) // 86_400_000,
            "price": np.where(np.arange(rows) < rows // 2, 1, rng.random(rows).round(2)),
            "shop": pa.array(rng.integers(0, 9, rows), mask=rng.random(rows) < 0.2),
        }
    )
    twice = table.take(pa.array(rng.integers(0, rows, rows // 20)))
    table = pa.concat_tables([table, twice])
    order = np.argsort(table["at"].to_numpy() + rng.integers(0, late_ms, table.num_rows), kind="stable")
    return table.take(pa.array(order))


def save(table: pa.Table, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=97)
    elif path.suffix == ".gz":
        with pa.output_stream(str(path), compression="gzip") as out:
            pacsv.write_csv(table, out)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        pacsv.write_csv(table, path)
    return path
