# core
"""What a check says of samples or of a model: nothing, or a refusal with the figure and the bound that it broke.

::

    before learning    Screen, Quota                   ──┐
    each delta         Soundness, Shift                  ├──► Refusal | None ──► learner/promotion/promotion.py
    each snapshot      Soundness of all rows, Heldout  ──┘
"""

from __future__ import annotations

from typing import NamedTuple

CHECKS = {
    "absurd": "a row that cannot be: a date far ahead, a label or a number out of all bounds",
    "page": "late clicks, and rows sent again for their page, of a minute that was refused",
    "labels": "labels over predictions",
    "auc": "AUC of incoming labels",
    "numbers": "share of numbers that are not zero",
    "fields": "share of ids that are there",
    "loss": "loss or gradient of a micro-batch",
    "finite": "tensors, rows and optimiser slots are finite",
    "bounds": "tensors, rows and optimiser slots keep their bounds",
    "shift": "mean absolute shift of logits to the version before",
    "heldout": "days until chance makes held-out pages look as much worse than by the anchor",
}
"""Every check by name, and what its figure is."""


OF_MODEL, OF_PAGES, OF_SAMPLES = "model", "pages", "samples"
"""What checks judge: all that a model consists of, its scores of held-out pages, and samples with what is learnt of
them. Each kind ends its own refusals: one of held-out pages is over when a snapshot has passed, not before."""


def kind_of(check: str) -> str:
    """Which of the three judges so."""
    if check in ("finite", "bounds"):
        return OF_MODEL
    return OF_PAGES if check == "heldout" else OF_SAMPLES


class GateRefusal(NamedTuple):
    """Why samples or a model were refused. ``bound`` is the one that ``value`` broke."""

    check: str  # of CHECKS
    value: float
    bound: float
    what: str = ""  # which column, tensor, slot or id, where that is known

    def __str__(self) -> str:
        """
        >>> str(GateRefusal("labels", 2.4125, 1.6))
        'labels over predictions: 2.41, beyond 1.6'
        >>> str(GateRefusal("finite", float("nan"), 0.0, "dense/second"))
        'tensors, rows and optimiser slots are finite: dense/second nan, beyond 0'
        """
        what = f"{self.what} " if self.what else ""
        return f"{CHECKS[self.check]}: {what}{self.value:.3g}, beyond {self.bound:.3g}"
