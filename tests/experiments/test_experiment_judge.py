"""Logged odds against what is drawn, bands against what is true."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import experiment_judge
from experiments.experiment_judge import bands, odds, real
from millrace.evidence.exploration import RULES, Exploration


@pytest.mark.parametrize("rule", RULES)
def test_drawn_pages_are_within_the_bounds_of_their_odds(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = odds(rule, 8, 3)  # type: ignore[arg-type]
    assert row["within"] > 0.9
    assert 0.7 < row["squared_error"] < 1.3
    honest = Exploration.draw

    def wrong(self: object, *asked: object) -> object:
        drawn = honest(self, *asked)  # type: ignore[arg-type]
        return drawn._replace(odds=drawn.odds * 0.8)

    monkeypatch.setattr(Exploration, "draw", wrong)
    assert odds(rule, 8, 3)[0]["squared_error"] > 2, "odds that are a fifth too low are found"  # type: ignore[arg-type]


def test_a_better_arm_is_decided_and_the_truth_stays_within() -> None:
    rows = [row for seed in range(6) for lift in (0.0, 1.0) for row in bands(seed, lift, 3000)]
    assert sum(row["covered"] for row in rows) >= 11
    assert [row["decided"] for row in rows if row["lift"]] == [True] * 6
    assert sum(row["decided"] for row in rows if not row["lift"]) <= 1


def test_real_tests_are_judged_at_each_look(tmp_path: Path) -> None:
    def looks(test: str, gaps: list[float]) -> list[dict[str, object]]:
        return [
            {"experiment_id": test, "variant_id": 1, "metric_id": 4, "time_since_start": float(n), "mean_c": 1.0}
            | {"count_c": 1000.0 * (n + 1), "count_t": 1000.0 * (n + 1), "variance_c": 1.0, "variance_t": 1.0}
            | {"mean_t": 1.0 + gap}
            for n, gap in enumerate(gaps)
        ]

    rows = looks("lucky", [0.1, 0.0, 0.0]) + looks("better", [0.1, 0.2, 0.2]) + looks("equal", [0.0, 0.0])
    rows.append(rows[0] | {"mean_t": None})
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "tests.parquet")
    (row,) = real(tmp_path / "tests.parquet")
    assert (row["tests"], row["naive"], row["naive_at_the_end"]) == (3, 2, 1)
    assert (row["decided"], row["decided_at_the_end"]) == (1, 1)


def test_the_report_says_all_three(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_pylist(
            [
                dict.fromkeys(("experiment_id", "variant_id"), 1)
                | dict.fromkeys(("metric_id", "time_since_start", "mean_c", "mean_t", "variance_c", "variance_t"), 1.0)
                | dict.fromkeys(("count_c", "count_t"), 500.0)
            ]
        ),
        tmp_path / "tests.parquet",
    )
    report = experiment_judge.experiment_judge(
        tmp_path / "out", tests=2, users=400, pages=2, log=tmp_path / "tests.parquet", workers=0, progress=False
    )
    assert {row["rule"] for row in report["odds"]} == set(RULES)
    assert [row["tests"] for row in report["bands"]] == [2, 2]
    assert "of 1 real tests 0 win at some naive look, 0 by band" in report["verdict"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
