# shell
"""The learner's Prometheus metrics, and ``history.jsonl``. docs/reference/metrics.md describes each figure."""

from __future__ import annotations

import json
import math
import time
from collections import Counter as Tally
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import Counter, Gauge, Histogram

from learner.evaluation.served_scores import ServedExposures, ServedFigures
from learner.gate.verdicts import CHECKS
from learner.training.trainer import Trainer
from millrace.basics.ranking_metrics import known
from millrace.contracts.events import ARMS

log = structlog.get_logger("learner")

TRAINED = Counter("millrace_samples_trained_total", "Samples learnt from since this process started.")
REPEATED = Counter("millrace_samples_repeated_total", "Samples dropped because they had been learnt from.")
FOLLOW_UPS = Counter("millrace_samples_follow_ups_total", "Later actions on exposures already labelled.")
ALONE = Counter(
    "millrace_samples_alone_total", "Late clicks that came without negatives, as where pages stop; not learnt."
)
UNREAD = Counter("millrace_samples_unread_total", "Samples of pages whose user was not read in time; not learnt.")
OTHERS = Counter("millrace_samples_others_total", "Samples of pages that other models made; not learnt, as set.")
REFUSED = Counter("millrace_samples_refused_total", "Samples with an unusable label or weight.")
SKIPPED = Counter("millrace_batches_skipped_total", "Batches and messages not learnt from.", ["reason"])
ROLLING_AUC = Gauge("millrace_rolling_auc", "AUC of the scores served with, newest settled exposures.", ["arm"])
GROUPED_AUC = Gauge("millrace_grouped_auc", "AUC within pages, weighted by rows, on the same rows.", ["arm"])
PAGE_AUC = Gauge("millrace_page_auc", "AUC within pages, mean over pages, on the same rows.", ["arm"])
NDCG = Gauge("millrace_ndcg", "nDCG@10 of pages, mean over pages, on the same rows.", ["arm"])
BASELINE_AUC = Gauge("millrace_baseline_auc", "AUC of the item's own smoothed click rate on the same rows.", ["arm"])
BASELINE_GROUPED_AUC = Gauge("millrace_baseline_grouped_auc", "AUC within pages of that rate, by rows.", ["arm"])
BASELINE_PAGE_AUC = Gauge("millrace_baseline_page_auc", "AUC within pages of that rate, mean over pages.", ["arm"])
BASELINE_NDCG = Gauge("millrace_baseline_ndcg", "nDCG@10 of that rate, mean over pages.", ["arm"])
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
LATE_CLICKS = Gauge("millrace_late_click_ratio", "Mean prediction of late clicks over that of early ones.")
OUTCOME_AUC = Gauge(
    "millrace_outcome_auc",
    "AUC of an outcome, predicted when its sample came to be learnt; told by age: of whether it had come by then.",
    ["outcome"],
)
OUTCOME_LOSS = Gauge("millrace_outcome_log_loss", "Log loss of the same; none where told by age.", ["outcome"])
OUTCOME_CALIBRATION = Gauge("millrace_outcome_calibration", "Predicted over seen; none where told by age.", ["outcome"])
OUTCOME_ROWS = Gauge("millrace_outcome_rows", "Told outcomes that these figures are over.", ["outcome"])
NOT_FINITE = Counter("millrace_predictions_not_finite_total", "Predictions that were no numbers, served or learning.")
DROPPED = Counter("millrace_served_rows_dropped_total", "Served rows left out because too many waited for a label.")
DRIFT = Counter("millrace_drift_total", "Changes of the mean excess log loss of served pages that ADWIN found.")
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
LAG = Gauge("millrace_learner_lag", "Messages of samples not yet read.")

# The gate: what learner/promotion/promotion.py decided.
VERDICTS = Counter("millrace_gate_verdicts_total", "Verdicts of the gate by check.", ["check", "verdict"])
STATE = Gauge("millrace_gate_state", "1 for the state that the gate is in.", ["state"])
PROMOTED_AT = Gauge("millrace_gate_last_promotion_timestamp_seconds", "Unix time of the newest promotion.")
PROMOTED = Gauge("millrace_gate_promoted_version", "Newest version that the gate promoted.")
QUARANTINED = Counter("millrace_quarantined_rows_total", "Samples that were put into quarantine.", ["check"])
IN_QUARANTINE = Gauge("millrace_quarantine_rows", "Samples that are in quarantine now.")
ENDED = Counter("millrace_quarantine_ended_rows_total", "Samples that left quarantine: learnt, or discarded.", ["how"])
HELD_OUT = Counter("millrace_samples_held_out_total", "Samples of held-out pages, never learnt from.")
TAUGHT_OUT = Counter("millrace_teach_limited_rows_total", "Samples beyond what one id may teach in an hour; dropped.")
SERVED_OUT = Counter(
    "millrace_served_limited_rows_total",
    "Exposures of users beyond their training limit: in no figure of served pages.",
)
SET_ASIDE = Counter("millrace_samples_rolled_back_total", "Samples that a person's rollback took out of the model.")
TAKEN_BACK = Counter("millrace_samples_taken_back_total", "Samples learnt from, and taken out by a rollback.")
WAY_BACK = Counter("millrace_rollbacks_total", "Returns to a promoted state, by who asked.", ["by"])
HELDOUT_ROWS = Gauge("millrace_heldout_rows", "Held-out samples that snapshots are judged by.")
HELDOUT_AUC = Gauge("millrace_heldout_auc", "AUC on held-out samples of the newest model, and the anchor.", ["model"])
HELDOUT_LOSS = Gauge("millrace_heldout_log_loss", "Log loss on the same samples.", ["model"])

