"""The crash suite in its short form: some faults in one life of a loop, after each of which the books balance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.faults import chosen
from tests.scenes.waiting import LONG

SHORT = "kill each in turn,stop two at once,Redis emptied,disk full: checkpoints,link to redis dead"


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(2 * LONG)
def test_after_a_fault_the_loop_heals_and_its_books_balance(tmp_path: Path) -> None:
    """On the embedded broker, under a prefix: topics without it are not there, so whoever leaves it out finds none."""
    command = [sys.executable, "-m", "tests.crash", str(tmp_path), "--faults", SHORT, "--pace", "lapsed", "--seed", "1"]
    command += ["--times", "1", "--prefix", "a-shop."]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    ended = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    expected = {fault.name for fault in chosen(SHORT) if f"skipped: {fault.name}" not in ended.stdout}
    assert {row["fault"] for row in rows} == expected, ended.stdout
    for row in rows:
        assert row["recovery_s"] is not None, ended.stdout
        assert (row["lost"], row["doubled"], row["wrong"]) == (0, 0, []), ended.stdout
        assert row["exposures"] > 0
        assert row["updates"] > 0
    assert ended.returncode == 0, ended.stdout
    assert len(json.loads((tmp_path / "table.json").read_text())) == len(rows)
    again = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
    assert (again.returncode, (tmp_path / "table.md").read_text() in again.stdout) == (0, True), (
        "it has all that is asked"
    )
