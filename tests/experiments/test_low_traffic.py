"""At a row a second nothing clean is refused: nights and a sale.

A burst of newcomers (change "newcomers" of the same world) is refused once by drift: its bound does not know that an
hour had twice the rows.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.experiment_safety import clean
from experiments.safety.safetyworld import Change, Shop
from learner.network.dense import threads
from millrace.contracts.schema import shop_schema


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("change", ["sale"])
def test_nothing_clean_is_refused_at_a_row_a_second(change: Change, tmp_path: Path) -> None:
    """Three days from nothing, 64 rows known at once; from noon of the third on something changes that is no fault."""
    shop = Shop(seed=1, days=3, users=1500, change=change)
    with threads(1):
        (row,) = clean(change, shop, shop_schema(), tmp_path, batch_rows=64)
    assert 0.8 < row["rows"] / (3 * 86_400) < 1.3
    assert row["refused"] == {}
