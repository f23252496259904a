"""Reading logs: every form gives the same table; whatever is wrong is one line that names it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from millrace.errors import LogError, MillraceError, SchemaError
from millrace.logs import LogTable, local_days, read_log
from millrace.schema import Schema, parse_schema

SCHEMA = """
name = "t"
utc_offset = "+08:00"
[[fields]]
name = "who"
of = "user"
[[fields]]
name = "what"
of = "item"
[[fields]]
name = "price"
of = "item"
kind = "numeric"
[[fields]]
name = "hour"
of = "context"
[windows]
actions = ["exposure", "click"]
[[windows.keys]]
columns = ["who", "shop"]
[[fields]]
name = "shop"
of = "item"
[log]
time = "at"
user = "who"
item = "what"
label = "clicked"
"""
DAY0 = 1_650_812_400_000  # 23:00 at +08:00 on 24 April 2022


def schema(*changes: tuple[str, str], log: str = "") -> Schema:
    text = SCHEMA + log
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return parse_schema(text)


ROWS: list[dict[str, Any]] = [
    {"at": DAY0 + 5000, "who": 1, "what": 10, "shop": "b", "price": 2.5, "clicked": 1, "liked": 1},
    {"at": DAY0, "who": 2, "what": 11, "shop": "a", "price": None, "clicked": 0, "liked": 0},
    {"at": DAY0 + 5000, "who": 3, "what": 10, "shop": "b", "price": 2.5, "clicked": 0, "liked": 0},
    {"at": DAY0 + 7_200_000, "who": 1, "what": 12, "shop": "", "price": 1.0, "clicked": 0, "liked": 0},
]


def write(folder: Path, form: str, rows: list[dict[str, Any]] | None = None) -> Path:
    rows = ROWS if rows is None else rows
    path = folder / f"log.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return path
    table = pa.Table.from_pylist(rows) if rows else pa.table({})
    if form == "parquet":
        pq.write_table(table, path)
    elif form == "csv":
        pacsv.write_csv(table, path)
    elif form == "tsv":
        pacsv.write_csv(table, path, pacsv.WriteOptions(delimiter="\t"))
    elif form == "csv.gz":
        path.write_bytes(gzip.compress(write(folder, "csv", rows).read_bytes()))
    elif form == "folder":
        path.mkdir()
        pq.write_table(table.slice(0, 2), path / "1.parquet")
        pq.write_table(table.slice(2), path / "2.parquet")
    return path


@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "csv.gz", "jsonl", "folder"])
def test_each_form_is_read_sorted_by_time_with_the_schemas_columns_only(tmp_path: Path, form: str) -> None:
    log = read_log(write(tmp_path, form), schema())
    assert log.rows_read == 4
    assert log.duplicates == 0
    assert set(log.table.column_names) == {"who", "what", "clicked", "price", "shop", "ts_ms"}
    assert log.table["ts_ms"].to_pylist() == [DAY0, DAY0 + 5000, DAY0 + 5000, DAY0 + 7_200_000]
    assert log.table["who"].to_pylist() == [2, 1, 3, 1]  # ties in the file's order
    assert log.table["clicked"].to_pylist() == [0, 1, 0, 0]
    assert log.table["price"].to_pylist() == [None, 2.5, 2.5, 1.0]
    assert (log.user, log.item, log.label) == ("who", "what", "clicked")


def test_many_rows_of_one_time_stay_in_the_files_order(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"at": DAY0 + i % 2, "what": i} for i in range(2000)]
    log = read_log(write(tmp_path, "parquet", rows), schema())
    assert log.table["what"].to_pylist() == [*range(0, 2000, 2), *range(1, 2000, 2)]


def test_copies_are_one_exposure_clicked_if_any_of_them_was(tmp_path: Path) -> None:
    rows = [
        ROWS[1] | {"shop": "first"},
        ROWS[1] | {"shop": "second", "clicked": 1},
        ROWS[0],
        ROWS[1] | {"shop": "third"},
        ROWS[1] | {"what": 99},  # another item at the same time is no copy
    ]
    log = read_log(write(tmp_path, "csv", rows), schema())
    assert (log.rows_read, log.duplicates, log.table.num_rows) == (5, 2, 3)
    assert log.table["what"].to_pylist() == [11, 99, 10]
    assert log.table["clicked"].to_pylist() == [1, 0, 1]
    assert log.table["shop"].to_pylist() == ["first", "a", "b"]


def test_identity_may_be_other_columns_and_the_earliest_copy_and_action_count(tmp_path: Path) -> None:
    rows = [
        ROWS[0] | {"page": "p", "slot": 0, "at": DAY0 + 9, "click_at": DAY0 + 80},
        ROWS[0] | {"page": "p", "slot": 0, "at": DAY0 + 3, "click_at": DAY0 + 90},
        ROWS[0] | {"page": "p", "slot": 1, "at": DAY0 + 3, "click_at": None},
    ]
    log = read_log(
        write(tmp_path, "jsonl", rows),
        schema(log='identity = ["page", "slot"]\naction_times = { click = "click_at" }\n'),
    )
    assert log.duplicates == 1
    assert log.table["ts_ms"].to_pylist() == [DAY0 + 3, DAY0 + 3]
    assert log.table["click_at"].to_pylist() == [DAY0 + 80, None]


def test_side_tables_join_from_the_left_and_the_logs_own_column_wins(tmp_path: Path) -> None:
    rows = [{k: v for k, v in r.items() if k != "shop"} for r in ROWS]
    (tmp_path / "items.csv").write_text("what,shop,price\n10,ten,77\n11,eleven,77\n11,again,77\n13,unseen,77\n")
    log = read_log(write(tmp_path, "parquet", rows), schema(log='[[join]]\nfile = "items.csv"\non = "what"\n'))
    assert log.table["shop"].to_pylist() == ["eleven", "ten", "ten", None]
    assert log.table["price"].to_pylist() == [None, 2.5, 2.5, 1.0]
    assert any("'price' is taken from the log" in note for note in log.notes)
    assert any("1 rows repeat a 'what'" in note for note in log.notes)
    assert any("1 of 4 rows" in note for note in log.notes)


def test_a_join_matches_numbers_with_their_text(tmp_path: Path) -> None:
    rows = [{k: v for k, v in r.items() if k != "shop"} | {"what": str(r["what"])} for r in ROWS]
    (tmp_path / "items.csv").write_text("what,shop\n10,ten\n11,eleven\n")
    log = read_log(write(tmp_path, "parquet", rows), schema(log='[[join]]\nfile = "items.csv"\non = "what"\n'))
    assert log.table["shop"].to_pylist() == ["eleven", "ten", "ten", None]


@pytest.mark.parametrize(
    ("unit", "column"),
    [
        ("s", [DAY0 // 1000, DAY0 // 1000 + 1]),
        ("s", [DAY0 / 1000, DAY0 / 1000 + 1]),
        ("us", [DAY0 * 1000, DAY0 * 1000 + 1_000_999]),
        ("ms", ["2022-04-24T15:00:00Z", "2022-04-24T15:00:01Z"]),
        ("ms", ["2022-04-24 15:00:00", "2022-04-24 15:00:01"]),
    ],
)
@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_times_become_milliseconds(tmp_path: Path, form: str, unit: str, column: list[Any]) -> None:
    rows = [r | {"at": at} for r, at in zip(ROWS[:2], column, strict=True)]
    log = read_log(write(tmp_path, form, rows), schema(log=f'time_unit = "{unit}"\n'))
    assert log.table["ts_ms"].to_pylist() == [DAY0, DAY0 + 1000]


def test_days_are_local_or_the_logs_own(tmp_path: Path) -> None:
    own = [r | {"date": 20220425} for r in ROWS]
    derived = read_log(write(tmp_path, "csv"), schema())
    assert local_days(derived, schema()) == ["2022-04-24"] * 3 + ["2022-04-25"]
    named = schema(log='day = "date"\n')
    assert local_days(read_log(write(tmp_path, "csv", own), named), named) == ["2022-04-25"] * 4


def test_a_text_deep_in_a_csv_column_makes_all_of_it_text(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"at": DAY0 + i, "shop": i if i < 150_000 else "x"} for i in range(150_001)]
    path = tmp_path / "log.csv"
    path.write_text(",".join(rows[0]) + "\n" + "".join(",".join(map(str, r.values())) + "\n" for r in rows))
    assert path.stat().st_size > 2 << 20  # beyond the block that types are usually inferred from
    shops = read_log(path, schema()).table["shop"]
    assert shops[0].as_py() == "0"
    assert shops[150_000].as_py() == "x"


def broken(tmp_path: Path, change: dict[str, Any], form: str = "parquet", **log: str) -> MillraceError:
    rows = [ROWS[0], ROWS[1] | change, *ROWS[2:]]
    with pytest.raises(MillraceError) as caught:
        read_log(write(tmp_path, form, rows), schema(**log))
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clicked": 2}, ["clicked", "2", "0 or 1"]),
        ({"clicked": -1}, ["clicked", "-1"]),
        ({"clicked": None}, ["row 2", "label", "clicked"]),
        ({"at": None}, ["row 2", "time", "at"]),
        ({"who": None}, ["row 2", "user", "who"]),
        ({"what": None}, ["row 2", "item", "what"]),
        ({"at": 0}, ["at", "0", "time_unit"]),
        ({"at": DAY0 * 1000}, [str(DAY0 * 1000), "time_unit"]),
    ],
)
@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_bad_value_is_named(tmp_path: Path, change: dict[str, Any], words: list[str], form: str) -> None:
    error = broken(tmp_path, change, form)
    assert isinstance(error, LogError)
    for word in words:
        assert word in str(error)


def test_text_where_a_number_or_label_should_be_is_named(tmp_path: Path) -> None:
    rows = [r | {"price": "dear"} for r in ROWS]
    with pytest.raises(LogError, match=r"price.*dear"):
        read_log(write(tmp_path, "csv", rows), schema())
    rows = [r | {"clicked": "yes"} for r in ROWS]
    with pytest.raises(LogError, match=r"clicked.*yes"):
        read_log(write(tmp_path, "csv", rows), schema())
    rows = [r | {"at": "noon"} for r in ROWS]
    with pytest.raises(LogError, match=r"'at'.*noon"):
        read_log(write(tmp_path, "csv", rows), schema())


def test_ids_that_mix_numbers_and_text_are_named_where_the_form_cannot_hold_both(tmp_path: Path) -> None:
    error = broken(tmp_path, {"who": "two"}, "jsonl")
    assert isinstance(error, LogError)
    assert "who" in str(error)
    folder = write(tmp_path, "folder")
    pq.write_table(pa.Table.from_pylist([ROWS[0] | {"who": "two"}]), folder / "3.parquet")
    with pytest.raises(LogError, match="who"):
        read_log(folder, schema())


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl", "folder"])
def test_a_missing_column_is_named_with_what_looks_like_it(tmp_path: Path, form: str) -> None:
    with pytest.raises(SchemaError) as caught:
        read_log(write(tmp_path, form), schema(('label = "clicked"', 'label = "click"')))
    assert "'click'" in str(caught.value)
    assert "near matches: clicked" in str(caught.value)
    with pytest.raises(SchemaError, match=r"'Zzz'.*there are: at, clicked, liked"):
        read_log(tmp_path / f"log.{form}", schema(('"price"', '"Zzz"')))


def test_the_answer_is_never_an_input(tmp_path: Path) -> None:
    path = write(tmp_path, "csv")
    with pytest.raises(SchemaError, match="'clicked', the outcome"):
        read_log(path, schema(log='[[fields]]\nname = "clicked"\nof = "context"\n'))
    with pytest.raises(SchemaError, match="'liked', the outcome"):
        read_log(path, schema(log='action_times = { collect = "liked" }\n[[fields]]\nname = "liked"\nof = "context"\n'))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    def reading(path: Path, words: str) -> None:
        with pytest.raises(LogError, match=words) as caught:
            read_log(path, schema())
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)

    reading(tmp_path / "absent.csv", "does not exist")
    for name, content in (("torn.parquet", b"PAR1 and no more"), ("empty.csv", b""), ("bad.jsonl", b'{"at": 1,,}\n')):
        (tmp_path / name).write_bytes(content)
        reading(tmp_path / name, "cannot be read")
    (tmp_path / "log.xlsx").write_bytes(b"")
    reading(tmp_path / "log.xlsx", "ends in '.xlsx'")
    (tmp_path / "nothing").mkdir()
    reading(tmp_path / "nothing", "no Parquet files")
    header = tmp_path / "header.csv"
    header.write_text("at,who,what,shop,price,clicked\n")
    reading(header, "no rows")


def test_joins_and_log_sections_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "csv")
    with pytest.raises(LogError, match=r"'items.csv' is not beside the log"):
        read_log(path, schema(log='[[join]]\nfile = "items.csv"\non = "what"\n'))
    (tmp_path / "items.csv").write_text("id,shop\n1,2\n")
    with pytest.raises(SchemaError, match=r"items.csv' has no column 'what'"):
        read_log(path, schema(log='[[join]]\nfile = "items.csv"\non = "what"\n'))
    with pytest.raises(SchemaError, match=r"no \[log\] section"):
        read_log(path, parse_schema(SCHEMA.split("[log]")[0]))


def test_reading_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "csv")
    before = path.read_bytes(), sorted(tmp_path.iterdir())
    first: LogTable = read_log(path, schema())
    assert read_log(path, schema()).table.equals(first.table)
    assert (path.read_bytes(), sorted(tmp_path.iterdir())) == before
