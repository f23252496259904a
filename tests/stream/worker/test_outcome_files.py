"""What a click costs that may still become a purchase: with the features of a simulated day, as they are logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from millrace.basics.durations import HOUR_MS
from millrace.basics.store import Store
from millrace.commands.replay.replayrun import run_log
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.logs.exposures import read_log
from simulator.daylog import write_days
from stream.join.outcome_book import SealedHour, ToFiles, Told
from stream.worker.outcome_files import OutcomeFiles


class Collector:
    """A model that keeps what it is to learn."""

    def __init__(self) -> None:
        self.batches: list[SampleBatch] = []

    def score(self, cat: Any, num: Any) -> Any:
        return np.full(len(cat), 0.1, np.float32)

    def learn(self, batch: SampleBatch) -> None:
        self.batches.append(batch.take(np.flatnonzero(batch.label > 0)))


def test_a_clicks_features_take_few_bytes_and_come_back_to_the_bit(tmp_path: Path) -> None:
    schema, made = shop_schema(), Collector()
    (log,) = write_days(tmp_path, 1, seed=1, users=600)
    run_log(read_log(log, schema), schema, made, 512, lambda n: None)
    clicks = SampleBatch.concat(made.batches)
    files = OutcomeFiles(Store(str(tmp_path / "store")), schema, {})
    for hour in np.unique(clicks.ts_ms // HOUR_MS).tolist():
        rows = clicks.take(np.flatnonzero(clicks.ts_ms // HOUR_MS == hour))
        rows = rows.take(np.argsort(rows.user, kind="stable"))
        told = Told(("click", hour), np.ones((len(rows), 1), np.float32), [])
        (again,) = files.do(0, ToFiles([SealedHour(("click", hour), rows)], [told]))
        assert isinstance(again, SampleBatch)
        assert list(again.ids()) == list(rows.ids())
        assert again.cat.tobytes() == rows.cat.tobytes()
        assert again.num.tobytes() == rows.num.tobytes()
    size = sum(path.stat().st_size for path in (tmp_path / "store").glob("*.rows"))
    pages = len(set(pq.read_table(log, columns=["request_id"])["request_id"].to_pylist()))
    print(f"{len(clicks)} clicks of {pages} pages, {size / len(clicks):.0f} bytes of file a click")
    assert size < 120 * len(clicks)
