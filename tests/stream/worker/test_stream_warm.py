"""After the warm-up nothing is left to compile for what a worker does."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture import ROOT
from tests.scenes.waiting import LONG

PROGRAM = """
from numba.core.dispatcher import Dispatcher
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from millrace.windows import tile_kernels
from tests.scenes.stream_world import resumed
from stream.partition import coclickkernels
from stream.partition.partition import InputMessage as Message, Partition, Policy
from stream.worker.stream_warmup import warm_up
from tests.scenes.worker_loop import SCHEMA, NEWEST_MS, story

def compiled():
    modules = vars(tile_kernels) | vars(coclickkernels)
    found = {n: f for n, f in modules.items() if isinstance(f, Dispatcher)}
    return {n: sorted(map(str, f.signatures)) for n, f in found.items()}

warm_up(SCHEMA, Policy.of(Settings()))
before = compiled()
part = Partition(0, SCHEMA, Policy.of(Settings()))
messages = [Message(t, i, raw) for i, (t, p, raw) in enumerate(story(60, 1)) if p == 0]
taken = part.take(messages, NEWEST_MS)
assert len(taken.samples) > 50
for _ in range(200):
    part.take([], NEWEST_MS)
assert len(part.changes().coclicks.items) > 5
list(part.whole())
resumed(part.snapshot().to_bytes(), SCHEMA, Policy.of(Settings())).changes()
assert sum(map(len, before.values())) > 5, before
after = compiled()
assert after == before, [n for n in after if after[n] != before[n]]
"""


@pytest.mark.slow
@pytest.mark.timeout(LONG)  # in a fresh clone it compiles
def test_nothing_is_left_to_compile() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
