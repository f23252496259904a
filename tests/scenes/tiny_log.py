"""A log of a few rows of two days, for the public functions."""

from __future__ import annotations

from typing import Any

import numpy as np

SCHEMA = """
name = "tiny"
fields = [{name = "user", of = "user"}, {name = "item", of = "item"},
          {name = "price", of = "item", kind = "numeric"}]
[log]
time = "at"
user = "user"
item = "item"
label = "click"
time_unit = "ms"
[windows]
days = [1]
actions = ["exposure", "click"]
keys = [{columns = ["item"]}]
"""
SMALL = {"width": 4, "hidden": [8], "blocks": 1}
START_MS = 1_650_758_400_000


def rows(n: int = 300) -> dict[str, list[Any]]:
    rng = np.random.default_rng(4)
    return {
        "at": (START_MS + np.sort(rng.integers(0, 2 * 86_400_000, n))).tolist(),
        "user": rng.integers(1, 9, n).tolist(),
        "item": [f"i{k}" for k in rng.integers(0, 12, n)],
        "price": np.round(rng.random(n), 3).tolist(),
        "click": (rng.random(n) < 0.3).astype(int).tolist(),
    }
