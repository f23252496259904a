"""The contestants of ``dev bench peers``: each learns, none sees a label early, and Millrace's is a replay."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

import millrace as mr
from benchmarks.peers import CONTESTANTS, POLICY, LogArrays, best_rate, millrace_spec, run_through
from millrace.basics.durations import DAY_MS
from millrace.basics.ranking_metrics import auc
from millrace.contracts.schema import Schema, parse_schema

SCHEMA = parse_schema("""
name = "taste"
crosses = [["user_id", "item_id"]]
fields = [{ name = "user_id", of = "user" }, { name = "item_id", of = "item" },
          { name = "price", of = "item", kind = "numeric" }]
[windows]
days = [1]
prior_rate = 0.5
actions = ["exposure", "click"]
[[windows.keys]]
columns = ["item_id"]
[log]
time = "ts_ms"
user = "user_id"
item = "item_id"
label = "click"
identity = ["ts_ms", "user_id", "item_id"]
""")
ROWS, DAYS = 6000, 3


def taste(seed: int = 0, flip_from: int = ROWS) -> pa.Table:
    """Three days in which each user clicks even or odd items; from row ``flip_from`` on the labels are the others."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 6, ROWS), rng.integers(0, 10, ROWS)
    click = (rng.random(ROWS) < np.where((user + item) % 2, 0.85, 0.15)) ^ (np.arange(ROWS) >= flip_from)
    ts_ms = 1_772_409_600_000 + np.arange(ROWS) * (DAYS * DAY_MS // ROWS)
    columns = {"ts_ms": ts_ms, "user_id": user, "item_id": item, "price": item * 1.5, "click": click.astype(np.int8)}
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def arrays(log: pa.Table, schema: Schema = SCHEMA) -> LogArrays:
    return LogArrays(mr.read(log, schema), schema)


def scores(name: str, log: LogArrays) -> NDArray[np.float32]:
    return run_through(name, log, CONTESTANTS[name].rates[3], 0).p


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTESTANTS)
def test_each_learns_and_none_sees_a_label_early(name: str) -> None:
    log = arrays(taste())
    p = scores(name, log)
    judged = log.last_days(1)
    assert judged.sum() == ROWS // DAYS
    assert auc(p[judged], log.rows.label[judged]) > 0.75
    flip = ROWS // 2
    other = scores(name, arrays(taste(flip_from=flip)))
    np.testing.assert_array_equal(p[:flip], other[:flip])
    assert (p[flip:] != other[flip:]).any(), "labels are learnt later"


@pytest.mark.slow
def test_a_rate_is_chosen_by_the_first_day_alone() -> None:
    logs = arrays(taste()), arrays(taste(flip_from=ROWS // DAYS))
    assert logs[0].first_rows == ROWS // DAYS
    assert len({best_rate("vowpalwabbit", log) for log in logs}) == 1
    p, other = (run_through("lightgbm nightly", log.first_day(), 0.1, 0).p[: log.first_rows] for log in logs)
    np.testing.assert_array_equal(p, other)
    assert len(np.unique(p[: log_rows(6)])) == 1 < len(np.unique(p)), "its first night comes after six hours"


def log_rows(hours: int) -> int:
    return ROWS * hours // (24 * DAYS)


@pytest.mark.slow
def test_copies_are_dropped_for_all_and_millrace_is_a_replay() -> None:
    log = taste()
    doubled = pa.concat_tables([log, log.slice(0, 500)]).sort_by("ts_ms")
    read = mr.read(doubled, SCHEMA)
    assert (read.table.num_rows, read.duplicates) == (ROWS, 500)
    p = scores("millrace", LogArrays(read, SCHEMA))
    spec = millrace_spec("wide_resnet", CONTESTANTS["millrace"].rates[3])
    replay = mr.replay(doubled, SCHEMA, label_policy=POLICY, spec=spec, seed=0, progress=False)
    np.testing.assert_array_equal(p, replay.scores.to_pandas()["score"])
