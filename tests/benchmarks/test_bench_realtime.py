"""The benchmark at real speed: what it makes of a demo's report, and what it says when the demo fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.realtime import click_rate, measure, play
from commands.loop.series import COLUMNS
from experiments.runs import BenchError

BEGAN, MINUTE = 1_800_000_000_000, 60_000


def report() -> dict[str, Any]:
    """Fifteen minutes. Model pages: 100 exposures a minute, clicked at .1, then .4 in the last five minutes; random
    pages: ten a minute, one clicked. Scores ask for too much in the first five minutes, and are .25 high afterwards."""
    looks = range(17)
    page: dict[str, list[Any]] = {name: [None] * len(looks) for name in COLUMNS}
    page["wall_ms"] = [BEGAN + m * MINUTE for m in looks]
    page["event_ms"] = page["wall_ms"]
    traffic = [min(m, 15) for m in looks]  # nothing comes while it drains
    page["page_exposures_model"] = [100.0 * m for m in traffic]
    page["page_clicks_model"] = [10.0 * m + 30.0 * max(0, m - 10) for m in traffic]
    page["page_exposures_control"] = [10.0 * m for m in traffic]
    page["page_clicks_control"] = [1.0 * m for m in traffic]
    page["auc"] = [None, None, *[0.6] * 15]
    minutes = [
        {
            "minute": m,
            "arm": arm,
            "rows": 100,
            "clicks": 20,
            "predicted": 90.0 if m < 5 else 25.0 if arm == "model" else 70,
            "expected": 16.0,
            "twin": 19.0,
        }
        for m in range(9)
        for arm in ("model", "control")
    ]
    return {
        "page": page,
        "minutes": minutes,
        "began_wall_ms": BEGAN,
        "ended_wall_ms": BEGAN + 15 * MINUTE,
        "began_event_ms": BEGAN,
        "settled_after_ms": 6 * MINUTE,
        "speed": 1.0,
        "metric_gap": 0.001,
        "shown_auc": 0.601,
        "served_auc": 0.61,
        "twin_auc": 0.62,
        "recent": {"auc": 0.6},
        "exposures_sent": 1650,
        "settled": 990,
        "auc": [{"event_time": BEGAN + m * MINUTE, "auc": 0.6, "oracle_auc": 0.7} for m in range(4, 9)],
    }


def test_it_measures_the_gap_the_calibration_after_the_opening_and_the_click_rates_at_the_end() -> None:
    found = {f["name"]: f["value"] for f in measure(report())}
    assert found["metric_gap"] == 0.001
    assert found["calibration"] == pytest.approx(25 / 20)
    assert found["calibration_truth"] == pytest.approx(25 / 16)
    assert found["calibration_twin"] == pytest.approx(19 / 20)
    assert (found["served_auc"], found["twin_auc"]) == (0.61, 0.62)
    assert found["ctr_model"] == pytest.approx(0.4)
    assert found["ctr_control"] == pytest.approx(0.1)
    assert found["ctr_ratio"] == pytest.approx(4.0)
    assert found["exposures_per_s"] == pytest.approx(1650 / 900)


def test_what_was_not_measured_is_no_figure() -> None:
    short = report()
    short |= {"minutes": short["minutes"][:4], "metric_gap": None, "shown_auc": None, "recent": {"auc": None}}
    short |= {"served_auc": None, "twin_auc": None}
    short["page"] = {name: values[:1] for name, values in short["page"].items()}
    assert {f["name"] for f in measure(short)} == {"exposures_per_s", "settled"}
    assert click_rate(short, "model", 5.0) is None


def test_a_demo_that_fails_is_one_line_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"status 1 \(millrace: speed 1 and seconds -60.* must be above 0"):
        play(tmp_path, -1.0, lambda _: None)
