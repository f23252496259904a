# core
"""Days of the previous recommender's pages, learnt in one pass, as the learner would have learnt them.

::

    simulator.daylog.day_table, day after day ──► features in event time ──► OnlineModel, the retrieval head included

Features are those that the pages would have had: windows hold what had happened by then. Labels are settled, and
samples come in the order of exposure, in full micro-batches (as :func:`experiments.realspeed.learn_history`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from commands.replay.steps import steps
from commands.replay.stretches import AT_ONCE
from learner.ranker.model import OnlineModel
from learner.training.trainer import BATCH_ROWS
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.logs import LogTable


def log_of(tables: Sequence[pa.Table], schema: Schema) -> LogTable:
    """Day tables of the simulator, in the order of time, as one log."""
    assert schema.log is not None
    table = pa.concat_tables(tables)
    return LogTable(table, schema.log.user, schema.log.item, schema.log.label, table.num_rows, 0)


def samples_of(log: LogTable, schema: Schema) -> Iterator[SampleBatch]:
    """The log's exposures as samples with settled labels: micro-batches of :data:`BATCH_ROWS`, the last may be less."""
    made = steps(log, schema, BATCH_ROWS, AT_ONCE)
    return (step.batch for step in made if step.batch is not None)


def learn_days(
    model: OnlineModel, tables: Sequence[pa.Table], told: Callable[[int], None] = lambda rows: None
) -> OnlineModel:
    """Learns the days, once. ``told`` hears of each batch's rows."""
    for batch in samples_of(log_of(tables, model.schema), model.schema):
        model.learn(batch)
        told(len(batch))
    return model
