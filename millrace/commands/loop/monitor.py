# shell
"""One picture of the running loop: every role's ``/metrics``, the scorer's and the learner's ``/model``, each second.

Terminal view, live page and report all read this picture, so they cannot disagree. While a role restarts and does not
answer, its last figures stay. Its counters go on from their last values, so a total never falls.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from millrace.commands.loop.answers import STAGE
from millrace.commands.loop.gatestatus import VERDICTS, Gate, gate_of
from millrace.commands.loop.series import PAGE_ORDER, PROCESSES, Series
from millrace.commands.loop.stage_times import METRIC, ROLE_OF, SERVED, WHOLE, Stages, StageTimes
from millrace.contracts.clock import EventClock
from millrace.evidence.learners import LEARNER_ROLE

Labels = tuple[tuple[str, str], ...]

_STARTED = "process_start_time_seconds"
LOOK_SECONDS = 1.0
_SAME_START_S = 0.05
"""Start times that differ by less are of one process: a restart takes at least a quarter of a second."""


class RoleMetrics:
    """The metrics of one role over all its restarts: gauges as they are, counters made continuous."""

    def __init__(self) -> None:
        self._now: dict[tuple[str, Labels], float] = {}
        self._before: dict[tuple[str, Labels], float] = {}  # the values that counters had reached before restarts
        self._cumulative: set[str] = set()
        self.families: set[str] = set()
        self.lives = 0
        self._started: float | None = None  # when the present life began

    def update(self, text: str) -> None:
        now: dict[tuple[str, Labels], float] = {}
        for family in text_string_to_metric_families(text):
            if not family.name.endswith("_created"):  # the client's own addition to each counter
                self.families.add(family.name)
            for sample in family.samples:
                now[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
                if family.type in ("counter", "histogram", "summary"):
                    self._cumulative.add(sample.name)
        started, known = now.get((_STARTED, ())), self._started
        # An answer without a start time tells of no new life: to take it for one would count everything twice.
        if started is not None and (known is None or abs(started - known) > _SAME_START_S):
            self.lives += 1
            for key, value in self._now.items() if known is not None else ():
                if key[0] in self._cumulative:
                    self._before[key] = self._before.get(key, 0.0) + value
            self._started = started
        self._now = now

    def gauge(self, name: str, **labels: str) -> float | None:
        """A gauge now: the sum over the label sets that carry ``labels``. None when there is no such set, or while it
        is NaN, because the role has measured nothing."""
        wanted = labels.items()
        found = [v for (n, have), v in self._now.items() if n == name and wanted <= dict(have).items()]
        total = sum(found)
        return total if found and math.isfinite(total) else None

    def total(self, name: str, **labels: str) -> float:
        """A counter (by its full name, with ``_total``, ``_sum`` or ``_count``) over all restarts; 0 if never seen."""
        wanted = labels.items()
        return sum(
            value
            for part in (self._now, self._before)
            for (n, have), value in part.items()
            if n == name and wanted <= dict(have).items()
        )

    def gauges(self, name: str, label: str) -> dict[str, float]:
        return {dict(have).get(label, ""): value for (n, have), value in self._now.items() if n == name}

    def by_label(self, name: str, label: str, **others: str) -> dict[str, float]:
        """A counter's total for each value of ``label``, over the label sets that carry ``others``."""
        values = {dict(have).get(label, "") for part in (self._now, self._before) for n, have in part if n == name}
        return {value: self.total(name, **{label: value}, **others) for value in sorted(values)}


