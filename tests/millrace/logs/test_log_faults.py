"""What is wrong with a log: all faults in one go, or rows left out with their count. A test a row of
docs/how-to/read-a-log.md."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.basics.errors import LogError, SchemaError
from millrace.contracts.schema import Schema
from millrace.logs import LogFaults, LogTable, read_log
from tests.scenes.small_logs import MS, ROWS, schema, written

ACTIONS = 'action_times = { click = "click_at" }\n'
NUMERIC = '[[fields]]\nname = "price"\nof = "item"\nkind = "numeric"\n'


def changed(row: int, **values: Any) -> list[dict[str, Any]]:
    return [r | values if n == row else dict(r) for n, r in enumerate(ROWS)]


def faults_of(path: Any, plan: Schema) -> LogFaults:
    with pytest.raises(LogFaults) as caught:
        read_log(path, plan)
    return caught.value


def skipped(path: Any, plan: Schema, rows: int) -> LogTable:
    """The log without its bad rows; they are counted, and told."""
    read = read_log(path, plan, skip_bad=True)
    assert read.skipped == rows
    reported = [d for d in read.decisions if d.what.startswith("left out: ")]
    assert sum(d.rows for d in reported) >= rows, "a row may be wrong in two columns"
    assert all(str(d) in read.notes for d in reported)
    return read


def decided(path: Any, plan: Schema, column: str, words: str, rows: int, **more: Any) -> LogTable:
    """All rows are kept, and the decision is counted and told."""
    read = read_log(path, plan, **more)
    found = [d for d in read.decisions if d.column == column and words in d.what]
    assert [d.rows for d in found] == [rows], read.decisions
    assert str(found[0]) in read.notes
    assert read.skipped == 0
    return read


def test_all_faults_are_reported_in_one_go(tmp_path: Path) -> None:
    rows = [
        row | {"price": "dear" if n == 1 else 1, "slot": -1 if n > 3 else n}
        | ({"clicked": 2} if n in (2, 3) else {})
        | ({"who": None} if n == 5 else {})
        | ({"at": 14102923} if n == 0 else {})
        for n, row in enumerate(ROWS)
    ]  # fmt: skip
    path = tmp_path / "log.csv"
    lines = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
    path.write_text("\n".join([",".join(rows[0]), *lines, "1,2\n"]))
    plan = schema('position = "slot"\n' + NUMERIC)
    error = faults_of(path, plan)
    found = {(fault.column, fault.row, fault.value, fault.rows) for fault in error.faults}
    assert found == {
        (str(path), 7, "1,2", 1),
        ("who", 6, "", 1),
        ("at", 1, "14102923", 1),
        ("clicked", 3, "2", 2),
        ("slot", 5, "-1", 2),
        ("price", 2, "dear", 1),
    }
    lines = str(error).splitlines()
    assert len(lines) == 1 + len(found) + 1
    assert "6 faults" in lines[0]
    assert "(2 rows)" in next(line for line in lines if "clicked" in line)
    assert "--skip-bad" in lines[-1]
    assert all("; " in line for line in lines[1:-1]), "each with its remedy"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    path.write_text(path.read_text() + f"{MS},9,i9,1,1,0\n{MS + 1},9,i9,0,1,0\n")
    assert skipped(path, plan, 7).table["clicked"].to_pylist() == [1, 0]


def test_skipping_leaves_the_good_rows_as_they_are(tmp_path: Path) -> None:
    rows = [*ROWS[:2], ROWS[2] | {"clicked": 7}, ROWS[3] | {"at": None}, *ROWS[4:]]
    read = skipped(written(tmp_path, rows), schema(), 2)
    good = read_log(written(tmp_path, [*ROWS[:2], *ROWS[4:]]), schema())
    assert read.table.equals(good.table)
    assert (read.rows_read, read.duplicates) == (6, 0)


def test_nothing_is_left_where_all_rows_are_bad(tmp_path: Path) -> None:
    path = written(tmp_path, [row | {"clicked": 3} for row in ROWS])
    with pytest.raises(LogError, match="no good row among 6"):
        read_log(path, schema(), skip_bad=True)


def test_what_is_wrong_with_a_whole_column_cannot_be_skipped(tmp_path: Path) -> None:
    path = written(tmp_path, [row | {"who": [1], "clicked": 5} for row in ROWS])
    for skip_bad in (False, True):
        with pytest.raises(LogFaults, match="Those without a count of rows must be corrected") as caught:
            read_log(path, schema(), skip_bad=skip_bad)
        assert {(f.column, f.rows) for f in caught.value.faults} == {("who", 0), ("clicked", 6)}


# -- the table of docs/how-to/read-a-log.md: errors ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (14102923, 'log.time_format = "yymmddhh"'),
        (2014102923, 'log.time_format = "yyyymmddhh"'),
        (MS // 1000, 'log.time_unit in the schema: "s"'),
        (77, "log.time_start"),
    ],
)
@pytest.mark.parametrize("form", ["log.csv", "log.jsonl", "log.parquet"])
def test_a_time_before_1990_is_an_error_with_what_was_meant(tmp_path: Path, form: str, value: int, remedy: str) -> None:
    path = written(tmp_path, changed(1, at=value), form)
    (fault,) = faults_of(path, schema()).faults
    assert (fault.column, fault.row, fault.value, fault.rows) == ("at", 2, str(value), 1)
    assert "before 1990" in fault.problem
    assert remedy in fault.remedy
    assert skipped(path, schema(), 1).table.num_rows == 5


@pytest.mark.parametrize(("other", "faults"), [(None, 2), (-5, 1)])
def test_a_time_before_1990_is_left_out_beside_other_bad_times(tmp_path: Path, other: Any, faults: int) -> None:
    rows = changed(1, at=77)
    path = written(tmp_path, [rows[0] | {"at": other}, *rows[1:]])
    assert len(faults_of(path, schema()).faults) == faults
    assert skipped(path, schema(), 2).table["ts_ms"].null_count == 0


def test_one_bad_time_in_a_csv_is_one_fault(tmp_path: Path) -> None:
    """It makes text of the whole column; the others are numbers still."""
    path = written(tmp_path, [row | {"at": str(row["at"])} for row in changed(2, at="x")], "log.csv")
    path.write_text(path.read_text().replace('"', ""))
    (fault,) = faults_of(path, schema()).faults
    assert (fault.column, fault.row, fault.value, fault.rows) == ("at", 3, "x", 1)
    assert skipped(path, schema(), 1).table["ts_ms"].to_pylist() == [MS + 1000 * n for n in (0, 1, 3, 4, 5)]


def test_a_negative_slot_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, [row | {"slot": n - 1} for n, row in enumerate(ROWS)])
    (fault,) = faults_of(path, schema('position = "slot"\n')).faults
    assert (fault.column, fault.row, fault.value) == ("slot", 1, "-1")
    skipped(path, schema('position = "slot"\n'), 1)


def test_a_column_of_json_that_is_not_used_may_mix_kinds(tmp_path: Path) -> None:
    path = written(tmp_path, [row | {"unused": "seven" if n == 4 else n} for n, row in enumerate(ROWS)], "log.jsonl")
    assert read_log(path, schema()).table.num_rows == len(ROWS)


def test_mixed_types_in_json_are_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, changed(4, who="seven"), "log.jsonl")
    (fault,) = faults_of(path, schema()).faults
    assert (fault.column, fault.row, fault.value, fault.rows) == ("who", 5, "seven", 1)
    read = skipped(path, schema(), 1)
    assert (read.rows_read, read.table["who"].to_pylist()) == (5, [0, 1, 2, 0, 2])


def test_a_text_where_a_number_must_be_is_an_error(tmp_path: Path) -> None:
    rows = [row | {"price": "dear" if n == 3 else n / 2} for n, row in enumerate(ROWS)]
    (tmp_path / "log.csv").write_text(
        ",".join(rows[0]) + "\n" + "".join(",".join(map(str, r.values())) + "\n" for r in rows)
    )
    (fault,) = faults_of(tmp_path / "log.csv", schema(NUMERIC)).faults
    assert (fault.column, fault.row, fault.value) == ("price", 4, "dear")
    assert skipped(tmp_path / "log.csv", schema(NUMERIC), 1).table["price"].to_pylist() == [0.0, 0.5, 1.0, 2.0, 2.5]


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_truncated_parquet_file_is_an_error_that_cannot_be_skipped(tmp_path: Path, skip_bad: bool) -> None:
    path = written(tmp_path, ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LogFaults, match=r"log.parquet' cannot be read .* it is cut off"):
        read_log(path, schema(), skip_bad=skip_bad)


@pytest.mark.parametrize("stream", [False, True])
def test_a_truncated_gzip_is_an_error_and_skipping_keeps_what_is_there(tmp_path: Path, stream: bool) -> None:
    text = "at,who,what,clicked\n" + "".join(f"{MS + n},{n},{n * 7919 % 9973},{n % 2}\n" for n in range(40_000))
    path = tmp_path / "log.csv.gz"
    packed = gzip.compress(text.encode())
    path.write_bytes(packed[: len(packed) // 2])
    how: dict[str, Any] = {"spool": tmp_path, "stretch_rows": 1000} if stream else {}
    with pytest.raises(LogFaults, match=r"log.csv.gz' cannot be read to its end"):
        read_log(path, schema(), **how)
    read = read_log(path, schema(), skip_bad=True, **how)
    rows = read.table["who"].to_pylist()
    assert 5_000 < len(rows) < 30_000
    assert rows == list(range(len(rows)))
    assert any("cannot be read to its end" in d.what for d in read.decisions)


def test_a_cut_off_last_line_of_json_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS, "log.jsonl")
    path.write_text(path.read_text()[:-12])
    (fault,) = faults_of(path, schema()).faults
    assert (fault.row, fault.rows) == (6, 1)
    assert "cannot be read to its end: row 6 is cut off" in fault.problem
    assert skipped(path, schema(), 1).table.num_rows == 5


def test_lines_of_csv_with_another_number_of_columns_are_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS, "log.csv")
    path.write_text(path.read_text().replace('"i2",0', '"i2"').replace('"i5",1', '"i5",1,9'))
    (fault,) = faults_of(path, schema()).faults
    assert (fault.row, fault.rows) == (3, 2)
    assert "has 3 columns, not 4" in fault.problem
    assert skipped(path, schema(), 2).table["what"].to_pylist() == ["i0", "i1", "i3", "i4"]


def test_another_separator_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS, "log.csv")
    path.write_text(path.read_text().replace(",", ";"))
    assert "is separated by semicolons" in str(faults_of(path, schema()))
    assert read_log(path, schema('separator = ";"\n')).table.num_rows == 6
    (tmp_path / "log.csv").write_text("\n".join(path.read_text().splitlines()[1:]))
    nameless = 'columns = ["at", "who", "what", "clicked"]\n'
    assert "is separated by semicolons" in str(faults_of(path, schema(nameless)))


@pytest.mark.parametrize("header", ["a\rt,who,what,clicked", "x" * 200_000 + ",who,what,clicked"])
def test_a_header_that_cannot_be_read_is_an_error_of_the_file(tmp_path: Path, header: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(f"{header}\n{MS},1,i1,0\n".encode())
    with pytest.raises((LogError, SchemaError)) as caught:
        read_log(path, schema())
    assert "log.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


# -- the table of docs/how-to/read-a-log.md: counted decisions ----------------------------------------------------


def test_rows_out_of_order_beyond_the_bound_are_counted_and_sorted(tmp_path: Path) -> None:
    path = written(tmp_path, changed(4, at=MS - 3_600_000))
    decided(path, schema(), "at", "too late in the file", 1)
    assert read_log(path, schema('disorder = "2h"\n')).decisions == ()


def test_times_in_the_future_are_counted_and_kept(tmp_path: Path) -> None:
    path = written(tmp_path, changed(3, at=MS + 3 * 86_400_000))
    now_ms = MS + 86_400_000
    read = decided(path, schema(), "at", "in the future", 1, now_ms=now_ms)
    assert read.table.num_rows == 6
    assert not any("future" in d.what for d in read_log(path, schema(), now_ms=now_ms + 2 * 86_400_000).decisions)


def test_a_time_in_the_future_does_not_make_the_rows_after_it_late(tmp_path: Path) -> None:
    rows = [{"at": MS + 60_000 * n, "who": n, "what": n, "clicked": n % 2} for n in range(300)]
    rows[20] = rows[20] | {"at": MS + 30 * 86_400_000}
    path = written(tmp_path, rows)
    read = decided(path, schema(), "at", "in the future", 1, now_ms=MS + 86_400_000, spool=tmp_path, stretch_rows=10)
    assert read.table["who"].to_pylist() == [*range(20), *range(21, 300), 20]
    assert not any("too late" in one.what for one in read.decisions)


@pytest.mark.parametrize("value", [0, 1])
def test_a_constant_label_is_counted(tmp_path: Path, value: int) -> None:
    path = written(tmp_path, [row | {"clicked": value} for row in ROWS])
    decided(path, schema(), "clicked", f"is {value} in all rows", 6)


def test_clicks_before_their_exposure_are_counted(tmp_path: Path) -> None:
    rows = [row | {"click_at": row["at"] - 1 if row["clicked"] else None} for row in ROWS]
    decided(written(tmp_path, rows), schema(ACTIONS), "click_at", "before its exposure", 3)


def test_a_click_too_long_before_its_exposure_is_none_of_it(tmp_path: Path) -> None:
    """The bound is the log's disorder. Times on it stay."""
    late_ms, clicked = 3_600_000, [n for n, row in enumerate(ROWS) if row["clicked"]]
    rows = [
        row | {"click_at": row["at"] - late_ms - (n == clicked[0]) if row["clicked"] else None}
        for n, row in enumerate(ROWS)
    ]
    read = decided(written(tmp_path, rows), schema(ACTIONS), "click_at", "more than 1h before", 1)
    label, at = (read.table[name].to_pylist() for name in ("clicked", "click_at"))
    kept = [n in clicked[1:] for n in range(len(ROWS))]
    assert label == list(map(int, kept))
    assert [one is not None for one in at] == kept
    wider = decided(written(tmp_path, rows), schema(ACTIONS + 'disorder = "2h"\n'), "click_at", "before its exp", 3)
    assert sum(wider.table["clicked"].to_pylist()) == len(clicked)


