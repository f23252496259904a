"""The benchmark of filters, on a small shop: each kind of page is what it is called, and its figure is worked out of
rounds."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from benchmarks.filters import PAGE, PLAIN, Shop, attributes, measure, requests

from benchmarks import filters
from benchmarks.runner import BENCHMARKS, Say

KINDS = {PLAIN, "in_stock", "changed", "narrow", "hidden", "caps", "empty"}
ITEMS = 3000


def test_each_kind_of_page_is_what_it_is_called() -> None:
    shop, asked = Shop(ITEMS), requests(1)
    assert asked.keys() == KINDS

    def page(name: str) -> list[int]:
        raw = msgspec.json.encode({"user_id": 7, "size": PAGE, **asked[name]})
        return [int(item.item_id) for item in asyncio.run(shop.serving.recommend(raw)).items]

    pages = {name: page(name) for name in asked if name != "changed"}
    shop.change(1)
    pages["changed"] = page("changed")
    assert {name: len(shown) for name, shown in pages.items()} == dict.fromkeys(KINDS, PAGE) | {"empty": 0}
    for name in ("in_stock", "changed", "hidden", "caps"):
        assert all(attributes(i)["in_stock"] for i in pages[name]), name
    assert not all(attributes(i)["in_stock"] for i in pages[PLAIN]), "a plain page has no filter"
    assert {attributes(i)["market"] for i in pages["narrow"]} == {"m1"}
    assert not set(pages["hidden"]) & set(asked["hidden"]["exclude"])
    assert max(Counter(attributes(i)["category"] for i in pages["caps"]).values()) <= 3


def test_a_page_that_is_not_what_it_is_called_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "requests", lambda turn: requests(turn) | {"in_stock": requests(turn)["empty"]})
    with pytest.raises(RuntimeError, match="a page 'in_stock' has 0 items"):
        asyncio.run(measure(ITEMS, 1, lambda line: None))


def test_a_figure_is_the_median_of_what_a_page_takes_beside_the_plain_one_of_its_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measured(items: int, rounds: int, say: Say) -> dict[str, Any]:
        return {
            PLAIN: np.array([1.0, 2.0, 4.0]),
            "hidden": np.array([3.0, 4.0, 4.0]),  # 3, 2 and 1 times the plain page of the round
            "empty": np.array([0.5, 0.5, 0.5]),
        }

    monkeypatch.setattr(filters, "measure", measured)
    assert filters.run(tmp_path, lambda line: None) == [
        {"name": "plain_ms", "value": 2.0, "unit": "ms", "against": None, "ratio": None},
        {"name": "filtered_ratio", "value": 2.0, "unit": "of 4.00 ms", "against": PLAIN, "ratio": 2.0},
        {"name": "empty_ratio", "value": 0.25, "unit": "of 0.50 ms", "against": PLAIN, "ratio": 0.25},
    ]


@pytest.mark.slow
def test_each_kind_is_measured_once_a_round() -> None:
    assert "filters" in BENCHMARKS
    found = asyncio.run(measure(ITEMS, 2, lambda line: None))
    assert {name: times.shape for name, times in found.items()} == dict.fromkeys(KINDS, (2,))