@contextmanager
def _answered(
    url: str, timeout_seconds: float, headers: Mapping[str, str] | None = None
) -> Iterator[tuple[HTTPResponse, float]]:
    """The answer to a plain HTTP GET, and when it was asked (Unix s). Raises OSError where there is none."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise OSError(f"'{url}' is no http://host:port")
    connection = HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_seconds)
    try:
        connection.connect()
        asked_s = time.time()
        connection.request("GET", parts.path or "/", headers=dict(headers or {}))
        yield connection.getresponse(), asked_s
    except HTTPException as error:
        raise OSError(f"{url}: {error!r}") from None
    finally:
        connection.close()


def fetch(url: str, timeout_seconds: float = 1.0, headers: Mapping[str, str] | None = None) -> str:
    """The body of a plain HTTP GET. Raises OSError without an answer of status 200."""
    with _answered(url, timeout_seconds, headers) as (answer, _):
        body = answer.read()
        if answer.status != 200:
            raise OSError(f"{url} answers {answer.status}")
        return body.decode()


def readiness(base: str, timeout_seconds: float = 1.0) -> tuple[int, str, float | None]:
    """The state of a scorer or an intake: the status of ``/readyz``, its reason, and by how many seconds its machine's
    clock is ahead of ours (None: unknown). Raises OSError without an answer."""
    with _answered(f"{base}/readyz", timeout_seconds) as (answer, asked_s):
        middle_s = (asked_s + time.time()) / 2
        body, date = answer.read(65_536), answer.getheader("date")
        reason = ""
        with suppress(ValueError):
            said = json.loads(body)
            reason = str(said.get("error", "")) if isinstance(said, dict) else ""
        # A Date header has whole seconds, cut off: half a second more is right on average.
        ahead = parsedate_to_datetime(date).timestamp() + 0.5 - middle_s if date else None
        return answer.status, reason, ahead


@dataclass(slots=True)
class Picture:
    """The last figures seen. A picture is replaced whole and never changed, so readers need no lock."""

    wall_ms: int = 0
    figures: dict[str, float | None] = field(default_factory=dict)
    answers: dict[str, bool] = field(default_factory=dict)  # answered in this round
    ready: dict[str, bool] = field(default_factory=dict)  # and reported that it does its work
    model: dict[str, Any] = field(default_factory=dict)  # the scorer's GET /model
    dead_letters: dict[str, float] = field(default_factory=dict)  # by reason
    gate: Gate = field(default_factory=Gate)


class Monitor:
    """Scrapes the roles in a thread of its own.

    Args:
        get: fetches a URL (tests pass a fake network).
        memory: gives each process's memory, in bytes by name.
        learner: base URL of the learner's admin port, for its ``/model``; empty: it has none.

    Attributes:
        quiet_seconds: between two looks while nobody looks at the picture.
    """

    def __init__(
        self,
        targets: Mapping[str, str],
        scorer: str,
        clock: EventClock,
        get: Callable[[str], str] = fetch,
        memory: Callable[[], Mapping[str, int]] = dict,
        learner: str = "",
    ) -> None:
        self.roles = {name: RoleMetrics() for name in targets}
        self.picture = Picture()
        self.series = Series()
        self._targets = dict(targets)
        self.scorer, self.learner = scorer, learner
        self._clock = clock
        self._get = get
        self._memory = memory
        self.quiet_seconds = LOOK_SECONDS
        self._stop, self._wanted = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self.first_auc_wall_ms: int | None = None
        self._served: Mapping[str, Any] = {}  # the last known click-to-served times
        # By stage: seconds and clicks at the last look that saw new clicks, and before it.
        self._stages_seen: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {}

    def start(self) -> None:
        self._thread.start()

    def attend(self) -> None:
        """Somebody looks at the picture: it is renewed within a second, and not only after :attr:`quiet_seconds`."""
        self._wanted.set()

    def stop(self) -> None:
        self._stop.set()
        self._wanted.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self._wanted.wait(self.quiet_seconds - LOOK_SECONDS)
            self._wanted.clear()
            self.look()

    def look(self) -> Picture:
        """Asks every role now. The owner's thread may call it too, when it needs figures of this moment."""
        with self._lock:
            answers = dict.fromkeys(self.roles, False)
            for name, url in self._targets.items():
                with suppress(OSError, ValueError):
                    self.roles[name].update(self._get(url))
                    answers[name] = True
            ready = {n: answers[n] and role.gauge("millrace_ready") == 1 for n, role in self.roles.items()}
            model = self.picture.model
            if answers.get("serve"):
                model = self._model(self.scorer) or model
            admin = self._model(self.learner) if self.learner and answers.get("learn") else {}
            wall_ms = time.time_ns() // 1_000_000
            figures = self._figures(wall_ms, model) | memory_figures(self._memory())
            if self.first_auc_wall_ms is None and figures["auc"] is not None:
                self.first_auc_wall_ms = wall_ms
            dead = self.roles["stream"].by_label("millrace_dead_letters_total", "reason")
            gate = self._gate(admin)
            self.picture = Picture(wall_ms, figures, answers, ready, model, dead, gate)
            self.series.add(wall_ms, self._clock.at(wall_ms), figures)
            return self.picture

    def _model(self, base: str) -> dict[str, Any]:
        """A role's ``GET /model``; empty where it does not answer: it may end between two requests."""
        with suppress(OSError, ValueError):
            found = json.loads(self._get(f"{base}/model"))
            return found if isinstance(found, dict) else {}
        return {}

    def _gate(self, admin: Mapping[str, Any]) -> Gate:
        learn = self.roles.get("learn", RoleMetrics())
        verdicts = {v: learn.by_label("millrace_gate_verdicts_total", "check", verdict=v) for v in VERDICTS}
        return gate_of(learn.gauges("millrace_gate_state", "state"), verdicts, admin, self.picture.gate)

    def ended(self, name: str, text: str | None) -> None:
        """Notes that a role was stopped. It is not asked again: its port may soon be another process's. ``text``: the
        metrics that it wrote when it ended; None: it could not, so its last answer must do."""
        with self._lock:
            self._targets.pop(name, None)
            if text is not None:
                self.roles[name].update(text)

    def stages(self) -> Stages:
        """What clicks took so far."""
        with self._lock:
            found = {stage: self._times(role, METRIC, stage=stage) for stage, role in ROLE_OF.items()}
            return found | {WHOLE: self._times("serve", SERVED)}

    def _times(self, role: str, metric: str, **labels: str) -> StageTimes:
        own = self.roles.get(role, RoleMetrics())
        seconds, clicks = (own.total(f"{metric}_{what}", **labels) for what in ("sum", "count"))
        return StageTimes(seconds, clicks, own.by_label(f"{metric}_bucket", "le", **labels))

    def _newest(self, stage: str, role: str) -> float | None:
        """Mean time (ms) of a stage of the clicks that came between the last two looks that saw any."""
        own = self.roles.get(role, RoleMetrics())
        total = own.total(f"{METRIC}_sum", stage=stage), own.total(f"{METRIC}_count", stage=stage)
        seen, before = self._stages_seen.get(stage, ((0.0, 0.0), (0.0, 0.0)))
        if total[1] > seen[1]:
            seen, before = total, seen
            self._stages_seen[stage] = seen, before
        clicks = seen[1] - before[1]
        return 1000 * (seen[0] - before[0]) / clicks if clicks else None

    def _figures(self, wall_ms: int, model: Mapping[str, Any]) -> dict[str, float | None]:
        """The key figures by name. Totals are of the whole run; None is "not known yet"."""
        stream, learn, serve = (self.roles.get(name, RoleMetrics()) for name in ("stream", "learn", "serve"))
        served = model.get("click_to_served_ms") or {}
        if _number(served.get("p50")) is None:  # a scorer that was restarted has not served a click yet
            served = self._served
        self._served = served
        recent = served.get("recent") or {}
        return {
            "event_ms": float(self._clock.at(wall_ms)),
            **_traffic(self.roles),
            "taken_in": stream.total("millrace_exposures_total"),  # with those that no simulator sent
            "samples": stream.total("millrace_samples_total"),
            "positives": stream.total("millrace_samples_total", kind="positive"),
            "negatives": stream.total("millrace_samples_total", kind="negative"),
            "corrections": stream.total("millrace_samples_total", kind="correction"),
            "pending": stream.gauge("millrace_pending_exposures"),
            "waiting_actions": stream.gauge("millrace_waiting_actions"),
            **_intake(self.roles.get("intake", RoleMetrics()), self.roles.get("archive", RoleMetrics())),
            "dead_letters": stream.total("millrace_dead_letters_total"),
            "duplicates_dropped": stream.total("millrace_duplicates_dropped_total"),
            "late": stream.total("millrace_late_events_total"),
            "stream_lag": stream.gauge("millrace_stream_lag"),
            "partitions_awaited": stream.gauge("millrace_partitions_awaited"),
            "stream_loop_s": _loop_s(stream),
            "window_keys": stream.gauge("millrace_window_keys"),
            # Rows that a rollback took out of the model were learnt before, and are in quarantine or dropped now.
            "trained": learn.total("millrace_samples_trained_total") - learn.total("millrace_samples_taken_back_total"),
            **_apart(learn),
            "repeated": learn.total("millrace_samples_repeated_total"),
            **_quality(learn),
            **{f"click_rate_{arm}": learn.gauge("millrace_click_rate", arm=arm) for arm in ("model", "control")},
            "not_finite": learn.total("millrace_predictions_not_finite_total"),
            "learner_version": learn.gauge("millrace_model_version"),
            "learner_lag": learn.gauge("millrace_learner_lag"),
            "learn_loop_s": _loop_s(learn),
            "table_rows": learn.gauge("millrace_table_rows"),
            "skipped": learn.total("millrace_batches_skipped_total"),
            **{
                name: n
                for role in self.roles
                if role.startswith(LEARNER_ROLE)
                for name, n in self._beside(role).items()
            },
            "served_version": serve.gauge("millrace_served_version"),
            "versions_served": _number(model.get("versions_served")),
            "requests": serve.total("millrace_requests_total"),
            **_users(serve),
            "freshness_s": serve.gauge("millrace_freshness_seconds"),
            "delta_gaps": serve.total("millrace_delta_gaps_total"),
            "scorer_errors": serve.total("millrace_errors_total"),
            **{f"{SCORER_ERRORS}{kind}": n for kind, n in serve.by_label("millrace_errors_total", "what").items()},
            "click_to_served_p50_ms": _number(recent.get("p50")),
            "click_to_served_p99_ms": _number(recent.get("p99")),
            "click_to_served_all_p50_ms": _number(served.get("p50")),
            "click_to_served_all_p99_ms": _number(served.get("p99")),
            "clicks_served": serve.total(f"{SERVED}_count"),
            **{f"{STAGE}{stage}": self._newest(stage, role) for stage, role in ROLE_OF.items()},
        }

    def _beside(self, role: str) -> dict[str, float | None]:
        """Of a learner beside the first."""
        learner = self.roles[role]
        compared = {of: learner.gauge("millrace_compared", figure="auc", of=of) for of in ("own", "first")}
        return {
            f"{role}_trained": learner.total("millrace_samples_trained_total"),
            **{f"{role}_auc_{of}": value for of, value in compared.items()},
        }


