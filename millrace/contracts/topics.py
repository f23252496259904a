# core
"""The topics, in one place.

``events``, ``page_logs`` and ``users`` have the same number of partitions and the same partitioner, so that one worker
owns a user whole. They are created before any role consumes: a broker that creates topics by itself may give them
unequal counts, and then joins are not co-partitioned. ``samples`` has one partition: what is learnt has one order.

Events, pages and samples are kept for :data:`KEPT_DAYS`, for readers that come later (repair, bisection, a shadow, a
learner that was away). The embedded broker keeps less where its topics would exceed the setting ``broker_gib``.

Code and dead letters use these names. At the broker the setting ``prefix`` stands before each of them
(:meth:`millrace.contracts.settings.Settings.topic`), so that several loops can share one Kafka.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from millrace.basics.durations import DAY_MS, HOUR_MS

EVENTS = "events"
PAGE_LOGS = "page_logs"
USERS = "users"
ITEMS = "items"
SAMPLES = "samples"
DEAD_LETTERS = "dead-letters"
FEATURES_ITEMS = "features.items"
FEATURES_COCLICKS = "features.coclicks"
MODEL_DELTAS = "model.deltas"
TRUTH = "truth"

KEPT_DAYS = 7
"""Messages are kept for so long, from when the broker took them."""
_KEPT = (("retention.ms", str(KEPT_DAYS * DAY_MS)),)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic: ``partitions`` of 0 means "as many as the settings say"."""

    name: str
    partitions: int
    config: tuple[tuple[str, str], ...] = ()


TOPICS: tuple[Topic, ...] = (
    Topic(EVENTS, 0, _KEPT),
    Topic(PAGE_LOGS, 0, _KEPT),
    Topic(USERS, 0, (("cleanup.policy", "compact"),)),
    Topic(SAMPLES, 1, _KEPT),
    Topic(ITEMS, 1, (("cleanup.policy", "compact"),)),
    Topic(DEAD_LETTERS, 1, (("retention.ms", str(30 * DAY_MS)),)),
    # As long as the longest window: an older message has no live tile left. Reading the topic whole rebuilds the index.
    Topic(FEATURES_ITEMS, 1, (("retention.ms", str(31 * DAY_MS)),)),
    # Everything is published again within ten minutes.
    Topic(FEATURES_COCLICKS, 1, (("retention.ms", str(HOUR_MS)),)),
    # The learner deletes records that its newest two snapshots do not need. This is for brokers that cannot.
    Topic(MODEL_DELTAS, 1, _KEPT),
    Topic(TRUTH, 1, _KEPT),
)


def miscounted(topics: Mapping[str, Topic], present: Mapping[str, int], many: int) -> list[tuple[str, str]]:
    """Topics that have another number of partitions than they need: what is wrong, and the remedy. ``topics`` and
    ``present``, the partitions that there are, by the broker's names; ``many``: by the settings.

    >>> miscounted({"samples": Topic(SAMPLES, 1)}, {"samples": 4, "others": 2}, many=4)
    [("topic 'samples' has 4 partitions where 1 is needed", 'remove the topic, which is made anew')]
    """
    found = []
    for name, topic in topics.items():
        needed = topic.partitions or many
        if present.get(name, needed) != needed:
            text = (
                f"topic '{name}' has {present[name]} partitions where {needed} {'is' if needed == 1 else 'are'} needed"
            )
            ways = "" if topic.partitions else f"set MILLRACE_PARTITIONS to {present[name]}, or "
            found.append((text, f"{ways}remove the topic, which is made anew"))
    return found


def unsafe_prefix(prefix: str) -> bool:
    """Whether a topic with this prefix could have the name of another topic, of a loop with a shorter prefix or none.

    >>> unsafe_prefix("features."), unsafe_prefix("shop.")  # features. + items is the topic features.items
    (True, False)
    >>> unsafe_prefix("model.deltas.")  # of a learner named "events"
    True
    """
    names = {topic.name for topic in TOPICS}
    if prefix.endswith(f"{MODEL_DELTAS}."):  # as a learner of another loop, by the name of one of our topics
        return True
    return any(prefix.endswith(long.removesuffix(n)) for n in names for long in names - {n} if long.endswith(n))
