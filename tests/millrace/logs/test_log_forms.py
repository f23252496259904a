"""Logs as they come: lists of candidates, times in many formats, several files, joins with a time of validity."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.errors import LogError, SchemaError
from millrace.commands.replay.grouped import page_codes
from millrace.contracts.schema import parse_schema
from millrace.logs import LogFaults, LogTable, read_log
from tests.scenes.exploring import examples
from tests.scenes.small_logs import MS, PAGES, ROWS, TEXT, schema, written


def rows_of(log: LogTable, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(log.table[name].to_pylist() for name in names), strict=True))


# -- lists --------------------------------------------------------------------------------------------------------

UNROLLED = [(1, 7, 0), (1, 9, 1), (1, 4, 0), (2, 9, 0), (1, 4, 1), (1, 7, 1)]


def as_text(pages: list[dict[str, Any]], style: Callable[[list[int]], str]) -> list[dict[str, Any]]:
    return [{k: style(v) if isinstance(v, list) else v for k, v in page.items()} for page in pages]


@pytest.mark.parametrize("form", ["items+labels", "items+clicked", "pairs"])
@pytest.mark.parametrize("dress", ["lists", "spaces", "python", "jsonl"])
def test_a_row_a_page_becomes_a_row_an_exposure(tmp_path: Path, form: str, dress: str) -> None:
    pages, log = PAGES, ""
    if dress == "spaces":
        pages = as_text(PAGES, lambda v: " ".join(map(str, v)))
    elif dress == "python":
        pages, log = as_text(PAGES, str), 'list_separator = ","\n' if form != "pairs" else ""
    path = written(tmp_path, pages, "log.jsonl" if dress == "jsonl" else "log.parquet")
    log += {
        "items+labels": 'items = "shown"\nlabels = "hit"\n',
        "items+clicked": 'items = "shown"\nclicked = "liked"\n',
        "pairs": 'pairs = "pairs"\n',
    }[form]
    read = read_log(path, schema(log + 'position = "slot"\nrequest = "page"\n'))
    assert [(who, int(what), hit) for who, what, hit in rows_of(read, "who", "what", "clicked")] == UNROLLED
    assert read.table["slot"].to_pylist() == [0, 1, 2, 0, 0, 1]
    assert read.table["page"].to_pylist() == [0, 0, 0, 1, 2, 2]
    assert (read.rows_read, read.duplicates) == (3, 0)


def test_the_list_may_have_the_items_own_name_and_others_go_along(tmp_path: Path) -> None:
    pages = [page | {"what": page["shown"], "price": [i / 2 for i in page["shown"]]} for page in PAGES]
    field = '[[fields]]\nname = "price"\nof = "item"\nkind = "numeric"\n'
    plan = parse_schema(
        TEXT.replace("[windows]", field + "[windows]") + 'items = "what"\nlabels = "hit"\nalong = ["price"]\n'
    )
    read = read_log(written(tmp_path, pages), plan)
    assert rows_of(read, "what", "price") == [(7, 3.5), (9, 4.5), (4, 2.0), (9, 4.5), (4, 2.0), (7, 3.5)]


def test_one_clicked_item_need_not_be_a_list_and_strays_are_counted(tmp_path: Path) -> None:
    pages = [page | {"liked": liked} for page, liked in zip(PAGES, (9, None, 12), strict=True)]
    read = read_log(written(tmp_path, pages), schema('items = "shown"\nclicked = "liked"\n'))
    assert read.table["clicked"].to_pylist() == [0, 1, 0, 0, 0, 0]
    assert [(d.column, d.rows) for d in read.decisions] == [("liked", 1)]


def test_pages_without_items_are_counted_and_wrong_ones_are_faults(tmp_path: Path) -> None:
    plan = schema('pairs = "pairs"\n')
    empty = [*PAGES, PAGES[0] | {"pairs": ""}, PAGES[0] | {"pairs": None}]
    read = read_log(written(tmp_path, empty), plan)
    assert read.table.num_rows == 6
    assert [(d.column, d.rows) for d in read.decisions] == [("pairs", 2)]
    wrong = [*PAGES, PAGES[0] | {"pairs": "N7-0 N8"}]
    with pytest.raises(LogFaults, match=r"row 4 has the pair 'N8' in 'pairs'"):
        read_log(written(tmp_path, wrong), plan)
    read = read_log(written(tmp_path, wrong), plan, skip_bad=True)
    assert (read.table.num_rows, read.skipped) == (6, 1)
    short = [*PAGES, PAGES[0] | {"hit": [1]}]
    with pytest.raises(LogFaults, match=r"row 4 has 1 values in 'hit' for 3 items"):
        read_log(written(tmp_path, short), schema('items = "shown"\nlabels = "hit"\n'))


@pytest.mark.parametrize("form", ['pairs = "pairs"\n', 'items = "shown"\nclicked = "liked"\n'])
def test_a_line_is_its_page_where_no_column_names_one(tmp_path: Path, form: str) -> None:
    pages = [PAGES[0], PAGES[0] | {"at": MS + 1}, *PAGES[1:]]  # two pages of one user and day
    plan = schema(form)
    read = read_log(written(tmp_path, pages), plan)
    pages_of = page_codes(read, plan)
    assert pages_of is not None
    assert pages_of.tolist() == [0, 0, 0, 1, 1, 1, 2, 3, 3]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1)), max_size=5, unique_by=lambda pair: pair[0]),
        min_size=1,
        max_size=8,
    ).filter(any)
)
@examples(25)
def test_lists_say_what_the_rows_unrolled_by_hand_say(
    tmp_path_factory: Any, pages: list[list[tuple[int, int]]]
) -> None:
    folder = tmp_path_factory.mktemp("lists")
    by_hand = [
        {"at": MS + 1000 * n, "who": n, "what": item, "clicked": label}
        for n, page in enumerate(pages)
        for item, label in page
    ]
    listed = [
        {
            "at": MS + 1000 * n,
            "who": n,
            "what": [item for item, _ in page],
            "hit": [label for _, label in page],
            "liked": [item for item, label in page if label],
        }
        for n, page in enumerate(pages)
    ]
    whole = read_log(written(folder, by_hand), schema())
    for form in ("labels", "clicked"):
        log = f'items = "what"\n{form} = "{"hit" if form == "labels" else "liked"}"\n'
        types = pa.schema(
            [("at", pa.int64()), ("who", pa.int64())] + [(n, pa.list_(pa.int64())) for n in ("what", "hit", "liked")]
        )
        pq.write_table(pa.Table.from_pylist(listed, types), folder / "lists.parquet")
        read = read_log(folder / "lists.parquet", schema(log))
        names = ("ts_ms", "who", "what", "clicked")
        assert rows_of(read, *names) == rows_of(whole, *names)


# -- times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "log", "expected"),
    [
        (22042415, 'time_format = "yymmddhh"', MS),
        ("22042415", 'time_format = "YYMMDDHH"', MS),
        (20220424, 'time_format = "yyyymmdd"', MS - 15 * 3_600_000),
        (2022042415, 'time_format = "%Y%m%d%H"', MS),
        ("4/24/2022 3:00:00 PM", 'time_format = "mind"', MS),
        ("24.04.2022 23:00", 'time_format = "%d.%m.%Y %H:%M"\nlocal_times = true', MS),
        ("2022-04-24T23:00:00", "local_times = true", MS),
        ("2022-04-24T23:00:00+08:00", "local_times = true", MS),
        ("2022-04-24 15:00:00.123456", "", MS + 123),
        (MS * 1_000_000 + 999_999, 'time_unit = "ns"', MS),
        (3600, 'time_unit = "s"\ntime_start = "2022-04-24T14:00:00"', MS),
        (str(MS), "", MS),
    ],
)
@pytest.mark.parametrize("form", ["log.parquet", "log.csv", "log.jsonl"])
def test_times_in_any_named_format(tmp_path: Path, form: str, value: Any, log: str, expected: int) -> None:
    path = written(tmp_path, [{"at": value, "who": 1, "what": 2, "clicked": c} for c in (0, 1)], form)
    assert read_log(path, schema(log + "\n")).table["ts_ms"].to_pylist() == [expected] * 2


def test_a_log_without_times_gets_a_clock_from_its_rows(tmp_path: Path) -> None:
    rows = [{"who": n, "what": 2, "clicked": n % 2} for n in range(4)]
    plan = schema('rows_per_day = 2\ntime_start = "2022-01-01"\n')
    hours = [
        (at - 1_640_995_200_000) / 3_600_000
        for at in read_log(written(tmp_path, rows), plan).table["ts_ms"].to_pylist()
    ]
    assert hours == [0, 12, 24, 36]


@pytest.mark.parametrize("form", ["log.parquet", "log.csv", "log.jsonl"])
def test_of_several_users_the_first_that_is_there_counts_under_the_last_ones_name(tmp_path: Path, form: str) -> None:
    accounts = [None, 71, None, 72, None, 73]
    rows = [row | {"account": account} for row, account in zip(ROWS, accounts, strict=True)]
    plan = parse_schema(TEXT.replace('user = "who"', 'user = ["account", "who"]'))
    read = read_log(written(tmp_path, rows, form), plan)
    assert read.user == "who"
    assert read.table["who"].to_pylist() == ["0", "71", "2", "72", "1", "73"]
    with pytest.raises(SchemaError, match="card"):
        read_log(written(tmp_path, rows, form), parse_schema(TEXT.replace('user = "who"', 'user = ["card", "who"]')))


@pytest.mark.parametrize("value", [{"a": 1}, {"a": {"b": [1, {"c": 2}]}}])
def test_an_object_of_json_is_named_and_one_that_nothing_uses_is_left(value: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, [row | {"odd": value, "none": {}} for row in ROWS], "log.jsonl")
    assert read_log(path, schema()).table.num_rows == len(ROWS)
    with pytest.raises(LogFaults, match=r"item 'odd' holds .*, not one value"):
        read_log(path, parse_schema(TEXT.replace('item = "what"', 'item = "odd"').replace('"what"', '"odd"')))


def test_an_outcome_of_a_threshold_is_1_from_it_on_and_unknown_where_the_number_is(tmp_path: Path) -> None:
    rows = [row | {"read_s": n} for row, n in zip(ROWS, (None, 29.9, None, 30, None, 400), strict=True)]
    rule = '[[outcome]]\nname = "long_read"\non = "click"\ncolumn = "read_s"\nat_least = 30\n'
    read = read_log(written(tmp_path, rows), schema(rule))
    assert read.table["read_s"].to_pylist() == [None, 0, None, 1, None, 1]


def test_made_columns(tmp_path: Path) -> None:
    rows = [
        {"at": MS + n, "ip": "a", "device": n % 2, "what": n, "stars": stars, "bought": bought}
        for n, (stars, bought) in enumerate([(5, -1), (4, MS + 9), (3.5, -1)])
    ]
    path = written(tmp_path, rows)
    made = 'combine = { who = ["ip", "device"] }\n'
    rated = TEXT.replace('label = "clicked"', 'label = "stars"') + made + "label_at_least = 4\n"
    read = read_log(path, parse_schema(rated))
    assert rows_of(read, "who", "stars") == [("a/0", 1), ("a/1", 1), ("a/0", 0)]
    sold = schema('combine = { who = [] }\naction_times = { click = "bought" }\nnever = [-1]\nlabel_action = "click"\n')
    read = read_log(path, sold)
    assert rows_of(read, "who", "clicked", "bought") == [("all", 0, None), ("all", 1, MS + 9), ("all", 0, None)]


# -- files --------------------------------------------------------------------------------------------------------


def test_several_files_and_folders_of_any_form_are_one_log(tmp_path: Path) -> None:
    whole = read_log(written(tmp_path, ROWS), schema()).table
    parts = [
        written(tmp_path, ROWS[:1], "one.csv"),
        written(tmp_path, ROWS[1:2], "two.jsonl"),
        tmp_path / "texts",
        tmp_path / "days",
    ]
    written(tmp_path, ROWS[2:3], "texts/a.csv")
    packed = written(tmp_path, ROWS[3:4], "texts/b.jsonl")
    (tmp_path / "texts" / "b.jsonl.gz").write_bytes(gzip.compress(packed.read_bytes()))
    packed.unlink()
    written(tmp_path, ROWS[4:5], "days/date=1/part.parquet")
    written(tmp_path, ROWS[5:], "days/date=2/part.parquet")
    (tmp_path / "texts" / "_SUCCESS").write_text("")
    assert read_log([str(p) for p in parts], schema()).table.equals(whole)


@pytest.mark.parametrize("codec", ["gzip", "zstd", "bz2", "lz4"])
def test_text_may_be_compressed(tmp_path: Path, codec: str) -> None:
    whole = read_log(written(tmp_path, ROWS), schema()).table
    ending = {"gzip": "gz", "zstd": "zst"}.get(codec, codec)
    for name in ("log.csv", "log.jsonl"):
        plain = written(tmp_path, ROWS, name)
        with pa.output_stream(str(plain) + f".{ending}", compression=codec) as out:
            out.write(plain.read_bytes())
        assert read_log(f"{plain}.{ending}", schema()).table.equals(whole)


@pytest.mark.parametrize(
    ("separator", "name"), [("::", "ratings.dat"), ("|", "u.data"), (";", "log.csv"), ("\t", "x.csv")]
)
def test_files_without_a_header_and_with_other_separators(tmp_path: Path, separator: str, name: str) -> None:
    lines = (separator.join(map(str, row.values())) for row in ROWS)
    (tmp_path / name).write_text("\n".join(lines))
    plan = schema(f'columns = ["at", "who", "what", "clicked"]\nseparator = "{separator}"\n'.replace("\t", "\\t"))
    assert read_log(tmp_path / name, plan).table.equals(read_log(written(tmp_path, ROWS), schema()).table)


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_a_column_that_only_some_files_have_is_empty_in_the_others(tmp_path: Path, form: str) -> None:
    for n, more in enumerate(({}, {"shop": "ten"}, {})):
        written(tmp_path / "log", [row | more for row in ROWS[2 * n : 2 * n + 2]], f"{n}.{form}")
    read = read_log(tmp_path / "log", schema('[[fields]]\nname = "shop"\nof = "item"\n'))
    assert read.table["what"].to_pylist() == [f"i{n}" for n in range(6)]
    assert read.table["shop"].to_pylist() == [None, None, "ten", "ten", None, None]


TITLES = ['"I am', "A plain one", 'He said "no"', '"Quoted"', 'The "last']
"""Two of them open a quote that nobody closes: together they would take in the lines between them."""


def _titled(folder: Path, titles: list[str]) -> Path:
    rows = [[MS + n, n % 3, title, f"i{n}", n % 2] for n, title in enumerate(titles)]
    (folder / "log.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return folder / "log.tsv"


TITLED = 'columns = ["at", "who", "title", "what", "clicked"]\n'


def test_quotes_are_letters_where_quoting_is_off(tmp_path: Path) -> None:
    plan = schema(TITLED + "quoting = false\n" + '[[fields]]\nname = "title"\nof = "item"\n')
    for titles in (TITLES, TITLES[:2], TITLES[::-1]):
        read = read_log(_titled(tmp_path, titles), plan)
        assert read.table["title"].to_pylist() == titles
        assert read.decisions == ()


def test_a_quote_that_is_never_closed_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"row 1 is no row .*since a quote in it is not closed.*quoting = false"):
        read_log(_titled(tmp_path, ['"I am', "A plain one", "Last"]), schema(TITLED))


def test_lines_that_a_quote_takes_in_are_counted(tmp_path: Path) -> None:
    titles = ['"I am', "A plain one", 'It is"', "Another", "Last"]  # the two quotes make one value of three lines
    path = tmp_path / "log.csv"
    path.write_text("".join(f"{MS + n},{n % 3},i{n},{n % 2},{title}\n" for n, title in enumerate(titles)))
    read = read_log(path, schema('columns = ["at", "who", "what", "clicked", "title"]\n'))
    assert read.table["what"].to_pylist() == ["i0", "i3", "i4"]
    (reported,) = [d for d in read.decisions if "within a quoted value" in d.what]
    assert (reported.rows, "quoting = false" in reported.remedy) == (2, True)


def test_a_quoted_value_that_goes_on_behind_its_end_is_an_error(tmp_path: Path) -> None:
    titles = ['"I am', "A plain one", '"It is', "Another", "Last"]  # the second quote ends the first one's value
    with pytest.raises(LogError, match=r"row 1 is no row .*since a quote in it is not closed.*quoting = false"):
        read_log(_titled(tmp_path, titles), schema(TITLED))


def test_a_file_without_a_header_and_without_columns_is_named_as_such(tmp_path: Path) -> None:
    path = _titled(tmp_path, ["a", "b"])
    with pytest.raises(SchemaError, match=r"log.tsv' has no header line, but begins with '1650812400000.*columns = "):
        read_log(path, schema())
    (tmp_path / "items.csv").write_text("i0,7\ni1,8\n")
    plan = schema(TITLED + '[[join]]\nfile = "items.csv"\non = "what"\n')
    with pytest.raises(SchemaError, match=r"items.csv' has no header line, but begins with 'i0,7'.*columns = "):
        read_log(path, plan)


def test_columns_of_a_csv_may_be_named_as_text(tmp_path: Path) -> None:
    ids = [10000949271186029916, 10000949271186029917]
    (tmp_path / "log.csv").write_text("at,who,what,clicked\n" + "".join(f"{MS},{i},007,0\n" for i in ids))
    read = read_log(tmp_path / "log.csv", schema('texts = ["who", "what"]\n'))
    assert rows_of(read, "who", "what") == [(str(i), "007") for i in ids]


def test_other_encodings(tmp_path: Path) -> None:
    rows = [row | {"what": "café"} for row in ROWS]
    path = tmp_path / "log.csv"
    path.write_bytes(
        ("at,who,what,clicked\n" + "".join(",".join(map(str, r.values())) + "\n" for r in rows)).encode("latin-1")
    )
    assert read_log(path, schema('encoding = "latin-1"\n')).table["what"].to_pylist() == ["café"] * 6
    with pytest.raises(LogError, match="no UTF-8 text"):
        read_log(path, schema())


# -- joins --------------------------------------------------------------------------------------------------------

AS_OF = """
[[fields]]
name = "price"
of = "item"
kind = "numeric"
[[fields]]
name = "city"
of = "user"
[[join]]
file = "prices.csv"
on = "what"
at = "since"
[[join]]
file = "users.jsonl"
on = "who"
"""


def test_a_side_table_with_a_time_of_validity_gives_the_newest_row_that_is_not_later(tmp_path: Path) -> None:
    prices = [
        ("i0", 5000, 9.0),
        ("i0", 1000, 1.0),
        ("i0", 3000, 3.0),
        ("i0", 3000, 3.5),
        ("i1", 9000, 8.0),
        ("i2", 1, 2.0),
    ]
    (tmp_path / "prices.csv").write_text("what,since,price\n" + "".join(f"{i},{MS + at},{p}\n" for i, at, p in prices))
    (tmp_path / "users.jsonl").write_text('{"who": 0, "city": "Oslo"}\n')
    rows = [
        {"at": MS + at, "who": n, "what": item, "clicked": n % 2}
        for n, (item, at) in enumerate(
            [("i0", 0), ("i0", 1000), ("i0", 2999), ("i0", 3000), ("i0", 9999), ("i1", 8999), ("i3", 5)]
        )
    ]
    read = read_log(written(tmp_path, rows), schema(AS_OF))
    found = {who: (price, city) for who, price, city in rows_of(read, "who", "price", "city")}
    assert [found[n][0] for n in range(7)] == [None, 1.0, 1.0, 3.5, 9.0, None, None]
    assert [found[n][1] for n in range(7)] == ["Oslo", *[None] * 6]
    assert any("prices.csv: 3 of 7 rows" in note and "not later than the exposure" in note for note in read.notes)


@given(
    side=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=12),
    asked=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 20)), min_size=1, max_size=12),
)
@examples(40)
def test_no_row_of_a_later_time_is_ever_joined(
    tmp_path_factory: Any, side: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("asof")
    (folder / "prices.csv").write_text(
        "what,since,price\n" + "".join(f"i{i},{MS + at},{n}\n" for n, (i, at) in enumerate(side))
    )
    (folder / "users.jsonl").write_text('{"who": 0, "city": "Oslo"}\n')
    rows = [{"at": MS + at, "who": n, "what": f"i{i}", "clicked": 0} for n, (i, at) in enumerate(asked)]
    read = read_log(written(folder, rows), schema(AS_OF))
    found = dict(rows_of(read, "who", "price"))
    for who, (item, at) in enumerate(asked):
        before = [(since, n) for n, (i, since) in enumerate(side) if i == item and since <= at]
        assert found[who] == (max(before)[1] if before else None)


def test_joins_with_a_time_of_their_own_format(tmp_path: Path) -> None:
    (tmp_path / "prices.csv").write_text("i1;22042414;5\ni1;22042416;6\n")
    (tmp_path / "users.jsonl").write_text('{"who": 0, "city": "Oslo"}\n')
    more = 'time_format = "yymmddhh"\ncolumns = ["what", "since", "price"]\nseparator = ";"\n'
    plan = schema(AS_OF.replace('at = "since"\n', 'at = "since"\n' + more))
    assert read_log(written(tmp_path, ROWS[1:2]), plan).table["price"].to_pylist() == [5.0]
    (tmp_path / "prices.csv").write_text("what,since,price\ni1,1,5\n")
    with pytest.raises(SchemaError, match="no column 'when'"):
        read_log(written(tmp_path, ROWS), schema(AS_OF.replace('"since"', '"when"')))


# -- the schema's own errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ('time_format = "weekly"\n', "time_format 'weekly' is not known"),
        ('time_start = "soon"\n', "time_start 'soon' is no date"),
        ('disorder = "late"\n', "'late' is no duration"),
        ('encoding = "runes"\n', "encoding 'runes'"),
        ('labels = "hit"\n', "labels without log.items"),
        ('items = "shown"\n', "log.items with none"),
        ('items = "shown"\nlabels = "a"\nclicked = "b"\n', "log.labels and log.clicked"),
        ('label_action = "click"\n', "label_action 'click' has no column"),
        ('pairs = "p"\nlabel_at_least = 3\n', "label_at_least beside lists"),
    ],
)
def test_sections_that_no_log_could_be_read_by_are_refused(log: str, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        schema(log)


def test_how_a_log_is_read_is_not_part_of_what_an_array_means() -> None:
    assert schema('items = "shown"\nlabels = "hit"\ntime_unit = "ns"\n').id == schema().id
