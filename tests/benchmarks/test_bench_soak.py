"""``make soak``: growth, drift, refusals and full disks are found where they are planted, and only there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import soak as module
from benchmarks.soak import DAY_S, LOOK_SECONDS, MIB, Look, report_of
from experiments.runs import BenchError
from tests.scenes.waiting import LONG

WARM_SECONDS = 60.0


def looks(percent_a_day: float = 0.0, *, auc: float = 0.0, logs: float = 1.0, refused: float = 0.0) -> list[Look]:
    """Half an hour of a process of 200 MiB that grows, and whose AUC falls by so much; ``stream`` ends before it."""
    noise = np.random.default_rng(5).normal(0.0, 1e-4, 120)
    found = []
    for number in range(120):
        second = number * LOOK_SECONDS
        held = 200 * MIB * (1 + percent_a_day / 100 * second / DAY_S + float(noise[number]))
        figures = {"auc": 0.8 - auc * number / 120, "calibration": 1.0, "click_to_served_p50_ms": 900.0}
        places = {"logs": int(logs * MIB), "archive": number, "topic samples": 0}
        found.append(Look(second, "running", {"learn": held, "stream": held}, figures, places, refused))
    ended = found[-1]._replace(second=2000.0, phase="auditing", memory={"learn": MIB}, figures=dict.fromkeys(figures))
    return [*found, ended]


def said(found: list[Look], *, whole: bool = True) -> str:
    return str(report_of({"shop": found}, {"shop": whole}, WARM_SECONDS)["verdict"])


def test_a_loop_that_stays_as_it_is_passes_though_its_roles_end_before_the_last_look() -> None:
    report = report_of({"shop": looks()}, {"shop": True}, WARM_SECONDS)
    assert report["verdict"] == "All is flat, within its bounds, and the books are closed."
    assert {row["process"] for row in report["memory"]} == {"learn", "stream"}
    assert {row["place"] for row in report["places"]} == {"logs", "archive"}
    assert all(abs(row["percent_a_day"]) < row["percent_a_day_ci"] < 2.0 for row in report["memory"])


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ({"percent_a_day": 5.0}, "learn of the shop grows; stream of the shop grows"),
        ({"auc": 0.03}, "auc of the shop is worse"),
        ({"logs": 1e6}, "logs of the shop is beyond its bound"),
        ({"refused": 2}, "the gate of the shop refused 2 times"),
    ],
)
def test_what_is_planted_is_found(planted: dict[str, Any], words: str) -> None:
    assert words in said(looks(**planted))


def test_a_figure_that_is_not_known_is_no_figure_that_is_flat() -> None:
    silent = [look._replace(figures={**look.figures, "calibration": None}) for look in looks()]
    assert said(silent) == "calibration of the shop is worse, or not known."


def test_open_books_and_too_few_looks_are_told() -> None:
    assert said(looks(), whole=False) == "the books of the shop are not closed."
    with pytest.raises(BenchError, match="10 looks at the shop after its first half hour"):
        said(looks()[:14])


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(LONG)
def test_a_short_soak_closes_the_books_of_both_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(module, "WARM_SECONDS", 15.0)
    report = module.soak(tmp_path, hours=0.04)
    assert [(row["loop"], row["books_closed"], row["refusals"]) for row in report["loops"]] == [
        ("shop", True, 0),
        ("demo", True, 0),
    ]
    assert report["verdict"] == json.loads((tmp_path / "report.json").read_text())["verdict"]
    with pytest.raises(BenchError, match="has a soak already"):
        module.soak(tmp_path, hours=0.04)
    monkeypatch.undo()
    with pytest.raises(BenchError, match=r"of 0\.5 hours each loop has half"):
        module.soak(tmp_path, hours=0.5)
