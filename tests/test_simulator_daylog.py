"""Day logs: read by the shop's schema, the same bytes for the same seed, one day independent of another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from millrace.contracts.errors import LogError
from millrace.contracts.schema import shop_schema
from millrace.logs import local_days, read_log
from simulator.daylog import write_days

USERS = 150


def test_the_shops_schema_reads_them(tmp_path: Path) -> None:
    paths = write_days(tmp_path, 2, seed=1, start="2026-03-02", users=USERS, quiet=True)
    assert [p.name for p in paths] == ["shop-2026-03-02.parquet", "shop-2026-03-03.parquet"]
    assert sorted(tmp_path.iterdir()) == paths, "nothing unfinished is left"
    schema = shop_schema()
    log = read_log(tmp_path, schema)
    assert log.rows_read == sum(pq.read_metadata(p).num_rows for p in paths)
    assert log.duplicates == 0
    assert sorted(set(local_days(log, schema))) == ["2026-03-02", "2026-03-03"]
    names = set(log.table.column_names)
    assert {f.name for f in schema.fields} - {"hour", "weekday"} <= names
    # The truth is in the file, and out of reach of whoever reads it by the schema.
    assert "p_true" in pq.read_schema(paths[0]).names
    assert "p_true" not in names
    ts, click_ms = log.table["ts_ms"].to_numpy(), log.table["click_ms"]
    clicked = log.table["click"].to_numpy() == 1
    assert (click_ms.is_valid().to_numpy() == clicked).all()
    assert (click_ms.drop_null().to_numpy() > ts[clicked]).all()
    assert (log.table["age_days"].to_numpy() > 0).all()


def test_same_seed_same_bytes_and_any_day_alone(tmp_path: Path) -> None:
    both = write_days(tmp_path / "a", 2, seed=1, start="2026-03-02", users=USERS, quiet=True)
    again = write_days(tmp_path / "b", 1, seed=1, start="2026-03-03", users=USERS, quiet=True)
    other = write_days(tmp_path / "c", 1, seed=2, start="2026-03-03", users=USERS, quiet=True)
    assert both[1].read_bytes() == again[0].read_bytes()
    assert other[0].read_bytes() != again[0].read_bytes()


def test_business_buyers_have_no_age_and_consumers_no_seller_flag(tmp_path: Path) -> None:
    (path,) = write_days(tmp_path, 1, seed=1, users=USERS, quiet=True)
    table = pq.read_table(path)
    business = np.array(table["kind"].to_pylist()) == "business"
    assert 0.4 < business.mean() < 0.95
    for name in ("age_band", "gender", "household"):
        assert (table[name].is_null().to_numpy() == business).all()
    assert (table["seller"].is_valid().to_numpy() == business).all()
    assert not any("brand" in name for name in table.column_names)


@pytest.mark.parametrize(
    ("days", "start", "says"),
    [(0, "2026-03-02", "0 days"), (1, "2026-02-30", "'2026-02-30'"), (1, "1969-01-01", "'1969-01-01'")],
)
def test_what_cannot_be_written_is_told(tmp_path: Path, days: int, start: str, says: str) -> None:
    with pytest.raises(LogError, match=says):
        write_days(tmp_path, days, seed=1, start=start, users=USERS, quiet=True)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(LogError, match="taken"):
        write_days(tmp_path / "taken", 1, seed=1, users=USERS, quiet=True)
