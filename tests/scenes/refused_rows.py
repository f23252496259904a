"""Rows that a gate refuses, and where they lie on the topic."""

from __future__ import annotations

import numpy as np

from millrace.contracts.samples import SampleBatch
from millrace.versions.decisions import Span


def rows(n: int, first: int = 0) -> SampleBatch:
    """Rows of which no two are alike; one number is NaN, as quarantine has them."""
    rng = np.random.default_rng(first)
    num = rng.normal(size=(n, 3)).astype(np.float32)
    num[0, 0] = np.nan
    return SampleBatch.of_rows(
        rng.integers(0, 2, n).astype(np.uint8),
        1_000 + first + np.arange(n),
        rng.integers(0, 1 << 40, (n, 2)),
        num,
        request=("a", "b"),
        page=(np.arange(n) % 2).astype(np.int32),
    )


def spans(n: int, offset: int = 0) -> tuple[Span, ...]:
    """So many rows of one message."""
    return (Span(40 + offset, 0, n),)
