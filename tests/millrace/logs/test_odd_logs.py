"""Logs that nobody should have: whoever reads one gets rows, or an error of ours."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from millrace.logs import read_log
from tests.scenes.mangled import raw, said, trees
from tests.scenes.small_logs import MS, ROWS, schema

PLAN = schema(
    'action_times = { click = "click_at" }\nrequest = "page"\nposition = "slot"\ndisorder = "10min"\n'
    '[[fields]]\nname = "price"\nof = "item"\nkind = "numeric"\n'
    '[[fields]]\nname = "tags"\nof = "item"\nslots = 3\n'
)
GOOD: list[dict[str, Any]] = [
    row | {"click_at": row["at"] + 5 if row["clicked"] else None, "page": f"p{n // 2}", "slot": n % 2}
    | {"price": n / 2, "tags": f"t{n},t{n + 1}"}
    for n, row in enumerate(ROWS * 3)
]  # fmt: skip
BYTES = 64 << 20
"""The most that Arrow may take for a log of some kilobytes."""


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(columns: Mapping[str, Any]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), out, row_group_size=7)
    return out.getvalue()


def separated(by: str) -> bytes:
    rows = [by.join(f'"{v}"' if isinstance(v, str) else "" if v is None else str(v) for v in r.values()) for r in GOOD]
    return "\n".join([by.join(GOOD[0]), *rows, ""]).encode()


COLUMNS: dict[str, Any] = {name: pa.array([row[name] for row in GOOD]) for name in GOOD[0]}
LOGS = {
    "log.csv": separated(","),
    "log.tsv": separated("\t"),
    "log.jsonl": lines(GOOD),
    "log.parquet": table(COLUMNS),
}
PIECES = (
    b'"', b"\0", b"\r", b"\r\n", b"\n\n", b"\xff\xfe", b"\xef\xbb\xbf", b"9" * 400, b"1e400", b"NaN", b"-inf", b",,,,",
    b"-9223372036854775809", b"18446744073709551616", b"[" * 5000, b'{"at":' * 5000, b'{"at":{"a":1}}', b"\\ud800",
    b'"a\nb"', "\N{ARABIC-INDIC DIGIT THREE}".encode(), b"0x10", b"true", b"null", b"[]", b"{}", b"1_0", b" ",
)  # fmt: skip
N = len(GOOD)
TYPED: dict[str, pa.Array] = {
    "null": pa.nulls(N),
    "bool": pa.array([True, None] * (N // 2)),
    "half": pa.array([1.5] * N, pa.float32()).cast(pa.float16()),
    "not finite": pa.array([float("nan"), float("inf"), -float("inf")] * (N // 3)),
    "huge": pa.array([1e308, -1e308] * (N // 2)),
    "unsigned": pa.array([2**64 - 1, 2**63] * (N // 2), pa.uint64()),
    "least": pa.array([-(2**63), 2**63 - 1] * (N // 2)),
    "decimal": pa.array([decimal.Decimal("123456789012345678901234.5")] * N),
    "time stamps": pa.array([MS * 1000] * N, pa.timestamp("us", "Europe/Berlin")),
    "far time stamps": pa.array([2**63 - 1, -(2**63) + 1] * (N // 2), pa.timestamp("s")),
    "nanoseconds": pa.array([2**63 - 1, -(2**63) + 1] * (N // 2), pa.timestamp("ns")),
    "dates": pa.array([datetime.date(1, 1, 1), datetime.date(9999, 12, 31)] * (N // 2)),
    "far dates": pa.array([2**31 - 1, -(2**31)] * (N // 2), pa.date32()),
    "times": pa.array([datetime.time(1, 2, 3)] * N),
    "durations": pa.array([2**62] * N, pa.duration("s")),
    "bytes": pa.array([b"\xff\xfe", b""] * (N // 2)),
    "no UTF-8": pa.array([b"\xff\xfe", b"a"] * (N // 2), pa.binary()).view(pa.string()),
    "large": pa.array(["a", ""] * (N // 2), pa.large_string()),
    "views": pa.array(["a", "b"] * (N // 2), pa.string_view()),
    "words": pa.array(["a", "b"] * (N // 2)).dictionary_encode(),
    "numbers as words": pa.array([1, 2] * (N // 2)).dictionary_encode(),
    "lists": pa.array([[1, None], []] * (N // 2)),
    "lists of lists": pa.array([[[1]], [[], None]] * (N // 2)),
    "fixed lists": pa.array([[1, 2]] * N, pa.list_(pa.int64(), 2)),
    "structures": pa.array([{"a": 1}, None] * (N // 2)),
    "maps": pa.array([[("a", 1)], []] * (N // 2), pa.map_(pa.string(), pa.int64())),
    "texts of numbers": pa.array(["1e400", "9" * 400] * (N // 2)),
}


def read(name: str, body: bytes, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(body)
        how: dict[str, Any] = {"skip_bad": data.draw(st.booleans()), "now_ms": MS}
        if data.draw(st.booleans()):
            how |= {"spool": Path(folder), "stretch_rows": 5}
        before = pa.default_memory_pool().bytes_allocated()
        with said():
            read_log(path, PLAN, **how)
        assert pa.default_memory_pool().bytes_allocated() - before < BYTES


def test_the_logs_are_good(tmp_path: Path) -> None:
    for name, body in LOGS.items():
        (tmp_path / name).write_bytes(body)
        assert read_log(tmp_path / name, PLAN).table.num_rows == 18, name


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", LOGS)
@given(data=st.data())
def test_a_damaged_log(name: str, packed: str, data: st.DataObject) -> None:
    body, within = LOGS[name], data.draw(st.booleans()) or not packed
    if within:
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(body)))
            body = body[:at] + data.draw(st.sampled_from(PIECES)) + body[at + data.draw(st.integers(0, 20)) :]
        else:
            body = data.draw(st.composite(raw)(body))
    if packed:
        body = gzip.compress(body, mtime=0) if packed == ".gz" else zstandard.ZstdCompressor().compress(body)
        if not within:
            body = data.draw(st.composite(raw)(body))
    read(name + packed, body, data)


@given(data=st.data())
def test_rows_of_odd_values(data: st.DataObject) -> None:
    rows = data.draw(trees(GOOD))
    read("log.jsonl", lines(rows if isinstance(rows, list) else [rows]), data)


@pytest.mark.parametrize("column", COLUMNS)
@given(data=st.data())
def test_columns_of_another_type(column: str, data: st.DataObject) -> None:
    odd = data.draw(st.dictionaries(st.sampled_from([*COLUMNS]), st.sampled_from([*TYPED]), max_size=1))
    odd[column] = data.draw(st.sampled_from([*TYPED]))
    try:
        body = table(COLUMNS | {name: TYPED[kind] for name, kind in odd.items()})
    except (pa.ArrowException, NotImplementedError):
        return  # what nobody can write
    read("log.parquet", body, data)
