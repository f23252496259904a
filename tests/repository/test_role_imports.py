"""What no process of a loop loads: what it does not use costs memory in each of them, and time at each start."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture import ROOT
from tests.scenes.waiting import PATIENCE

NOWHERE = {"pandas", "sklearn", "matplotlib", "scipy.stats", "duckdb", "polars", "river.drift"}
"""River brings four of them into a learner, when it makes its figures of drift: only there (evaluation/drift.py)."""
COMPILER, TORCH, ARROW, FAUST, AIO = "numba", "torch", "pyarrow", "faust", "aiokafka"
SERVERS = {"uvicorn", "starlette"}

UNUSED = {
    "stream.worker.stream_worker": {TORCH, ARROW, *SERVERS},
    "learner.role.service": {ARROW, FAUST, AIO, "redis"},
    "scorer.feeder.feeder": {ARROW, FAUST, AIO},
    "scorer.worker.scorer_worker": {ARROW, FAUST, AIO},
    "stream.intake.intake_main": {COMPILER, TORCH, ARROW, FAUST, "redis"},
    "stream.archive.archive_main": {TORCH, FAUST, AIO, "redis", *SERVERS},
    "millrace.commands.up.uprun": {COMPILER, TORCH, ARROW, FAUST, AIO},
    "millrace.broker.__main__": {COMPILER, TORCH, ARROW, FAUST, AIO, "redis", "numpy", *SERVERS},
}
"""By the module that a process runs."""


@pytest.mark.parametrize("module", UNUSED)
def test_a_process_loads_only_what_it_uses(module: str) -> None:
    entry = "" if module.startswith("millrace.broker") else "import millrace.commands.cli.cli; "
    program = f"import sys; {entry}import {module}; print(*sys.modules)"
    argv = [sys.executable, "-c", program]
    found = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout.split()
    assert module in found
    assert not (NOWHERE | UNUSED[module]) & {*found}
