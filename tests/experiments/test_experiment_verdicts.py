"""Verdicts of experiments: computed from the figures, and owning up where nothing can be told."""

from __future__ import annotations

from typing import Any

from experiments.runs import differences, of_labels, of_models, of_rounds


def model(name: str, auc: float | None, half: float = 0.001) -> dict[str, Any]:
    return {"model": name, "inputs": "raw", "auc": auc, "auc_ci": half}


def test_models_are_named_from_the_best_on_with_their_intervals() -> None:
    text = of_models([model("a", 0.70), model("b", 0.72), model("c", 0.64)], 0.65)
    assert "Of 3 models" in text
    assert "b on raw inputs 0.7200 ± 0.0010, a on raw inputs 0.7000 ± 0.0010, c on" in text
    assert "alone has 0.6500." in text
    assert "all alike" in of_models([model("a", None)], None)
    assert "alone" not in of_models([model("a", 0.7)], None)


def way(name: str, gain: float, half: float = 0.001) -> dict[str, Any]:
    return {"model": "m", "inputs": "raw", "way": name, "auc": 0.7 + gain, "auc_ci": 0.001} | {
        "auc_over_frozen": gain,
        "auc_over_frozen_ci": half,
    }


def test_ways_are_told_by_what_they_gain_over_frozen() -> None:
    ways = [way("frozen", 0, 0), way("batches", 0.01), way("daily", 0.02), way("epochs", -0.03)]
    text = of_rounds(ways, 0.66)
    assert "daily +0.0200 ± 0.0010, batches +0.0100 ± 0.0010, epochs -0.0300 ± 0.0010." in text
    assert "0.7000 ± 0.0010 over the test days" in text
    assert "alone has 0.6600" in text
    assert differences([{"arm": "a", "auc": None}, {"arm": "b"}], "arm", "auc") == ""


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
