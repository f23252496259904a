# shell
"""Grafana's dashboard. ``python -m deploy.dashboard`` writes ``deploy/grafana/dashboards/millrace.json``.

Nobody edits the JSON: a test compares it with what this module makes, and another asks a running loop each query.

Queries that may have no value yet (NaN) end with a comparison, such as ``>= 0``: Grafana then shows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, FieldColor, Row
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DynamicConfigValue,
    FieldColorModeId,
)
from grafana_foundation_sdk.models.prometheus import QueryEditorMode

PATH = Path(__file__).parent / "grafana" / "dashboards" / "millrace.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")

_BLUE, _ORANGE, _VIOLET, _GREY = "#1f9bc4", "#e08b35", "#8d79d6", "#8a969a"
_COLOURS = {
    **dict.fromkeys(("model", "log loss", "predicted over observed", "exposures", "p50", "served"), _BLUE),
    **dict.fromkeys(("baseline", "random pages", "trained", "p99", "learnt", "pending"), _ORANGE),
    **dict.fromkeys(("samples", "promoted"), _VIOLET),
    **dict.fromkeys(("oracle", "oracle (simulator only)"), _GREY),
}
"""Series of these names have the same colour in every panel."""

_SERVED = "Of the scores that pages were served with, against settled labels."
_RANDOM = "Needs random pages: MILLRACE_CONTROL_SHARE above 0, by default a tenth of the pages."
_LEARNING = (
    "Predictions at the moment of learning, on the stream of samples as it comes. Labels of different age come together"
    " there, so this is no figure of what pages were served with."
)
_OF_ARM = "{{outcome}}, {{arm}}, {{bound}}"
_SIMULATED = " Only the simulator measures this: empty for a shop of one's own."


# -- queries -----------------------------------------------------------------------------------------------------


def _largest(name: str) -> str:
    return f"max(millrace_{name}) >= 0"


def _pages(name: str) -> str:
    """Of the model's pages; of a log's where only these have a figure."""
    return " or ".join(_largest(f'{name}{{arm="{arm}"}}') for arm in ("model", "logged"))


def _random(name: str) -> str:
    return _largest(f'{name}{{arm="control"}}')


def _rate(name: str, by: str = "") -> str:
    """A second; ``name`` without ``_total``, with matchers where they are asked for."""
    name, brace, matchers = name.partition("{")
    return f"sum{f' by ({by}) ' if by else ''}(rate(millrace_{name}_total{brace}{matchers}[$__rate_interval]))"


def _quantile(part: float, name: str, by: str = "le") -> str:
    return f"histogram_quantile({part}, sum by ({by}) (rate(millrace_{name}_seconds_bucket[1m])))"


# -- panels ------------------------------------------------------------------------------------------------------


def _query(legend: str, expr: str, letter: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(letter).datasource(SOURCE)
    return query.range().editor_mode(QueryEditorMode.CODE)


def _figure(title: str, unit: str, decimals: int, expr: str, about: str) -> stat.Panel:
    made = stat.Panel().title(title).description(about).datasource(SOURCE).with_target(_query("", expr, "A"))
    made.unit(unit).decimals(decimals).height(4).span(4)
    made.color_scheme(FieldColor().mode(FieldColorModeId.FIXED).fixed_color("text"))
    made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return made.graph_mode(BigValueGraphMode.AREA).color_mode(BigValueColorMode.VALUE)


def _chart(
    title: str,
    unit: str,
    series: Mapping[str, str],
    about: str,
    *,
    span: int = 8,
    height: int = 7,
    decimals: int | None = None,
    stacked: bool = False,
) -> timeseries.Panel:
    """``series``: queries by legend. ``decimals`` None: the unit's own, and the axis begins with 0."""
    made = timeseries.Panel().title(title).description(about).datasource(SOURCE).unit(unit).height(height).span(span)
    made.line_width(2).fill_opacity(30 if stacked else 0).show_points(VisibilityMode.NEVER)
    made.legend(common.VizLegendOptions().show_legend(True))
    made.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    if decimals is None:
        made.min(0)
    else:
        made.decimals(decimals)
    if stacked:
        made.stacking(common.StackingConfig().mode(StackingMode.NORMAL).group("A"))
    for letter, (legend, expr) in zip("ABCDEFGH", series.items(), strict=False):
        made.with_target(_query(legend, expr, letter))
        if legend in _COLOURS:
            colour = {"mode": "fixed", "fixedColor": _COLOURS[legend]}
            made.override_by_name(legend, [DynamicConfigValue(id_val="color", value=colour)])
    return made


