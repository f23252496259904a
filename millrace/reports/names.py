# core
"""Names of figures: one each, in pages, terminal, plots and docs.

Files keep the short keys (``grouped_auc``). :func:`name_of` makes a name for people. An unknown key is read by its
parts: ``auc_over_frozen`` is "AUC over frozen".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from millrace.basics.ranking_metrics import FIGURES

NAMES: dict[str, str] = {
    "auc": "AUC",
    "grouped_auc": "AUC within pages",
    "page_auc": "AUC of a page",
    "ndcg": "nDCG@10",
    "log_loss": "log loss",
    "calibration": "calibration",
    "baseline_auc": "baseline's AUC",
    "baseline_grouped_auc": "baseline's AUC within pages",
    "baseline_page_auc": "baseline's AUC of a page",
    "baseline_ndcg": "baseline's nDCG@10",
    "oracle_auc": "oracle's AUC",
    "oracle_log_loss": "oracle's log loss",
    "click_rate": "click rate",
    "completeness": "completeness",
    "positives": "clicks",
    "rows": "exposures",
    "drawn_rows": "randomised rows",
    "effective_rows": "effective sample size",
    "slots_with_support": "share of slots with support",
    "at_risk": "exposures watched so long",
    "gap_closed": "gap closed",
    "gap_closed_low": "gap closed, low",
    "gap_closed_high": "gap closed, high",
    "alarms_a_day": "alarms a day",
    "median_minutes": "median minutes to the alarm",
    "most_minutes": "most minutes to the alarm",
    "median_exposures": "median exposures to the alarm",
    "most_exposures": "most exposures to the alarm",
}

MEANS: dict[str, str] = {
    "auc": "the chance that a clicked exposure had a higher score than one that was not clicked; 0.5 is guessing",
    "grouped_auc": "AUC among the exposures of one page, averaged over exposures; in a log without pages, among"
    " those of a user's day",
    "page_auc": "the same, averaged over pages: a long page counts as much as a short one",
    "ndcg": "how near the clicks of a page are to its top, over its first ten places; 1 is all of them first. Averaged"
    " over pages with a click and without",
    "log_loss": "mean of -log(probability given to what happened); lower is better, and it judges probabilities too",
    "calibration": "clicks predicted over clicks seen; 1 is right, 1.2 predicts a fifth too many",
    "baseline_auc": "AUC of the item's own smoothed click rate on the same exposures: what a model must beat",
    "oracle_auc": "AUC of the true click probabilities of a simulated log: the best that anybody could reach",
    "completeness": "share of an exposure's clicks, those of the longest window, that have come by then",
    "gap_closed": "how much of the AUC between waiting and labels without delay is won; 1 is all of it",
}
"""Meaning of each figure, one sentence, for those who see it for the first time."""

_FIRST = ("_over_", "gap_closed", "ratio", "gain", "completeness", "detected", "alarms")
_FIGURES = (*FIGURES, "click_rate")


def name_of(key: str) -> str:
    if key in NAMES:
        return NAMES[key]
    if key.endswith("_percent"):
        return f"{name_of(key.removesuffix('_percent'))}, %"
    first, over, base = key.partition("_over_")
    if over and first and base:
        return f"{name_of(first)} over {name_of(base)}"
    if key.startswith("train_"):
        return f"training {name_of(key.removeprefix('train_'))}"
    return re.sub(r"\bauc\b", "AUC", key.replace("_", " "))


def meanings(keys: Iterable[str]) -> dict[str, str]:
    """The names and meanings of the figures in some keys, also of those that are parts of a key."""
    seen = list(keys)
    return {
        NAMES[figure]: text
        for figure, text in MEANS.items()
        if any(re.search(rf"(^|_){re.escape(figure)}($|_)", _without_longer(key, figure)) for key in seen)
    }


def weight(key: str) -> int:
    """Order of a column when a table has to be cut: 0 for differences and decisive figures, 1 for quality metrics, 2
    for the rest."""
    if key.startswith("train_"):
        return 2
    if any(part in key for part in _FIRST):
        return 0
    return 1 if any(key == figure or key.startswith(f"{figure}_") for figure in _FIGURES) else 2


def _without_longer(key: str, figure: str) -> str:
    """The key without the figures whose names contain this one's: ``grouped_auc`` is not ``auc``."""
    for other in sorted(NAMES, key=len, reverse=True):
        if other != figure and len(other) > len(figure) and figure in other:
            key = key.replace(other, "")
    return key
