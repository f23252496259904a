# core
"""A logistic regression of River (``river.linear_model``) with FTRL-Proximal, as a model of one's own.

::

    MILLRACE_MODEL=learner.custom.adapters.rivermodel:RiverFTRL  MILLRACE_MODEL_SPEC='{"alpha": 0.1, "buckets": 100000}'

River learns one row at a time, so this is slow: some thousand rows a second, nearly all of it in River's optimiser, a
loop over features in Python. Ids are taken modulo ``buckets``: River keeps a dict entry for each feature that it has
met, without a bound.

The same works for estimators whose state is numbers by feature: linear models, scalers and naive Bayes. A tree or a
forest (``HoeffdingTreeClassifier``) cannot: its nodes refer to each other, which only pickle would write, and a scorer
never unpickles a message.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import linear_model, optim

from learner.custom.ownclass import unknown_entries
from learner.ranker.model import LearnReport
from millrace.basics.ranking_metrics import log_loss
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.versions.image import Array


class RiverFTRL:
    """FTRL-Proximal on hashed ids and squashed numbers (McMahan et al. 2013).

    Args:
        schema: the number of columns, and the click rate to begin from.
        spec: ``alpha``, ``beta``, ``l1``, ``l2`` of the optimiser, ``buckets``.
        seed: unused, for nothing is random.
    """

    def __init__(self, schema: Schema, spec: dict[str, Any], seed: int) -> None:
        known = {"alpha": 0.05, "beta": 1.0, "l1": 0.0, "l2": 0.0, "buckets": 1 << 18}
        unknown_entries(spec, known)
        chosen = {**known, **spec}
        self._buckets = int(chosen.pop("buckets"))
        rate = min(max(schema.windows.prior_rate, 0.001), 0.999)
        self._optimizer = optim.FTRLProximal(**chosen)
        self._model = linear_model.LogisticRegression(
            self._optimizer, intercept_init=float(np.log(rate / (1 - rate))), intercept_lr=0.01
        )

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._scores(self._rows(cat, num))

    def learn(self, batch: SampleBatch) -> LearnReport:
        """The report's loss saves the learner a dict for each row."""
        rows = self._rows(batch.cat, batch.num)
        loss = log_loss(self._scores(rows), batch.label)
        for x, y, w in zip(rows, batch.label.tolist(), batch.weight.tolist(), strict=True):
            self._model.learn_one(x, y, w)
        return LearnReport(loss, len(rows))

    def snapshot(self) -> dict[str, Array]:
        """Each dict is two arrays, in its own order: sums of floats depend on it."""
        return {
            "intercept": np.array([self._model.intercept], np.float64),
            **_arrays("weights", self._model.weights),
            **_arrays("training/z", self._optimizer.z),
            **_arrays("training/n", self._optimizer.n),
            "training/iterations": np.array([self._optimizer.n_iterations], np.int64),
        }

    def resume(self, arrays: Mapping[str, Array]) -> None:
        self._model.intercept = float(arrays["intercept"][0])
        for feature, weight in _pairs("weights", arrays):
            self._model._weights[feature] = weight
        if "training/iterations" in arrays:
            self._optimizer.z.update(_pairs("training/z", arrays))
            self._optimizer.n.update(_pairs("training/n", arrays))
            self._optimizer.n_iterations = int(arrays["training/iterations"][0])

    def _scores(self, rows: list[dict[int, float]]) -> NDArray[np.float32]:
        predict: Any = self._model.predict_proba_one
        return np.array([predict(x)[True] for x in rows], np.float32)

    def _rows(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> list[dict[int, float]]:
        """1 for each present id, by its bucket; sign(x) ln(1 + |x|) for each number that is not 0, behind the buckets.
        A loop over the features in Python would take longer than River's scoring."""
        (B, F), N = cat.shape, num.shape[1]
        keys = np.empty((B, F + N), np.int64)
        keys[:, :F] = cat.view(np.uint64) % np.uint64(self._buckets)
        keys[:, F:] = self._buckets + np.arange(N)
        values = np.hstack([cat != 0, np.copysign(np.log1p(np.abs(num)), num)])  # (B, F + N)
        there = values != 0
        features, numbers = keys[there].tolist(), values[there].tolist()
        ends = np.cumsum(there.sum(axis=1)).tolist()
        return [dict(zip(features[a:z], numbers[a:z], strict=True)) for a, z in pairwise([0, *ends])]


def _arrays(name: str, values: Mapping[Any, float]) -> dict[str, Array]:
    n = len(values)
    return {
        f"{name}/features": np.fromiter(values.keys(), np.int64, n),
        f"{name}/values": np.fromiter(values.values(), np.float64, n),
    }


def _pairs(name: str, arrays: Mapping[str, Array]) -> list[tuple[int, float]]:
    return list(zip(arrays[f"{name}/features"].tolist(), arrays[f"{name}/values"].tolist(), strict=True))
