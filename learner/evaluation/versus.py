# core
"""Two models on the same rows, which neither has learnt: their figures, and the gaps with 95% intervals over users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.clustered import PARTS, Gap, gap, parts_of
from millrace.basics.ranking_metrics import Numbers, known

FIGURES = tuple(PARTS)


@dataclass(frozen=True, slots=True)
class Versus:
    """Figures of a model and of the first one on the same rows; NaN where there is none: no rows, or one class."""

    rows: int
    users: int
    clicks: int
    own: dict[str, float]  # by name of FIGURES
    first: dict[str, float]
    gaps: dict[str, Gap]  # its own less the first's

    def line(self) -> dict[str, Any]:
        found: dict[str, Any] = {"rows": self.rows, "users": self.users, "clicks": self.clicks}
        for name in FIGURES:
            found |= {name: known(self.own[name]), f"first_{name}": known(self.first[name])}
            found |= {f"{name}_gap": known(self.gaps[name].value), f"{name}_half": known(self.gaps[name].half)}
        return found

    def __str__(self) -> str:
        """In words, for a log.

        >>> y, user = np.arange(60) % 3 < 1, np.arange(60) // 3
        >>> print(versus(np.where(y, 0.8, 0.2), np.full(60, 0.4), y, user))
        AUC 1.0000, first 0.5000 (+0.5000 ± 0.0000: better); log loss 0.2231, first 0.6460 (-0.4228 ± 0.0000: better)
        """
        auc, loss = (_in_words(self, name) for name in ("auc", "log_loss"))
        return f"AUC {auc}; log loss {loss}"


def versus(p: Numbers, q: Numbers, y: Numbers, user: NDArray[Any]) -> Versus:
    """Compares a model's predictions p with the first model's q for the labels y of the same rows, (n,) each. A
    prediction that is no probability counts as wrong. Intervals allow for likeness within a ``user`` (n,), by any
    number."""
    y = np.asarray(y, np.float64)
    number = np.unique(user, return_inverse=True)[1].astype(np.intp)  # (n,) from 0
    own, base = parts_of(p, y), parts_of(q, y)
    nowhere = Gap(float("nan"), float("nan"))
    return Versus(
        len(y),
        int(number.max()) + 1 if len(y) else 0,
        int((y > 0.5).sum()),
        {name: parts[0] for name, parts in own.items()},
        {name: parts[0] for name, parts in base.items()},
        {name: gap(own[name], base[name], y, number) if len(y) else nowhere for name in FIGURES},
    )


def _in_words(found: Versus, name: str) -> str:
    """One figure of both, the gap with half of its interval, and its verdict."""
    between, better = found.gaps[name], found.gaps[name].value > 0
    if name == "log_loss":
        better = not better
    says = ("better" if better else "worse") if between.is_significant else "not significant"
    return f"{found.own[name]:.4f}, first {found.first[name]:.4f} ({between.value:+.4f} ± {between.half:.4f}: {says})"
