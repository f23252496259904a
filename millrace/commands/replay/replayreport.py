# core
"""The report of a replay: figures by day and in total, beside those of the baseline, and a verdict.

The baseline ranks by each item's own smoothed click rate at the exposure, a column of the features
(:func:`learner.evaluation.progressive.baseline_column`). A model that ranks no better has learnt nothing about users.
Both AUCs within pages compare the same rows, in the same state of the windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from learner.evaluation.progressive import baseline_column
from millrace.basics.clustered import FEW, auc_parts, gap, rank_parts, user_numbers
from millrace.basics.ranking_metrics import DIGITS, FIGURES, ORDER, figures_of, group_ranks, judged, known
from millrace.commands.replay.grouped import GroupedRows
from millrace.commands.replay.logsamples import KnownSamples
from millrace.commands.replay.outcomefigures import OutcomeScores
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema
from millrace.logs import LogTable
from millrace.reports import say, show


def make_report(
    log: LogTable,
    schema: Schema,
    p: NDArray[np.float32],
    groups: GroupedRows,
    baseline: Baseline | None = None,
    outcomes: OutcomeScores | None = None,
) -> dict[str, Any]:
    """``verdict``, ``rows``, ``duplicates``, ``days``, ``total``, and ``outcomes`` if there are any; figures rounded,
    None where one class is missing.

    Args:
        p: (n,) of the run that filled ``groups``.
        baseline: that watched the same run; None where the schema has none.
        outcomes: of the same run.
    """
    y = log.table[log.label].to_numpy()
    q, group = groups.compared(p)
    base = None if baseline is None else (baseline.scores, groups.watched(baseline.scores))
    table = []
    for number, day in enumerate(groups.days):
        on = groups.day == number
        own = None if base is None else (base[0][on], base[1][on])
        table.append({"day": day} | _figures(p[on], y[on], group[on], q[on], own, groups.figures))
    total = _figures(p, y, group, q, base, groups.figures)
    users = 0
    if base is not None and total["auc"] is not None:
        user = user_numbers(log.table[log.user])
        users = int(user.max(initial=-1)) + 1
        scored, ordered = (judged(p, y), base[0]), (judged(q, y), base[1])
        ranks = [group_ranks(order, y, group) for order in ordered]
        for key in ("auc", *groups.figures):  # one after the other: parts take 8 bytes a row
            if key == "auc":
                own, other = (auc_parts(scores, y) for scores in scored)
            else:
                own, other = (rank_parts(one, key, len(y)) for one in ranks)
            found = gap(own, other, y, user)
            total |= {f"{key}_over_baseline": known(found.value, DIGITS)}
            total |= {f"{key}_over_baseline_ci": known(found.half, DIGITS)}
    verdict = verdict_of(total, len(table), users)
    report = {"verdict": verdict, "rows": len(y), "duplicates": log.duplicates, "days": table, "total": total}
    if outcomes is not None:
        report["outcomes"] = outcomes.figures(p, y, user_numbers(log.table[log.user]))
    return report


def verdict_of(total: Mapping[str, Any], days: int, users: int) -> str:
    if total["auc"] is None:
        return "The log's labels are all alike, so nobody can tell how well the model ranks."
    over = f"over {days:,} day{'' if days == 1 else 's'}"
    own = f"Scoring each exposure before its label is learnt, the model has an AUC of {total['auc']:.4f} {over}"
    if total.get("baseline_auc") is None:
        own += "; the schema has no click rate of an item to compare it with."
    else:
        value, half = total["auc_over_baseline"], total["auc_over_baseline_ci"]
        base = f"ranking by each item's smoothed click rate alone, which has {total['baseline_auc']:.4f}"
        if half is None:
            own += f", {value:+.4f} from {base}; {FEW}: no interval."
        elif abs(value) <= half:
            apart = f"difference {value:+.4f} ± {half:.4f}, 95% over {users:,} users"
            own += f". It cannot be told apart from {base} ({apart})."
        else:
            how = "more" if value > 0 else "less"
            own += f", {abs(value):.4f} ± {half:.4f} {how} than {base} (95% over {users:,} users)."
    own += _within(total)
    if total["calibration"] is None:
        return own
    return f"{own} It predicts {total['calibration']:.3f} clicks for each click seen."


def _within(total: Mapping[str, Any]) -> str:
    """How the model orders the items of one page, the unit of serving, beside the item's rate alone."""
    if "page_auc" not in total:
        return " The log has no pages, so nothing is said of their order."
    value, half = total.get("page_auc_over_baseline"), total.get("page_auc_over_baseline_ci")
    if value is None or half is None:
        return ""
    figures = f"{total['page_auc']:.4f} against {total['baseline_page_auc']:.4f}"
    how = "better" if value > half else "worse" if value < -half else "neither better nor worse"
    return f" Within pages it ranks {how} than the item's rate alone: {figures}, {value:+.4f} ± {half:.4f}."


def print_report(report: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    console = Console()
    say(report["verdict"], console)
    every = [*FIGURES, *(f"baseline_{key}" for key in ORDER)]
    if "page_auc" not in report["total"]:
        every = [key for key in every if "grouped_auc" not in key]  # it is of a user's day, and has a page's name
    figures = [key for key in every if key in report["total"]]  # neither pages nor a baseline need be there
    title = f"{report['rows']:,} exposures, {report['duplicates']:,} duplicates dropped"
    rows = [*report["days"], {"day": "all days"} | report["total"]]
    show(title, rows, ("day", "rows", "positives", *figures), console)
    if lines := report.get("outcomes"):
        figures = ["rows", "positives", "auc", "auc_over_click", "log_loss", "calibration"]
        show("Outcomes, each over the exposures that it is known of", lines, ("outcome", *figures), console)
    console.print(f"{run['rows_per_second']:,} rows/s", highlight=False)


def _figures(
    p: NDArray[np.float32],
    y: NDArray[np.int8],
    group: NDArray[Any],
    q: NDArray[np.float32],
    base: tuple[NDArray[np.float32], NDArray[np.float32]] | None,
    keys: tuple[str, ...],
) -> dict[str, Any]:
    """:func:`~millrace.basics.ranking_metrics.figures_of`, ``q`` the scores that are comparable within groups."""
    found = figures_of(p, y, group, compared=q, base=base, keys=keys)
    return {"rows": len(y), "positives": int(y.sum())} | {k: known(v, DIGITS) for k, v in found.items()}


class Baseline:
    """Takes the baseline's scores while a log is run: an
    :class:`~millrace.commands.replay.logsamples.ReplayObserver`. Raises ValueError if the schema has no
    such column; :meth:`of` gives None for it."""

    scores: NDArray[np.float32]
    """(n,) the item's smoothed click rate, on the scale of the features: it ranks, it is no probability."""

    def __init__(self, schema: Schema, rows: int) -> None:
        column = baseline_column(schema)
        if column is None:
            raise ValueError(f"schema '{schema.name}' has no click rate of an item")
        self.column = column
        self.scores = np.zeros(rows, np.float32)

    @classmethod
    def of(cls, schema: Schema, rows: int) -> Baseline | None:
        """The baseline of a log; None where the schema has no click rate of an item."""
        return None if baseline_column(schema) is None else cls(schema, rows)

    def scored(
        self,
        rows: NDArray[np.intp],
        cat: NDArray[np.int64],
        num: NDArray[np.float32],
        p: NDArray[np.float32],
    ) -> None:
        self.scores[rows] = num[:, self.column]

    def learnt(self, samples: KnownSamples, part: slice, batch: SampleBatch) -> None:
        """The baseline learns nothing."""
