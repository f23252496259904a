"""Numbers among candidates in a replay: no page is cut in two, and pages of one time are apart, as times of a page."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from millrace.commands.replay.grouped import GroupedRows
from millrace.commands.replay.stretches import AT_ONCE, Stretches
from millrace.contracts.schema import parse_schema
from millrace.logs import LogTable, read_log

SCHEMA = parse_schema("""
name = "compared"
fields = [{name = "user", of = "user"}, {name = "item", of = "item"},
          {name = "price", of = "item", kind = "numeric"}]
[windows]
days = [1]
actions = ["exposure", "click"]
keys = [{columns = ["item"]}]
[[among]]
number = "price"
forms = ["rank", "of_max"]
[[among]]
number = "item.exposure.1d"
forms = ["rank"]
[log]
time = "at"
user = "user"
item = "item"
label = "click"
request = "page"
combine = { page = ["user", "visit"] }
""")
LAYOUT = SCHEMA.layout
MINUTE = 60_000
START = 20_000 * 86_400_000


def log_of(folder: Path, apart_ms: int, n: int = 240) -> LogTable:
    """Pages of one to eight rows, two pages in turn at one time; half of a page comes ``apart_ms`` later."""
    rng = np.random.default_rng(5)
    rows: list[dict[str, Any]] = []
    for visit in range(n // 4):
        for i in range(rng.integers(1, 9)):
            at = START + visit // 2 * 40 * MINUTE + (apart_ms if i % 2 else 0)
            row = {"at": at, "user": visit % 5, "visit": f"v{visit}", "item": int(rng.integers(12))}
            rows.append(row | {"price": float(rng.integers(1, 5)), "click": int(rng.random() < 0.3)})
    rows.sort(key=lambda row: (row["at"], row["price"]))
    pq.write_table(pa.Table.from_pylist(rows), folder / "log.parquet")
    return read_log(folder / "log.parquet", SCHEMA)


def expected(log: LogTable, num: NDArray[np.float32]) -> NDArray[np.float32]:
    """By the definition: of each row among those of its page and time. (n, 3)"""
    sets = list(zip(log.table["page"].to_pylist(), log.table["ts_ms"].to_pylist(), strict=True))
    out = np.empty((len(sets), 3))
    for i, own in enumerate(sets):
        mine = num[[other == own for other in sets]]
        for column, name in ((0, "price"), (2, "item.exposure.1d")):
            values = mine[:, LAYOUT.num_names.index(name)]
            v = num[i, LAYOUT.num_names.index(name)]
            place = (values < v).sum() + ((values == v).sum() - 1) / 2
            out[i, column] = place / (len(values) - 1) if len(values) > 1 else 0.5
        prices = mine[:, LAYOUT.num_names.index("price")]
        out[i, 1] = num[i, LAYOUT.num_names.index("price")] / prices.max()
    return out.astype(np.float32)


@pytest.mark.parametrize("apart_ms", [0, MINUTE])
@pytest.mark.parametrize("rows_at_once", [1, 7, 100_000])
def test_no_page_is_cut_in_two(tmp_path: Path, apart_ms: int, rows_at_once: int) -> None:
    log = log_of(tmp_path, apart_ms)
    made = Stretches(log, SCHEMA, rows_at_once=rows_at_once)
    assert len(made.bounds) > 20 or rows_at_once == 100_000
    _, num = made.of(np.arange(made.n))
    assert num[:, LAYOUT.among_start :].tobytes() == expected(log, num).tobytes()
    assert len(np.unique(num[:, LAYOUT.among_start :], axis=0)) > 50


def test_frozen_rows_are_compared_as_the_page_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most pages have rows of several times, so the day's rows are scored by windows of its beginning, some at once."""
    monkeypatch.setattr("millrace.commands.replay.grouped._SCORED_AT_ONCE", 5)
    log = log_of(tmp_path, MINUTE)
    groups = GroupedRows(log, SCHEMA)
    made = Stretches(log, SCHEMA, AT_ONCE, groups.cuts)
    num = np.full((made.n, LAYOUT.N), np.nan, np.float32)
    pieces = 0
    for number, (start, stop) in enumerate(pairwise(made.bounds.tolist())):
        for cut, own in groups.starting(slice(start, stop)):
            if cut == start:
                num[own] = made.frozen(cut, own)[1]
                pieces += 1
        made.make(number)
    assert pieces > 20
    assert num[:, LAYOUT.among_start :].tobytes() == expected(log, num).tobytes()
