# core
"""The figures of a replay's outcomes: each judged by what was predicted of an exposure before its label was learnt.

An outcome on clicks has two lines. ``given a click`` judges its own probability over the clicked exposures that it is
known of; ``click and ...`` the product with the click's, over these and all that were not clicked.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.ranker.model import OnlineModel
from millrace.basics.clustered import auc_parts, gap
from millrace.basics.ranking_metrics import DIGITS, figures_of, judged, known
from millrace.commands.replay.logfeatures import LabelRows, Labels
from millrace.commands.replay.logsamples import KnownSamples
from millrace.contracts.schema import Schema
from millrace.logs import LogTable


class OutcomeScores:
    """Probabilities and labels of K outcomes, filled while a log of n rows is run."""

    def __init__(self, schema: Schema, n: int) -> None:
        self._schema, self.outcomes = schema, schema.outcome
        self.q = np.full((n, len(schema.outcome)), np.nan, np.float32)
        """(n, K) predictions."""
        self.y = self.q.copy()
        """(n, K) labels; NaN: not defined, or not known before the log ends."""

    @classmethod
    def of(cls, schema: Schema, model: object, n: int) -> OutcomeScores | None:
        """None where there are no outcomes, or the model does not predict them."""
        return cls(schema, n) if schema.outcome and isinstance(model, OnlineModel) else None

    def hear(self, samples: KnownSamples) -> None:
        """Takes samples that are learnt now. What is told by age is not final yet."""
        row, k = np.nonzero(np.isfinite(samples.outcomes) & (samples.telling == 0)[:, None])
        self.y[samples.row[row], k] = samples.outcomes[row, k]

    def settle(self, log: LogTable) -> None:
        """Takes the final labels of what was told by age, when all of the log was learnt."""
        if aged := [k for k, one in enumerate(self.outcomes) if one.told != "wait"]:
            self.y[:, aged] = Labels(log, self._schema, LabelRows.of(log, self._schema)).outcomes[:, aged]

    def figures(
        self, p: NDArray[np.float32], clicked: NDArray[np.int8], user: NDArray[np.intp]
    ) -> list[dict[str, Any]]:
        """A line for each, for clicks predicted as ``p`` (n,) of ``user`` (n,)."""
        return [_line(*judged_as, p, user) for judged_as in self._lines(p, clicked)]

    def _lines(
        self, p: NDArray[np.float32], clicked: NDArray[np.int8]
    ) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
        for k, one in enumerate(self.outcomes):
            q, y = self.q[:, k], self.y[:, k]
            if one.on == "page":
                yield one.name, q, y
            else:
                yield f"{one.name} given a click", q, y
                yield f"click and {one.name}", p * q, np.where(clicked == 1, y, np.float32(0))


def _line(
    name: str, q: NDArray[np.float32], y: NDArray[np.float32], p: NDArray[np.float32], user: NDArray[np.intp]
) -> dict[str, Any]:
    """Figures of predictions q for labels y (n,), and by how much they rank better than the click's p (n,)."""
    told = np.isfinite(y)
    q, y, p = q[told], y[told], p[told]
    line = figures_of(q, y)
    found = gap(auc_parts(judged(q, y), y), auc_parts(judged(p, y), y), y, user[told]) if len(y) else None
    if found is not None:
        line |= {"auc_over_click": found.value, "auc_over_click_ci": found.half}
    plain = {key: known(value, DIGITS) for key, value in line.items()}
    return {"outcome": name, "rows": len(y), "positives": int(y.sum())} | plain