def test_click_times_on_label_0_are_counted(tmp_path: Path) -> None:
    rows = [row | {"click_at": row["at"] + 5} for row in ROWS]
    decided(written(tmp_path, rows), schema(ACTIONS), "click_at", "'clicked' is 0", 3)


def test_labels_of_1_without_a_click_time_are_counted(tmp_path: Path) -> None:
    rows = [row | {"click_at": row["at"] + 5 if n == 1 else None} for n, row in enumerate(ROWS)]
    decided(written(tmp_path, rows), schema(ACTIONS), "click_at", "'clicked' is 1", 2)


def test_texts_among_the_numbers_of_a_csv_are_counted(tmp_path: Path) -> None:
    rows = [{"at": MS + n, "who": "guest" if n == 70 else n, "what": f"x{n}", "clicked": n % 2} for n in range(100)]
    lines = "".join(",".join(map(str, row.values())) + "\n" for row in rows)
    (tmp_path / "log.csv").write_text("at,who,what,clicked\n" + lines)
    read = decided(tmp_path / "log.csv", schema(), "who", "texts among numbers", 1)
    assert read.table["who"][0].as_py() == "0"


def test_a_good_log_has_nothing_to_tell(tmp_path: Path) -> None:
    rows = [row | {"click_at": row["at"] + 5 if row["clicked"] else None} for row in ROWS]
    read = read_log(written(tmp_path, rows), schema(ACTIONS), now_ms=MS + 86_400_000)
    assert (read.decisions, read.notes, read.skipped) == ((), (), 0)


def test_files_that_are_wrong_do_not_hide_each_other(tmp_path: Path) -> None:
    torn = written(tmp_path, ROWS, "torn.parquet")
    torn.write_bytes(b"PAR1")
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps(ROWS[0]) + "\n{nothing\n" + json.dumps(ROWS[1]) + "\n")
    wrong = written(tmp_path, changed(2, clicked=9), "wrong.csv")
    error = faults_of([torn, broken, wrong], schema())
    for name in ("torn.parquet", "broken.jsonl"):
        assert name in str(error)


def test_a_side_table_that_is_wrong_is_reported_with_the_rest(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("what;city\n10;a\n")
    plan = schema('[[fields]]\nname = "city"\nof = "item"\n[[join]]\nfile = "items.csv"\non = "what"\n')
    assert "semicolons" in str(faults_of(written(tmp_path, changed(2, clicked=9)), plan))


def test_uneven_parquet_columns_are_reported(tmp_path: Path) -> None:
    pq.write_table(pa.table({"at": [MS], "who": [1], "what": [2], "clicked": [0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"at": [MS], "who": ["x"], "what": [2], "clicked": [1]}), tmp_path / "b.parquet")
    with pytest.raises(LogError, match="disagree"):
        read_log(tmp_path, schema())
