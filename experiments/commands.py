# core
"""``millrace dev experiment NAME``: a command for each experiment, whose options are the parameters of its function.

Each writes report.json, run.json, runs.jsonl, report.html and plots to the folder ``--out``, and prints its verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cyclopts

from millrace.reports import say


def _say_verdict(report: Mapping[str, Any] | None) -> None:
    if report is not None:  # what printed a help page gives none
        say(report["verdict"])


app = cyclopts.App(
    name="millrace dev experiment",
    help="Compare models, ways of keeping them up to date, label policies; try judging and the gate.",
    result_action=_say_verdict,
)
for name, (function, about) in {
    "models": ("experiments.experiment_models:models", "All models, on raw and scaled inputs."),
    "rounds": ("experiments.experiment_models:rounds", "Ways of keeping one model up to date."),
    "labels": ("experiments.experiment_labels:experiment_labels", "Label policies at real speed. It takes hours."),
    "ages": ("experiments.experiment_ages:experiment_ages", "How fine ages of items may be, on a news site."),
    "judge": ("experiments.experiment_judge:experiment_judge", "Odds, bands; what exploring and value ranking give."),
    "soak": ("benchmarks.soak:soak", "A small shop, then a large demo: what grows or drifts. It takes hours."),
    "rows": ("experiments.experiment_rows:experiment_rows", "A log of 100 million rows in 1 GB. It takes hours."),
    "safety": ("experiments.experiment_safety:experiment_safety", "What the gate catches, and refuses wrongly."),
}.items():
    app.command(function, name=name, help=about)  # imported when it is asked for