SKIPS = (
    *("unreadable", "loss_not_finite", "loss_exploded", "gradient_not_finite", "gradient_exploded"),
    *("model_invalid", "model_raised"),
)
"""Reasons for a skipped batch; a model of one's own may name others."""
_COUNTS = {
    "trained": TRAINED,
    "repeated": REPEATED,
    "follow_ups": FOLLOW_UPS,
    "refused": REFUSED,
    "unread": UNREAD,
    "alone": ALONE,
    "others": OTHERS,
    "held_out": HELD_OUT,
    "over_limit": TAUGHT_OUT,
    "served_over_limit": SERVED_OUT,
    "set_aside": SET_ASIDE,
}
_BY_ARM = {
    "auc": ROLLING_AUC,
    "grouped_auc": GROUPED_AUC,
    "page_auc": PAGE_AUC,
    "ndcg": NDCG,
    "baseline_auc": BASELINE_AUC,
    "baseline_grouped_auc": BASELINE_GROUPED_AUC,
    "baseline_page_auc": BASELINE_PAGE_AUC,
    "baseline_ndcg": BASELINE_NDCG,
    "log_loss": LOG_LOSS,
    "calibration": CALIBRATION,
    "click_rate": CLICK_RATE,
}
_BY_LABEL = {"quarantined": QUARANTINED, "way_back": WAY_BACK}
"""Counts of a trainer with a label, as ``quarantined:CHECK``."""

_QUIET_SECONDS = 60.0

STATES = ("promoting", "probation", "blocked", "held")
"""Of the gate (:mod:`learner.promotion.promotion`)."""

WAYS_BACK = ("gate", "person")
"""Who asks for a rollback."""

_HELDOUT = {"newest": ("auc", "log_loss"), "anchor": ("anchor_auc", "anchor_log_loss")}
"""The model judged, and the names of its figures in :class:`~learner.gate.heldout.Judgement`."""

_RETRIEVAL = (RETRIEVAL_LOSS, RETRIEVAL_CLICKS, RETRIEVAL_REFUSED)
for _gauge in (
    LEARNING_AUC,
    LEARNING_LOSS,
    LEARNING_CALIBRATION,
    LATE_CLICKS,
    VERSION,
    PROMOTED,
    PROMOTED_AT,
    LAG,
    *_RETRIEVAL,
):
    _gauge.set(math.nan)  # no value until there is one
for _model in _HELDOUT:
    HELDOUT_AUC.labels(_model).set(math.nan)
    HELDOUT_LOSS.labels(_model).set(math.nan)
# From 0 on, so that the first of a kind is an increase too.
for _state in STATES:
    STATE.labels(_state).set(0)
for _why in SKIPS:
    SKIPPED.labels(_why)
for _check in CHECKS:
    QUARANTINED.labels(_check)
    VERDICTS.labels(_check, "refused")
    VERDICTS.labels(_check, "observed")
for _by in WAYS_BACK:
    WAY_BACK.labels(_by)
for _how in ("released", "discarded"):
    ENDED.labels(_how)
for _arm in ARMS:
    SERVED_ROWS.labels(_arm).set(0)
    for _gauge in _BY_ARM.values():
        _gauge.labels(_arm).set(math.nan)


