"""Feeds: items age in hours, users tire, pages have 5 to 100 items; and one whose long pages confound."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from millrace.basics.durations import HOUR_MS
from millrace.basics.ranking_metrics import within
from simulator.daylog import day_table
from simulator.params import CONFOUNDED, DEFAULT, FEED, WORLDS
from simulator.world import PagePolicy, World, start_of

MONDAY = 20_514


@pytest.fixture(scope="module")
def feed() -> World:
    return World(7, 200, FEED)


def test_worlds_are_named_and_the_shop_is_as_it_was() -> None:
    assert WORLDS["shop"] is DEFAULT
    assert World(0, 600).intercept == pytest.approx(-2.8110687129560574, abs=1e-12)


def test_pages_have_five_to_a_hundred_items_all_on_sale_and_none_twice(feed: World) -> None:
    day, visits = feed.day(MONDAY), feed.visits(MONDAY)
    assert visits.size.min() == 5
    assert 90 < visits.size.max() <= 100
    assert (visits.size < 20).mean() > 0.3
    assert (visits.size > 40).mean() > 0.1
    rows = PagePolicy(feed, day).pages(visits, np.arange(visits.n))
    for view in range(0, visits.n, 7):
        page = rows[view, : visits.size[view]]
        assert len(set(page.tolist())) == len(page)
        assert day.alive(int(visits.start_ms[view]), page).all()
        alone = PagePolicy(feed, day).pages(visits, np.array([view]))[0]
        assert (alone[: len(page)] == page).all()


def test_an_item_ages_in_hours(feed: World) -> None:
    day = feed.day(MONDAY)
    born = day.inventory.born_ms
    row = np.array([int(np.flatnonzero(born >= start_of(MONDAY))[0])])
    ages = [day.affinity(3, row, int(born[row[0]]) + hours * HOUR_MS)[0] for hours in (0, 6, 12, 240)]
    assert [a - ages[-1] for a in ages[:3]] == pytest.approx([FEED.fresh, FEED.fresh / 2, FEED.fresh / 4], abs=1e-6)


def test_a_user_tires_within_a_session(feed: World) -> None:
    visits = feed.visits(MONDAY)
    assert (visits.shift[visits.page == 0] == 0).all()
    for session in np.unique(visits.session[visits.page > 1])[:50].tolist():
        own = np.flatnonzero(visits.session == session)
        assert all(late < early for early, late in pairwise(visits.shift[own[np.argsort(visits.page[own])]]))


def hourly(item: NDArray[np.int64], ts_ms: NDArray[np.int64]) -> NDArray[np.float64]:
    """Exposures of each row's item in the hour before it. (n,)"""
    found = np.zeros(len(item))
    for one in np.unique(item):
        rows = np.flatnonzero(item == one)
        own = ts_ms[rows]
        found[rows] = np.searchsorted(own, own) - np.searchsorted(own, own - HOUR_MS)
    return found


def order_of_long_pages(table: Any, score: NDArray[Any]) -> float:
    """AUC of a page, of those longer than a page of the shop."""
    page = np.unique(table["request_id"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    long = np.bincount(page)[page] > 20
    return within(score[long], table["click"].to_numpy()[long], page[long])["page_auc"]


@pytest.mark.parametrize("seed", [0, 3])
def test_counts_order_long_pages_of_the_confounded_feed_backwards(seed: int) -> None:
    orders = {}
    for name in ("feed", "confounded"):
        table = day_table(World(seed, 300, WORLDS[name]), MONDAY)
        counts = hourly(table["item_id"].to_numpy(), table["ts_ms"].to_numpy())
        orders[name] = order_of_long_pages(table, counts), order_of_long_pages(table, table["p_true"].to_numpy())
    assert orders["confounded"][0] < 0.4
    assert orders["confounded"][1] > 0.75, "the order is there for who sees more than counts"
    assert orders["feed"][0] > 0.45, "it is the planted pages, not the world's shape"


def test_long_pages_divide_attention(feed: World) -> None:
    visits = World(7, 200, CONFOUNDED).visits(MONDAY)
    assert (visits.size == feed.visits(MONDAY).size).all()
    first = visits.page == 0
    assert visits.shift[first] == pytest.approx(-np.log(visits.size[first] / 20))
