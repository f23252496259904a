"""Verdicts of experiments: computed from the figures, and owning up where nothing can be told."""

from __future__ import annotations

from typing import Any

from experiments.experiment_verdicts import of_labels, of_models, of_rounds


def model(name: str, auc: float | None, half: float = 0.001) -> dict[str, Any]:
    return {"model": name, "inputs": "raw", "auc": auc, "auc_ci": half}


def test_models_are_told_apart_only_where_intervals_do_not_meet() -> None:
    clear = of_models([model("a", 0.70), model("b", 0.72)], 0.65)
    assert "b on raw inputs has the highest AUC on the test days, 0.7200 ± 0.0010. The next is a on raw" in clear
    assert "alone has 0.6500; all are above it." in clear
    close = of_models([model("a", 0.7195), model("b", 0.72), model("c", 0.64)], 0.65)
    assert "is not clearly better than a on raw inputs." in close
    assert "1 of 3 are not surely above it" in close
    assert "all alike" in of_models([model("a", None)], None)
    assert "alone" not in of_models([model("a", 0.7)], None)


def way(name: str, gain: float, half: float = 0.001) -> dict[str, Any]:
    return {"model": "m", "inputs": "raw", "way": name, "auc": 0.7 + gain, "auc_ci": 0.001} | {
        "auc_over_frozen": gain,
        "auc_over_frozen_ci": half,
    }


def test_ways_gain_lose_or_cannot_be_told_from_frozen() -> None:
    ways = [way("frozen", 0, 0), way("batches", 0.01), way("daily", 0.02), way("epochs", -0.03), way("other", 0.0005)]
    text = of_rounds(ways, 0.66)
    assert "gain 0.0200 ± 0.0010 (daily) and 0.0100 ± 0.0010 (batches)" in text
    assert "lose 0.0300 ± 0.0010 (epochs)" in text
    assert "make no clear difference (other)" in text
    assert "AUC 0.7000 ± 0.0010 over the test days" in text
    assert "alone has 0.6600" in text
    nothing = of_rounds([way("frozen", 0, 0), way("daily", 0.0005)], None)
    assert "gain" not in nothing
    assert "no clear difference (daily)" in nothing


def test_label_policies_reach_or_miss_their_targets() -> None:
    rows = [
        {"figure": "gap_closed", "value": 0.97, "target": "at least 0.8", "reached": True},
        {"figure": "early_calibration_error", "value": 0.2, "target": "within 0.05", "reached": False},
        {"figure": "gap_closed", "value": None, "target": "at least 0.8", "reached": None},
    ]
    text = of_labels({"default": "prompt", "verdicts": rows})
    assert "reaches 1 of 3 targets: gap closed 0.9700 (at least 0.8: reached)" in text
    assert "early calibration error 0.2000 (within 0.05: missed)" in text
    assert "unknown" in text
    assert "nothing is said" in of_labels({"default": "prompt", "verdicts": []})
