# core
"""The baseline of a log: to rank by each item's own smoothed click rate, as it was known at the exposure.

It is one column of the features (:func:`learner.evaluation.progressive.baseline_column`), so it costs nothing to
have, and it sees what the model sees. A model that does not rank better than it has learnt nothing about users.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from commands.replay.known import Samples
from learner.evaluation.progressive import baseline_column
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema


class Baseline:
    """Takes the baseline's scores while a log is run: an :class:`~commands.replay.known.Observer`.

    Args:
        rows: of the log.

    Raises:
        ValueError: the schema has no such column; :meth:`of` gives None for it.
    """

    scores: NDArray[np.float32]
    """(n,) the item's smoothed click rate, on the scale of the features: it ranks, it is no probability."""

    def __init__(self, schema: Schema, rows: int) -> None:
        column = baseline_column(schema)
        if column is None:
            raise ValueError(f"schema '{schema.name}' has no click rate of an item")
        self.column = column
        self.scores = np.zeros(rows, np.float32)

    @classmethod
    def of(cls, schema: Schema, rows: int) -> Baseline | None:
        """The baseline of a log; None where the schema has no click rate of an item."""
        return None if baseline_column(schema) is None else cls(schema, rows)

    def scored(
        self,
        rows: NDArray[np.intp],
        cat: NDArray[np.int64],
        num: NDArray[np.float32],
        p: NDArray[np.float32],
    ) -> None:
        """Some exposures, with their features num (b, N)."""
        self.scores[rows] = num[:, self.column]

    def learnt(self, samples: Samples, part: slice, batch: SampleBatch) -> None:
        """The baseline learns nothing."""
