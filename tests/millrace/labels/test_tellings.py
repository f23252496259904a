"""Outcomes told by age: what a row's tellings add up to, and that weights leave the true rate at rest."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.basics.durations import DAY_MS
from millrace.contracts.samples import POLICIES
from millrace.labels import REGISTRY
from millrace.labels.tellings import ages_ms, tell, told_weights, turns

EARLY = [name for name, policy in REGISTRY.items() if policy.early]
TURN = 2
UNKEPT = ("never", "early, back", "late, back", "back before its turn")
CAME = {  # at four ages; the row's turn is the second
    "kept, early": (0, 1, 1, 1),
    "kept, late": (0, 0, 1, 1),
    "never": (0, 0, 0, 0),
    "early, back": (1, 1, 0, 0),
    "back before its turn": (1, 0, 0, 0),
    "late, back": (0, 0, 1, 0),
    "early, back, bought again": (1, 0, 0, 1),
}


def tellings(came: tuple[int, ...]) -> list[tuple[int, int]]:
    """(number, value) of what a row is told that had come at these ages."""
    told, stands = [], np.zeros(1, np.uint8)
    for number, now in enumerate(came, 1):
        value, stands = tell(stands, np.array([now], np.bool_), np.array([number >= TURN]))
        if np.isfinite(value[0]):
            told.append((number, int(value[0])))
    return told


def slope(policy: str, came: tuple[int, ...], q: float, early: float) -> float:
    """What all tellings of a row add to the gradient, for a prediction q."""
    number, value = np.array(tellings(came)).T
    n = len(number)
    code = np.full(n, POLICIES.index(policy), np.uint8)
    full = np.full(n, q, np.float32), np.full(n, early, np.float32)
    ones, zeros = told_weights(code, number.astype(np.uint8), value.astype(np.float32), *full)
    return float(((ones + zeros) * q - ones).astype(np.float64).sum())


def test_ages_double_until_the_window_is_over() -> None:
    month = ages_ms(REGISTRY["es-dfm"], 30 * DAY_MS)
    assert (month[0], month[-1], len(month)) == (30 * DAY_MS // 32, 30 * DAY_MS, 6)
    assert all(later == 2 * age for age, later in pairwise(month))
    assert ages_ms(REGISTRY["wait"], 30 * DAY_MS) == [30 * DAY_MS]


def test_what_is_told() -> None:
    assert {path: tellings(came) for path, came in CAME.items()} == {
        "kept, early": [(2, 1)],
        "kept, late": [(2, 0), (3, 2)],
        "never": [(2, 0)],
        "early, back": [(1, 1), (3, -1)],
        "back before its turn": [(1, 1), (2, -1)],
        "late, back": [(2, 0), (3, 2), (4, -2)],
        "early, back, bought again": [(1, 1), (2, -1), (4, 2)],
    }


def test_half_of_what_is_left_has_its_turn_at_each_age() -> None:
    rng = np.random.default_rng(0)
    count = np.bincount(turns(rng.integers(0, 2**32, 640_000, dtype=np.uint32)), minlength=7)
    assert count[0] == 0
    np.testing.assert_allclose(count[1:] / 640_000, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 32], atol=0.003)
    assert turns(np.zeros(1, np.uint32)).tolist() == [6]


@given(st.lists(st.booleans(), min_size=2, max_size=9), st.sampled_from(EARLY), st.floats(0.01, 0.85))
def test_tellings_add_up_to_what_is_true(came: list[bool], policy: str, q: float) -> None:
    """To a 1 before its turn, or to a 0 of it; and a correction, where a 1 came later."""
    row = tuple(map(int, came))
    first = row.index(1) if any(row) else len(row)
    early = first < TURN and all(row[first:])
    stands = "kept, early" if early else "kept, late" if row[-1] else "never"
    assert slope(policy, row, q, 0.3) == pytest.approx(slope(policy, CAME[stands], q, 0.3), abs=1e-5)


@given(st.sampled_from(EARLY), st.floats(0.01, 0.8), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_the_true_rate_is_at_rest_with_refunds_too(policy: str, p: float, g: float, back: list[float]) -> None:
    """A share p of rows is kept; of these a share g came before its turn. Of the others some were bought meanwhile, and
    of those kept late some early before."""
    unkept = np.array([1.0, *back[:2], back[0] / 2]) / (1 + sum(back[:2]) + back[0] / 2)
    share = {
        "kept, early": p * g,
        "kept, late": p * (1 - g) * (1 - back[2] / 2),
        "early, back, bought again": p * (1 - g) * back[2] / 2,
    } | dict(zip(UNKEPT, (1 - p) * unkept, strict=True))
    assert sum(share.values()) == pytest.approx(1)

    def at(q: float, name: str = policy) -> float:
        return float(sum(part * slope(name, CAME[path], q, g) for path, part in share.items()))

    assert at(p) == pytest.approx(0, abs=2e-5)
    assert at(p * 0.9) < 0 < at(p * 1.1)
    if p > 0.1 and g < 0.9:
        assert at(p, "wait") > 1e-3, "without weights it falls: a late one is told as a 0, too"


def test_what_is_told_one_time_has_weight_1() -> None:
    for policy in range(len(POLICIES)):
        ones, zeros = told_weights(
            np.full(2, policy, np.uint8), np.zeros(2, np.uint8), np.array([0, 1], np.float32),
            np.full(2, 0.4, np.float32), np.full(2, 0.5, np.float32),
        )  # fmt: skip
        assert (ones.tolist(), zeros.tolist()) == ([0, 1], [1, 0])
