"""Pages drawn by chance: their odds are those with which they are drawn."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2

from millrace.basics.errors import SettingError
from millrace.evidence.exploration import RULES, Drawn, Exploration, Rule

SCORES = np.array([0.5, 0.4, 0.3, 0.1, 0.05], np.float32)


def plain_chance(how: Exploration, scores: np.ndarray, page: tuple[int, ...], size: int) -> float:
    """The chance that the rule draws this page of m, item by item, as the module's text has it."""
    n, chance, left = len(scores), 1.0, list(range(len(scores)))
    if how.rule == "swap":
        pages = []
        for slot, other in itertools.product(range(size), range(size, n)):
            order = list(range(n))
            order[slot], order[other] = other, slot
            pages.append(tuple(order[: len(page)]))
        return pages.count(page) / len(pages) if pages else float(page == tuple(range(len(page))))
    for item in page:
        odds = [1.0 if how.rule == "uniform" else (s / (1 - s)) ** (1 / how.temperature) for s in scores[left].tolist()]
        chance *= odds[left.index(item)] / sum(odds)
        left.remove(item)
    return chance


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("size", "most"), [(2, 2), (2, 4), (5, 5), (1, 3)])
def test_odds_are_those_of_the_mixture_given_the_items_above(rule: Rule, size: int, most: int) -> None:
    how = Exploration(0.3, rule, 0.7)
    seen: dict[tuple[int, ...], Drawn] = {}
    for seed in range(3000):
        drawn = how.draw(SCORES, size, most, np.random.default_rng(seed))
        seen[tuple(drawn.order.tolist())] = drawn
    ranked = tuple(range(most))
    for page, drawn in seen.items():
        for k in range(1, most + 1):
            of_part = sum(
                plain_chance(how, SCORES, page[:k] + more, size)
                for more in itertools.permutations(set(range(5)) - set(page[:k]), most - k)
            )
            chance = 0.3 * of_part + 0.7 * (page[:k] == ranked[:k])
            assert math.isclose(drawn.odds[:k].astype(float).prod(), chance, rel_tol=1e-5), (page, k)


@pytest.mark.parametrize("rule", RULES)
def test_pages_come_as_often_as_their_odds_say(rule: Rule) -> None:
    how, drawn = Exploration(0.5, rule, 0.7), Counter[tuple[int, ...]]()
    odds: dict[tuple[int, ...], float] = {}
    for seed in range(20_000):
        page = how.draw(SCORES, 2, 2, np.random.default_rng((7, seed)))
        drawn[tuple(page.order.tolist())] += 1
        odds[tuple(page.order.tolist())] = float(page.odds.astype(float).prod())
    assert math.isclose(sum(odds.values()), 1, abs_tol=1e-3), "nearly all pages were seen"
    statistic = sum((drawn[page] - 20_000 * p) ** 2 / (20_000 * p) for page, p in odds.items())
    assert statistic < chi2.ppf(0.9999, len(odds) - 1)


def test_a_long_list_and_scores_of_nearly_0_and_1_have_finite_odds() -> None:
    scores = np.sort(np.concatenate([np.zeros(300), np.ones(300), np.linspace(0, 1, 400)]).astype(np.float32))[::-1]
    for rule in RULES:
        for temperature in (0.01, 0.5, 100.0):
            for seed in range(20):
                drawn = Exploration(0.5, rule, temperature).draw(scores, 20, 600, np.random.default_rng(seed))
                assert len(set(drawn.order.tolist())) == 600
                assert np.isfinite(drawn.odds).all()
                assert ((drawn.odds > 0) & (drawn.odds <= 1 + 1e-6)).all()


def test_a_page_of_all_items_or_none_is_drawn() -> None:
    random = np.random.default_rng(0)
    for rule in RULES:
        assert len(Exploration(1.0, rule).draw(SCORES[:0], 20, 20, random).order) == 0
        whole = Exploration(1.0, rule).draw(SCORES, 20, 20, random)
        assert sorted(whole.order.tolist()) == [0, 1, 2, 3, 4]
    alone = Exploration(1.0, "swap").draw(SCORES, 5, 5, random)
    assert (alone.order.tolist(), alone.odds.tolist()) == ([0, 1, 2, 3, 4], [1.0] * 5), "there is nothing to swap with"


@pytest.mark.parametrize(
    "text", ["", "x", "2", "-0.1", "nan", "0.1,best", "0.1,softmax,0", "0.1,softmax,inf", "0.1,swap,1,2"]
)
def test_another_text_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(SettingError, match=r"drawn by chance") as caught:
        Exploration.of(text)
    assert repr(text)[1:-1] in str(caught.value)


def test_a_text_names_share_rule_and_temperature() -> None:
    assert Exploration.of("0.05") == Exploration(0.05, "softmax", 0.5)
    assert Exploration.of("0.1,uniform") == Exploration(0.1, "uniform", 0.5)
    assert Exploration.of("1,softmax,2") == Exploration(1.0, "softmax", 2.0)
    assert Exploration.of("0,swap") is None
