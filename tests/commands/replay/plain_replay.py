"""The plain way through a log: one thread, arrays of the whole log. The reference of :mod:`commands.replay.run`.

Tests hold the engine's scores against it bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from commands.replay.grouped import Groups
from commands.replay.known import LabelSettings, Model, Observer, Samples
from commands.replay.logfeatures import Labels, LogFeatures, LogRows
from millrace.contracts.schema import Schema
from millrace.logs import LogTable


def run_plain(
    log: LogTable,
    schema: Schema,
    model: Model,
    batch_rows: int,
    tick: Callable[[int], None],
    groups: Groups | None,
    how: LabelSettings,
    observer: Observer | None = None,
) -> NDArray[np.float32]:
    """As :func:`commands.replay.run.run_log`, to the bit."""
    rows = LogRows(log, schema)
    labels = Labels(log, schema, rows)
    features = LogFeatures(rows, labels, schema, () if groups is None else groups.cuts)
    samples = Samples.of(rows.ts_ms, labels, how.named, how.observation_ms)
    oldest, bias = samples.oldest(), schema.layout.bias_columns
    p = np.empty(rows.n, np.float32)
    scored = 0
    for start in range(0, len(samples.row), batch_rows):
        part = slice(start, min(start + batch_rows, len(samples.row)))
        # Exposures up to the time at which the batch was complete are scored without it.
        end = int(np.searchsorted(rows.ts_ms, samples.known_ms[part.stop - 1], side="right"))
        if groups is not None and end > scored:
            groups.before(slice(scored, end), features, model.score, bias)
        for first in range(scored, end, batch_rows):
            shown = np.arange(first, min(first + batch_rows, end))
            cat, num = features.of(shown)
            cat[:, bias] = 0
            p[shown] = model.score(cat, num)
            if observer is not None:
                observer.scored(shown, cat, num, p[shown])
        scored = max(scored, end)
        batch = samples.batch(part, rows, *features.of(samples.row[part]))
        model.learn(batch)
        if observer is not None:
            observer.learnt(samples, part, batch)
        features.forget(int(oldest[part.stop]))
        tick(scored)
    return p
