"""Files that nobody should give: each is one line that names the fault, loses no row unsaid, and leaves nothing."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.basics.errors import LogError
from millrace.logs import read_log
from tests.scenes.small_logs import MS, schema

N = 3000
ROWS: list[dict[str, Any]] = [
    {"at": MS + 1000 * n, "who": n % 50, "what": n % 7, "clicked": int(n % 5 == 0)} for n in range(N)
]
DEEP = '{"at": 1, "what": ' + "[" * 100_000 + "]" * 100_000 + "}\n"
LONG = 100_000_000
DRESSED = [row | {"what": f"grün{row['what']}"} for row in ROWS]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows: list[dict[str, Any]]) -> str:
    return "\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n"


def mixed(text: str) -> bytes:
    half = len(text) // 2
    return text[:half].encode() + text[half:].encode("latin-1")


def parquet(column: pa.Array) -> bytes:
    plain = pa.Table.from_pylist(ROWS[: len(column)])
    sink = pa.BufferOutputStream()
    pq.write_table(plain.set_column(plain.schema.get_field_index("what"), "what", column), sink)
    made: bytes = sink.getvalue().to_pybytes()
    return made


def wide(rows: int) -> list[dict[str, Any]]:
    more = {f"c{n}": n for n in range(10_000)}
    return [row | more for row in ROWS[:rows]]


FATAL = 0  # the file cannot be read at all
HOSTILE: dict[str, tuple[str, Callable[[], bytes], str, int]] = {
    # file, what it holds, what is said, rows that --skip-bad keeps
    "mixed encodings": ("log.csv", lambda: mixed(table(DRESSED)), "column 'what', row .* is no UTF-8 text", FATAL),
    "mixed encodings, JSON": (
        "log.jsonl", lambda: mixed(lines(DRESSED).replace(r"\u00fc", "ü")), "column 'what', row .* is no UTF-8", FATAL),
    "UTF-16": ("log.csv", lambda: table(ROWS).encode("utf-16"), "is UTF-16 text", FATAL),
    "a label of words half way": (
        "log.csv", lambda: table([*ROWS[:1000], *(row | {"clicked": "abc"} for row in ROWS[1000:])]).encode(),
        r"'clicked' has the value abc.*2,000 rows", 1000),
    "texts among numbers half way": (
        "log.jsonl", lambda: lines([*ROWS[:2000], *(row | {"what": "x"} for row in ROWS[2000:])]).encode(),
        r"mixes kinds of values: column 'what' has 'x' in row 2001.*1,000 rows", 2000),
    "a line of 100 MB": (
        "log.csv", lambda: (table(ROWS) + "1,2,3," + "x" * LONG + "\n").encode(), "row 3001 is no row", N),
    "a line of 100 MB, JSON": (
        "log.jsonl", lambda: (lines(ROWS) + json.dumps({"t": "x" * LONG}) + "\n").encode(), "row 3001 is no JSON", N),
    "a line of 100 MB, packed": (
        "log.csv.gz", lambda: gzip.compress((table(ROWS) + "1,2,3," + "x" * LONG + "\n").encode(), 1),
        "row 3001 is no row", N),
    "an item of objects": (
        "log.jsonl", lambda: lines([row | {"what": {"a": {"b": [1, {"c": 2}]}}} for row in ROWS]).encode(),
        "item 'what' holds .* not one value", FATAL),
    "an item of maps": (
        "log.parquet", lambda: parquet(pa.array([[("a", 1)]] * 9, pa.map_(pa.string(), pa.int64()))),
        "item 'what' holds .* not one value", FATAL),
    "lists in lists in lists": ("log.jsonl", lambda: (lines(ROWS) + DEEP + lines(ROWS[:0])).encode(), "row 3001", N),
    "zero bytes": ("log.csv", lambda: table(ROWS).encode() + bytes(10_000), "row 3001 has 1 columns, not 4", N),
    "noise": ("log.csv", lambda: random.Random(1).randbytes(100_000), "is no UTF-8 text", FATAL),
    "noise, Parquet": (
        "log.parquet", lambda: b"PAR1" + random.Random(1).randbytes(100_000) + b"PAR1", "cannot be read", FATAL),
    "nothing, packed": ("log.csv.gz", lambda: gzip.compress(b""), "it is empty", FATAL),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE.values(), ids=list(HOSTILE))
def test_it_is_one_line_and_no_row_is_lost_unsaid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, Callable[[], bytes], str, int]
) -> None:
    name, made, said, kept = case
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spool))
    path = tmp_path / name
    path.write_bytes(made())
    with pytest.raises(LogError, match=said) as raised:
        read_log(path, schema())
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500
    if kept == FATAL:
        with pytest.raises(LogError, match=said):
            read_log(path, schema(), skip_bad=True)
    else:
        read = read_log(path, schema(), skip_bad=True)
        assert read.table.num_rows == kept
        assert read.skipped > 0
        assert any("left out" in note for note in read.notes)
    assert list(spool.iterdir()) == []
    assert list(tmp_path.iterdir()) == [path, spool] or list(tmp_path.iterdir()) == [spool, path]


@pytest.mark.parametrize("form", ["log.csv", "log.jsonl"])
def test_of_a_cut_gzip_only_its_end_is_lost(tmp_path: Path, form: str) -> None:
    rows = ROWS * 8  # so that what is cut off is less than half
    packed = gzip.compress((table(rows) if form == "log.csv" else lines(rows)).encode())
    path = tmp_path / f"{form}.gz"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    with pytest.raises(LogError, match="cannot be read to its end"):
        read_log(path, schema())
    read = read_log(path, schema(), skip_bad=True)
    assert len(rows) // 2 < read.table.num_rows < len(rows)
    as_written = [(row["at"], row["who"]) for row in rows[: read.table.num_rows]]
    assert sorted(as_written) == list(zip(read.table["ts_ms"].to_pylist(), read.table["who"].to_pylist(), strict=True))


@pytest.mark.parametrize("form", ["log.csv", "log.jsonl", "log.parquet"])
def test_ten_thousand_columns_are_no_fault(tmp_path: Path, form: str) -> None:
    rows, path = wide(20), tmp_path / form
    if form == "log.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(table(rows) if form == "log.csv" else lines(rows))
    read = read_log(path, schema())
    assert (read.table.num_rows, read.skipped) == (20, 0)
