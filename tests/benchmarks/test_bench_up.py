"""The shop whose visitors' taste is known, and what its gate refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.parts.tasteshop import Followed, Taste, followed
from tests.scenes.waiting import LONG


def test_how_far_an_order_follows_the_taste() -> None:
    taste = Taste(4, 1, 0)
    taste.category[:], taste.likes[0] = [0, 1, 2, 3], [1, 2]
    a, b, c, d = taste.ids
    assert followed(taste, [(0, [b, c, a, d])]) == Followed(auc=1.0, first=0.5)
    assert followed(taste, [(0, [a, b, c, d])]) == Followed(auc=0.5, first=0.5)


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(LONG)
def test_a_short_experiment_says_what_the_gate_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "commands", "dev", "experiment", "shop"]
    said = subprocess.run([*command, "--hours", "0.01", "--out", str(tmp_path)], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "pages, " in said.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"].startswith("0 refusals in 0.01 hours")
    none = subprocess.run([*command, "--hours", "0", "--out", str(tmp_path)], capture_output=True, text=True)
    assert none.returncode != 0
    assert "0 hours" in none.stderr
