# shell
"""The measurements of a demo, as the report that ``--report`` writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from learner.training.trainer import BATCH_MS, BATCH_ROWS
from millrace.basics.atomic_files import write_whole
from millrace.basics.errors import StoreError
from millrace.basics.ranking_metrics import ROLLING_ROWS
from millrace.commands.demo.conservation import Ledger
from millrace.commands.demo.servedrows import LabelledExposures, auc_of, by_minute, curve, figures, first, headline
from millrace.commands.demo.settle import Settlement
from millrace.commands.demo.twin import LoggedPages, twin_scores
from millrace.commands.loop.monitor import SCORER_ERRORS, Monitor
from millrace.commands.loop.series import PROCESSES
from millrace.commands.loop.stage_times import ROLE_OF, WHOLE
from millrace.commands.loop.status import memory, percent
from millrace.contracts.events import ARMS
from millrace.contracts.settings import Settings
from millrace.processes.supervisor import Supervisor

Report = dict[str, Any]

FIRST = 20_000
"""Exposures that tell how a run begins: key ``first_20000``."""


def make_report(
    ledger: Ledger,
    settlement: Settlement,
    monitor: Monitor,
    supervisor: Supervisor,
    settings: Settings,
    started_wall_ms: int,
    pages: LoggedPages | None = None,
) -> Report:
    """The report of a closed run. Figures that were never measured are None.

    ``*_sent`` are the simulator's own counts, or counts of the topics if a restart lost those. Figures of quality are
    of settled exposures and the scores that their pages were served with, by arm; the plain ones are of the headline
    arm.

    Args:
        pages: the page logs of the run, for a twin to learn from; None: no twin.
    """
    f = settlement.picture.figures
    clock, rows = settings.event_clock(), ledger.rows()
    arm = headline(rows.where(rows.own))
    judged = rows.where(rows.own).judged
    served = judged.of(arm)
    twin = None if pages is None else _twin(rows, pages, settings)
    same = rows.judgeable & rows.own
    twin_figures = None if twin is None else figures(replace(rows, score=twin).where(same).of(arm))
    errors = {
        "requests": f["request_errors"] or 0.0,
        "scorer": f["scorer_errors"] or 0.0,
        "batches_skipped": f["skipped"] or 0.0,
        "predictions_not_finite": f["not_finite"] or 0.0,
    }
    sent = {
        "exposures_sent": (f["exposures"], ledger.exposures),
        "clicks_sent": (f["clicks"], ledger.clicks),
        "malformed_sent": (f["malformed"], ledger.malformed),
        "duplicates_sent": (f["duplicates"], ledger.duplicates),
    }
    first_auc = monitor.first_auc_wall_ms
    return {
        **{n: counted if settlement.simulator_restarted else round(own or 0) for n, (own, counted) in sent.items()},
        "positives": ledger.count("positive"),
        "negatives": ledger.count("negative"),
        "pending": ledger.count("pending"),
        "dead_letters": sum(ledger.dead.values()),
        "duplicates_dropped": round(f["duplicates_dropped"] or 0),
        "samples_trained": settlement.trained,
        "auc": curve(served, ROLLING_ROWS),
        "oracle_auc": auc_of(served.true, served.label),
        "log_loss": f["log_loss"],
        "first_20000": first(rows, FIRST),
        "model_versions": round(f["versions_served"] or 0),
        "errors": round(sum(errors.values())),
        "ctr_model": _ratio(f["page_clicks_model"], f["page_exposures_model"]),
        "ctr_control": _ratio(f["page_clicks_control"], f["page_exposures_control"]),
        "click_to_served_ms": {"p50": f["click_to_served_all_p50_ms"], "p99": f["click_to_served_all_p99_ms"]},
        # Samples that earlier runs left in the topics are learnt from, and judged, before this run opens.
        "seconds_to_first_auc": max(0, first_auc - started_wall_ms) / 1000 if first_auc else None,
        "gate": _gate(settlement),
        "without_user": {"not_read": f["unread_share"], "unknown": f["unknown_share"]},
        "click_stages_ms": {stage: times.figures() for stage, times in monitor.stages().items()},
        "conserved": None if settlement.forgotten else settlement.problem is None,
        "forgotten": settlement.forgotten,
        "problem": str(settlement.problem) if settlement.problem else None,
        "missing": ledger.missing if settlement.problem else [],
        "sent_from": "topics: the simulator was restarted" if settlement.simulator_restarted else "the simulator",
        "sent_in_topics": {n: counted for n, (_, counted) in sent.items()},
        "corrections": ledger.count("corrected"),
        "follow_ups": ledger.follow_ups,
        "actions": dict(ledger.actions),
        "dead_letters_by_reason": dict(ledger.dead),
        "dead_letters_elsewhere": dict(ledger.dead_elsewhere),
        "exposures_in_dead_letters": ledger.dead_only,
        "repeats": {"samples": ledger.repeated_samples, "dead_letters": ledger.repeated_dead},
        "arm": arm,
        "arms": {name: figures(judged.of(name)) for name in ARMS},
        "settled": len(judged),
        "shown_auc": f["auc"],
        "served_auc": auc_of(served.p, served.label),
        "baseline_auc": f["baseline_auc"],
        "calibration": f["calibration"],
        "twin_auc": None if twin_figures is None else twin_figures["auc"],
        "twin": twin_figures,
        "learner_auc": _history(settings),
        "label_ctr": {name: _mean(judged.of(name).label) for name in ARMS},
        "minutes": by_minute(rows, clock.at(started_wall_ms), 60_000 * clock.speed, twin),
        "page": monitor.series.columns(),
        "memory_peak_bytes": {
            name: max((v for v in monitor.series.column(f"memory_{name}") if v is not None), default=None)
            for name in (*PROCESSES, "total")
        },
        "began_wall_ms": started_wall_ms,
        "began_event_ms": clock.at(started_wall_ms),
        "settled_after_ms": ledger.waits.settled_ms,
        "ended_wall_ms": settlement.ended_wall_ms,
        "freshness_s": settlement.freshness_s,
        "errors_by_kind": {n: round(v) for n, v in errors.items()},
        "scorer_errors_by_kind": {
            n.removeprefix(SCORER_ERRORS): round(v or 0) for n, v in f.items() if n.startswith(SCORER_ERRORS) and v
        },
        "earlier_exposures": sum((p.sent | p.dead).bit_count() for p in ledger.pages.values() if not p.own),
        "restarts": supervisor.restarts,
        "event_hours": round(float(judged.ts_ms[-1] - judged.ts_ms[0]) / 3_600_000, 3) if len(judged) else 0.0,
        "speed": clock.speed,
        "seed": settings.seed,
        "label_policy": settings.label_policy,
        "seconds": round((settlement.picture.wall_ms - started_wall_ms) / 1000, 1),
        "metrics": sorted({n for role in monitor.roles.values() for n in role.families if n.startswith("millrace_")}),
    }


def _gate(settlement: Settlement) -> dict[str, Any]:
    picture = settlement.picture
    return {
        **{name: getattr(settlement.apart, name) for name in settlement.apart.__slots__},
        "discarded": round(picture.figures.get("discarded") or 0),
        "rollbacks": round(picture.figures.get("rollbacks") or 0),
        "state": picture.gate.state,
        "refused": {check: round(n) for check, n in picture.gate.refused.items()},
        "observed": {check: round(n) for check, n in picture.gate.observed.items()},
        "why": picture.gate.why or picture.gate.observes or "",
    }


def _twin(rows: LabelledExposures, pages: LoggedPages, settings: Settings) -> NDArray[np.float32]:
    """The twin's scores of ``rows``, (n,); NaN where a row is not settled."""
    scores = np.full(len(rows), np.nan, np.float32)
    scores[rows.settled] = twin_scores(
        rows.where(rows.settled),
        pages,
        settings.load_schema(),
        settings.spec(),
        settings.seed,
        BATCH_MS * settings.event_clock().speed,
        BATCH_ROWS,
    )
    return scores


