"""Figures of arms on their way: the archive's gauges, the state of a run, the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from commands.loop.monitor import Monitor
from commands.loop.status import RunStatus, state_of
from millrace.contracts.clock import EventClock
from millrace.evidence.sequences import NOTHING, band, difference, mean_of
from millrace.processes.supervisor import Supervisor
from stream.archive.archive_main import show_arms
from stream.archive.archive_metrics import ARM_MADE_BY
from stream.archive.arm_figures import ArmFigure


def test_a_run_shows_what_the_archive_counts_and_nothing_where_too_little_is_known(tmp_path: Path) -> None:
    control, model, few = mean_of(2700, 270, 360), mean_of(12000, 2700, 4200), mean_of(20, 4, 4)
    more = difference(model, control)
    assert more.decided
    show_arms(
        [
            ArmFigure("control", "click", control, band(control), float("nan"), NOTHING, 0),
            ArmFigure("model", "click", model, band(model), model.value - control.value, more, 1_772_000_000_000),
            ArmFigure("hits", "click", few, band(few), few.value - control.value, difference(few, control), 0),
            ArmFigure("new", "click", mean_of(0, 0, 0), NOTHING, float("nan"), NOTHING, 0, 40, 10, 2),
        ]
    )
    ARM_MADE_BY.labels("model", "the first learner").set(1)
    text = generate_latest().decode()
    roles = ("archive", "stream")
    monitor = Monitor({n: f"http://{n}/metrics" for n in roles}, "http://serve", EventClock(), lambda url: text)
    monitor.look()
    state = state_of("running", 1, 1.0, monitor, Supervisor(tmp_path), [], RunStatus(roles))
    assert json.loads(json.dumps(state)) == state
    first, second, third, fourth = state["arms"]
    assert [row["arm"] for row in state["arms"]] == ["control", "model", "hits", "new"]
    assert {row["outcome"] for row in state["arms"]} == {"click"}
    assert [row["made_by"] for row in state["arms"]] == ["", "the first learner", "", ""]
    assert (first["users"], first["mean_estimate"]) == (2700, pytest.approx(0.1))
    assert first["mean_low"] < 0.1 < first["mean_high"]
    assert [first[f"more_{bound}"] for bound in ("estimate", "low", "high")] == [None] * 3
    assert (second["more_estimate"], second["more_low"]) == (pytest.approx(0.125), pytest.approx(more.low))
    assert second["since_ms"] == 1_772_000_000_000
    assert [row["settled"] for row in state["arms"]] == [True, True, True, False]
    assert [row["early_click_rate"] for row in state["arms"]] == [None, None, None, 0.25]
    assert (fourth["users"], fourth["mean_estimate"], fourth["early_rows"], fourth["left_out"]) == (0, None, 40, 2)
    assert (third["users"], third["mean_low"], third["more_high"], third["since_ms"]) == (20, None, None, 0)


def test_a_run_without_an_archive_has_no_arms(tmp_path: Path) -> None:
    monitor = Monitor({"stream": "http://stream/metrics"}, "http://serve", EventClock(), lambda url: "")
    assert state_of("running", 1, 1.0, monitor, Supervisor(tmp_path), [], RunStatus(("stream",)))["arms"] == []
