"""Drift: page means in the order of exposure; silent while nothing changes, also where a page's rows move together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from learner.evaluation.drift import Drift

ROWS = 10
Floats = np.ndarray[Any, Any]


def pages(n: int, rng: np.random.Generator, rate: float | None = None) -> tuple[Floats, Floats]:
    """Predictions and labels of n pages, (n, ROWS). What is clicked is what was predicted, or at ``rate``."""
    p = rng.random((n, ROWS)) * 0.4
    return p, (rng.random((n, ROWS)) < (p if rate is None else rate)).astype(float)


def given(drift: Drift, p: Floats, y: Floats, first: int = 0) -> None:
    drift.update(p.ravel(), y.ravel(), np.repeat(first + np.arange(len(p)), ROWS))


def test_drift_is_found_where_the_loss_changes_and_not_elsewhere() -> None:
    rng = np.random.default_rng(0)
    drift = Drift()
    given(drift, *pages(2000, rng))
    assert drift.found == []
    given(drift, *pages(400, rng, 0.7), first=2000)
    assert drift.found
    before, after = drift.found[0]
    assert before < 0.05 < after, "above what is expected"


def test_rows_of_a_page_that_move_together_are_one_value() -> None:
    """Whole pages clicked or not. Row by row, that looks like a change again and again."""
    rng = np.random.default_rng(1)
    y = np.repeat(rng.random((3000, 1)) < 0.5, ROWS, 1).astype(float)
    p = np.full(y.shape, 0.3)
    by_page, by_row = Drift(), Drift()
    given(by_page, p, y)
    by_row.update(p.ravel(), y.ravel(), np.arange(y.size))
    assert len(by_page.found) < len(by_row.found)
    assert (by_page.pages, by_row.pages) == (2999, y.size - 1)


def test_other_visitors_are_no_drift_where_the_predictions_are_right() -> None:
    """A small shop: forty visits at a time, some of people who click much and some of people who do not."""
    rng = np.random.default_rng(4)
    n, often = 40_000, rng.normal(0.0, 1.0, 500)
    visits = rng.integers(0, 500, 40)
    who = np.empty(n, np.intp)
    for page in range(n):
        visit = rng.integers(40)
        if rng.random() < 1 / 8:
            visits[visit] = rng.integers(500)
        who[page] = visits[visit]
    p = 1 / (1 + np.exp(2 - often[who][:, None] - rng.normal(0.0, 0.7, (n, ROWS))))
    y = (rng.random((n, ROWS)) < p).astype(float)
    drift = Drift()
    given(drift, p, y)
    assert drift.found == []
    given(drift, p[:2000], (rng.random((2000, ROWS)) < p[:2000] * 1.5).astype(float), first=n)
    assert drift.found, "they click half as much again"


@pytest.mark.parametrize("size", [1, 7, 10, 33, 5000])
def test_it_does_not_matter_how_pages_are_cut_into_calls(size: int) -> None:
    rng = np.random.default_rng(2)
    p, y = (np.concatenate(both) for both in zip(pages(300, rng), pages(100, rng, 0.8), strict=True))
    whole, parts = Drift(), Drift()
    given(whole, p, y)
    page = np.repeat(rng.permutation(1 << 20)[: len(p)].astype(np.uint64) << np.uint64(44), ROWS)  # hashes
    for start in range(0, p.size, size):
        part = slice(start, start + size)
        parts.update(p.ravel()[part], y.ravel()[part], page[part])
    assert whole.found
    np.testing.assert_allclose(parts.found, whole.found)
    assert parts.pages == whole.pages == 399, "the last page may go on"


def test_predictions_that_are_no_numbers_count_as_wrong() -> None:
    rng = np.random.default_rng(3)
    drift = Drift()
    given(drift, *pages(500, rng))
    assert drift.found == []
    p, y = pages(500, rng)
    given(drift, np.where(rng.random(p.shape) < 0.5, np.nan, p), y, first=500)
    (before, after), *_ = drift.found
    assert np.isfinite(after)
    assert after > before
    drift.update(np.zeros(0), np.zeros(0), np.zeros(0))
