# core
"""What a worker makes pages from: items, recall's lists and vectors, models. They change only between requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.schema import Schema
from millrace.versions.versioning import Announcement
from millrace.windows.affinity import ACTION, EXPOSED, events_a_day, smoothed_rate
from millrace.windows.features import FeatureBuilder
from scorer.catalog.itemtable import ItemTable
from scorer.page.rank import Ranker, RankingModel
from scorer.recall.candidate_lists import F64, PRIOR, CandidateLists
from scorer.recall.nearest import Retrieval
from scorer.recall.neighbours import Neighbours


class HeldModel:
    """The version of one learner that makes pages."""

    def __init__(self) -> None:
        self.retrieval: Retrieval | None = None  # None: there is none yet
        self.note: Announcement | None = None
        self.model: RankingModel | None = None

    def install(self, note: Announcement, model: RankingModel) -> None:
        self.note, self.model = note, model


class WorkerState(HeldModel):
    """See the module's text. It holds the first learner's model. ``count_error`` receives the kind of each handled
    error. ``learners``: names of those whose models make pages beside the first's."""

    def __init__(self, schema: Schema, count_error: Callable[[str], None], learners: Iterable[str] = ()) -> None:
        super().__init__()
        self._models: dict[str, HeldModel] = {"": self, **{name: HeldModel() for name in learners}}
        self.schema, self.builder = schema, FeatureBuilder(schema)
        self.items = ItemTable(self.builder)
        self.ranker = Ranker(self.builder, self.items, count_error)
        self.lists = CandidateLists()
        self.neighbours: Neighbours | None = None  # what is clicked along with what; None: not known yet
        self.newest_counted_ms = 0  # newest event that the stream has counted; 0: none yet
        self.to_read: dict[str, int] = {}
        """Messages that must be read from Kafka before ranking, by what they are for (-1: number unknown)."""

    def of(self, learner: str) -> HeldModel:
        """What is held of a learner; of the first where the name is empty."""
        return self._models[learner]

    def heat(self, rows: NDArray[Any], rate: float) -> tuple[F64, F64]:
        """Of the items at ``rows`` (n,): clicks a day, and the click rate shrunk towards ``rate``, as
        :mod:`scorer.recall.candidate_lists` orders hot items by. (n,) each; zeros and ``rate`` where nothing is
        counted."""
        counts, windows = self.items.counts_of(rows), self.schema.windows
        if counts is None:
            return np.zeros(len(rows)), np.full(len(rows), rate)
        clicks, exposures = (events_a_day(counts, windows, action) for action in (ACTION, EXPOSED))
        return clicks, smoothed_rate(clicks, exposures, rate, PRIOR, windows)

    def not_ready(self, learner: str = "") -> str:
        """Why a learner's model cannot rank pages yet; empty when it can."""
        if self.to_read:
            left = ", ".join(f"{what} ({n if n >= 0 else 'unknown'})" for what, n in self.to_read.copy().items())
            return f"no up-to-date state yet, messages to read: {left}; ask again in a moment"
        if self.of(learner).model is None and learner:
            return f"no model of the learner '{learner}' yet; start it with 'millrace run learn --name {learner}'"
        if self.of(learner).model is None:
            return "no model yet; start the learner, or check MILLRACE_DATA, MILLRACE_STORE and the topic model.deltas"
        if not len(self.lists.living):
            return "no items yet; send the catalogue: POST /items of the intake, or the topic items"
        return ""
