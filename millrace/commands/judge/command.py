# shell
"""``millrace judge``: of arms, or of a model's order."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from millrace.commands.judge.archive_reader import Outcome
from millrace.commands.judge.judgerun import judge as judge_arms
from millrace.commands.judge.modelrun import judge_model
from millrace.commands.repair.without import moment
from millrace.contracts.events import CONTROL
from millrace.contracts.settings import load_settings
from millrace.processes.wall import wall_ms
from millrace.reports.result import Result
from millrace.reports.spans import span_ms


def judge(
    archive: Path | str,
    out: Path | str | None = None,
    *,
    outcome: Outcome = "click",
    value: str | None = None,
    by: Literal["user", "page"] = "user",
    horizon: str = "1d",
    every: str = "1h",
    baseline: str = CONTROL,
    since: str | None = None,
    model: str | None = None,
    of: int | None = None,
) -> Result:
    """Says which arm of a loop earns more, or what a model's order would have earned, however often you look.

    Args:
        archive: the folder 'archive' in the data folder of a loop.
        out: a folder for report.json, run.json, report.html and the plot.
        outcome: what is counted.
        value: a numeric item attribute that an outcome counts, as price (default: 1 each).
        by: outcomes of a user within the horizon, or of a page.
        horizon: how long a user's pages and outcomes count, from the first page on, as 12h or 7d.
        every: from look to look.
        baseline: the arm that others are compared with.
        since: pages from then on, as 2026-03-01T14:30 (UTC) or 7d ago (default: all).
        model: a model store, as DATA/models or DATA/learners/NAME/models: say whether its order would have earned more.
            The archive needs MILLRACE_ARCHIVE_FEATURES and MILLRACE_EXPLORE.
        of: with a model: a version of the store (default: the newest). Pages that it has learnt from are not judged.

    Raises:
        LogError, SchemaError, SettingError, SnapshotError, StoreError: as
            :func:`~millrace.commands.judge.judgerun.judge` and :func:`~millrace.commands.judge.modelrun.judge_model`.
    """
    place, since_ms, every_ms = Path(archive), moment(since, wall_ms()) if since else 0, span_ms(every)
    if model is None:
        return judge_arms(
            place, out, outcome=outcome, value=value, by=by, horizon_ms=span_ms(horizon), every_ms=every_ms,
            baseline=baseline, since_ms=since_ms,
        )  # fmt: skip
    own = load_settings().model
    return judge_model(
        place, out, model=model, of=of, own_class=own, outcome=outcome, value=value, since_ms=since_ms,
        every_ms=every_ms,
    )  # fmt: skip
