# shell
"""What the learner shows: its Prometheus metrics, and ``history.jsonl``. docs/metrics.md describes each figure."""

from __future__ import annotations

import json
import math
import time
from collections import Counter as Tally
from collections.abc import Callable
from pathlib import Path

import structlog
from prometheus_client import Counter, Gauge, Histogram

from learner.served import Figures, Served
from learner.trainer import Trainer
from millrace.contracts.events import ARMS
from millrace.contracts.merit import known

log = structlog.get_logger("learner")

TRAINED = Counter("millrace_samples_trained_total", "Samples learnt from since this process started.")
REPEATED = Counter("millrace_samples_repeated_total", "Samples dropped because they had been learnt from.")
FOLLOW_UPS = Counter("millrace_samples_follow_ups_total", "Later actions on exposures already labelled.")
REFUSED = Counter("millrace_samples_refused_total", "Samples with an unusable label or weight.")
SKIPPED = Counter("millrace_batches_skipped_total", "Batches and messages not learnt from.", ["reason"])
ROLLING_AUC = Gauge("millrace_rolling_auc", "AUC of the scores served with, newest settled exposures.", ["arm"])
BASELINE_AUC = Gauge("millrace_baseline_auc", "AUC of the item's own smoothed click rate on the same rows.", ["arm"])
GROUPED_AUC = Gauge("millrace_grouped_auc", "AUC within pages, weighted by rows, on the same rows.", ["arm"])
LOG_LOSS = Gauge("millrace_rolling_log_loss", "Log loss of the same scores.", ["arm"])
CALIBRATION = Gauge("millrace_calibration", "Clicks predicted over clicks seen, same rows.", ["arm"])
CLICK_RATE = Gauge("millrace_click_rate", "Clicks per exposure, same rows.", ["arm"])
SERVED_ROWS = Gauge("millrace_served_rows", "Settled exposures that the figures of an arm are over.", ["arm"])
SEGMENT_AUC = Gauge("millrace_segment_auc", "AUC of the scores served with, by segment.", ["segment"])
SEGMENT_LOSS = Gauge("millrace_segment_log_loss", "Log loss of the same.", ["segment"])
SEGMENT_CALIBRATION = Gauge("millrace_segment_calibration", "Clicks predicted over clicks seen.", ["segment"])
LEARNING_AUC = Gauge("millrace_learning_auc", "AUC of what the learner predicts when a sample comes to be learnt.")
LEARNING_LOSS = Gauge("millrace_learning_log_loss", "Log loss of the same predictions.")
LEARNING_CALIBRATION = Gauge("millrace_learning_calibration", "Clicks predicted over clicks seen, same predictions.")
NOT_FINITE = Counter("millrace_predictions_not_finite_total", "Predictions that were no numbers, served or learning.")
DROPPED = Counter("millrace_served_rows_dropped_total", "Served rows left out because too many waited for a label.")
DRIFT = Counter("millrace_drift_total", "Changes of the mean log loss of served pages that ADWIN found.")
VERSION = Gauge("millrace_model_version", "Newest version published.")
TABLE_ROWS = Gauge("millrace_table_rows", "Rows in the sparse tables.")
LEARN_SECONDS = Histogram("millrace_learn_seconds", "Time to predict, judge and learn a micro-batch.")
SNAPSHOTS = Counter("millrace_snapshots_total", "Snapshots published.")
DELTAS = Counter("millrace_deltas_total", "Deltas published.")
DELTA_BYTES = Counter("millrace_delta_bytes_total", "Bytes of the bodies of deltas published.")
RETRIEVAL_LOSS = Gauge("millrace_learner_retrieval_loss", "Fading mean of the loss of the retrieval head.")
RETRIEVAL_CLICKS = Gauge("millrace_learner_retrieval_clicks", "Clicks that the retrieval head has learnt from.")
RETRIEVAL_REFUSED = Gauge("millrace_learner_retrieval_refused", "Clicks that the retrieval head refused.")
HELD_UP = Histogram("millrace_snapshot_holds_up_seconds", "Times for which copying a snapshot held learning up.")
LAG = Gauge("millrace_learner_lag", "Messages of samples not yet read.", ["partition"])