Panel = stat.Panel | timeseries.Panel


def _first() -> list[Panel]:
    """What is seen without opening a row."""
    return [
        _chart(
            "Rolling AUC of served scores: model, baseline, oracle",
            units.Short,
            {
                "model": _pages("rolling_auc"),
                "baseline": _pages("baseline_auc"),
                "random pages": _random("rolling_auc"),
                "oracle (simulator only)": _largest("oracle_auc"),
            },
            f"{_SERVED[:-1]}, over the newest 10,000 exposures of an arm. Random pages are easier to rank.",
            span=6,
            height=9,
            decimals=3,
        ),
        _chart(
            "Click rate by arm",
            units.PercentUnit,
            {"{{arm}}": "max by (arm) (millrace_click_rate) >= 0"},
            f"Clicks per exposure over the newest 10,000 settled exposures of each arm. {_RANDOM}",
            span=5,
            height=9,
        ),
        _chart(
            "Click to served weights",
            units.Seconds,
            {"p50": _quantile(0.5, "click_to_served"), "p99": _quantile(0.99, "click_to_served")},
            "From a click to the weights that it changed, in the scorer.",
            span=5,
            height=9,
        ),
        _chart(
            "Throughput",
            units.CountsPerSecond,
            {"exposures": _rate("exposures"), "samples": _rate("samples"), "trained": _rate("samples_trained")},
            "Exposures that the stream took, samples that it sent, samples that were learnt from.",
            span=5,
            height=9,
        ),
        _figure(
            "All well",
            units.BoolYesNo,
            0,
            " * ".join(
                (
                    'min(up{job="millrace"})',
                    'min(millrace_ready{job="millrace"})',
                    '(1 - max(millrace_gate_state{state!="promoting"}))',
                    "(sum(increase(millrace_errors_total[5m])) == bool 0)",
                    "(sum(increase(millrace_log_lost_exposures_total[5m])) == bool 0)",
                )
            ),
            "Every role answers and can work, the gate promotes, and for five minutes the scorer had no error and lost"
            " no page's log.",
        )
        .height(9)
        .span(3),
    ]


def _head() -> list[Panel]:
    above = " or ".join(
        f'max(millrace_rolling_auc{{arm="{arm}"}}) - max(millrace_baseline_auc{{arm="{arm}"}}) > -Inf'
        for arm in ("model", "logged")
    )
    lift = 'max(millrace_click_rate{arm="model"}) / max(millrace_click_rate{arm="control"}) >= 0 < +Inf'
    return [
        _figure(
            "Rolling AUC",
            units.Short,
            4,
            _pages("rolling_auc"),
            f"{_SERVED[:-1]}: the model's pages; those of a log where only these have a figure.",
        ),
        _figure(
            "Above the baseline",
            units.Short,
            4,
            above,
            "AUC of the scores that pages were served with, less the AUC of the item's own click rate on the same"
            " exposures.",
        ),
        _figure(
            "Click rate, model over random",
            units.Short,
            2,
            lift,
            "Clicks per exposure of the model's pages over those of random pages, the newest settled exposures of each."
            f" {_RANDOM}",
        ),
        _figure(
            "Click to served weights, median",
            units.Seconds,
            1,
            _quantile(0.5, "click_to_served"),
            "From a click to the weights that it changed, in the scorer.",
        ),
        _figure(
            "Freshness",
            units.Seconds,
            1,
            "max(millrace_freshness_seconds) > -Inf",
            "Wall seconds since the newest exposure that the serving model has learnt from.",
        ),
        _figure("Model version served", units.NoUnit, 0, _largest("served_version"), "Its number."),
    ]


