"""The twin: it learns the same exposures in the same order, each after it was scored, with its final label."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands.demo.demorun import DemoOptions, demo, may_take_usual_ports
from commands.demo.servedrows import LabelledExposures, auc_of
from commands.demo.twin import LoggedPages, blocks, twin_scores
from learner.ranker.model import OnlineModel
from millrace.basics.errors import ServiceError, SettingError
from millrace.contracts.events import PageLog, to_msgpack
from millrace.contracts.settings import Settings
from tests.scenes.learning import SCHEMA

T0 = 1_772_600_000_000
SPEC = {"model": "wide_deep", "hidden": [8]}


def run(pages: int = 120, size: int = 10) -> tuple[LabelledExposures, LoggedPages]:
    """Pages a second apart. Items of category 1 are clicked, others are not; other fields mean nothing."""
    rng, layout = np.random.default_rng(2), SCHEMA.layout
    category = layout.cat_starts[[f.name for f in layout.cat_fields].index("category")]
    held, label = LoggedPages(SCHEMA), []
    for number in range(pages):
        cat = rng.integers(100, 110, (size, layout.F))
        cat[:, category] = rng.integers(1, 4, size)
        label += (cat[:, category] == 1).tolist()
        held.message(SimpleNamespace(value=page_log(f"p{number}", cat)))
    n = pages * size
    rows = LabelledExposures(
        ts_ms=T0 + 1000 * (np.arange(n, dtype=np.int64) // size),
        page=np.array([f"p{i // size}" for i in range(n)], np.object_),
        position=np.arange(n) % size,
        label=np.array(label, np.int8),
        score=np.full(n, 0.5, np.float32),
        true=np.full(n, np.nan, np.float32),
        arm=np.zeros(n, np.int8),
        own=np.ones(n, np.bool_),
        settled=np.ones(n, np.bool_),
    )
    return rows, held


def page_log(request: str, cat: Any, schema_id: str = SCHEMA.id) -> bytes:
    n = len(cat)
    num = np.zeros((n, SCHEMA.layout.N), "<f4").tobytes()
    items: list[int | str] = list(range(1, n + 1))
    scores, keys = np.zeros(n, "<f4").tobytes(), np.zeros((n, SCHEMA.layout.K), "<u8").tobytes()
    return to_msgpack(
        PageLog(request, T0, 1, "model", 0, schema_id, items, scores, keys, cat.astype("<i8").tobytes(), num)
    )


def test_it_scores_each_block_before_it_learns_it_and_learns_what_the_label_is() -> None:
    rows, pages = run()
    p = twin_scores(rows, pages, SCHEMA, SPEC, 0, 1000.0, 512)
    _, cat, num = pages.features(rows)
    untrained = OnlineModel(SCHEMA, SPEC, 0)
    assert np.array_equal(p[:10], untrained.score(cat[:10], num[:10]))
    assert not np.array_equal(p[10:20], untrained.score(cat[10:20], num[10:20]))
    late = auc_of(p[600:], rows.label[600:])
    assert late is not None
    assert late > 0.95
    turned = twin_scores(rows.where(np.arange(len(rows)) < 20), pages, SCHEMA, SPEC, 0, 1000.0, 512)
    assert np.array_equal(turned, p[:20])  # what comes later changes nothing


def test_a_row_without_page_log_has_no_score_and_is_not_learnt() -> None:
    rows, pages = run(3)
    stranger, beyond = rows.page.copy(), rows.position.copy()
    stranger[0], beyond[1] = "nobody's", 99
    lacking = LabelledExposures(
        rows.ts_ms, stranger, beyond, rows.label, rows.score, rows.true, rows.arm, rows.own, rows.settled
    )
    p = twin_scores(lacking, pages, SCHEMA, SPEC, 0, 1000.0, 512)
    assert np.isnan(p).tolist() == [True, True, *[False] * 28]
    assert np.isnan(twin_scores(rows.where(slice(0, 0)), pages, SCHEMA, SPEC, 0, 1000.0, 512)).tolist() == []


@pytest.mark.parametrize("bad", [b"", b"[]", None, "other schema", "cut"])
def test_page_logs_that_cannot_be_used_are_counted_and_passed_over(bad: Any) -> None:
    _, pages = run(1)
    cat = np.zeros((2, SCHEMA.layout.F), np.int64)
    raw = {"other schema": page_log("x", cat, "other"), "cut": page_log("x", cat)[:-3]}.get(bad, bad)
    pages.message(SimpleNamespace(value=raw))
    assert (len(pages), pages.unread) == (1, 1)


def test_a_twin_without_a_report_to_appear_in_is_refused() -> None:
    with pytest.raises(SettingError, match="--twin without --report; name the file"):
        demo(Settings(), DemoOptions(twin=True))


def test_prometheus_is_asked_for_and_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceError, match="no prometheus is on the PATH; install one"):
        demo(Settings(), DemoOptions(prometheus=True, data=tmp_path / "data"))
    assert not list(tmp_path.iterdir())


def test_the_first_page_log_of_a_page_counts() -> None:
    rows, pages = run(1)
    _, before, _ = pages.features(rows)
    pages.message(SimpleNamespace(value=page_log("p0", before + 1)))
    _, after, _ = pages.features(rows)
    assert np.array_equal(before, after)


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 30), st.integers(1, 8))
def test_blocks_take_every_row_once_in_order_and_keep_their_bounds(gaps: list[int], block_ms: int, most: int) -> None:
    ts_ms = T0 + np.cumsum(np.array(gaps, np.int64))
    cut = blocks(ts_ms, float(block_ms), most)
    assert [i for b in cut for i in range(b.start, b.stop)] == list(range(len(gaps)))
    for block in cut:
        assert 1 <= block.stop - block.start <= most
        assert ts_ms[block.stop - 1] - ts_ms[block.start] < block_ms


def test_of_two_demos_at_once_one_takes_the_usual_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with ExitStack() as first, ExitStack() as second:
        assert may_take_usual_ports(first)
        assert not may_take_usual_ports(second)
        first.close()
        assert may_take_usual_ports(second)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with ExitStack() as nowhere:
        assert not may_take_usual_ports(nowhere)
