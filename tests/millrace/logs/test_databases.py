"""Tables of databases and SELECTs as logs: read, and never written to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from millrace.basics.errors import LogError
from millrace.logs import read_log
from tests.architecture import ROOT
from tests.scenes.small_logs import ROWS, schema, written

ATTACHED = 'attach = { shop = "shop.duckdb" }\n'


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A database with the rows as a table."""
    written(tmp_path, ROWS, "rows.parquet")
    file = tmp_path / "shop.duckdb"
    with duckdb.connect(str(file)) as database:
        database.execute(f"CREATE TABLE exposures AS FROM '{tmp_path}/rows.parquet'")
    return file


def select(folder: Path, text: str) -> Path:
    file = folder / "log.sql"
    file.write_text(text)
    return file


def test_a_table_is_read_as_its_file_is(shop: Path) -> None:
    expected = read_log(shop.parent / "rows.parquet", schema()).table
    assert read_log(shop, schema()).table.equals(expected)
    with duckdb.connect(str(shop)) as database:
        database.execute("CREATE TABLE prices (what VARCHAR)")
    with pytest.raises(LogError, match=r"has 2 tables; name one in log.table: exposures, prices"):
        read_log(shop, schema())
    assert read_log(shop, schema('table = "exposures"\n')).table.equals(expected)
    with pytest.raises(LogError, match=r"has no table 'clicks'"):
        read_log(shop, schema('table = "clicks"\n'))


def test_a_select_joins_files_and_attached_databases(shop: Path) -> None:
    (shop.parent / "prices.csv").write_text("what,price\ni1,1.5\ni2,2.5\n")
    text = "SELECT e.*, p.price::DOUBLE AS price FROM shop.exposures e LEFT JOIN 'prices.csv' p USING (what);  -- ours"
    priced = schema(ATTACHED + '[[fields]]\nname = "price"\nof = "item"\nkind = "numeric"\n')
    read = read_log(select(shop.parent, text), priced).table
    prices = {f"i{n}": {1: 1.5, 2: 2.5}.get(n) for n in range(6)}
    assert dict(zip(read["what"].to_pylist(), read["price"].to_pylist(), strict=True)) == prices


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no sql at all",
        "COPY (SELECT 1) TO 'out.csv'",
        "SELECT 1; COPY (SELECT 1) TO 'out.csv'",
        "1) ; COPY (SELECT 1) TO 'out.csv' ; SELECT * FROM (SELECT 1",
        "SELECT 1) ; COPY (SELECT 1 AS x) TO 'out.csv' ; SELECT * FROM (SELECT 1",
        "WITH q AS (INSERT INTO shop.exposures SELECT * FROM shop.exposures RETURNING *) SELECT * FROM q",
        "SELECT * FROM query('COPY (SELECT 1) TO ''out.csv''')",
        "DELETE FROM shop.exposures",
        "ATTACH 'out.csv' AS other",
        "SET memory_limit = '9GB'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA version",
        "CALL pragma_version()",
        "EXPLAIN ANALYZE SELECT 1",
        "SELECT * FROM rows_of_python",
        "SELECT * FROM 'nowhere.parquet'",
    ],
)
def test_what_is_no_single_select_is_refused_in_one_line_and_writes_nothing(shop: Path, text: str) -> None:
    rows_of_python = pa.table({"at": [1]})  # what a SELECT must not reach
    body, file = shop.read_bytes(), select(shop.parent, text)
    before = sorted(shop.parent.iterdir())
    with pytest.raises(LogError) as caught:
        read_log(file, schema(ATTACHED))
    assert "\n" not in str(caught.value)
    assert "log.sql" in str(caught.value)
    assert sorted(shop.parent.iterdir()) == before
    assert shop.read_bytes() == body
    assert rows_of_python.num_rows == 1


def test_the_configuration_is_locked_and_databases_are_read_only(shop: Path) -> None:
    flag = schema(ATTACHED + '[[fields]]\nname = "r"\nof = "item"\n')
    for asked in (
        "(SELECT readonly FROM duckdb_databases() WHERE database_name = 'shop')",
        "current_setting('lock_configuration')",
        "NOT current_setting('autoload_known_extensions')",
        "NOT current_setting('autoinstall_known_extensions')",
        "NOT current_setting('python_enable_replacements')",
    ):
        text = f"SELECT *, ({asked})::VARCHAR AS r FROM shop.exposures"
        assert set(read_log(select(shop.parent, text), flag).table["r"].to_pylist()) == {"true"}, asked


def test_an_extension_that_is_not_there_is_named(shop: Path) -> None:
    with pytest.raises(LogError, match=r"nowhere"):
        read_log(select(shop.parent, "FROM shop.exposures"), schema(ATTACHED + 'extensions = ["nowhere"]\n'))
    with pytest.raises(LogError, match=r"names no extension"):
        read_log(select(shop.parent, "FROM shop.exposures"), schema(ATTACHED + "extensions = ['a; DROP TABLE b']\n"))


def test_a_bad_row_of_a_select_is_a_fault_as_in_a_file(shop: Path) -> None:
    text = "SELECT * REPLACE (CASE WHEN what = 'i3' THEN 7 ELSE clicked END AS clicked) FROM shop.exposures"
    file = select(shop.parent, text)
    with pytest.raises(LogError, match=r"log.sql': label 'clicked' has the value 7"):
        read_log(file, schema(ATTACHED))
    read = read_log(file, schema(ATTACHED), skip_bad=True)
    assert (read.skipped, read.table.num_rows) == (1, 5)


def test_a_slow_question_draws_no_bar_where_there_is_no_program_file() -> None:
    """As in a notebook, where DuckDB would draw one on standard output."""
    asked = "SELECT current_setting('enable_progress_bar')"
    code = f'from millrace.logs.query import opened; print(opened(None).sql("{asked}").fetchall())'
    argv = [sys.executable, "-c", code]
    assert subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout == "[(False,)]\n"
