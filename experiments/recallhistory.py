# core
"""Days of the previous recommender's pages, learnt in one pass, as the learner would have learnt them.

::

    simulator.daylog.day_table, day after day ──► features in event time ──► OnlineModel, the retrieval head included

Features are those that the pages would have had: windows hold what had happened by then. Labels are settled, and
samples come in the order of exposure, in full micro-batches (as :func:`experiments.realspeed.learn_history`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from commands.replay.logfeatures import CHUNK_ROWS, Labels, LogFeatures, LogRows
from experiments.realspeed import BATCH_ROWS
from learner.ranker.model import OnlineModel
from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema
from millrace.logs import LogTable


def log_of(tables: Sequence[pa.Table], schema: Schema) -> LogTable:
    """Day tables of the simulator, in the order of time, as one log."""
    assert schema.log is not None
    table = pa.concat_tables(tables)
    return LogTable(table, schema.log.user, schema.log.item, schema.log.label, table.num_rows, 0)


def samples_of(log: LogTable, schema: Schema) -> Iterator[SampleBatch]:
    """The log's exposures as samples with settled labels: micro-batches of :data:`BATCH_ROWS`, the last may be less."""
    rows = LogRows(log, schema)
    features = LogFeatures(rows, Labels(log, schema, rows), schema)
    code = np.where(rows.label == 1, POSITIVE, NEGATIVE).astype(np.uint8)
    step = CHUNK_ROWS // BATCH_ROWS * BATCH_ROWS
    for first in range(0, rows.n, step):
        part = np.arange(first, min(first + step, rows.n))
        cat, num = features.of(part)
        features.forget(first)
        pages, page = np.unique(rows.page[part], return_inverse=True)
        whole = SampleBatch.of_rows(
            code[part],
            rows.ts_ms[part],
            cat,
            num,
            rows.requests(pages),
            page=page.astype(np.int32),
            position=rows.slots(part),
            user=rows.hashes(rows.builder.user_column, part),
            item=rows.hashes(rows.builder.item_column, part),
        )
        for at in range(0, len(part), BATCH_ROWS):
            yield whole.take(slice(at, at + BATCH_ROWS))


def learn_days(
    model: OnlineModel, tables: Sequence[pa.Table], told: Callable[[int], None] = lambda rows: None
) -> OnlineModel:
    """Learns the days, once. ``told`` hears of each batch's rows."""
    for batch in samples_of(log_of(tables, model.schema), model.schema):
        model.learn(batch)
        told(len(batch))
    return model
