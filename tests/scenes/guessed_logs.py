"""Logs of many forms, of which the schema is to be guessed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

ROWS = 2_000
START = int(datetime(2024, 3, 4, 6, tzinfo=UTC).timestamp()) * 1000


@dataclass(frozen=True)
class Form:
    """How a generated log is written."""

    ending: str = ".parquet"
    time: str = "ms"
    lists: str = "rows"
    user: str = "user_id"
    item: str = "item_id"
    label: str = "click"
    stamp: str = "timestamp"
    text_ids: bool = False
    pages: bool = False
    days: int = 4
    seed: int = 0


TIMES: dict[str, Callable[[NDArray[Any]], Any]] = {
    "ms": lambda ms: [int(x) for x in ms],
    "s": lambda ms: [int(x) // 1000 for x in ms],
    "us": lambda ms: [int(x) * 1000 for x in ms],
    "ns": lambda ms: [int(x) * 1_000_000 for x in ms],
    "iso": lambda ms: [f"{_at(x):%Y-%m-%dT%H:%M:%S}Z" for x in ms],
    "hours": lambda ms: [int(f"{_at(x):%y%m%d%H}") for x in ms],
    "american": lambda ms: [f"{_at(x):%m/%d/%Y %I:%M:%S %p}" for x in ms],
    "typed": lambda ms: pa.array(np.asarray(ms, "datetime64[ms]")),
}


def _at(ms: float) -> datetime:
    return datetime.fromtimestamp(int(ms) / 1000, UTC)


def log_of(form: Form) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """(a log with honest columns of all kinds, what its rows are): 40% of clicks come of the item's quality."""
    rng = np.random.default_rng(form.seed)
    pages = ROWS // 5 if form.pages or form.lists != "rows" else ROWS
    ms = START + np.sort(rng.choice(form.days * 86_400, pages, replace=False)) * 1000
    users, items = rng.integers(0, 90, pages), rng.integers(0, 60, ROWS)
    page = np.arange(ROWS) * pages // ROWS
    if pages < ROWS:  # a page's items differ
        items = np.concatenate([rng.permutation(60)[: (page == p).sum()] for p in range(pages)])
    quality = rng.random(60) * 0.5
    click = (rng.random(ROWS) < quality[items]).astype(np.int64)
    named = "u-{}" if form.text_ids else "{}"
    user_ids = [named.format(u + 1000) for u in users]
    item_ids = [named.replace("u", "i").format(i + 5000) for i in items]
    truth = {"ms": ms[page], "user": users[page], "item": items, "click": click, "page": page}
    city = np.array(["berlin", "rome", "oslo", "york", "graz"])
    if form.lists == "rows":
        columns: dict[str, object] = {
            form.stamp: TIMES[form.time](ms[page]),
            form.user: [user_ids[p] for p in page],
            form.item: item_ids,
            form.label: click,
            "city": city[users[page] % 5],
            "brand": [f"b{i % 11}" for i in items],
            "price": np.round(1.5 ** (items % 20) + 0.25, 2),
            "device": rng.choice(["phone", "tablet", "desk"], ROWS),
            "temperature": np.round(rng.normal(12, 8, ROWS), 1),
        }
        if form.pages:
            columns |= {"request_id": page + 700_000, "position": np.arange(ROWS) % 5}
        return pa.table(_numbers(columns, form, (form.user, form.item))), truth
    groups = [np.flatnonzero(page == p) for p in range(pages)]
    columns = {
        form.stamp: TIMES[form.time](ms),
        form.user: user_ids,
        "city": city[users % 5],
        "device": rng.choice(["phone", "tablet", "desk"], pages),
    }
    lists: list[list[Any]] = [[item_ids[i] for i in group] for group in groups]
    if not form.text_ids and form.lists != "pairs":
        lists = [[int(x) for x in one] for one in lists]
    if form.lists == "labels":
        columns |= {"shown": lists, "answers": [click[group].tolist() for group in groups]}
    elif form.lists == "clicked":
        chosen = [[x for x, i in zip(one, g, strict=True) if click[i]] for one, g in zip(lists, groups, strict=True)]
        columns |= {"shown": lists, "chosen": chosen}
    else:
        texts = [" ".join(f"{item_ids[i]}-{click[i]}" for i in group) for group in groups]
        columns["impressions"] = texts
    return pa.table(_numbers(columns, form, (form.user,))), truth


def _numbers(columns: dict[str, object], form: Form, names: tuple[str, ...]) -> dict[str, object]:
    if form.text_ids:
        return columns
    return columns | {name: [int(x) for x in columns[name]] for name in names}  # type: ignore[attr-defined]


def write(table: pa.Table, folder: Path, ending: str) -> Path:
    path = folder / f"log{ending}"
    if ending == ".parquet":
        pq.write_table(table, path)
    elif ending == "/":
        path = folder / "days"
        path.mkdir()
        half = table.num_rows // 2
        pq.write_table(table.slice(0, half), path / "a.parquet")
        pq.write_table(table.slice(half), path / "b.parquet")
    elif ending.startswith(".jsonl"):
        text = "\n".join(json.dumps(row, default=str) for row in table.to_pylist()) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if ending.endswith(".gz") else text.encode())
    else:
        sink = pa.BufferOutputStream()
        by = "\t" if ".tsv" in ending else ","
        pacsv.write_csv(table, sink, pacsv.WriteOptions(delimiter=by, quoting_style="needed"))
        raw = sink.getvalue().to_pybytes()
        path.write_bytes(gzip.compress(raw) if ending.endswith(".gz") else raw)
    return path
