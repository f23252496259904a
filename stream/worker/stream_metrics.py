# shell
"""What the stream role shows to Prometheus; docs/reference/metrics.md describes each figure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import numpy as np
from prometheus_client import Counter, Gauge, Histogram

from millrace.contracts.samples import FOLLOW_UP, SampleBatch
from millrace.processes.tally import CLICK_STAGE
from stream.partition.partition import Partition, StepOutput
from stream.worker.turn import INPUTS, Reads

EVENTS_IN = Counter("millrace_events_total", "Events taken, by type.", ["type"])
EXPOSURES_IN = Counter("millrace_exposures_total", "Distinct exposures taken, an item of a page each.")
SAMPLES_OUT = Counter("millrace_samples_total", "Samples sent, by kind.", ["kind"])
DUPLICATES = Counter("millrace_duplicates_dropped_total", "Events that had been taken before.")
DEAD = Counter("millrace_dead_letters_total", "Messages that could not be used, by reason.", ["reason"])
WARNINGS = Counter(
    "millrace_profile_warnings_total", "Users and items that are used with a warning, by kind.", ["kind"]
)
FORGOTTEN = Counter("millrace_users_forgotten_total", "Deletions of users taken.")
LATE = Counter("millrace_late_events_total", "Events that came after the watermark had passed them.")
AHEAD = Counter("millrace_ahead_events_total", "Events dated ahead of the clock, held until their time comes.")
UNFIT = Counter(
    "millrace_unfit_values_total", "Values negative, not finite or too great for the mean that they belong to."
)
PENDING = Gauge("millrace_pending_exposures", "Exposures that wait for their label.", ["partition"])
WAITING = Gauge("millrace_waiting_actions", "Actions that wait for their exposure or its page log.", ["partition"])
WATERMARK = Gauge("millrace_watermark_seconds", "Event time up to which everything has come.", ["partition"])
AWAITED = Gauge("millrace_partitions_awaited", "Partitions of this worker whose state is being resumed.")
RESUMED = Counter("millrace_partitions_resumed_total", "Partitions whose state was read from checkpoints.")
WINDOW_KEYS = Gauge("millrace_window_keys", "Keys with counts, over all partitions of this worker.")
LAG = Gauge("millrace_stream_lag", "Messages not read yet.", ["topic", "partition"])
CHECKPOINTS = Counter("millrace_checkpoints_total", "Checkpoints written.")
CHECKPOINT_BYTES = Counter("millrace_checkpoint_bytes_total", "Bytes of checkpoints written.")
ARRIVED_BYTES = Counter("millrace_arrived_bytes_total", "Bytes of messages that checkpoints cover.")
SETTLED = Gauge("millrace_settled_pages", "Pages kept without their page log.", ["partition"])
RECALLED = Counter("millrace_page_logs_recalled_total", "Page logs read again for something that came late.")
PAGE_LOGS_GONE = Counter("millrace_page_logs_gone_total", "Page logs that could not be read again.")
COCLICK_ITEMS = Gauge("millrace_coclick_items", "Items that have been clicked together with others.", ["partition"])
COCLICK_BYTES = Counter("millrace_coclick_bytes_total", "Bytes of lists of co-clicks sent.")
CHECKPOINT_SECONDS = Histogram("millrace_checkpoint_seconds", "From taking a checkpoint to its commit.")

_TOTALS = {
    "exposures": EXPOSURES_IN,
    "duplicates": DUPLICATES,
    "late": LATE,
    "ahead": AHEAD,
    "unfit": UNFIT,
    "recalled": RECALLED,
    "forgotten": FORGOTTEN,
    "page_logs_gone": PAGE_LOGS_GONE,
}


def count(output: StepOutput) -> None:
    for name, n in output.counts.items():
        group, _, label = name.partition(".")
        if group == "events":
            EVENTS_IN.labels(label).inc(n)
        elif group == "samples":
            SAMPLES_OUT.labels(label).inc(n)
        elif name in _TOTALS:
            _TOTALS[name].inc(n)
    for dead_letter in output.dead:
        DEAD.labels(dead_letter.reason).inc()
    for warning in output.warnings:
        WARNINGS.labels(warning.kind).inc()


def joined(samples: SampleBatch, now_ms: int) -> None:
    """Observes how long the clicks took to these samples, which are sent now (wall time)."""
    sent_ms = samples.origin_ms[(samples.origin_ms > 0) & (samples.kind != FOLLOW_UP)]
    if len(sent_ms):
        CLICK_STAGE.observe(np.maximum(now_ms - sent_ms, 0) / 1000, label="joined")


def show(partition: Partition, reads: Reads) -> None:
    number = partition.number
    PENDING.labels(number).set(partition.pending)
    WAITING.labels(number).set(partition.join.held)
    SETTLED.labels(number).set(len(partition.join.settled))
    COCLICK_ITEMS.labels(number).set(len(partition.coclicks))
    WATERMARK.labels(number).set((partition.watermark_ms or float("nan")) / 1000)  # 0: no event yet
    for topic, read in reads.items():
        if read is not None:
            LAG.labels(topic, number).set(max(0, read.end - partition.offsets.get(topic, 0)))


def forget(numbers: Iterable[int]) -> None:
    for number in numbers:
        for gauge, labels in (
            (PENDING, ()),
            (WAITING, ()),
            (SETTLED, ()),
            (COCLICK_ITEMS, ()),
            (WATERMARK, ()),
            *((LAG, (topic,)) for topic in INPUTS),
        ):
            with contextlib.suppress(KeyError):
                gauge.remove(*labels, str(number))
