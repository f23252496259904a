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

BOTH_KINDS = """
import sys
from numba.core.dispatcher import Dispatcher
from millrace.contracts.events import Item
from millrace.windows import tile_kernels
from scorer.worker.scorer_warmup import warm_up as warm_scorer
from stream.worker.stream_warmup import warm_up as warm_stream
from tests.scenes.parity_shop import SCHEMAS, Shop, rich
from tests.scenes.stream_world import HOUR, POLICY, T0, action, exposure, page_log

def compiled():
    return {n: sorted(map(str, f.signatures)) for n, f in vars(tile_kernels).items() if isinstance(f, Dispatcher)}

schema = SCHEMAS[sys.argv[1]]
warm_stream(schema, POLICY)
warm_scorer(schema)
before = compiled()
shop = Shop([Item(str(i), {"price": 5.0}, T0) for i in range(9)], schema)
for raw, topic in ((page_log("a", T0, [1, 2]), "page_logs"), (exposure("a", T0, [1, 2]), "events"),
                   (action("click", "a", T0, 0, 1), "events")):
    shop.take(7, rich(shop.log(topic, raw), schema))
shop.publish()
ranked = shop.rank(7, "1", T0 + HOUR, 2.0)
assert ranked.num[0, schema.layout.window_start:].any()
assert compiled() == before, [n for n, signatures in compiled().items() if signatures != before[n]]
"""


@pytest.mark.slow
@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("which", ["days", "short exposure age"])
def test_nothing_is_left_to_compile_for_half_lives_and_means(which: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOTH_KINDS, which], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(LONG)  # in a fresh clone it compiles
def test_nothing_is_left_to_compile() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
