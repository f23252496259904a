"""Frames of pandas, Polars, pyarrow and DuckDB as logs: equal bits, and each one's own ways to hold a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import millrace as mr
from millrace.basics.errors import LogError, SchemaError
from tests.scenes import tiny_log
from tests.scenes.tiny_log import SMALL, START_MS

SCHEMA = tiny_log.SCHEMA.replace('{name = "price"', '{name = "shop", of = "item"}, {name = "price"')
N = 120
Values = dict[str, list[Any]]


@pytest.fixture
def schema(tmp_path: Path) -> mr.Schema:
    (tmp_path / "schema.toml").write_text(SCHEMA)
    return mr.Schema.read(tmp_path / "schema.toml")


def values() -> Values:
    """Rows in order of time, several of one time; some without a shop or price."""
    rng = np.random.default_rng(9)
    return {
        "at": (START_MS + np.sort(rng.integers(0, 4000, N)) * 40_000).tolist(),
        "user": rng.integers(1, 9, N).tolist(),
        "item": [f"i{k}" for k in rng.integers(0, 12, N)],
        "shop": [None if k == 5 else k for k in rng.integers(0, 6, N).tolist()],
        "price": [None if k % 17 == 3 else k / 8 for k in range(N)],
        "click": (rng.random(N) < 0.3).astype(int).tolist(),
    }


def relation(given: Mapping[str, Any]) -> Any:
    """On a connection of its own, in an order."""
    connection = duckdb.connect()
    connection.register("there", pa.table({**given, "row": list(range(N))}))
    return connection.sql('SELECT * EXCLUDE "row" FROM there ORDER BY "row"')


KINDS: dict[str, Callable[[Values], Any]] = {
    "pyarrow": pa.table,
    "batches": lambda v: pa.concat_tables([pa.table(v).slice(0, 7), pa.table(v).slice(7)]),
    "a reader": lambda v: pa.table(v).to_reader(),
    "pandas": lambda v: pd.DataFrame(v, index=np.arange(N)[::-1]),
    "pandas by Arrow": lambda v: pa.table(v).to_pandas(types_mapper=pd.ArrowDtype),
    "pandas, nullable": lambda v: pd.DataFrame(v).convert_dtypes(),
    "Polars": pl.DataFrame,
    "Polars, lazy": lambda v: pl.LazyFrame(v).with_columns(pl.col("price") * 1.0),
    "Polars, categories": lambda v: pl.DataFrame(v).with_columns(pl.col("item").cast(pl.Categorical)),
    "pandas, categories": lambda v: pd.DataFrame(v).astype({"item": "category", "user": "category"}),
    "pandas, objects": lambda v: pd.DataFrame(v).astype(object),
    "Polars, NaN": lambda v: pl.DataFrame(v).with_columns(pl.col("price").fill_null(float("nan"))),
    "DuckDB": relation,
}


def bits(log: Any, schema: mr.Schema) -> tuple[Any, list[float], list[Any]]:
    found = mr.replay(log, schema, spec=SMALL, batch_rows=32, progress=False)
    scores = pa.table(found.scores)
    return found.report, scores["score"].to_pylist(), scores["item"].to_pylist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_gives_the_bits_of_the_file(kind: str, schema: mr.Schema, tmp_path: Path) -> None:
    pq.write_table(pa.table(values()), tmp_path / "log.parquet")
    assert bits(KINDS[kind](values()), schema) == bits(tmp_path / "log.parquet", schema)


@pytest.mark.parametrize("kind", ["pandas", "Polars"])
def test_a_frame_is_not_changed(kind: str, schema: mr.Schema) -> None:
    frame, again = KINDS[kind](values()), KINDS[kind](values())
    mr.replay(frame, schema, spec=SMALL, progress=False)
    mr.guess(frame)
    assert frame.equals(again)


def test_only_the_columns_that_are_wanted_are_looked_at(schema: mr.Schema) -> None:
    frame = pd.DataFrame({**values(), "odd": [object()] * N})
    frame.insert(0, "twice", 1)
    frame.insert(0, "twice", "x", allow_duplicates=True)
    frame[7] = 1  # a name that is no text
    assert bits(frame, schema) == bits(pa.table(values()), schema)


T0 = datetime(2022, 4, 24, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("made", "offset_hours"),
    [
        (lambda at: pd.to_datetime(at, unit="ms"), 0),
        (lambda at: pd.to_datetime(at, unit="ms").tz_localize("UTC").tz_convert("Asia/Tokyo"), 0),
        (lambda at: pl.Series(at).cast(pl.Datetime("ms")), 0),
        (lambda at: pl.from_epoch(pl.Series(at), "ms").cast(pl.Datetime("ns")), 0),
        (
            lambda at: pl.from_epoch(pl.Series(at), "ms").dt.convert_time_zone("Asia/Tokyo"),
            0,
        ),
        (lambda at: pd.to_datetime(at, unit="ms"), 8),
        (lambda at: pl.Series(at).cast(pl.Datetime("ms")), 8),
        (lambda at: pd.to_datetime(at, unit="ms").tz_localize("UTC"), 8),
        (lambda at: pd.to_datetime(at, unit="ms").astype(str), 0),
    ],
)
def test_naive_times_follow_the_schema_and_zones_themselves(
    made: Callable[[list[int]], Any], offset_hours: int, schema: mr.Schema
) -> None:
    at = made(values()["at"])
    frame = pl.DataFrame(values()) if isinstance(at, pl.Series) else pd.DataFrame(values())
    frame = frame.with_columns(at.alias("at")) if isinstance(frame, pl.DataFrame) else frame.assign(at=at)
    if offset_hours:
        schema = schema.edit(utc_offset=f"+{offset_hours:02}:00", log={"local_times": True})
    zoned = getattr(at, "tz", None) is not None
    expected = np.array(values()["at"]) - (0 if zoned else offset_hours * 3_600_000)
    assert mr.read(frame, schema).table["ts_ms"].to_pylist() == expected.tolist()


def test_whole_numbers_that_nan_made_floats_are_the_ids_that_they_were(schema: mr.Schema) -> None:
    frame = pd.DataFrame(values())
    assert frame["shop"].dtype == float
    whole = pd.DataFrame(values()).astype({"shop": "Int64"})
    assert bits(frame, schema) == bits(whole, schema)


def changed(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(values()).assign(**columns)


def lacking(name: str) -> pd.DataFrame:
    return pd.DataFrame(values()).drop(columns=name)


def twice(name: str) -> pd.DataFrame:
    frame = pd.DataFrame(values())
    frame.insert(0, name, 1, allow_duplicates=True)
    return frame


def levels() -> pd.DataFrame:
    frame = pd.DataFrame(values())
    frame.columns = pd.MultiIndex.from_tuples([("a", name) for name in frame.columns])
    return frame


GREAT = [2.0**53 + 2 * k for k in range(N)]
REFUSED: list[tuple[str, Callable[[], Any], str]] = [
    ("ids beyond 2^53", lambda: changed(user=GREAT), r"'user' has 9007199254740992.*write such ids as text"),
    ("Polars, beyond 2^53", lambda: pl.DataFrame({**values(), "user": GREAT}), r"'user' has 9007199254740992"),
    ("mixed objects", lambda: changed(user=["a", 1] * (N // 2)), r"column 'user' mixes int and str .*astype\(str\)"),
    ("objects", lambda: changed(item=[object()] * N), r"column 'item' has values of object"),
    ("UUIDs in a float", lambda: changed(item=[UUID(int=1), 2.5] * (N // 2)), r"'item' mixes UUID and float"),
    ("periods", lambda: changed(at=pd.period_range("2022-04-24", periods=N)), r"'at' holds periods.*to_timestamp"),
    ("a column twice", lambda: twice("user"), r"column 'user' stands 2 times; rename or drop all but one"),
    ("a column lacks", lambda: lacking("item"), r"lack the column 'item'"),
    ("a column almost there", lambda: lacking("price").assign(prices=1.0), r"'price'.*near matches: prices"),
    ("no rows", lambda: pd.DataFrame(values()).head(0), r"log 'pandas DataFrame' has no rows"),
    ("labels of 2", lambda: changed(click=2), r"label 'click' has the value 2, not 0 or 1"),
    ("a label that lacks", lambda: pl.DataFrame(values()).with_columns(click=None), r"has no label"),
    ("lists of ids", lambda: pl.DataFrame({**values(), "user": [[1]] * N}), r"user 'user' holds"),
    ("levels of names", levels, r"has columns of 2 levels"),
    ("a Series", lambda: pd.DataFrame(values())["user"], r"a log is no pandas Series; give a path, or a frame"),
    ("a dict", values, r"a log is no dict; give a path, or a frame"),
    ("a number", lambda: 7, r"a log is no int"),
    ("None", lambda: None, r"a log is no NoneType"),
    ("an array", lambda: np.zeros((3, 4)), r"a log is no numpy ndarray"),
    ("rows of dicts", lambda: [{"at": 1}], r"a log is no list"),
    ("a grouped frame", lambda: pd.DataFrame(values()).groupby("user"), r"a log is no pandas DataFrameGroupBy"),
    ("a lazy frame that fails", lambda: pl.LazyFrame(values()).select(pl.col("at") + pl.col("no")), r"'no'|\"no\""),
    ("an Arrow array", lambda: pa.array([1, 2]), r"is no table|is no pyarrow"),
    ("Polars objects", lambda: pl.DataFrame({**values(), "item": [object()] * N}), r"polars DataFrame"),
    ("texts as times", lambda: changed(at="yesterday"), r"column 'at' is no time \('yesterday'\)"),
    ("texts as numbers", lambda: changed(price="cheap"), r"numeric field 'price' is not a number \('cheap'\)"),
]


@pytest.mark.filterwarnings("ignore::pandas.errors.PerformanceWarning")
@pytest.mark.parametrize(("made", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_is_no_log_is_one_line_with_a_remedy(made: Callable[[], Any], words: str, schema: mr.Schema) -> None:
    with pytest.raises((LogError, SchemaError), match=words) as raised:
        mr.replay(made(), schema, progress=False)
    assert "\n" not in str(raised.value)
    assert raised.value.remedy


def test_rows_of_a_frame_that_are_wrong_are_left_out_if_that_is_asked(schema: mr.Schema) -> None:
    frame = changed(click=[2, *values()["click"][1:]])
    assert mr.read(frame, schema, skip_bad=True).skipped == 1


def test_decimals_and_dates_are_read_as_from_a_file(schema: mr.Schema) -> None:
    frame = changed(price=[Decimal("1.5")] * N, user=[T0.date()] * N)
    found = mr.read(frame, schema).table
    assert set(found["price"].to_pylist()) == {1.5}


def test_a_schema_is_guessed_of_a_frame(schema: mr.Schema) -> None:
    found = [mr.guess(KINDS[kind](values())) for kind in ("pyarrow", "pandas", "Polars", "DuckDB", "a reader")]
    assert all(one == found[0] for one in found)
    assert "time 'at', user 'user', item 'item', label 'click'" in repr(found[0])
