# core
"""Checks whether a partition's state is ahead of the event clock when a worker takes it over. Pure.

An event clock never goes back while a loop runs, not even in a crash or when a partition changes hands. It goes back
when the same data folder gets another clock, as when a log is played at 240 times the speed and the loop then goes
on in real time. The watermark may then be hours ahead, so that every event would be late.

=======================================  ==============================================================================
what is ahead of the clock               what is done
=======================================  ==============================================================================
the newest event, by more than it may    :class:`ClockError`. Windows, models and item tiles hold the time to come as
                                         well, so nothing that the stream does alone can mend it. The line says how.
the watermark only, moved by silence     :class:`.SetBack`: the watermark returns to the newest event less
                                         the disorder. Silence leaves no other trace than the labels that it decided.
=======================================  ==============================================================================

The state of a loop that keeps its clock is ahead of it by less. An event is accepted up to ``MAX_AHEAD_MS`` before
the clock (:meth:`stream.partition.partition.Partition.take`), and silence moves the watermark to the clock at most.
Both depend on wall clocks, which differ between machines and are corrected now and then: :data:`SKEW_S` is allowed
for that.
"""

from __future__ import annotations

from millrace.basics.durations import span_name, utc
from millrace.basics.errors import ClockError
from millrace.contracts.clock import EventClock
from stream.partition.partition import Partition

SKEW_S = 60.0
"""Allowed difference of wall clocks, seconds."""


def is_set_back(partition: Partition, clock: EventClock, wall_s: float) -> bool:
    """Whether :meth:`Partition.set_back` must follow the advance that the checkpoint announces, if any, before any
    message is taken. The new watermark depends on the checkpoint alone, so a worker that crashes right after its
    start comes to the same results at the next.

    Args:
        partition: as its newest checkpoint has it.
        wall_s: the present, Unix time in seconds.

    Raises:
        ClockError: events themselves are ahead of the clock.
    """
    now_ms = clock.at(round(wall_s * 1000))
    latest_ms = now_ms + round(SKEW_S * 1000 * clock.speed)
    policy, newest_ms = partition.policy, partition.newest_ms
    if newest_ms > latest_ms + policy.ahead_ms:
        raise ClockError(
            f"partition {partition.number} has taken events up to {utc(newest_ms)}, {span_name(newest_ms - now_ms)}"
            f" ahead of the event clock ({utc(now_ms)}), where {policy.ahead_ms / 60_000:g} min are allowed: until then"
            " each event would be late",
            "go on by the clock that the data folder was filled by (MILLRACE_CLOCK), or name a new data folder"
            " (MILLRACE_DATA): the topics are then read again, without the events that are ahead",
        )
    if newest_ms <= 0:
        return False
    reached_ms = partition.watermark_ms
    if partition.advance_ms is not None:
        reached_ms = max(reached_ms, partition.advance_ms - policy.disorder_ms)
    return reached_ms > max(newest_ms, latest_ms) - policy.disorder_ms
