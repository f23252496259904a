# core
"""The scores that pages were served with, against settled labels: a report's figures, computed from the topics.

A row is a labelled exposure. It is *settled* when event time has passed its exposure by attribution window and
disorder, so that no click can come. Figures are of settled rows only, in the order of exposure; otherwise early clicks
would count without the negatives beside them. The learner computes the same figures by other code; a test holds the two
against each other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.ranking_metrics import auc, figures_of, judged, known, log_loss
from millrace.contracts.events import ARMS, LOGGED, MODEL

_LOGGED = ARMS.index(LOGGED)

POINTS = 100


@dataclass(frozen=True, slots=True)
class LabelledExposures:
    """Labelled exposures in the order of exposure: by time, then page, then position. (n,) each"""

    ts_ms: NDArray[np.int64]
    page: NDArray[np.object_]  # request id: (page, position) names the exposure
    position: NDArray[np.int64]
    label: NDArray[np.int8]  # clicked, by the labels that there are now
    score: NDArray[np.float32]  # that the page was served with; NaN where none was given, or a broken one
    true: NDArray[np.float32]  # click probability, known to the simulator; NaN where unknown
    arm: NDArray[np.int8]  # index into ARMS; a page that no model made (its version is below 0) is logged
    own: NDArray[np.bool_]  # of this run, not of an earlier one in the same topics
    settled: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ts_ms)

    def where(self, rows: NDArray[np.bool_] | slice) -> LabelledExposures:
        return LabelledExposures(*(getattr(self, f.name)[rows] for f in fields(self)))

    @property
    def judgeable(self) -> NDArray[np.bool_]:
        """Settled rows that can be judged, (n,): a logged page that nobody scored cannot."""
        rows: NDArray[np.bool_] = self.settled & ~((self.arm == _LOGGED) & ~np.isfinite(self.score))
        return rows

    @property
    def judged(self) -> LabelledExposures:
        return self.where(self.judgeable)

    def of(self, arm: str) -> LabelledExposures:
        return self.where(self.arm == ARMS.index(arm))

    @property
    def p(self) -> NDArray[np.float32]:
        """Scores (n,). A broken one counts as the worst probability: 0 for a click, 1 for none."""
        return judged(self.score, self.label).astype(np.float32)


def headline(rows: LabelledExposures) -> str:
    """The arm whose figures stand for the run: the model's pages; a log's where there are no others."""
    return LOGGED if len(rows.of(LOGGED)) and not len(rows.of(MODEL)) else MODEL


def auc_of(score: NDArray[Any], label: NDArray[Any]) -> float | None:
    """Area under the ROC curve of ``score`` (n,) for the binary ``label`` (n,), without rows that have no finite
    score. None when one class is missing."""
    finite = np.isfinite(score)
    return known(auc(score[finite], label[finite]))


def figures(rows: LabelledExposures) -> dict[str, float | int | None]:
    """:data:`~millrace.basics.ranking_metrics.FIGURES` of ``rows``, and how many they are. None: no value (no rows, or
    one class)."""
    found = figures_of(rows.score, rows.label, np.unique(rows.page, return_inverse=True)[1])
    return {"rows": len(rows)} | {key: known(value) for key, value in found.items()}


def first(rows: LabelledExposures, n: int) -> dict[str, float | int | None]:
    """Figures of the first ``n`` judged rows of this run, all arms, beside the log loss of the true probabilities."""
    part = rows.where(rows.own).judged.where(slice(0, n))
    known_to = np.isfinite(part.true)
    return figures(part) | {"oracle_log_loss": known(log_loss(part.true[known_to], part.label[known_to]))}


def curve(rows: LabelledExposures, window: int) -> list[dict[str, Any]]:
    """Rolling AUC over event time (Unix ms) of the scores that pages were served with, and the best possible AUC.

    This is progressive validation with delayed labels. In a closed loop the best possible AUC moves too: the better
    the pages, the more alike their items. The curve begins when the window is full (in a shorter run: half way), since
    the AUC of a few hundred rows is mostly chance.
    """
    n, p = len(rows), rows.p
    points = []
    for end in sorted(set(np.linspace(min(window, n // 2), n, POINTS, dtype=int).tolist()) - {0}):
        part = slice(max(0, end - window), end)
        area = auc_of(p[part], rows.label[part])
        if area is not None:
            points.append(
                {
                    "event_time": int(rows.ts_ms[end - 1]),
                    "auc": area,
                    "oracle_auc": auc_of(rows.true[part], rows.label[part]),
                }
            )
    return points


def by_minute(
    rows: LabelledExposures, begin_ms: int, minute_ms: float, twin: NDArray[np.float32] | None = None
) -> list[dict[str, Any]]:
    """Judged rows of this run by minute and arm: rows, clicks, and the clicks predicted by the served scores, the true
    probabilities and the twin (None where these are not known for all rows).

    Args:
        begin_ms: event time at which minute 0 begins.
        minute_ms: event time that passes in a minute of the wall clock.
        twin: the twin's scores of ``rows``, (n,).
    """
    chosen = rows.judgeable & rows.own & (rows.ts_ms >= begin_ms)
    part, other = rows.where(chosen), None if twin is None else twin[chosen]
    minute = ((part.ts_ms - begin_ms) / minute_ms).astype(np.int64)  # (n,)
    cell = minute * len(ARMS) + part.arm
    rows_of = []
    for at in np.unique(cell).tolist():
        here = part.where(cell == at)
        rows_of.append(
            {
                "minute": at // len(ARMS),
                "arm": ARMS[at % len(ARMS)],
                "rows": len(here),
                "clicks": int(here.label.sum()),
                "predicted": float(here.p.sum(dtype=np.float64)),
                "expected": known(float(here.true.sum(dtype=np.float64))),
                "twin": None if other is None else known(float(other[cell == at].sum(dtype=np.float64))),
            }
        )
    return rows_of
