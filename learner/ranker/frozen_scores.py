# core
"""Scores by a model as it was before the batch that it is learning now.

One thread calls :meth:`Still.refresh`, then learns; another scores until the first is about to write. A step of
learning reads first (ids, forward, backward) and writes last. Only the buffers of the network (running statistics)
change early, so they alone are copied. Weights and tables are the model's own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learner.network.models.spec import read_spec
from learner.ranker.model import OnlineModel, build, score_with
from learner.ranker.outcome_heads import heads_of
from learner.ranker.step import Inference


class Still:
    """The model's :meth:`~learner.ranker.model.OnlineModel.score`, to the bit, from :meth:`refresh` until the model
    next writes. It is for one run over a log, in which the model is not resumed. Likely mistake: to score after the
    model has written and before the next :meth:`refresh`; statistics would then be older than weights."""

    def __init__(self, model: OnlineModel) -> None:
        self._model = model
        self._inputs, network = build(model.schema, read_spec(model.spec), model.seed)
        for own, theirs in zip(network.parameters(), model.serving.parameters(), strict=True):
            own.data = theirs.data  # the same memory
            own.requires_grad_(False)
        self._pairs = list(zip(network.buffers(), model.network.buffers(), strict=True))
        self._inference = Inference(self._inputs, network)
        self._heads = heads_of(self._inputs, network)
        self.refresh()

    def refresh(self) -> None:
        """Copies the running statistics as they are now. The model must not be learning."""
        for own, theirs in self._pairs:
            own.data.copy_(theirs.data)

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        return score_with(self._inputs, self._inference, self._model.tables, cat, num)

    def predict(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        return score_with(self._inputs, self._inference, self._model.tables, cat, num, self._heads)
