"""Logs of many stretches: the same rows as from one, sorted as a plain sort does, in memory that stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.contracts.schema import parse_schema
from millrace.logs import LogFaults, LogTable, local_days, read_log, sorting
from tests.scenes.exploring import examples
from tests.scenes.small_logs import LISTED, MS, PAGES, plan, save, schema, traffic, written

SMALL = 50  # rows


def same(streamed: LogTable, whole: LogTable) -> None:
    assert (streamed.rows_read, streamed.duplicates) == (whole.rows_read, whole.duplicates)
    assert streamed.table.column_names == whole.table.column_names
    for name in whole.table.column_names:
        assert streamed.table[name].to_pylist() == whole.table[name].to_pylist(), name
        assert streamed.table[name].type == whole.table[name].type, name
    assert streamed.decisions == whole.decisions


@pytest.mark.parametrize("form", ["log.parquet", "log.csv", "log.csv.gz", "log.jsonl"])
def test_a_streamed_log_is_the_log_read_whole(tmp_path: Path, form: str) -> None:
    path = save(traffic(700, seed=5), tmp_path / form)
    alike = read_log(path, plan())
    same(read_log(path, plan(), spool=tmp_path, stretch_rows=SMALL), alike)
    assert any(d.rows > 20 and "of a row before" in d.what for d in alike.decisions)
    copies = plan('identity = ["at", "who", "what"]\n')
    whole = read_log(path, copies)
    streamed = read_log(path, copies, spool=tmp_path, stretch_rows=SMALL)
    same(streamed, whole)
    assert whole.duplicates > 20
    assert streamed.table[0].num_chunks > 5
    assert local_days(streamed, plan()) == local_days(whole, plan())
    assert (tmp_path / "log.arrow").exists()


@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=60),
    stretch=st.integers(1, 20),
    threads=st.sampled_from([1, 2, 8]),
)
@examples(60)
def test_rows_are_sorted_and_copies_merged_as_plain_loops_do_it(
    tmp_path_factory: Any, rows: list[tuple[int, int, int]], stretch: int, threads: int
) -> None:
    """Of copies, the first row in the order of time and file stays, with the greatest label and the earliest click."""
    folder = tmp_path_factory.mktemp("order")
    made: list[dict[str, Any]] = [
        {"at": MS + a * 20_000, "who": n, "what": w, "clicked": c, "click_at": MS + n if c else None}
        for n, (a, w, c) in enumerate(rows)
    ]
    path = written(folder, made)
    plain = sorted(made, key=lambda row: row["at"])
    merged: dict[tuple[int, int], dict[str, Any]] = {}
    for row in plain:
        one = merged.setdefault((row["at"], row["what"]), dict(row))
        one["clicked"] = max(one["clicked"], row["clicked"])
        one["click_at"] = min((x["click_at"] for x in (one, row) if x["click_at"] is not None), default=None)
    for identity, expected in (("", plain), ('identity = ["at", "what"]\n', [*merged.values()])):
        read = schema('disorder = "2h"\naction_times = { click = "click_at" }\n' + identity)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sorting, "THREADS", threads)
            log = read_log(path, read, spool=folder, stretch_rows=stretch)
        found = log.table.to_pydict()
        assert found == {name: [row["at" if name == "ts_ms" else name] for row in expected] for name in found}
        assert log.duplicates == len(rows) - len(expected)


def test_lists_and_side_tables_are_streamed_too(tmp_path: Path) -> None:
    pages = [PAGES[n % 3] | {"at": MS + 60_000 * n, "who": n} for n in range(300)]
    (tmp_path / "prices.csv").write_text(
        "shown,since,price\n" + "".join(f"{item},{MS + 3_600_000 * n},{n}\n" for n in range(5) for item in (4, 7))
    )
    form = 'items = "shown"\nlabels = "hit"\nposition = "slot"\nrequest = "page"\n'
    text = form + '[[fields]]\nname = "price"\nof = "item"\nkind = "numeric"\n'
    join = '[[join]]\nfile = "prices.csv"\non = "shown"\nat = "since"\n'
    listed = parse_schema(LISTED + text + join)
    path = written(tmp_path, pages)
    whole = read_log(path, listed)
    same(read_log(path, listed, spool=tmp_path, stretch_rows=SMALL), whole)
    assert whole.table["price"].to_pylist()[-2:] == [4.0, 4.0]
    assert whole.table["page"][-1].as_py() == 299


@pytest.mark.parametrize("header", [True, False])
def test_an_odd_row_of_a_later_block_has_its_number_in_the_log(tmp_path: Path, header: bool) -> None:
    path = tmp_path / "log.csv"
    lines = ["at,who,what,clicked"] * header + [f"{MS + n},u{n},i{n},0" for n in range(400)]
    lines[header + 299] += ",9"
    path.write_text("\n".join(lines))
    named = "" if header else 'columns = ["at", "who", "what", "clicked"]\n'
    with pytest.raises(LogFaults) as caught:
        read_log(path, schema('disorder = "10min"\n' + named), spool=tmp_path, stretch_rows=SMALL)
    (fault,) = caught.value.faults
    assert (fault.row, fault.rows) == (300, 1)


def test_types_are_those_of_all_blocks_and_not_of_the_first(tmp_path: Path) -> None:
    rows = 400
    who = ["" if n < 100 else n if n < 300 else f"u{n}" for n in range(rows)]
    lines = "".join(f"{MS + n},u{n},{who[n]},{n % 2},{n if n < 200 else n / 8}\n" for n in range(rows))
    path = tmp_path / "log.csv"
    path.write_text("at,who,shop,clicked,price\n" + lines)
    text = '[[fields]]\nname = "price"\nof = "item"\nkind = "numeric"\n[[fields]]\nname = "shop"\nof = "item"\n'
    mixed = schema("combine = { what = [] }\n" + text)
    whole, streamed = read_log(path, mixed), read_log(path, mixed, spool=tmp_path, stretch_rows=SMALL)
    same(streamed, whole)
    assert streamed.table["shop"][399].as_py() == "u399"


def peak(path: Path, folder: Path) -> int:
    """Bytes that Arrow held at most while the log was streamed."""
    pool = pa.system_memory_pool()
    usual = pa.default_memory_pool()
    watching = pa.proxy_memory_pool(pool)
    pa.set_memory_pool(watching)
    try:
        log = read_log(path, plan(), spool=folder, stretch_rows=1 << 12)
        held = watching.bytes_allocated()
        assert log.table.num_rows > 10_000
        assert held < 1 << 20, "the table itself is mapped"
        return int(watching.max_memory())
    finally:
        pa.set_memory_pool(usual)


@pytest.mark.parametrize("form", ["log.parquet", "log.csv"])
def test_memory_does_not_grow_with_the_log(tmp_path: Path, form: str) -> None:
    peaks = []
    for n, rows in enumerate((20_000, 240_000)):
        path = save(traffic(rows, seed=2), tmp_path / str(n) / form)
        peaks.append(peak(path, tmp_path / str(n)))
    size = sum(f.stat().st_size for f in [tmp_path / "1" / "log.arrow"])
    assert size > 15_000_000
    assert peaks[1] < 1.3 * peaks[0]
    assert peaks[1] < size / 2