class Board:
    """Shows what a trainer has counted and found, at each :meth:`show`.

    Args:
        trainer: its counts so far are an earlier process's, and are not shown.
        history: the file that gets a line whenever something was learnt since the last.
        clock: seconds that only grow.
        wall: Unix time in seconds.
    """

    def __init__(
        self,
        trainer: Trainer,
        history: Path,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._trainer, self._history, self._clock, self._wall = trainer, history, clock, wall
        self._shown = self._counted()
        self._verdicts: Tally[tuple[str, str]] = Tally()
        self._promoted: object = None  # the newest promotion that was shown
        self._told = -1
        self._loud_again = -math.inf

    def show(
        self, gate: Mapping[str, Any] | None = None, verdicts: Mapping[tuple[str, str], int] | None = None
    ) -> None:
        """Sets every metric of the trainer, and writes a line of history if something was learnt. ``gate``:
        ``state`` of :class:`learner.promotion.promotion.Promotion`, if any. ``verdicts``: its verdicts so far, by check
        and verdict."""
        trainer = self._trainer
        counts = self._counted()
        new = counts - self._shown
        TAKEN_BACK.inc(max(0, self._shown["trained"] - counts["trained"]))  # counters cannot fall
        self._shown = counts
        for name, counter in _COUNTS.items():
            counter.inc(new[name])
        if gate is not None:
            self._show_gate(gate, Tally(verdicts or {}), new)
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
        LATE_CLICKS.set(trainer.late_clicks.ratio)
        by_age = {one.name for one in trainer.model.schema.outcome if one.told != "wait"}
        for name, told in trainer.outcomes.items():
            final = name not in by_age  # else half of the zeros are known, and not all of the ones
            OUTCOME_AUC.labels(name).set(told.auc)
            OUTCOME_LOSS.labels(name).set(told.log_loss if final else math.nan)
            OUTCOME_CALIBRATION.labels(name).set(told.calibration if final else math.nan)
            OUTCOME_ROWS.labels(name).set(told.rows)
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

    def _show_gate(self, gate: Mapping[str, Any], verdicts: Tally[tuple[str, str]], new: Tally[str]) -> None:
        for (check, verdict), n in (verdicts - self._verdicts).items():
            VERDICTS.labels(check, verdict).inc(n)
        self._verdicts = verdicts
        for state in STATES:
            STATE.labels(state).set(state == gate["state"])
        version = gate["promoted_version"]
        known_version = version is not None and version >= 0
        PROMOTED.set(version if known_version else math.nan)
        newest = (version, gate["promoted_ms"])
        if not known_version:
            PROMOTED_AT.set(math.nan)  # as PROMOTED: an earlier learner of this process may have left its own
        elif newest != self._promoted:
            self._promoted = newest
            PROMOTED_AT.set(self._wall())
        IN_QUARANTINE.set(gate["quarantined_rows"])
        for name, n in new.items():
            what, _, label = name.partition(":")
            if what in _BY_LABEL and label:
                _BY_LABEL[what].labels(label).inc(n)
        for how in ("released", "discarded"):
            ENDED.labels(how).inc(new[how])
        heldout = gate["heldout"]
        HELDOUT_ROWS.set(heldout.get("rows", 0))
        for model, (auc, loss) in _HELDOUT.items():
            HELDOUT_AUC.labels(model).set(_number(heldout.get(auc)))
            HELDOUT_LOSS.labels(model).set(_number(heldout.get(loss)))

    def _counted(self) -> Tally[str]:
        counts = self._trainer.counts.copy()
        if (served := self._trainer.served) is not None:
            counts["not_finite"] += served.not_finite
            counts["dropped"] += served.dropped
            counts["served_over_limit"] += served.over_limit
        return counts

    def _warn(self, new: Tally[str]) -> None:
        """Logs predictions that were no numbers, at most every minute, and each change that was found."""
        if new["not_finite"] and self._clock() >= self._loud_again:
            self._loud_again = self._clock() + _QUIET_SECONDS
            log.error("predictions are no numbers; they count as wrong", rows=new["not_finite"])
        if (served := self._trainer.served) is None:
            return
        for before, after in served.drift.found:
            DRIFT.inc()
            worse = abs(after) > abs(before)
            log.warning(
                f"drift: predictions fit clicks {'worse' if worse else 'better'} than before",
                before=round(before, 4),
                after=round(after, 4),
                remedy="compare segments (docs/internals/learner.md); 'millrace model bisect' finds when it began"
                if worse
                else "nothing is to be done",
            )
        served.drift.found.clear()


def _show_served(served: ServedExposures) -> dict[str, ServedFigures]:
    served.settle()
    arms = {arm: served.figures(arm) for arm in ARMS}
    for arm, figures in arms.items():
        SERVED_ROWS.labels(arm).set(figures["rows"])
        for name, gauge in _BY_ARM.items():
            gauge.labels(arm).set(figures[name])
    for name, own in served.by_segment().items():
        SEGMENT_AUC.labels(name).set(own.auc)
        SEGMENT_LOSS.labels(name).set(own.log_loss)
        SEGMENT_CALIBRATION.labels(name).set(own.calibration)
    return arms


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _known(figures: ServedFigures | None) -> dict[str, float | None]:
    found = figures or {"rows": 0}
    return {name: known(found.get(name, math.nan)) for name in _BY_ARM} | {"rows": found["rows"]}
