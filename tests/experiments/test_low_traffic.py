"""At a row a second nothing clean is refused, whatever happens."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.experiment_safety import clean, world_at
from learner.network.dense import threads
from millrace.contracts.schema import shop_schema


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_nothing_clean_is_refused_at_a_row_a_second(tmp_path: Path) -> None:
    """Four days from nothing, with a sale on the second, new goods and twice the rows on the third, and an hour on the
    fourth in which no user is read."""
    with threads(1):
        (row,) = clean(*world_at(1, seed=1, days=4), shop_schema(), tmp_path)
    assert row["refused"] == {}
