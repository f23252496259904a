"""The benchmark of filters, on a small shop: each kind of page comes out, and has its figure."""

from __future__ import annotations

from pathlib import Path

from millrace.bench import filters
from millrace.bench.runner import BENCHMARKS


def test_each_kind_of_page_has_a_figure(tmp_path: Path) -> None:
    assert "filters" in BENCHMARKS
    said: list[str] = []
    figures = {f["name"]: f for f in filters.run(tmp_path, said.append, items=3000, rounds=2)}
    kinds = ("in_stock", "changed", "narrow", "filtered", "caps", "empty")
    assert set(figures) == {"plain_ms", *(f"{kind}_ratio" for kind in kinds)}
    assert all(f["value"] > 0 for f in figures.values())
    assert figures["empty_ratio"]["against"] == "plain"