def _history(settings: Settings) -> list[dict[str, Any]]:
    """The learner's record of its figures over time. An AUC is None while it had judged one class only."""
    try:
        lines = Path(settings.data, "learner", "history.jsonl").read_bytes().splitlines()
        found = [msgspec.json.decode(line, type=dict[str, Any]) for line in lines]
        return [{n: entry.get(n) for n in ("event_time", "auc", "learning_auc", "trained")} for entry in found]
    except (OSError, msgspec.MsgspecError, KeyError):
        return []


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def write_report(path: Path, report: Report) -> None:
    """Writes the report whole or not at all. Raises StoreError if the place cannot be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(msgspec.json.encode(report)), b"\n", durable=False)
    except OSError as error:
        raise StoreError(f"report '{path}' cannot be written ({error.strerror})", "name another file") from None


def _gate_lines(gate: dict[str, Any]) -> list[str]:
    if not gate["refused"]:
        observed = ", ".join(f"{check} {n:,}" for check, n in gate["observed"].items())
        return [f"the gate only observed; it would have refused: {observed}; last: {gate['why']}"] if observed else []
    refused = ", ".join(f"{check} {n:,}" for check, n in gate["refused"].items())
    return [
        f"the gate refused: {refused}; newest: {gate['why']}; {gate['quarantined']:,} samples quarantined, "
        f"{gate['released']:,} of them learnt later, {gate['rollbacks']} rollbacks"
    ]


def summary(report: Report) -> list[str]:
    def number(value: float | None, digits: int = 4) -> str:
        return "–" if value is None else f"{value:.{digits}f}"

    lacking = report["without_user"]

    served = report["click_to_served_ms"]
    curve, opening = report["auc"], report["first_20000"]
    shown = " to ".join(f"{number(p['auc'])} (oracle {number(p['oracle_auc'])})" for p in curve[:: len(curve) - 1 or 1])
    verdict = "every exposure is accounted for" if report["conserved"] else "NOT EVERY EXPOSURE IS ACCOUNTED FOR"
    if report["forgotten"]:
        verdict = f"not checked, since the broker's retention has deleted {report['forgotten']}"
    order = [
        f"{name} AUC {arm['page_auc']:.4f}, nDCG@10 {arm['ndcg']:.4f}"
        for name, arm in report["arms"].items()
        if arm["page_auc"] is not None
    ]
    twin = (
        "" if report["twin_auc"] is None else f", of a twin that had every label at once {number(report['twin_auc'])}"
    )
    stages = ", ".join(f"{name} {number(report['click_stages_ms'][name]['mean'], 0)}" for name in ROLE_OF)
    by_third = ", ".join(number(third[WHOLE]["p99"], 0) for third in report["click_thirds_ms"])
    return [
        f"{report['exposures_sent']:,} exposures in {report['event_hours']:.1f} hours of shop time: "
        f"{report['positives']:,} positive, {report['negatives']:,} negative ({report['corrections']:,} corrected "
        f"by a later click), {report['pending']:,} pending, "
        f"{report['exposures_in_dead_letters']:,} lost in dead letters: {verdict}",
        f"{report['malformed_sent']:,} malformed sent, {report['dead_letters']:,} dead letters; "
        f"{report['duplicates_sent']:,} duplicates sent, {report['duplicates_dropped']:,} dropped",
        f"rolling AUC of {report['arm']} pages {shown or '–'}; baseline at the end {number(report['baseline_auc'])}, "
        f"log loss {number(report['log_loss'])}, calibration {number(report['calibration'], 2)}",
        f"within pages: {', '.join(order) or 'no page with a click and without'}",
        f"AUC of all served scores {number(report['served_auc'])}{twin}; the page's last {number(report['shown_auc'])}",
        f"first {opening['rows']:,} exposures: log loss {number(opening['log_loss'])} "
        f"(oracle {number(opening['oracle_log_loss'])}), calibration {number(opening['calibration'], 2)}, "
        f"AUC {number(opening['auc'])}",
        *_gate_lines(report["gate"]),
        f"click rate {number(report['ctr_model'])} on model pages, {number(report['ctr_control'])} on random pages",
        f"pages made without their user: {percent(lacking['not_read'])} not read in time, "
        f"{percent(lacking['unknown'])} unknown",
        f"{report['model_versions']:,} versions served; a click reaches the weights that serve in "
        f"{number(served['p50'], 0)} ms (p50), {number(served['p99'], 0)} ms (p99; by thirds of the run "
        f"{by_third or '–'}), on average {stages}; "
        f"{report['errors']} errors; "
        f"restarts {sum(report['restarts'].values())}; all processes together held at most "
        f"{memory(report['memory_peak_bytes']['total'])}",
    ]
