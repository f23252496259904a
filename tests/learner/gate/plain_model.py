"""A model that is two numbers, for tests of what judges models from outside."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.samples import NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema, parse_schema
from tests.scenes.schemas import named, of_item

SCHEMA: Schema = parse_schema(named("plain") + of_item("item_id") + of_item("price:numeric", transform="raw"))
START_MS = 1_700_000_000_000
MINUTE_MS = 60_000


class Plain:
    """``sigmoid(slope x + bias)`` of the one number x. It is what the test says, and counts the rows it scored."""

    def __init__(self, slope: float = 1.0, bias: float = -1.0) -> None:
        self.schema = SCHEMA
        self.slope, self.bias = slope, bias
        self.newest_ms = START_MS
        self.scored = 0

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        self.scored += len(cat)
        p: NDArray[np.float32] = (1 / (1 + np.exp(-(self.slope * num[:, 0] + self.bias)))).astype(np.float32)
        return p


def rows(n: int, seed: int, start_ms: int = START_MS, step_ms: int = 1000, **columns: Any) -> SampleBatch:
    """Pages of ten rows, whose clicks a :class:`Plain` as it is made predicts best."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 1)).astype(np.float32)
    label = (rng.random(n) < 1 / (1 + np.exp(-(x[:, 0] - 1)))).astype(np.float32)
    own: dict[str, Any] = {
        "page": (np.arange(n) // 10).astype(np.int32),
        "position": (np.arange(n) % 10).astype(np.int32),
        "user": rng.integers(1, 50, n).astype(np.uint64),
        "label": label,
    }
    return SampleBatch.of_rows(
        np.where(label > 0, POSITIVE, NEGATIVE).astype(np.uint8),
        start_ms + np.arange(n, dtype=np.int64) // 10 * 10 * step_ms,
        rng.integers(1, 9, (n, 1)),
        x,
        tuple(f"{seed}-{page}" for page in range(-(-n // 10))),
        **(own | columns),
    )