def _quality() -> list[Panel]:
    return [
        _chart(
            "Arms: outcomes a user, and bands that hold at every look",
            units.Short,
            {_OF_ARM: "max by (outcome, arm, bound) (millrace_arm_outcomes_per_user) > -Inf < +Inf"},
            "Users whose horizon is over, as the archive counts them; see docs/how-to/see-which-arm-earns-more.md.",
            span=12,
            decimals=3,
        ),
        _chart(
            "Arms: outcomes a user more than the first arm's",
            units.Short,
            {_OF_ARM: "max by (outcome, arm, bound) (millrace_arm_difference) > -Inf < +Inf"},
            "Decided where low and high are on one side of 0. The first arm is `control` where there is one.",
            span=12,
            decimals=3,
        ),
        _chart(
            "Click rate by arm, not settled",
            units.PercentUnit,
            {"{{arm}}": "max by (arm) (millrace_arm_unsettled_click_rate)"},
            "Of exposures whose clicks may still come, as the archive counts them from the first minute on.",
            span=24,
        ),
        _chart(
            "Log loss",
            units.Short,
            {"log loss": _pages("rolling_log_loss"), "random pages": _random("rolling_log_loss")},
            _SERVED,
            span=12,
            decimals=3,
        ),
        _chart(
            "Calibration",
            units.Short,
            {"predicted over observed": _pages("calibration"), "random pages": _random("calibration")},
            "Clicks predicted when pages were served over clicks seen; 1 is right.",
            span=12,
            decimals=2,
        ),
    ]


def _segments() -> list[Panel]:
    return [
        _chart(
            "AUC by segment",
            units.Short,
            {"{{segment}}": "max by (segment) (millrace_segment_auc) >= 0"},
            "Of the scores that pages were served with, by the setting `segments`.",
            span=6,
            decimals=3,
        ),
        _chart(
            "Order within pages: model and baseline",
            units.Short,
            {
                "AUC": _pages("page_auc"),
                "AUC, baseline": _pages("baseline_page_auc"),
                "AUC, random pages": _random("page_auc"),
                "AUC, random pages, baseline": _random("baseline_page_auc"),
                "nDCG@10": _pages("ndcg"),
                "nDCG@10, baseline": _pages("baseline_ndcg"),
                "nDCG@10, random pages": _random("ndcg"),
            },
            "Mean over pages that have a click and an exposure without one. Position flatters a model on its own pages,"
            " so random pages stand beside them.",
            span=6,
            decimals=3,
        ),
        _chart(
            "Calibration by segment",
            units.Short,
            {"{{segment}}": "max by (segment) (millrace_segment_calibration) >= 0"},
            "Clicks predicted over clicks seen, by the setting `segments`.",
            decimals=3,
        ),
        _chart(
            "Changes of the excess log loss (ADWIN)",
            units.Short,
            {"changes in an hour": "increase(millrace_drift_total[1h])"},
            "How often what the model predicts began to fit clicks otherwise than before.",
            span=4,
            decimals=0,
        ),
        _chart(
            "Outcomes beside the click",
            units.Short,
            {
                "AUC, {{outcome}}": "max by (outcome) (millrace_outcome_auc) >= 0",
                "calibration, {{outcome}}": "max by (outcome) (millrace_outcome_calibration) >= 0",
            },
            "Of what the schema has beside the click, predicted just before it was learnt.",
            span=24,
            decimals=3,
        ),
    ]


def _speed() -> list[Panel]:
    def mean(name: str) -> str:
        parts = [f"sum by (stage) (rate(millrace_{name}_seconds_{part}[1m]))" for part in ("sum", "count")]
        return f"{' / '.join(parts)} >= 0"

    return [
        _chart(
            "Stages of a click, mean",
            units.Seconds,
            {"{{stage}}": mean("click_stage")},
            "Where the time goes from a click to the weights that serve: joined, learnt, published, applied.",
            span=6,
            stacked=True,
        ),
        _chart(
            "Lag, messages",
            units.Short,
            {
                "stream: {{topic}}": "sum by (topic) (millrace_stream_lag)",
                "learn: samples": "sum(millrace_learner_lag >= 0)",
            },
            "Messages that a role has not read yet.",
        ),
        _chart(
            "Freshness",
            units.Seconds,
            {"freshness": "max(millrace_freshness_seconds) > -Inf"},
            "Wall seconds since the newest exposure that the serving model has learnt from.",
        ),
        _chart(
            "Time to answer",
            units.Seconds,
            {f"{{{{route}}}} p{round(100 * part)}": _quantile(part, "request", "le, route") for part in (0.5, 0.99)},
            "Of the scorer, by route.",
        ),
        _chart(
            "Model version",
            units.NoUnit,
            {"learnt": _largest("model_version"), "served": _largest("served_version")},
            "A scorer is a few versions behind the learner.",
            decimals=0,
        ),
        _chart(
            "Learning a batch, checkpointing",
            units.Seconds,
            {
                "batch p50": _quantile(0.5, "learn"),
                "batch p99": _quantile(0.99, "learn"),
                "checkpoint p99": _quantile(0.99, "checkpoint"),
            },
            "A micro-batch of the learner; a checkpoint of the stream.",
        ),
        _chart(
            "Table rows and window keys",
            units.Short,
            {
                "table rows": "max(millrace_table_rows)",
                "window keys": "sum(millrace_window_keys)",
                "item keys of the index": "max(millrace_item_keys)",
            },
            "What memory grows with.",
        ),
    ]