def _traffic(roles: Mapping[str, RoleMetrics]) -> dict[str, float | None]:
    """Traffic as the simulator counts it, with the true click probabilities. Without a simulator the stream tells what
    it took in, and figures that only a simulator knows are None."""
    arms = [(what, arm) for what in ("exposures", "clicks") for arm in ("model", "control")]
    simulate, stream = roles.get("simulate"), roles.get("stream", RoleMetrics())
    if simulate is None:
        unknown = ("malformed", "duplicates", "request_errors", "oracle_auc")
        return {
            "exposures": stream.total("millrace_exposures_total"),
            "clicks": stream.total("millrace_events_total", type="click"),
            **dict.fromkeys((*unknown, *(f"page_{what}_{arm}" for what, arm in arms))),
        }
    return {
        "exposures": simulate.total("millrace_exposures_sent_total"),
        "clicks": simulate.total("millrace_clicks_sent_total"),
        "malformed": simulate.total("millrace_malformed_sent_total"),
        "duplicates": simulate.total("millrace_duplicates_sent_total"),
        "request_errors": simulate.total("millrace_request_errors_total"),
        "oracle_auc": simulate.gauge("millrace_oracle_auc"),
        **{f"page_{what}_{arm}": simulate.total(f"millrace_page_{what}_total", arm=arm) for what, arm in arms},
    }


