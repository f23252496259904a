# core
"""The feeder's state: the item index, the served version, and the progress in the topics. Workers have replicas
(:mod:`scorer.worker.replica`)."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

from millrace.basics.errors import SettingError
from millrace.contracts.clock import EventClock
from millrace.contracts.filter_attributes import bad_boost
from millrace.contracts.profile_reader import Intake
from millrace.contracts.schema import Schema
from millrace.contracts.settings import Settings
from millrace.evidence.rerank import Rerank
from millrace.versions.versioning import Announcement
from millrace.windows.affinity import taste_keys
from millrace.windows.features import FeatureBuilder
from scorer.catalog.item_index import Heat, ItemIndex
from scorer.page.worth import unknown_weights
from scorer.recall.candidate_lists import CandidateLists, Shares, make_lists

INDEX_TOPICS = frozenset({"items", "item counts"})
"""Topics of the index, as :attr:`Primary.to_read` names them."""


def check_rerank(schema: Schema, how: Rerank) -> None:
    """Raises SettingError: a boost of an unknown attribute, or a weight of an unknown outcome."""
    if found := bad_boost(schema, how.boosts or {}):
        raise SettingError(f"rerank: boosts {found[0]}", found[1])
    if found := unknown_weights(schema, how.weights or {}):
        raise SettingError(f"rerank: weights {found[0]}", found[1])


class Primary:
    """One scorer's state, as its feeds change it. Any access to the index needs its lock
    (:meth:`scorer.feeder.state.FeederState.alone`). ``wall``: wall time in ms. Raises SettingError for invalid shares
    of recall, or boosts of an unknown attribute."""

    def __init__(self, settings: Settings, schema: Schema, clock: EventClock, wall: Callable[[], int]) -> None:
        for recall in settings.recalls:  # for workers: what is no list of shares ends the feeder before it has any
            Shares.of(recall)
        for how in (settings.rerank, *(arm.rerank for arm in settings.arms.values() if arm.rerank)):
            check_rerank(schema, how)
        if "seen" in settings.hide and set(schema.ids) not in [set(key.columns) for key in schema.windows.keys]:
            remedy = f"add [[windows.keys]] columns = {[*schema.ids]} to the schema, or leave it out"
            raise SettingError("hide names 'seen', which this schema does not count", remedy)
        self.settings, self.schema, self.clock = settings, schema, clock
        self.builder, self.intake = FeatureBuilder(schema), Intake(schema)
        self.index = ItemIndex(self.builder)
        self.note: Announcement | None = None
        """The version that all workers serve, or a newer one."""
        self.newest_counted_ms = 0  # newest event that the stream has counted; 0: none yet
        self.to_read: dict[str, int] = {}
        """Messages that must be read from Kafka before ranking, by feed (-1: number unknown). The feeds fill it in."""
        self.wall = wall
        self._grouped_by = {
            name
            for k in taste_keys(self.builder)
            for name in schema.windows.keys[k].columns
            if name in self.builder.needs("item")
        }

    def of_learner(self, name: str) -> Primary:
        """The same index for another learner: its settings and its versions, and its own progress in the topics."""
        other = copy(self)
        other.settings, other.note, other.to_read = self.settings.of_learner(name), None, {}
        return other

    @property
    def now_ms(self) -> int:
        return self.clock.at(self.wall())

    @property
    def index_complete(self) -> bool:
        """Whether items and their counts are read up to where the topics ended when this scorer began."""
        return not self.to_read.keys() & INDEX_TOPICS

    @property
    def newest_ms(self) -> int | None:
        """Time of the newest exposure in the serving model. None: it has learnt from none, so it has no age."""
        return self.note.event_ms if self.note is not None and self.note.event_ms > 0 else None

    def refresh_hot(self) -> bool:
        """Refreshes the heat of a bounded slice of the index; returns whether more remains."""
        return self.index.refresh_hot(self.now_ms) > 0

    def sorting(self) -> Callable[[], CandidateLists]:
        """A function that sorts recall's lists from a copy of the index: any thread may call it."""
        index = self.index
        columns = index.copies(self._grouped_by)
        alive, born_ms, heat = index.alive.copy(), index.born_ms.copy(), Heat(*(a.copy() for a in index.heat))
        return lambda: make_lists(self.builder, columns, alive, born_ms, heat)