def _nothing_lost() -> list[Panel]:
    return [
        _chart(
            "Samples by kind", units.CountsPerSecond, {"{{kind}}": _rate("samples", "kind")}, "Labels and their kind."
        ),
        _chart(
            "Dead letters by reason",
            units.CountsPerSecond,
            {"{{reason}}": _rate("dead_letters", "reason")},
            "Messages that cannot be used. docs/reference/dead-letters.md explains each reason.",
        ),
        _chart(
            "Exposures waiting for their label",
            units.Short,
            {"pending": "sum(millrace_pending_exposures)"},
            "Each gives one sample.",
        ),
        _chart(
            "Duplicates and late events",
            units.CountsPerSecond,
            {"duplicates dropped": _rate("duplicates_dropped"), "late": _rate("late_events")},
            "Messages that came twice, and messages that came too late for their label.",
            span=6,
        ),
        _chart(
            "Errors",
            units.CountsPerSecond,
            {
                "serve: {{what}}": _rate("errors", "what"),
                "batches: {{reason}}": _rate("batches_skipped", "reason"),
                "delta gaps": _rate("delta_gaps"),
                "predictions not finite": _rate("predictions_not_finite"),
            },
            "Of scorer and learner.",
            span=6,
        ),
        _chart(
            "Roles that can work",
            units.Short,
            {"{{role}}": "min by (role) (millrace_ready)"},
            "0: it runs, and waits for something.",
            span=6,
        ),
        _chart(
            "Logs of pages lost, requests refused",
            units.Short,
            {"{{reason}}": _rate("log_lost_exposures", "reason"), "refused": _rate("requests_refused")},
            "Exposures that nobody will learn from, by reason, and requests beyond the limit.",
            span=6,
        ),
    ]


def _learning() -> list[Panel]:
    return [
        _chart(title, units.Short, {"learning": _largest(f"learning_{name}")}, _LEARNING, decimals=3)
        for title, name in (
            ("AUC when it learns", "auc"),
            ("Log loss when it learns", "log_loss"),
            ("Calibration when it learns", "calibration"),
        )
    ]


def _edges() -> list[Panel]:
    return [
        _chart(
            "Lines at the intake",
            units.Short,
            {"{{verdict}}": _rate("intake_lines", "verdict")},
            "Lines of requests by verdict: kept, duplicates of what was kept, refused.",
            span=6,
        ),
        _chart(
            "Refused by reason",
            units.Short,
            {"{{what}}: {{reason}}": _rate("intake_refused", "what, reason")},
            "Lines that the intake refused; its log has an example of each kind, once a minute at most.",
            span=6,
        ),
        _chart(
            "Time to take in",
            units.Seconds,
            {"p50": _quantile(0.5, "intake_request"), "p99": _quantile(0.99, "intake_request")},
            "From a request's arrival to its answer, which comes when Kafka has its lines.",
            span=6,
        ),
        _chart(
            "Waiting, turned away",
            units.Short,
            {
                "waiting": "sum(millrace_intake_waiting)",
                "{{status}} a second": _rate('intake_requests{status=~"429|503"}', "status"),
            },
            "Messages that Kafka has not acknowledged yet, and requests a second that were answered 429 or 503: they"
            " may be sent again.",
            span=6,
        ),
        _chart(
            "Rows archived",
            units.Short,
            {"{{what}}": _rate("archive_rows", "what")},
            "Rows that lie in Parquet files, by table.",
        ),
        _chart(
            "Archive's lag, messages",
            units.Short,
            {
                "{{topic}}": "sum by (topic) (millrace_archive_lag)",
                "exposures pending": "sum(millrace_archive_pending_exposures)",
            },
            "Messages not taken yet, and exposures whose labels are not settled: their rows follow.",
        ),
        _chart(
            "Not in the archive",
            units.Short,
            {"{{reason}}": _rate("archive_left_out", "reason"), "lost: {{topic}}": _rate("archive_lost", "topic")},
            "Messages and exposures that are in no table, by reason, and messages that were deleted from their topic"
            " before they were read.",
        ),
    ]


