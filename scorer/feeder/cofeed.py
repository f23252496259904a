# shell
"""The feed of co-clicks: a thread of the feeder that gives the workers the neighbours of items.

::

    features.coclicks ─ from a quarter of an hour before its end ─► CoClicks ── every 10 s, if anything changed ─┐
    item index ── ids of new rows ─────────────────────────────────────┘            "neighbours", to all workers ◄┘

The stream repeats all its counts within ten minutes, so older messages are not needed. Readiness does not wait for this
feed: other sources fill a page without neighbours. Neighbours also change when an event day begins, because counts of
the oldest day then expire without a message.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from millrace.basics.durations import DAY_MS
from millrace.basics.errors import one_line
from millrace.contracts import coclick_message
from millrace.contracts.events import BadEventError, Id
from millrace.contracts.topics import FEATURES_COCLICKS
from millrace.processes.wall import wall_ms
from scorer.feeder.kafka_feed import FeedConsumer, FeedRecord, TopicFeed, TopicSource
from scorer.feeder.state import FeederState, Stopped
from scorer.ipc.link import Packet
from scorer.ipc.meters import COCLICK_LISTS, NEIGHBOURS
from scorer.recall.neighbours import CoClickFeed

log = structlog.get_logger("scorer")

BACK_MS = 15 * 60_000
"""Reading begins so long before the topic's end."""
RENEW_SECONDS = 10.0
"""Minimum between two sets of neighbours."""
SHARE = 20.0
"""The minimum is also so many times the duration of the last computation."""
IDS = 4096
"""Ids of the index that are copied at a time."""


class CoFeed(TopicFeed):
    """See the module's text.

    Args:
        keep: sends a packet to all workers, now and as they start (:meth:`.publisher.IndexPublisher.keep`).
        steady: monotonic seconds.
    """

    topic = FEATURES_COCLICKS
    what = "co-clicks"

    def __init__(
        self,
        state: FeederState,
        keep: Callable[[str, Packet], None],
        broker: TopicSource | None = None,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(state, broker=broker)
        self.merged = CoClickFeed()
        self._keep, self._steady = keep, steady
        self._due_s = float("-inf")
        self._day = 0  # of the neighbours that workers have

    def start_up(self) -> None:
        if not self.position:
            self.position = self._broker.since(self.topic, wall_ms() - BACK_MS)

    def take(self, records: list[FeedRecord]) -> None:
        for _, value, _ in records:
            try:
                self.merged.take(*coclick_message.unpack(value))
            except BadEventError as error:
                self.bad("co-clicks", error)

    def turn(self) -> bool:
        busy = super().turn()
        if self._steady() >= self._due_s:
            began = self._steady()
            try:
                self.renew()
            except Stopped:
                raise
            except Exception as error:  # workers go on with the neighbours that they have
                self.merged.changed = True
                self.meters.error("neighbours")
                log.error("the workers' neighbours could not be renewed", error=one_line(error))
            ended = self._steady()
            self._due_s = ended + max(RENEW_SECONDS, SHARE * (ended - began))
        return busy

    def renew(self) -> None:
        """Sends the current neighbours if they may have changed."""
        merged, index = self.merged, self.primary.index
        if not len(merged):
            return

        def next_ids() -> list[Id]:
            return index.ids[merged.known : merged.known + IDS]

        while ids := self.state.alone(next_ids):
            merged.know(ids)
        newest = max(merged.newest_day, self.primary.newest_counted_ms // DAY_MS)  # a day may have no co-clicks
        day = min(newest, self.primary.now_ms // DAY_MS + 1)  # whoever says it is later is wrong
        if merged.changed or day != self._day:
            arrays, self._day = merged.arrays(day), day
            self._keep("neighbours", Packet("neighbours", None, arrays))
            COCLICK_LISTS.set(len(merged))
            NEIGHBOURS.set(len(arrays["near"]))

    def _look_how_far(self, reader: FeedConsumer, busy: bool) -> None:
        """Readiness does not depend on this feed."""
        self.caught_up = True
