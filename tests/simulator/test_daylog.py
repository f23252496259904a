"""Day logs: read by the shop's schema, the same bytes for the same seed, one day independent of another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.basics.errors import LogError
from millrace.contracts.schema import shop_schema
from millrace.logs import local_days, read_log
from simulator.daylog import _exposures_of_one, parse_day, write_days, write_traffic
from simulator.params import DEFAULT
from simulator.world import start_of

USERS = 150


def test_the_shops_schema_reads_them(tmp_path: Path) -> None:
    paths = write_days(tmp_path, 2, seed=1, start="2026-03-02", users=USERS)
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
    both = write_days(tmp_path / "a", 2, seed=1, start="2026-03-02", users=USERS)
    again = write_days(tmp_path / "b", 1, seed=1, start="2026-03-03", users=USERS)
    other = write_days(tmp_path / "c", 1, seed=2, start="2026-03-03", users=USERS)
    assert both[1].read_bytes() == again[0].read_bytes()
    assert other[0].read_bytes() != again[0].read_bytes()


def test_business_buyers_have_no_age_and_consumers_no_seller_flag(tmp_path: Path) -> None:
    (path,) = write_days(tmp_path, 1, seed=1, users=USERS)
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
def test_what_cannot_be_written_is_reported(tmp_path: Path, days: int, start: str, says: str) -> None:
    with pytest.raises(LogError, match=says):
        write_days(tmp_path, days, seed=1, start=start, users=USERS)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(LogError, match="taken"):
        write_days(tmp_path / "taken", 1, seed=1, users=USERS)


def test_traffic_is_as_dense_as_asked_and_at_noon(tmp_path: Path) -> None:
    rate, rows = 0.5, 12_000
    (path,) = write_traffic(tmp_path, 1, rate, rows)
    table = pq.read_table(path)
    ts = table["ts_ms"].to_numpy()
    assert table.num_rows == rows
    assert np.all(np.diff(ts) >= 0)
    noon = start_of(parse_day("2026-03-03")) + 12 * HOUR_MS
    assert noon <= ts[0] < noon + HOUR_MS
    # A shopper's exposures come together or not at all: their number's deviation is the root of the sum of squares.
    _, each = np.unique(table["user_id"].to_numpy(), return_counts=True)
    seconds = (ts[-1] - noon) / 1000
    assert abs(rate * seconds - rows) < 4 * np.sqrt(np.sum(each.astype(float) ** 2))


def test_traffic_that_lasts_longer_begins_at_midnight_and_goes_on_over_days(tmp_path: Path) -> None:
    (path,) = write_traffic(tmp_path, 1, 0.1, 12_000)
    ts = pq.read_table(path)["ts_ms"].to_numpy()
    midnight = start_of(parse_day("2026-03-03"))
    assert midnight <= ts[0] < midnight + 12 * HOUR_MS
    assert ts[-1] > midnight + DAY_MS
    # A world of one user a day has the exposures of one, whatever part of the days is looked at.
    day = parse_day("2026-03-03")
    whole = _exposures_of_one(day, 0, 86_400, DEFAULT)
    assert whole == pytest.approx(DEFAULT.exposures)
    parts = _exposures_of_one(day, 0, 43_200, DEFAULT) + _exposures_of_one(day, 43_200, 43_200, DEFAULT)
    assert parts == pytest.approx(whole)
    assert _exposures_of_one(day, 0, 2 * 86_400, DEFAULT) == pytest.approx(2 * whole)


@pytest.mark.slow
def test_a_history_is_thinned_by_shopper_and_traffic_does_not_depend_on_it(tmp_path: Path) -> None:
    made = {}
    for rows in (1000, 4000):
        history, traffic = write_traffic(tmp_path / str(rows), 1, 1.0, 4000, rows)
        made[rows] = pq.read_table(history), traffic.read_bytes()
    again = write_traffic(tmp_path / "again", 1, 1.0, 4000, 1000)
    assert again[0].read_bytes() == (tmp_path / "1000/history.parquet").read_bytes()
    assert made[1000][1] == made[4000][1] == again[1].read_bytes()
    assert write_traffic(tmp_path / "other", 2, 1.0, 4000, 1000)[1].read_bytes() != made[1000][1]
    few, many = (made[k][0] for k in (1000, 4000))
    for table, rows in ((few, 1000), (many, 4000)):
        _, each = np.unique(table["user_id"].to_numpy(), return_counts=True)
        assert abs(table.num_rows - rows) < 4 * np.sqrt(np.sum(each.astype(float) ** 2))
    # Whoever is in the thinner history is in the other with the very same pages.
    own = set(few["user_id"].to_pylist())
    keep = [user in own for user in many["user_id"].to_pylist()]
    assert len(own) < len(set(many["user_id"].to_pylist()))
    assert many.filter(pa.array(keep)).equals(few)
    assert max(few["ts_ms"].to_pylist()) < start_of(parse_day("2026-03-03"))


@pytest.mark.parametrize(
    ("rate", "rows", "history", "says"),
    [
        (0.0, 10, 0, "0 exposures a second"),
        (-1.0, 10, 0, "-1 exposures"),
        (float("nan"), 10, 0, "nan exposures"),
        (1e9, 10, 0, "at most 1000"),
        (1.0, 0, 0, "0 rows"),
        (1.0, 10, -1, "history of -1"),
    ],
)
def test_traffic_that_cannot_be_written_is_reported(
    tmp_path: Path, rate: float, rows: int, history: int, says: str
) -> None:
    with pytest.raises(LogError, match=says):
        write_traffic(tmp_path, 1, rate, rows, history)
    assert not list(tmp_path.iterdir())
