"""Made-up logs with all that a replay must get right, and a model that notes what it is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from millrace.commands.replay.grouped import GroupedRows
from millrace.commands.replay.logsamples import LabelSettings, ReplayModel
from millrace.commands.replay.sidebyside import Runner
from millrace.commands.replay.steps import steps
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.logs import TS, LogTable

SCHEMA = """
name = "t"
fields = [{name = "user", of = "user"}, {name = "item", of = "item"}, {name = "tags", of = "item", slots = 2},
          {name = "price", of = "item", kind = "numeric"}, {name = "hour", of = "context"},
          {name = "position", of = "context", bias = true}]
[windows]
days = [1, 3]
actions = ["exposure", "click", "cart"]
keys = [{columns = ["user"]}, {columns = ["user", "item"], parent = ["user"]}]
[[windows.means]]
of = "price"
action = "click"
step = 0.5
[log]
time = "ts_ms"
user = "user"
item = "item"
label = "click"
position = "slot"
action_times = { click = "click_ms", cart = "cart_ms" }
attribution_minutes = 30
"""
PAGES = SCHEMA + 'request = "page"\n'
OF_USERS = PAGES + 'identity = ["page", "slot", "user"]\n'  # two users' pages may have one name
START, MINUTE = 1_650_812_400_000, 60_000
SMALL = {"width": 4, "hidden": [8], "blocks": 1}
NAMES = ("wait", "es-dfm", "prompt", None)
POLICIES = [LabelSettings(name, 10_000) for name in NAMES]
BY_PAGE = [LabelSettings(name, 10_000, by_page=True) for name in (*NAMES, "equal-wait")]


def log_of(schema: Schema, rows: list[dict[str, Any]]) -> LogTable:
    types = dict.fromkeys((TS, "user", "click_ms", "cart_ms"), pa.int64())
    types |= dict.fromkeys(("item", "tags", "page"), pa.string())
    types |= {"price": pa.float64(), "slot": pa.int32(), "click": pa.int8()}
    table = pa.table({name: pa.array([r[name] for r in rows], kind) for name, kind in types.items()})
    parts = [table.slice(i, 7) for i in range(0, len(rows), 7)]  # a mapped file has many chunks
    return LogTable(pa.concat_tables(parts), "user", "item", "click", len(rows), 0)


def make_log(schema: Schema, n: int, seed: int, minutes: int = 3 * 1440) -> LogTable:
    """Ties in time, late clicks (some by days), carts, gaps, pages that come back and pages of several times."""
    rng = np.random.default_rng(seed)
    at = START + np.sort(rng.integers(0, minutes, n)) // 15 * 15 * MINUTE
    rows = []
    for i in range(n):
        user, item, click = int(rng.integers(5)), int(rng.integers(4)), int(rng.random() < 0.4)
        delay = int(rng.choice([-3, 0, 1, 29, 30, 45, 3000])) * MINUTE + int(rng.integers(3))
        rows.append(
            {
                TS: int(at[i]),
                "user": user,
                "item": f"i{item}" if item else None,
                "tags": f"a{item},b",
                "price": float(rng.integers(9)) if item else None,
                "slot": i % 4,
                "click": click,
                "click_ms": int(at[i]) + delay if click else None,
                "cart_ms": int(at[i]) + delay + 90 * MINUTE if click and user == 1 else None,
                "page": f"p{i // 3 if rng.random() < 0.8 else int(rng.integers(n))}",
            }
        )
    return log_of(schema, rows)


class Recorder:
    """A model whose answers depend on all that it has learnt, in order, and on what it is asked."""

    def __init__(self) -> None:
        self.state = np.uint64(1)
        self.batches: list[SampleBatch] = []

    def score(self, cat: np.ndarray, num: np.ndarray) -> np.ndarray:
        own = (cat.astype(np.uint64) * np.arange(1, cat.shape[1] + 1, dtype=np.uint64)).sum(1, dtype=np.uint64)
        own ^= np.ascontiguousarray(num).view(np.uint32).astype(np.uint64).sum(1, dtype=np.uint64) ^ self.state
        p: np.ndarray = ((own % np.uint64(1 << 24)) / np.float32(1 << 24)).astype(np.float32)
        return p

    def learn(self, batch: SampleBatch) -> None:
        self.batches.append(batch)
        for column in (batch.ts_ms, batch.kind, batch.cat, batch.policy, batch.position):
            with np.errstate(over="ignore"):
                self.state = self.state * np.uint64(31) + np.uint64(column.astype(np.int64).view(np.uint64).sum())


def beside(
    log: LogTable, schema: Schema, model: ReplayModel, groups: GroupedRows, how: LabelSettings, at_once: int
) -> np.ndarray:
    p = np.empty(log.table.num_rows, np.float32)
    for _ in Runner(model, p, groups).run(steps(log, schema, 16, how, groups, at_once)):
        pass
    return p


def same(one: SampleBatch, other: SampleBatch) -> None:
    assert one.request == other.request
    for name in ("page", "position", "user", "item", "ts_ms", "kind", "label", "actions", "cat", "num", "policy"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype, name
        assert mine.tobytes() == theirs.tobytes(), name