_COUNTS = {"trained": TRAINED, "repeated": REPEATED, "follow_ups": FOLLOW_UPS, "refused": REFUSED}
_BY_ARM = {
    "auc": ROLLING_AUC,
    "baseline_auc": BASELINE_AUC,
    "grouped_auc": GROUPED_AUC,
    "log_loss": LOG_LOSS,
    "calibration": CALIBRATION,
    "click_rate": CLICK_RATE,
}
_QUIET_SECONDS = 60.0

_RETRIEVAL = (RETRIEVAL_LOSS, RETRIEVAL_CLICKS, RETRIEVAL_REFUSED)
for _gauge in (LEARNING_AUC, LEARNING_LOSS, LEARNING_CALIBRATION, VERSION, *_RETRIEVAL):
    _gauge.set(math.nan)  # no value until there is one
for _arm in ARMS:
    SERVED_ROWS.labels(_arm).set(0)
    for _gauge in _BY_ARM.values():
        _gauge.labels(_arm).set(math.nan)


class Board:
    """Shows what a trainer has counted and found, each time that it is asked to.

    Args:
        trainer: with its counts so far, which are not shown: they are an earlier process's.
        history: the file that gets a line whenever something was learnt since the last.
        clock: seconds that only grow.
    """

    def __init__(self, trainer: Trainer, history: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._trainer, self._history, self._clock = trainer, history, clock
        self._shown = self._counted()
        self._told = -1
        self._loud_again = -math.inf

    def show(self) -> None:
        """Sets every metric of the trainer, and writes a line of history if something was learnt."""
        trainer = self._trainer
        counts = self._counted()
        new = counts - self._shown
        self._shown = counts
        for name, counter in _COUNTS.items():
            counter.inc(new[name])
        NOT_FINITE.inc(new["not_finite"])
        DROPPED.inc(new["dropped"])
        self._warn(new)
        TABLE_ROWS.set(trainer.model.rows)
        if (head := trainer.model.head) is not None:
            RETRIEVAL_LOSS.set(head.loss if head.clicks else math.nan)
            RETRIEVAL_CLICKS.set(head.clicks)
            RETRIEVAL_REFUSED.set(head.refused)
        learning = trainer.progressive
        LEARNING_AUC.set(learning.auc)
        LEARNING_LOSS.set(learning.log_loss)
        LEARNING_CALIBRATION.set(learning.calibration)
        arms = {} if trainer.served is None else _show_served(trainer.served)
        if counts["trained"] == self._told or not learning.rows:
            return
        self._told = counts["trained"]
        arm = "" if trainer.served is None else trainer.served.headline
        line = {
            "event_time": trainer.model.newest_ms,
            "arm": arm,
            **_known(arms.get(arm)),
            "learning_auc": known(learning.auc),
            "trained": self._told,
        }
        with self._history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def _counted(self) -> Tally[str]:
        counts = self._trainer.counts.copy()
        if (served := self._trainer.served) is not None:
            counts["not_finite"] += served.not_finite
            counts["dropped"] += served.dropped
        return counts

    def _warn(self, new: Tally[str]) -> None:
        """A line when predictions were no numbers, at most one a minute; and for each change that was found."""
        if new["not_finite"] and self._clock() >= self._loud_again:
            self._loud_again = self._clock() + _QUIET_SECONDS
            log.error("predictions are no numbers; they count as wrong", rows=new["not_finite"])
        if (served := self._trainer.served) is None:
            return
        for before, after in served.drift.found:
            DRIFT.inc()
            log.warning("drift: the mean log loss has changed", before=round(before, 4), after=round(after, 4))
        served.drift.found.clear()


def _show_served(served: Served) -> dict[str, Figures]:
    """Settles what is due, and sets the gauges of each arm and segment."""
    served.settle()
    arms = {arm: served.figures(arm) for arm in ARMS}
    for arm, figures in arms.items():
        SERVED_ROWS.labels(arm).set(figures.rows)
        for name, gauge in _BY_ARM.items():
            gauge.labels(arm).set(getattr(figures, name))
    for name, own in served.by_segment().items():
        SEGMENT_AUC.labels(name).set(own.auc)
        SEGMENT_LOSS.labels(name).set(own.log_loss)
        SEGMENT_CALIBRATION.labels(name).set(own.calibration)
    return arms


def _known(figures: Figures | None) -> dict[str, float | None]:
    """The figures of an arm for JSON."""
    rows = {"rows": 0 if figures is None else figures.rows}
    return {name: known(getattr(figures, name, math.nan)) for name in _BY_ARM} | rows
