"""Completeness of labels on logs whose delays are known, and on logs that end."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.durations import span_name
from millrace.basics.errors import SettingError
from millrace.commands.delays.completeness import Curve, DelayedClicks, by_group, by_window, quantiles
from millrace.commands.offline.slicing import MISSING, MOST_VALUES, OTHERS, slice_of
from millrace.contracts.schema import shop_schema
from millrace.logs import LogTable
from millrace.reports.spans import span_ms
from tests.scenes.exploring import examples

DAY = 86_400_000


def watched_whole(delays: list[int], others: int) -> DelayedClicks:
    """Clicks with these delays and exposures without one, all watched for a day beyond the last delay."""
    delay = np.array([*delays, *[-1] * others], np.int64)
    return DelayedClicks(delay, np.full(len(delay), 2 * DAY))


def test_where_all_is_watched_completeness_is_the_share_of_the_clicks() -> None:
    delays = [1_000] * 50 + [10_000] * 30 + [60_000] * 15 + [DAY] * 5
    curve = Curve(watched_whole(delays, 900), DAY)
    assert curve.clicks == 100
    found = curve.completeness([999, 1_000, 9_999, 10_000, 59_999, 60_000, DAY - 1, DAY])
    assert found == pytest.approx([0, 0.5, 0.5, 0.8, 0.8, 0.95, 0.95, 1])
    assert [curve.quantile_ms(share) for share in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1_000, 10_000, 60_000, 60_000, DAY]
    assert math.isnan(curve.completeness([DAY + 1])[0])
    assert [r["waiting_time"] for r in quantiles(curve)] == ["1 s", "10 s", "1 min", "1 min", "1 day"]
    assert by_window(curve, [10_000])[0] == {
        "waiting_time": "10 s",
        "seconds": 10.0,
        "completeness": 0.8,
        "at_risk": 1000,
    }


def test_clicks_later_than_the_longest_window_count_as_none() -> None:
    curve = Curve(watched_whole([1_000] * 60 + [DAY] * 40, 0), 60_000)
    assert (curve.clicks, curve.completeness([1_000, 60_000]).tolist()) == (60, [1.0, 1.0])


@examples(60)
@given(st.lists(st.tuples(st.integers(-1, 30), st.integers(0, 30)), min_size=1, max_size=40), st.integers(1, 30))
def test_the_curve_is_that_of_the_plain_definition(rows: list[tuple[int, int]], longest: int) -> None:
    delay = np.array([d if d <= w else -1 for d, w in rows], np.int64)
    watched = np.array([w for _, w in rows], np.int64)
    curve = Curve(DelayedClicks(delay, watched), longest, fewest=1)
    leaves = np.where(delay >= 0, delay, watched)

    def clicked_within(t: int) -> float:
        left = 1.0
        for at in range(t + 1):
            risk = int((leaves >= at).sum())
            if risk:
                left *= 1 - int((delay == at).sum()) / risk
        return 1 - left

    whole = clicked_within(curve.longest_ms)
    assert curve.longest_ms == min(longest, max(w for _, w in rows))
    for t in range(curve.longest_ms + 1):
        found = curve.completeness([t])[0]
        if whole:
            assert found == pytest.approx(clicked_within(t) / whole)
        else:
            assert math.isnan(found)


def test_a_log_that_ends_early_does_not_take_early_clicks_for_all() -> None:
    rng = np.random.default_rng(5)
    n, hour = 200_000, 3_600_000
    ts_ms = np.sort(rng.integers(0, hour, n))
    delay = (rng.exponential(1_200_000, n)).astype(np.int64)  # 20 min in the mean: slow for a log of an hour
    will = rng.random(n) < 0.3
    seen = will & (ts_ms + delay <= hour)

    def truth(t: int) -> float:
        return (1 - math.exp(-t / 1_200_000)) / (1 - math.exp(-3_000_000 / 1_200_000))

    curve = Curve(DelayedClicks.of(ts_ms, ts_ms + delay, seen), 3_000_000)
    assert curve.longest_ms == 3_000_000
    naive = delay[seen & (delay <= 3_000_000)]
    for t in (300_000, 600_000, 1_200_000, 2_400_000):
        assert curve.completeness([t])[0] == pytest.approx(truth(t), abs=0.02)
        if t <= 1_200_000:
            assert (naive <= t).mean() > truth(t) + 0.05, "counting clicks alone is off by far more"


def test_beyond_what_the_log_watches_nothing_is_reported() -> None:
    n = 1000
    ts_ms = np.arange(n, dtype=np.int64) * 1000
    clicked = np.arange(n) % 3 == 0
    curve = Curve(DelayedClicks.of(ts_ms, ts_ms + 500, clicked & (ts_ms < 990_000)), DAY)
    assert curve.longest_ms == 900_000, "100 exposures were watched for that long, the log's end being 999 s"
    assert math.isnan(curve.completeness([DAY])[0])
    row = by_window(curve, [500, DAY])
    assert (row[0]["completeness"], row[1]["completeness"], row[1]["at_risk"]) == (1.0, None, 0)


def test_a_log_without_clicks_has_no_figures() -> None:
    curve = Curve(watched_whole([], 500), DAY)
    assert curve.quantile_ms(0.5) is None
    assert np.isnan(curve.completeness([1000])).all()
    assert [row["seconds"] for row in quantiles(curve)] == [None] * 5


def test_slots_and_segments_have_their_own_curves() -> None:
    clicks = watched_whole([1_000] * 100 + [20_000] * 100 + [1_000] * 5, 100)
    number = np.array([0] * 100 + [1] * 100 + [2] * 5 + [0] * 50 + [4] * 50)
    rows = by_group(clicks, number, ["0", "1", "2", "3", "missing"], [10_000, DAY], "slot")
    assert [(r["slot"], r["rows"], r["positives"]) for r in rows] == [
        ("0", 150, 100),
        ("1", 100, 100),
        ("2", 5, 5),
        ("missing", 50, 0),
    ]
    assert [r["within_10 s"] for r in rows] == [1.0, 0.0, None, None], "few clicks have no figures"
    assert rows[1]["50%_come_within_s"] == 20.0


def test_slices_are_values_quarters_or_the_most_frequent_and_the_rest() -> None:
    n = 210  # of value k, k rows
    many = [f"v{k}" for k in range(21) for _ in range(k)]
    columns = {"text": many, "few": [None, "a"] * 105, "number": list(range(n)), "tags": [["a"], []] * 105}
    columns |= {"coded": pa.array(many).dictionary_encode(), "ts_ms": list(range(n))}
    log, schema = LogTable(pa.table(columns), "u", "i", "y", 0, 0), shop_schema()
    text = slice_of(log, schema, "text")
    assert text.values == (*(f"v{k}" for k in range(20, 20 - MOST_VALUES, -1)), OTHERS)
    assert np.bincount(text.code).tolist() == [*range(20, 12, -1), sum(range(13))]
    assert (slice_of(log, schema, "coded").code == text.code).all(), "encoded or not"
    few = slice_of(log, schema, "few")
    assert [few.values[k] for k in few.code[:2]] == [MISSING, "a"]
    assert np.bincount(slice_of(log, schema, "number").code).tolist() == [53, 52, 52, 53]
    assert slice_of(log, schema, "tags").values == ("['a']", "[]")
    with pytest.raises(SettingError, match=r"'colour' names no column.*few.*text"):
        slice_of(log, schema, "colour")


@pytest.mark.parametrize(
    ("text", "ms", "name"),
    [("10s", 10_000, "10 s"), ("1 min", 60_000, "1 min"), ("90s", 90_000, "1.5 min"), ("2d", 2 * DAY, "2 days")],
)
def test_lengths_of_time_are_read_and_named(text: str, ms: int, name: str) -> None:
    assert (span_ms(text), span_name(ms)) == (ms, name)


@pytest.mark.parametrize("text", ["", "10", "0s", "-5min", "1w", "nan s"])
def test_what_is_no_length_of_time_is_named(text: str) -> None:
    with pytest.raises(SettingError, match="is no length of time"):
        span_ms(text)
