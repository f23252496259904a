"""What a demo's report must say."""

from __future__ import annotations

from typing import Any

KEYS = (
    "exposures_sent",
    "clicks_sent",
    "malformed_sent",
    "duplicates_sent",
    "positives",
    "negatives",
    "pending",
    "dead_letters",
    "duplicates_dropped",
    "samples_trained",
    "auc",
    "oracle_auc",
    "log_loss",
    "first_20000",
    "model_versions",
    "errors",
    "ctr_model",
    "ctr_control",
    "click_to_served_ms",
    "seconds_to_first_auc",
)
"""What every demo with shoppers measures."""


def missing_keys(report: dict[str, Any]) -> list[str]:
    """Entries of :data:`KEYS` that were not measured."""

    def empty(value: object) -> bool:
        return value is None or value == [] or (isinstance(value, dict) and any(v is None for v in value.values()))

    return [name for name in KEYS if name not in report or empty(report[name])]


def assert_all_accounted_for(report: dict[str, Any]) -> None:
    assert missing_keys(report) == []
    assert report["conserved"] is True, report["problem"]
    accounted = sum(report[n] for n in ("positives", "negatives", "pending", "exposures_in_dead_letters"))
    assert report["exposures_sent"] == accounted
    assert report["positives"] > 0
    assert report["negatives"] > 0


def assert_no_errors(report: dict[str, Any]) -> None:
    assert report["errors"] == 0, (report["errors_by_kind"], report["scorer_errors_by_kind"])


def assert_undisturbed(report: dict[str, Any]) -> None:
    """What holds beyond conservation when nobody interfered."""
    assert_all_accounted_for(report)
    assert report["sent_from"] == "the simulator"
    assert report["dead_letters"] == report["malformed_sent"]
    assert report["duplicates_dropped"] == report["duplicates_sent"]
    apart, labelled = report["gate"], report["positives"] + report["negatives"] + report["corrections"]
    kept_out = sum(apart[n] for n in ("held_out", "over_limit", "quarantined", "rolled_back")) - apart["released"]
    assert report["samples_trained"] + kept_out == labelled
    assert_no_errors(report)
    assert set(report["restarts"].values()) == {0}
    assert report["model_versions"] > 1
    assert all(0 <= share < 1 for share in report["without_user"].values())
    assert 0 < report["click_to_served_ms"]["p50"] <= report["click_to_served_ms"]["p99"]