def _intake(intake: RoleMetrics, archive: RoleMetrics) -> dict[str, float | None]:
    lines = "millrace_intake_lines_total"
    return {
        "intake_kept": intake.total(lines, verdict="kept"),
        "intake_duplicates": intake.total(lines, verdict="duplicate"),
        "intake_refused": intake.total(lines, verdict="refused"),
        "archived": archive.total("millrace_archive_rows_total"),
        "archive_lag": archive.gauge("millrace_archive_lag"),
    }


def arms_of(archive: RoleMetrics | None) -> list[dict[str, Any]]:
    """A row for each outcome and arm: users, outcomes a user, those more than the first arm's, and their bands. None:
    nothing is said yet. ``made_by``: whose model makes the arm's pages, where several do. ``settled``: whether any
    user's horizon is over. ``early_rows``, ``early_click_rate``: of exposures that are not settled. ``left_out``: users
    beyond their training limit."""
    if archive is None:
        return []
    rows = []
    for outcome in archive.gauges(f"{_ARM}_difference", "outcome"):
        for arm, users in archive.gauges(f"{_ARM}_users", "arm").items():
            of = {"arm": arm, "outcome": outcome}
            makers = archive.by_label(f"{_ARM}_made_by", "made_by", arm=arm)
            since_s = archive.gauge(f"{_ARM}_decided_since_seconds", **of) or 0
            bands = {
                f"{what}_{bound}": archive.gauge(f"{_ARM}_{metric}", bound=bound, **of)
                for what, metric in (("mean", "outcomes_per_user"), ("more", "difference"))
                for bound in ("estimate", "low", "high")
            }
            made_by = next((maker for maker, is_so in makers.items() if is_so), "")
            early = {
                "settled": bool(users),
                "early_rows": archive.gauge(f"{_ARM}_unsettled_exposures", arm=arm),
                "early_click_rate": archive.gauge(f"{_ARM}_unsettled_click_rate", arm=arm),
                "left_out": archive.gauge(f"{_ARM}_users_left_out", arm=arm),
            }
            rows.append({**of, "made_by": made_by, "users": users, "since_ms": 1000 * since_s, **bands, **early})
    return rows


