# core
"""Pages drawn by chance, and the odds of each item in its slot.

n candidates stand as the model ranks them. With the share e a page is drawn by a rule, else it stays as ranked::

    softmax   slot after slot, without replacement: of those left, i with exp(z_i / T) over the sum of exp(z_j / T)
    uniform   the same with an infinite temperature T: any of those left is as likely
    swap      one slot of the page, any is as likely, changes places with one candidate below the page, any is as likely

z is the logit of a score. A softmax page is drawn with Gumbel noise: the order of z / T + noise is such a draw (Gumbel
top k; Kool, van Hoof and Welling 2019, "Stochastic beams and where to find them", section 2).

The odds of slot k are those of the mixture, the coin included, given the items above it::

    P(a_k | a_1 ... a_(k-1)) = M_k / M_(k-1)          M_k = (1 - e) [a_1 ... a_k are as ranked] + e Q(a_1 ... a_k)

with Q the rule's. So a page that was not drawn has odds, too, and their product over the slots is the chance of the
page. They are made in logarithms: the chance of 600 items is below any float.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray

from millrace.basics.errors import SettingError

Rule = Literal["softmax", "uniform", "swap"]
RULES: tuple[Rule, ...] = get_args(Rule)
Numbers = NDArray[np.float64]
Positions = NDArray[np.intp]

_NEAREST = 1e-7  # a score is no nearer to 0 and 1: float32 tells no more


class Drawn(NamedTuple):
    """A page of m candidates."""

    order: Positions  # (m,) places in the ranking
    odds: NDArray[np.float32]  # (m,) of each in its slot, given those above
    explored: bool  # whether the rule drew it


class Exploration(NamedTuple):
    """How pages are drawn.

    >>> Exploration.of("0.05,softmax,0.5")
    Exploration(share=0.05, rule='softmax', temperature=0.5)
    >>> Exploration.of("0") is None
    True
    """

    share: float
    rule: Rule = "softmax"
    temperature: float = 0.5  # of logits; of softmax alone

    @classmethod
    def of(cls, text: str) -> Self | None:
        """Reads ``share[,rule[,temperature]]``. None: no page is drawn.

        Raises:
            SettingError: it is no such text, or a number is out of its range.
        """
        share, rule, temperature, *more = [*text.split(","), *("", "")]
        try:
            made = cls(float(share), rule.strip() or "softmax", float(temperature or 0.5))  # type: ignore[arg-type]
            fits = 0 <= made.share <= 1 and 0 < made.temperature < math.inf and made.rule in RULES and not any(more)
        except ValueError:
            fits = False
        if not fits:
            raise SettingError(
                f"'{text}' is no share of pages to be drawn by chance",
                f"write share[,rule[,temperature]], as 0.05,softmax,0.5; rules are {', '.join(RULES)}",
            )
        return made if made.share else None

    def draw(self, scores: NDArray[np.float32], size: int, most: int, random: np.random.Generator) -> Drawn:
        """A page, or a list of ``most`` whose first ``size`` are the page.

        Args:
            scores: of the candidates as ranked, best first. (n,)
            size: at least 1.
            most: at least ``size``.
            random: a fresh stream for each page.
        """
        explored = bool(random.random() < self.share)
        n = len(scores)
        most = min(most, n)
        if not most:
            return Drawn(np.arange(0), np.empty(0, np.float32), False)
        if self.rule == "swap":
            order = _swapped(n, size, most, random) if explored else np.arange(most)
            log_odds = _swap_odds(order, n, size)
        else:
            z = logits(scores) / self.temperature if self.rule == "softmax" else np.zeros(n)
            order = np.arange(most)
            if explored:
                drawn = np.argsort(-(z + random.gumbel(size=n)), kind="stable")
                z, order = z[drawn], drawn[:most]
            log_odds = z[:most] - _log_sums(z, most)
        return Drawn(order, self._mixed(order, log_odds).astype(np.float32), explored)

    def _mixed(self, order: Positions, log_odds: Numbers) -> Numbers:
        """Odds of the mixture, where the rule's have these logarithms. (m,)"""
        ranked = np.logical_and.accumulate(order == np.arange(len(order)))
        with np.errstate(divide="ignore", invalid="ignore"):
            unmoved = np.where(ranked, np.log1p(-self.share), -np.inf)
            mixture = np.logaddexp(unmoved, np.log(self.share) + np.cumsum(log_odds))  # log of M_k
            odds = np.exp(np.diff(mixture, prepend=0.0))
        return np.where(np.append(True, ranked[:-1]), odds, np.exp(log_odds))


def logits(scores: NDArray[np.float32]) -> Numbers:
    """z of scores, finite."""
    p = np.clip(scores.astype(np.float64), _NEAREST, 1 - _NEAREST)
    z: Numbers = np.log(p / (1 - p))
    return z


def _log_sums(z: Numbers, most: int) -> Numbers:
    """log of the sum of exp(z) from each of the first places on. (most,)"""
    rest, first = z[most:], z[:most]
    below = np.array([rest.max() + math.log(np.exp(rest - rest.max()).sum())]) if len(rest) else rest
    sums: Numbers = np.logaddexp.accumulate(np.append(first, below)[::-1])[::-1]
    return sums[:most]


def _swapped(n: int, size: int, most: int, random: np.random.Generator) -> Positions:
    order = np.arange(n)
    if size < n:
        slot, other = random.integers(size), random.integers(size, n)
        order[[slot, other]] = other, slot
    return order[:most]


def _swap_odds(order: Positions, n: int, size: int) -> Numbers:
    """Logarithms of the odds that swapping gives. Behind the swap nothing is left to chance."""
    log_odds = np.zeros(len(order))
    if size < n:
        slots = np.arange(min(size, len(order)))
        moved = np.flatnonzero(order[: len(slots)] != slots)
        until = int(moved[0]) if len(moved) else len(slots)
        left = size - slots  # slots that may be the one, as long as none above is
        with np.errstate(divide="ignore"):
            log_odds[:until] = np.log1p(-1.0 / left[:until])
        if len(moved):
            log_odds[until] = -math.log(left[until] * (n - size))
    return log_odds
