"""Benchmarks in their short form, as a user runs them: they end with figures."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.runner import BENCHMARKS
from tests.scenes.waiting import LONG


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("name", ["intake", "judge", "learner", "replay", "stores"])
def test_a_short_run_ends_with_figures(tmp_path: Path, name: str) -> None:
    """Each in a process of its own. Recall, scorer and stream have tests of their own; the others take minutes."""
    assert name in BENCHMARKS
    command = [sys.executable, "-m", "commands", "dev", "bench", name, "--short", "--out", str(tmp_path)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    figures = {f["name"]: f["value"] for f in json.loads((tmp_path / "report.json").read_text())}
    assert figures
    assert all(math.isfinite(value) for value in figures.values())
    assert json.loads((tmp_path / "run.json").read_text())["short"] is True
    if name == "intake":
        assert figures["acknowledged"] > 0
        assert figures["lost"] == figures["twice"] == 0
    if name == "stores":
        assert figures["scorer_restart_seconds"] > 0
        assert figures["scorer_restart_without_index_seconds"] > 0
