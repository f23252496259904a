# shell
"""How long a scorer that starts takes until it is ready, with all that it reads in place.

::

    store     a snapshot of 5,000,000 rows, 500 MB in parts                    (benchmarks/tools/modelwire.py)
              the item index: 100,000 items and their window keys              written by the first scorer
    broker    items          the catalogue
              features.items the counts of a month, then those of 1,000 keys a second for a minute
              model.deltas   one delta a second for a minute, behind the snapshot

The first scorer has no index in the store, and reads the catalogue and all counts. It writes the index and ends. What
came "since then" is put on the topics, and scorers are started one after the other. Each time runs from the start of
the process (``millrace run serve``) to the first ``/readyz`` of status 200.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import closing
from pathlib import Path

import msgspec

from benchmarks.tools.bench_figures import Say
from benchmarks.tools.bench_running import RunningRole
from benchmarks.tools.modelwire import ModelWire
from benchmarks.tools.pagewire import ShopWire
from millrace.basics.store import Store
from millrace.contracts.settings import Settings
from millrace.contracts.topics import MODEL_DELTAS
from millrace.processes.kafka import create_topics, make_producer, topic_ids
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port

ROWS, ITEMS = 5_000_000, 100_000
SINCE, ROWS_SINCE = 60, 2000
STARTS = 5


def scorer_restart(
    rows: int = ROWS, items: int = ITEMS, starts: int = STARTS, progress: Say = print
) -> dict[str, float]:
    """Seconds from the start of the process to ready: the median and the longest of ``starts``, and the first
    scorer's, without an index in the store.

    Raises:
        ServiceError: a scorer ended, or was not ready within ten minutes.
    """
    with (
        tempfile.TemporaryDirectory(prefix="millrace-restart-") as name,
        EmbeddedBroker(Path(name) / "broker") as broker,
        EmbeddedRedis(Path(name) / "redis") as redis,
    ):
        folder = Path(name)
        settings = Settings(
            kafka=broker.address, redis=redis.address, data=str(folder / "data"), port=free_port(), metrics_port=0
        )
        create_topics(settings)
        with closing(make_producer(settings)) as producer:
            progress(f"publishing {items:,} items, and a snapshot of {rows:,} rows")
            shop = ShopWire(settings, producer, items)
            shop.publish()
            log_id = topic_ids(settings)[MODEL_DELTAS]
            model = ModelWire(settings, producer, rows, items, ROWS_SINCE, log_id)
            model.new_root()
            # The first writes the index as soon as it is ready; later ones find it young.
            with RunningRole.scorer(msgspec.structs.replace(settings, index_seconds=2.0), folder) as scorer:
                first = scorer.start_seconds
                while not _has_index(settings):
                    time.sleep(0.1)
            progress(f"without an index in the store: ready after {first:.1f} s")
            for _ in range(SINCE):
                shop.publish_changes()
                model.delta()
            producer.flush()
        ready = []
        for n in range(starts):
            with RunningRole.scorer(settings, folder) as scorer:
                ready.append(scorer.start_seconds)
            progress(f"start {n + 1}: ready after {ready[-1]:.2f} s")
        return {
            "scorer_restart_seconds": sorted(ready)[len(ready) // 2],
            "scorer_restart_longest_seconds": max(ready),
            "scorer_restart_without_index_seconds": first,
            "rows": float(rows),
            "items": float(items),
        }


def _has_index(settings: Settings) -> bool:
    return any(name.count("-") == 2 for name in Store(settings.place("index"), writes=False).names())
