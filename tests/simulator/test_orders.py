"""Orders that come days later, and returns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS, HOUR_MS
from millrace.basics.ranking_metrics import calibration
from simulator.daylog import day_table
from simulator.params import UTC_OFFSET_MS, WORLDS
from simulator.world import World

MONDAY = 20_514  # a local day


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return day_table(World(3, 3000, WORLDS["orders"]), MONDAY)


def column(table: pa.Table, name: str) -> NDArray[np.int64]:
    values: NDArray[np.int64] = table[name].fill_null(0).to_numpy()
    return values


def test_orders_come_within_thirty_days_of_their_click(table: pa.Table) -> None:
    click, order, refund = (column(table, name) for name in ("click_ms", "order_ms", "refund_ms"))
    bought = order > 0
    delay = (order - click)[bought]
    assert (click[bought] > 0).all()
    assert delay.min() > 0
    assert delay.max() < 30 * DAY_MS
    assert 0.4 < (delay < DAY_MS).mean() < 0.6, "half of them within a day"
    returned = refund > 0
    assert (refund[returned] > order[returned]).all()
    assert (refund[returned] <= click[returned] + 30 * DAY_MS - HOUR_MS).all()
    assert 0.05 < returned.sum() / bought.sum() < 0.15
    kept = column(table, "purchase_ms")
    assert (kept == np.where(returned, 0, order)).all()


def test_business_buyers_order_on_workdays(table: pa.Table) -> None:
    order = column(table, "order_ms")
    weekday = ((order + UTC_OFFSET_MS) // DAY_MS + 3) % 7
    business = pc.equal(table["kind"], "business").to_numpy() & (order > 0)
    assert not (weekday[business] > 4).any()
    assert (weekday[~business & (order > 0)] > 4).any()


def test_the_chance_is_that_of_the_world(table: pa.Table) -> None:
    clicked = column(table, "click") == 1
    kept = (column(table, "purchase_ms") > 0)[clicked]
    chance = column(table, "p_purchase")[clicked]
    low = chance < np.median(chance)
    assert calibration(chance, kept.astype(np.float32)) == pytest.approx(1, abs=0.1)
    assert kept[low].mean() == pytest.approx(chance[low].mean(), rel=0.3)


def test_the_shop_without_orders_has_no_such_columns() -> None:
    table = day_table(World(3, 50), MONDAY)
    assert not {"order_ms", "refund_ms", "p_purchase"} & set(table.column_names)


def test_the_world_depends_on_its_seed_alone() -> None:
    again = [day_table(World(seed, 100, WORLDS["orders"]), MONDAY) for seed in (1, 1, 2)]
    assert again[0].equals(again[1])
    assert not again[0]["order_ms"].equals(again[2]["order_ms"])
