"""Reading logs: every form gives the same table; whatever is wrong is one line that names it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, get_type_hints
from uuid import UUID

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from millrace.basics.errors import LogError, MillraceError, SchemaError
from millrace.contracts.events import MAX_OFFSET, Action
from millrace.contracts.schema import Schema, parse_schema
from millrace.logs import LogTable, local_days, read_log
from tests.scenes.small_logs import written

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
    if form in ("parquet", "csv", "jsonl"):
        return written(folder, rows, path.name)
    table = pa.Table.from_pylist(rows) if rows else pa.table({})
    if form == "tsv":
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
    log = read_log(write(tmp_path, "csv", rows), schema(log='identity = ["at", "who", "what"]\n'))
    assert (log.rows_read, log.duplicates, log.table.num_rows) == (5, 2, 3)
    assert log.decisions == ()
    assert log.table["what"].to_pylist() == [11, 99, 10]
    assert log.table["clicked"].to_pylist() == [1, 0, 1]
    assert log.table["shop"].to_pylist() == ["first", "a", "b"]


def test_rows_that_look_alike_are_kept_and_counted_where_nobody_says_what_a_copy_is(tmp_path: Path) -> None:
    rows = [*ROWS, ROWS[1], ROWS[0] | {"clicked": 0}, ROWS[1] | {"what": 99}]
    log = read_log(write(tmp_path, "csv", rows), schema())
    assert (log.rows_read, log.duplicates, log.table.num_rows) == (7, 0, 7)
    (reported,) = [d for d in log.decisions if "time, user and item of a row before" in d.what]
    assert reported.rows == 2
    assert "log.identity" in reported.remedy


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


def test_seconds_beyond_what_milliseconds_can_say_are_no_time(tmp_path: Path) -> None:
    """A thousand times 2^61 is a multiple of 2^64."""
    late = 2**61 + DAY0 // 1000
    path = write(tmp_path, "parquet", [r | {"at": at} for r, at in zip(ROWS[:2], [DAY0 // 1000, late], strict=True)])
    with pytest.raises(LogError, match=rf"{late}.*time_unit"):
        read_log(path, schema(log='time_unit = "s"\n'))


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
    rows = [r | {"clicked": "perhaps"} for r in ROWS]
    with pytest.raises(LogError, match=r"clicked.*perhaps"):
        read_log(write(tmp_path, "csv", rows), schema())
    rows = [r | {"at": "noon"} for r in ROWS]
    with pytest.raises(LogError, match=r"'at'.*noon"):
        read_log(write(tmp_path, "csv", rows), schema())


@pytest.mark.parametrize(("yes", "no"), [("ja", "nein"), ("TRUE", " false "), ("Oui", "non"), ("y", "N"), ("yes", "0")])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_label_may_be_a_word_for_yes_or_no(yes: str, no: str, ending: str, tmp_path: Path) -> None:
    plain = read_log(write(tmp_path, ending), schema()).table["clicked"].to_pylist()
    rows = [r | {"clicked": yes if r["clicked"] else no} for r in ROWS]
    assert read_log(write(tmp_path, ending, rows), schema()).table["clicked"].to_pylist() == plain
    assert set(plain) == {0, 1}


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


def test_a_column_has_one_of_the_four_roles(tmp_path: Path) -> None:
    for old, new in (('user = "who"', 'user = "at"'), ('item = "what"', 'item = "clicked"')):
        with pytest.raises(SchemaError, match=f"names '{new.split(chr(34))[1]}' for log"):
            read_log(write(tmp_path, "csv"), schema((old, new)))


def test_the_time_may_be_that_of_an_action_too(tmp_path: Path) -> None:
    log = read_log(write(tmp_path, "csv"), schema(log='action_times = { click = "at" }\n'))
    assert log.table["at"].to_pylist() == log.table["ts_ms"].to_pylist()


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


# -- columns and files that are not what they should be -----------------------------------------------------------


def refused(path: Path, plan: Schema, *words: str) -> None:
    """Reading ends in one line that has the words."""
    with pytest.raises(LogError) as caught:
        read_log(path, plan)
    said = str(caught.value)
    assert "\n" not in said
    for word in words:
        assert word in said


def with_column(folder: Path, name: str, values: Any) -> Path:
    """The four rows as Parquet, one column of them replaced or added."""
    table = pa.Table.from_pylist(ROWS)
    if name in table.column_names:
        table = table.drop_columns([name])
    pq.write_table(table.append_column(name, pa.chunked_array([values])), folder / "log.parquet")
    return folder / "log.parquet"


POSITION = 'position = "slot"\n'


@pytest.mark.parametrize(
    ("values", "slots"),
    [
        (pa.array([0, 3, None, 100_000]), [3, 0, None, 100_000]),
        (pa.array([0.0, 3.0, float("nan"), None]), [3, 0, None, None]),
        (pa.array(["0", "3", "", None]), [3, 0, None, None]),
        (pa.array(["0", "3", "", None]).dictionary_encode(), [3, 0, None, None]),
        (pa.array([Decimal("0.0"), Decimal("3.0"), None, None]), [3, 0, None, None]),
        (pa.nulls(4), [None] * 4),
    ],
    ids=["integers", "floats", "text", "dictionary", "decimals", "nulls"],
)
def test_positions_become_whole_numbers(tmp_path: Path, values: pa.Array, slots: list[int | None]) -> None:
    log = read_log(with_column(tmp_path, "slot", values), schema(log=POSITION))  # the second row is the earliest
    assert log.table["slot"].to_pylist() == slots
    assert log.table["slot"].type == pa.int32()


@pytest.mark.parametrize(
    ("bad", "value"),
    [
        ("left", "'left'"),
        ("-1", "'-1'"),
        (-1, "'-1'"),
        (100_001, "'100001'"),
        (2**63 - 1, str(2**63 - 1)),
        (1.5, "'1.5'"),
        (float("inf"), "'inf'"),
        (True, "'True'"),
        (date(2022, 4, 24), "'2022-04-24'"),
        (b"\x01", "'\\x01'"),
    ],
)
def test_a_position_that_is_none_is_named(tmp_path: Path, bad: Any, value: str) -> None:
    path = with_column(tmp_path, "slot", pa.array([None, bad, None, None]))
    refused(path, schema(log=POSITION), "log.parquet", "position 'slot'", value, "0 to 100000", "log.position")


def test_a_text_among_the_positions_of_a_csv_is_named(tmp_path: Path) -> None:
    rows = [r | {"slot": i} for i, r in enumerate(ROWS)]
    path = write(tmp_path, "csv", rows)
    path.write_text(path.read_text().removesuffix("3\n") + "top\n")
    refused(path, schema(log=POSITION), "log.csv", "position 'slot'", "'top'")


def test_positions_are_bounded_as_those_of_events_are() -> None:
    (meta,) = get_type_hints(Action, include_extras=True)["position"].__metadata__
    assert (meta.ge, meta.le) == (0, MAX_OFFSET)


def doubled(folder: Path, form: str, name: str) -> Path:
    """The four rows with one column twice, the second time with other values."""
    if form == "jsonl":
        path = write(folder, form)
        path.write_text(path.read_text().replace(f'"{name}":', f'"{name}": 7, "{name}":'))
        return path
    table = pa.Table.from_pylist(ROWS).append_column(name, pa.array([7] * 4))
    path = folder / f"log.{form}"
    if form == "parquet":
        pq.write_table(table, path)
    elif form == "folder":
        path.mkdir()
        pq.write_table(table, path / "1.parquet")
    else:
        pacsv.write_csv(table, path, pacsv.WriteOptions(delimiter="," if form == "csv" else "\t"))
    return path


@pytest.mark.parametrize("name", ["who", "at", "clicked", "price", "shop"])
@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "jsonl", "folder"])
def test_a_column_that_stands_twice_is_named_if_it_is_used(tmp_path: Path, form: str, name: str) -> None:
    refused(doubled(tmp_path, form, name), schema(), "1.parquet" if form == "folder" else "log.", f"'{name}'", "stands")


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "folder"])
def test_a_column_that_stands_twice_does_no_harm_where_nobody_uses_it(tmp_path: Path, form: str) -> None:
    path = doubled(tmp_path, form, "liked")
    assert read_log(path, schema()).table.equals(read_log(write(tmp_path, "jsonl"), schema()).table)
    with pytest.raises(SchemaError, match=r"'Zzz'.*liked"):  # listing the columns minds it as little
        read_log(path, schema(('"price"', '"Zzz"')))


@pytest.mark.parametrize(("header", "name"), [("what,shop,shop", "shop"), ("what,shop,what", "what")])
def test_a_column_that_stands_twice_in_a_side_table_is_named(tmp_path: Path, header: str, name: str) -> None:
    (tmp_path / "items.csv").write_text(f"{header}\n10,a,b\n")
    join = schema(log='[[join]]\nfile = "items.csv"\non = "what"\n')
    refused(write(tmp_path, "csv"), join, "items.csv", f"'{name}'", "stands 2 times")


def test_a_join_column_that_stands_twice_in_the_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("liked,born\n1,2\n")
    join = schema(log='[[join]]\nfile = "items.csv"\non = "liked"\n')
    refused(doubled(tmp_path, "parquet", "liked"), join, "log.parquet", "'liked'", "stands 2 times")


@pytest.mark.parametrize(
    ("name", "separator", "words"),
    [
        ("log.csv", ";", ["semicolons", "means commas", "write it with commas"]),
        ("log.csv", "|", ["pipes", "means commas"]),
        ("log.csv", "\t", ["tabs", "means commas", "end in .tsv"]),
        ("log.tsv", ",", ["commas", "means tabs", "end in .csv"]),
        ("log.tsv", ";", ["semicolons", "means tabs", "write it with tabs"]),
    ],
)
@pytest.mark.parametrize("dress", ["plain", "byte order mark", "quotes", "gzip", "header only", "own separator too"])
def test_another_separator_than_the_ending_says_is_named(
    tmp_path: Path, name: str, separator: str, words: list[str], dress: str
) -> None:
    path = tmp_path / name
    rows = [dict(r) for r in ROWS]
    if dress == "own separator too":  # a name in the header, decimals in the rows
        rows = [r | {"a,b" if name == "log.csv" else "a\tb": "1,5" if name == "log.csv" else "1\t5"} for r in rows]
    lines: list[list[Any]] = [list(rows[0]), *(list(r.values()) for r in rows)]
    text = "".join(separator.join("" if v is None else str(v) for v in line) + "\n" for line in lines)
    if dress == "byte order mark":
        text = "\ufeff" + text
    elif dress == "quotes":
        text = separator.join(f'"{k}"' for k in rows[0]) + text[text.index("\n") :]
    elif dress == "header only":
        text = text[: text.index("\n")]
    path.write_text(text, encoding="utf-8")
    if dress == "gzip":
        path = tmp_path / f"{name}.gz"
        path.write_bytes(gzip.compress(text.encode()))
    refused(path, schema(), path.name, "is separated by", *words)


def test_another_separator_in_a_side_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("what;shop\n10;a\n")
    join = schema(log='[[join]]\nfile = "items.csv"\non = "what"\n')
    refused(write(tmp_path, "csv"), join, "items.csv", "semicolons", "'what;shop'")


def test_semicolons_within_a_csv_of_commas_are_values(tmp_path: Path) -> None:
    rows = [r | {"shop": "a;b|c", "x;y|z": 1} for r in ROWS]
    assert read_log(write(tmp_path, "csv", rows), schema()).table["shop"].to_pylist() == ["a;b|c"] * 4


NESTED = {
    "list": pa.array([[1], None, [2, 3], []]),
    "texts": pa.array([["a"], ["b"], ["c"], ["d"]]),
    "struct": pa.array([{"a": 1}] * 4),
    "map": pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())),
    "nulls": pa.array([None] * 4, pa.list_(pa.int64())),
}


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize(
    ("name", "role", "log"),
    [
        ("who", "user", ""),
        ("what", "item", ""),
        ("clicked", "label", ""),
        ("at", "time", ""),
        ("key", "identity", 'identity = ["key"]\n'),
        ("date", "day", 'day = "date"\n'),
        ("page", "request", 'request = "page"\n'),
        ("slot", "position", POSITION),
        ("click_at", "action time", 'action_times = { click = "click_at" }\n'),
        ("shop", "field", ""),
        ("price", "numeric field", ""),
    ],
)
def test_lists_and_structs_where_one_value_belongs_are_named(
    tmp_path: Path, name: str, role: str, log: str, kind: str
) -> None:
    words = [f"{role} '{name}'", "nulls" if kind == "nulls" else str(NESTED[kind][0].as_py()), "not one value"]
    if role == "field" and kind in ("list", "texts"):
        words.append("slots")
    refused(with_column(tmp_path, name, NESTED[kind]), schema(log=log), "log.parquet", *words)


def test_a_field_with_slots_has_lists_but_no_structs_in_them(tmp_path: Path) -> None:
    multi = schema(('name = "shop"\nof = "item"', 'name = "shop"\nof = "item"\nslots = 2'))
    log = read_log(with_column(tmp_path, "shop", NESTED["texts"]), multi)
    assert log.table["shop"].to_pylist() == [["b"], ["a"], ["c"], ["d"]]
    refused(with_column(tmp_path, "shop", pa.array([[{"a": 1}]] * 4)), multi, "field 'shop'", "{'a': 1}")
    refused(with_column(tmp_path, "shop", pa.array([[["a"]]] * 4)), multi, "field 'shop'", "[['a']]")


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 2, 2**31 - 1, 3], pa.date32()),  # "infinity", as some databases export it
        pa.array([1, 2, 2**62, 3], pa.timestamp("us")),
        pa.array([1, 2, 3, 4], pa.timestamp("ms", "Nowhere/Land")),
    ],
    ids=lambda values: str(values.type),
)
@pytest.mark.parametrize("slots", [1, 2])
def test_dates_that_python_cannot_hold_are_named(tmp_path: Path, values: pa.Array, slots: int) -> None:
    plan = schema(('name = "shop"\nof = "item"', f'name = "shop"\nof = "item"\nslots = {slots}'))
    column = values if slots == 1 else pa.ListArray.from_arrays([0, 1, 2, 3, 4], values)
    refused(with_column(tmp_path, "shop", column), plan, "log.parquet", "field 'shop'", str(values.type), "as text")


def test_a_list_to_join_on_is_named(tmp_path: Path) -> None:
    join = schema(log='[[join]]\nfile = "items.parquet"\non = "what"\n')
    pq.write_table(pa.table({"what": [[10]], "shop": ["a"]}), tmp_path / "items.parquet")
    refused(write(tmp_path, "csv"), join, "items.parquet", "join column 'what'", "[10]")


PLAIN: dict[str, Callable[[pa.Array], pa.Array]] = {
    "dictionary": lambda texts: texts.dictionary_encode(),
    "large": lambda texts: texts.cast(pa.large_string()),
    "view": lambda texts: texts.cast(pa.string_view()),
    "bytes": lambda texts: texts.cast(pa.binary()),
    "large bytes": lambda texts: texts.cast(pa.large_binary()),
    "fixed bytes": lambda texts: texts.cast(pa.binary()).cast(pa.binary(1)),
    "bytes in a dictionary": lambda texts: texts.cast(pa.binary()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("name", ["who", "what", "shop", "page", "key"])
def test_text_is_the_same_in_whichever_type_it_is_stored(tmp_path: Path, kind: str, name: str) -> None:
    plan = schema(log='identity = ["key"]\nrequest = "page"\n')
    texts = pa.array(["a", "b", "a", "c"])
    table = pa.Table.from_pylist([r | {"page": "p", "key": i} for i, r in enumerate(ROWS)]).drop_columns([name])
    tables = []
    for column in (texts, PLAIN[kind](texts)):
        pq.write_table(table.append_column(name, pa.chunked_array([column])), tmp_path / "log.parquet")
        tables.append(read_log(tmp_path / "log.parquet", plan).table)
    assert tables[0].to_pylist() == tables[1].to_pylist()


def test_whole_decimals_are_whole_numbers_and_uuids_their_text(tmp_path: Path) -> None:
    whole = pa.array([Decimal(i) for i in (7, 8, 9, 7)], pa.decimal128(38, 0))
    assert read_log(with_column(tmp_path, "who", whole), schema()).table["who"].to_pylist() == [8, 7, 9, 7]
    cents = pa.array([Decimal("7.00"), Decimal("8.50"), None, None])
    assert read_log(with_column(tmp_path, "shop", cents), schema()).table["shop"].to_pylist() == [8.5, 7.0, None, None]
    ids = pa.array([UUID(int=i).bytes for i in range(4)], pa.uuid())
    assert read_log(with_column(tmp_path, "who", ids), schema()).table["who"][0].as_py() == str(UUID(int=1))
    great = pa.array([Decimal(7), Decimal(10) ** 30, None, None], pa.decimal128(38, 0))
    refused(with_column(tmp_path, "shop", great), schema(), "log.parquet", "'shop'", "row 2", "1000000000000000")


def test_a_join_matches_text_in_whichever_type_it_is_stored(tmp_path: Path) -> None:
    join = schema(log='[[join]]\nfile = "items.parquet"\non = "what"\n')
    side = pa.table({"what": pa.array([b"10", b"11"]).dictionary_encode(), "shop": ["ten", "eleven"]})
    pq.write_table(side, tmp_path / "items.parquet")
    rows = pa.Table.from_pylist(ROWS).drop_columns(["shop", "what"])
    what = pa.array(["10", "11", "10", "12"]).dictionary_encode()
    pq.write_table(rows.append_column("what", what), tmp_path / "log.parquet")
    assert read_log(tmp_path / "log.parquet", join).table["shop"].to_pylist() == ["eleven", "ten", "ten", None]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ["who", "shop"])
def test_text_that_is_not_utf8_is_named(tmp_path: Path, form: str, name: str) -> None:
    if form == "parquet":
        path = with_column(tmp_path, name, pa.array([b"a", b"b", b"caf\xe9", b"d"]))
    else:
        path = write(tmp_path, form, [r | {name: t} for r, t in zip(ROWS, ("a", "b", "xyz", "d"), strict=True)])
        path.write_bytes(path.read_bytes().replace(b"xyz", b"caf\xe9"))
    refused(path, schema(), path.name, f"'{name}', row 3: b'caf\\xe9'", "UTF-8")


def test_lists_of_text_that_is_not_utf8_are_named(tmp_path: Path) -> None:
    multi = schema(('name = "shop"\nof = "item"', 'name = "shop"\nof = "item"\nslots = 2'))
    path = with_column(tmp_path, "shop", pa.array([[b"a"], [b"b"], [b"caf\xe9"], [b"d"]]))
    refused(path, multi, path.name, "'shop'", "UTF-8")


def test_a_column_that_nobody_uses_may_be_anything_but_its_name_may_not(tmp_path: Path) -> None:
    """Of a CSV. A JSON object is read whole."""
    for form in ("csv", "jsonl"):
        path = write(tmp_path, form, [r | {"liked": "xyz"} for r in ROWS])
        path.write_bytes(path.read_bytes().replace(b"xyz", b"caf\xe9"))
        if form == "csv":
            assert read_log(path, schema()).table.equals(read_log(write(tmp_path, "parquet"), schema()).table)
        else:
            refused(path, schema(), path.name, "column 'liked', row 1", "UTF-8")
        path.write_bytes(path.read_bytes().replace(b"liked", b"lik\xe9d"))
        refused(path, schema(), path.name, "UTF-8")


# The names of tests are the same in each of pytest-xdist's workers: no time stamp in them.
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("log.csv", "at,who\n1,2\n".encode("utf-16"), ["UTF-16", "save it as UTF-8"]),
        ("log.jsonl", '{"at": 1}'.encode("utf-16"), ["UTF-16", "save it as UTF-8"]),
        ("log.csv", gzip.compress(b"at,who\n1,2\n", mtime=0), ["gzip", ".gz"]),
        ("log.csv", b"PAR1 and so on", ["Parquet", ".parquet"]),
        ("log.csv", b"PK\x03\x04 and so on", ["spreadsheet", "export it as CSV"]),
        ("log.json", b' [{"at": 1}]', ["one JSON array", "one object a line"]),
        ("log.csv.gz", gzip.compress(b"at,who\n1,2\n", mtime=0)[:-9], ["cannot be read"]),
    ],
)
def test_files_of_another_form_than_their_ending_says_are_named(
    tmp_path: Path, name: str, content: bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, schema(), name, *words)


@pytest.mark.parametrize(("name", "role"), [("who", "user"), ("what", "item"), ("at", "time"), ("clicked", "label")])
@pytest.mark.parametrize("missing", ["", float("nan"), None], ids=["empty", "nan", "null"])
def test_an_empty_text_or_nan_is_a_missing_value(tmp_path: Path, name: str, role: str, missing: Any) -> None:
    good = 1_650_812_741_436 if role == "time" else 1
    values = pa.array(
        [str(good), missing, *2 * [str(good)]] if missing == "" else [float(good), missing, *2 * [float(good)]]
    )
    refused(with_column(tmp_path, name, values), schema(), "log.parquet", f"row 2 has no {role} ('{name}')")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("log", ["", 'request = "page"\nidentity = ["at", "page"]\n'])
def test_ids_that_a_float_cannot_tell_apart_are_named(tmp_path: Path, form: str, log: str) -> None:
    name = "page" if log else "who"
    rows = [r | {name: 2**64 - 1 - i if form == "jsonl" else str(2**64 - 1 - i)} for i, r in enumerate(ROWS)]
    refused(write(tmp_path, form, rows), schema(log=log), f"'{name}'", "18446744073709551616", "as text")
    rows = [r | {name: 2**63 - 1 - i} for i, r in enumerate(ROWS)]  # 64 bits hold these
    assert len(set(read_log(write(tmp_path, form, rows), schema(log=log)).table[name].to_pylist())) == 4


DAY = 'day = "date"\n'


@pytest.mark.parametrize(
    "values",
    [
        pa.array([20220425] * 4),
        pa.array([20220425.0] * 4),
        pa.array(["20220425"] * 4),
        pa.array(["2022-04-25"] * 4),
        pa.array(["20220425"] * 4).dictionary_encode(),
        pa.array([b"20220425"] * 4),
        pa.array([Decimal("20220425")] * 4),
        pa.array([date(2022, 4, 25)] * 4),
        pa.array([date(2022, 4, 25)] * 4, pa.date64()),
        pa.array([datetime(2022, 4, 25, h) for h in range(4)]),  # noqa: DTZ001 - a log's own clock has no zone
        pa.array([datetime(2022, 4, 25, h, tzinfo=UTC) for h in range(4)]),
        pa.array([1_650_884_400_000_000_001] * 4, pa.timestamp("ns")),
    ],
    ids=lambda values: str(values.type),
)
def test_days_may_be_numbers_text_dates_or_times(tmp_path: Path, values: pa.Array) -> None:
    log = read_log(with_column(tmp_path, "date", values), schema(log=DAY))
    assert local_days(log, schema(log=DAY)) == ["2022-04-25"] * 4


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_iso_days_are_the_same_in_each_form_of_text(tmp_path: Path, form: str) -> None:
    log = read_log(write(tmp_path, form, [r | {"date": "2022-04-25"} for r in ROWS]), schema(log=DAY))
    assert local_days(log, schema(log=DAY)) == ["2022-04-25"] * 4


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([20220425, None, 20220425, 20220425]), "row 2 has no day"),
        (pa.array([20220425, float("nan"), 20220425, 20220425]), "row 2 has no day"),
        (pa.array(["20220425", "", "20220425", "20220425"]), "row 2 has no day"),
        (pa.array([20221350] * 4), "20221350"),
        (pa.array(["24/04/2022"] * 4), "'24/04/2022'"),
        (pa.array([1.5] * 4), "1.5"),
        (pa.array([True] * 4), "True"),
        (pa.array([2**31 - 1] * 4, pa.date32()), "date32[day] beyond Python's"),
    ],
)
def test_a_day_that_is_none_is_named(tmp_path: Path, values: pa.Array, words: str) -> None:
    refused(with_column(tmp_path, "date", values), schema(log=DAY), "log.parquet", "'date'", words)


def test_the_time_column_may_name_the_day_and_the_page_too(tmp_path: Path) -> None:
    plan = schema(log='day = "at"\nrequest = "at"\n')
    at = [datetime.fromtimestamp(r["at"] / 1000, UTC) for r in ROWS]
    log = read_log(with_column(tmp_path, "at", pa.array(at)), plan)
    assert local_days(log, plan) == ["2022-04-24"] * 4
    assert log.table["at"].to_pylist() == sorted(at)


def test_reading_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, "csv")
    before = path.read_bytes(), sorted(tmp_path.iterdir())
    first: LogTable = read_log(path, schema())
    assert read_log(path, schema()).table.equals(first.table)
    assert (path.read_bytes(), sorted(tmp_path.iterdir())) == before


AGES = '[[fields]]\nname = "age_days"\nof = "item"\nkind = "numeric"\n'


def test_ages_follow_from_the_time_at_which_an_item_came(tmp_path: Path) -> None:
    """``born`` is written as the log's times are; what is unknown or later counts as 0, and a column of ages yields."""
    aging = schema(("[log]", AGES + "[log]"), log='born = "since"\n')
    rows = {
        "at": [DAY0, DAY0, DAY0, DAY0],
        "who": [1, 2, 3, 4],
        "what": [1, 2, 3, 4],
        "shop": [1, 1, 1, 1],
        "price": [1.0, 1.0, 1.0, 1.0],
        "clicked": [0, 1, 0, 0],
        "age_days": [9.0, 9.0, 9.0, 9.0],
        "since": [DAY0 - 43_200_000, DAY0 + 1, None, DAY0],
    }
    pq.write_table(pa.table(rows), tmp_path / "log.parquet")
    table = read_log(tmp_path / "log.parquet", aging).table
    assert table["age_days"].to_pylist() == [0.5, 0, 0, 0]
    assert table["age_days"].type == pa.float32()
    assert "since" not in table.column_names
    spooled = read_log(tmp_path / "log.parquet", aging, spool=tmp_path).table
    assert spooled["age_days"].to_pylist() == [0.5, 0, 0, 0]

    pq.write_table(pa.table(rows | {"since": ["then", "", None, None]}), tmp_path / "log.parquet")
    with pytest.raises(LogError, match="'since' is no time"):
        read_log(tmp_path / "log.parquet", aging)
    pq.write_table(pa.table({n: c for n, c in rows.items() if n != "since"}), tmp_path / "log.parquet")
    with pytest.raises(SchemaError, match="since"):
        read_log(tmp_path / "log.parquet", aging)
    with pytest.raises(SchemaError, match=r"log\.label and log\.born"):
        read_log(tmp_path / "log.parquet", schema(log='born = "clicked"\n'))