def _gate() -> list[Panel]:
    refused = 'sum by (check) (increase(millrace_gate_verdicts_total{verdict="refused"}[5m])) > 0'
    return [
        _chart(
            "Refused by check",
            units.Short,
            {"{{check}}": refused, "rollback: {{by}}": "sum by (by) (increase(millrace_rollbacks_total[5m])) > 0"},
            "Samples or models that the gate refused, and by which check; docs/concepts/trust.md says what each means.",
        ),
        _chart(
            "State of the gate",
            units.Short,
            {"{{state}}": "max by (state) (millrace_gate_state)"},
            "1 for the state that it is in. Only while it promotes is the newest version served.",
        ),
        _chart(
            "What serves instead: versions learnt, promoted, served",
            units.Short,
            {
                "learnt": _largest("model_version"),
                "promoted": _largest("gate_promoted_version"),
                "served": _largest("served_version"),
            },
            "While the gate refuses, the version promoted last serves on.",
            decimals=0,
        ),
        _chart(
            "Samples in quarantine",
            units.Short,
            {
                "in quarantine": "sum(millrace_quarantine_rows)",
                "quarantined a second": _rate("quarantined_rows"),
                "over a limit a second": _rate("teach_limited_rows"),
                "held out a second": _rate("samples_held_out"),
            },
            "Refused samples that are kept, neither learnt nor discarded yet; and the rates of those that the model"
            " never learns.",
        ),
        _chart(
            "AUC on held-out pages",
            units.Short,
            {"{{model}}": "max by (model) (millrace_heldout_auc) >= 0"},
            "Of the newest snapshot and of the hourly anchor, on the same samples, which neither has learnt from."
            " Nothing while there are too few.",
            decimals=3,
        ),
        _chart(
            "Time since the last promotion",
            units.Seconds,
            {"since": "time() - max(millrace_gate_last_promotion_timestamp_seconds) > -Inf"},
            "Grows while nothing is learnt, too.",
        ),
    ]


def _simulator() -> list[Panel]:
    model = 'max(millrace_rolling_auc{arm="model"})'
    clicks, shown = (f"sum by (arm) (rate(millrace_page_{what}_total[5m]))" for what in ("clicks", "exposures"))
    return [
        _chart(
            "AUC left to the oracle (simulator only)",
            units.Short,
            {
                "model": f"{model} >= 0",
                "oracle": _largest("oracle_auc"),
                "gap": f"max(millrace_oracle_auc) - {model} > -Inf",
            },
            f"The best AUC anybody could reach in the simulated shop, random pages aside, and the model's.{_SIMULATED}",
            decimals=3,
        ),
        _chart(
            "Click rate by arm, last five minutes (simulator only)",
            units.PercentUnit,
            {"{{arm}}": f"{clicks} / {shown} >= 0"},
            f"Clicks over exposures as the shoppers made them, at once and not after labels are settled.{_SIMULATED}",
        ),
        _chart(
            "What the simulator sends (simulator only)",
            units.Short,
            {
                "exposures": _rate("exposures_sent"),
                "duplicates": _rate("duplicates_sent"),
                "malformed": _rate("malformed_sent"),
                "requests that failed": _rate("request_errors"),
            },
            _SIMULATED.strip(),
        ),
    ]


def dashboard() -> Dashboard:
    """The whole dashboard: one row of panels, and rows that are collapsed. What only the simulator measures stands in
    the last."""
    made = Dashboard("Millrace").uid("millrace").tags(["millrace"]).readonly().timezone("browser").refresh("5s")
    made.description(
        "The loop: what is learnt, how fast it serves, and that nothing is lost."
        " What only the simulator measures stands in the last row, and says so."
    )
    made.time("now-15m", "now").tooltip(DashboardCursorSync.CROSSHAIR)
    numbers = iter(range(1, 1000))
    for panel in _first():
        made.with_panel(panel.id(next(numbers)))
    for title, panels in (
        ("In figures", _head()),
        ("Quality", _quality()),
        ("Segments", _segments()),
        ("Speed", _speed()),
        ("Nothing lost", _nothing_lost()),
        ("What the learner predicts when it learns", _learning()),
        ("Intake and archive", _edges()),
        ("Gate", _gate()),
        ("Simulator only", _simulator()),
    ):
        collapsed = Row(title).id(next(numbers))
        for panel in panels:
            collapsed.with_panel(panel.id(next(numbers)))
        made.with_row(collapsed)
    return made


def text() -> str:
    """The dashboard as Grafana imports it."""
    return json.dumps(dashboard().build(), cls=JSONEncoder, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