def outcomes_of(learn: RoleMetrics | None) -> list[dict[str, Any]]:
    """A row for each outcome that was told: how many, and the figures of what was predicted of them."""
    if learn is None:
        return []
    of = "millrace_outcome_"
    figures = ("auc", "log_loss", "calibration")
    return [
        {"outcome": name, "rows": rows} | {figure: learn.gauge(of + figure, outcome=name) for figure in figures}
        for name, rows in learn.gauges(of + "rows", "outcome").items()
    ]


def _users(serve: RoleMetrics) -> dict[str, float | None]:
    """Shares of the requests that were answered without their user: not read in time, or not in the online store."""
    reads = "millrace_user_reads_total"
    asked = serve.total(reads)
    found = {"unread_share": "nothing", "unknown_share": "unknown"}
    return {name: serve.total(reads, found=what) / asked if asked else None for name, what in found.items()}


def _apart(learn: RoleMetrics) -> dict[str, float | None]:
    """Samples that the model has not learnt from, and why; and what the gate judges by."""
    return {
        "held_out": learn.total("millrace_samples_held_out_total"),
        "over_limit": learn.total("millrace_teach_limited_rows_total"),
        "others": learn.total("millrace_samples_others_total"),
        "unread": learn.total("millrace_samples_unread_total"),
        "quarantined": learn.total("millrace_quarantined_rows_total"),
        "released": learn.total("millrace_quarantine_ended_rows_total", how="released"),
        "discarded": learn.total("millrace_quarantine_ended_rows_total", how="discarded"),
        "rolled_back": learn.total("millrace_samples_rolled_back_total"),
        "taken_back": learn.total("millrace_samples_taken_back_total"),
        "rollbacks": learn.total("millrace_rollbacks_total"),
        "quarantine_rows": learn.gauge("millrace_quarantine_rows"),
        "promoted_version": learn.gauge("millrace_gate_promoted_version"),
        "heldout_rows": learn.gauge("millrace_heldout_rows"),
        "heldout_auc": learn.gauge("millrace_heldout_auc", model="newest"),
        "heldout_auc_anchor": learn.gauge("millrace_heldout_auc", model="anchor"),
    }


def memory_figures(held: Mapping[str, int]) -> dict[str, float | None]:
    """Resident memory of each process and of all together, in bytes, by the names that series and report use."""
    each: dict[str, float | None] = {
        f"memory_{name}": float(held[name]) if name in held else None for name in (*PROCESSES, *held)
    }
    return {**each, "memory_total": float(sum(held.values())) if held else None}


_ARM = "millrace_arm"

SCORER_ERRORS = "scorer_errors_"
"""Begins the name of a figure that counts one kind of the scorer's errors."""

_QUALITY = {
    "auc": "millrace_rolling_auc",
    **{name: f"millrace_{name}" for name in ("baseline_auc", *PAGE_ORDER, "ndcg", "baseline_ndcg")},
    "log_loss": "millrace_rolling_log_loss",
    "calibration": "millrace_calibration",
    "served_rows": "millrace_served_rows",
}


def _quality(learn: RoleMetrics) -> dict[str, float | None]:
    """Figures of the scores that pages were served with: of the model's pages (of a log's where only these have any),
    and of random pages beside them."""
    arm = "model"
    if not learn.gauge("millrace_served_rows", arm=arm) and learn.gauge("millrace_served_rows", arm="logged"):
        arm = "logged"
    shown = {name: learn.gauge(metric, arm=arm) for name, metric in _QUALITY.items()}
    beside = {f"{name}_control": learn.gauge(metric, arm="control") for name, metric in _QUALITY.items()}
    return shown | beside


def _loop_s(role: RoleMetrics) -> float | None:
    """Unix time at which the last round of a role's main loop began; None before the first: then the gauge is 0."""
    return role.gauge("millrace_loop_timestamp_seconds") or None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
