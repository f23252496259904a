"""The measurement of deltas: a few seconds of a small shop."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.deltabytes import delta_bytes


@pytest.mark.slow
def test_less_goes_over_the_wire_the_less_often_dense_weights_do() -> None:
    found = delta_bytes(6, intervals=(1, 2, 5), say=lambda line: None, users=1000, days=1)
    sent = [found["by_interval"][str(n)]["bytes_a_second"] for n in (1, 2, 5)]
    assert sent == sorted(sent, reverse=True)
    assert found["delta_bytes_a_second"] == sent[2]
    assert sent[0] < found["before"]
    assert found["rows_a_second"] > 0
    assert all(np.isfinite(one["log_loss"]) for one in found["by_interval"].values())
