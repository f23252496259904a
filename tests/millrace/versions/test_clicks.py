"""Clicks on their way to the weights that serve: their times in a version, the histograms of stages, the figures."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, CollectorRegistry, Histogram, generate_latest

from commands.loop.stage_times import quantile_ms
from millrace.basics.errors import SnapshotError
from millrace.contracts.samples import CORRECTION, FOLLOW_UP, POSITIVE
from millrace.processes.tally import TimesHistogram
from millrace.versions.clicks import MOST_BUCKETS, WIDTH_MS, ClickHistogram
from millrace.versions.versioning import Announcement, VersionClicks, decode_announcement
from scorer.ipc.meters import RECENT, ClickTrace, Steps
from stream.worker.stream_metrics import joined
from tests.scenes.learning import make_samples

NOW_MS = 1_772_000_000_000
times = st.lists(st.integers(0, NOW_MS), max_size=60)


@given(st.lists(times, max_size=4))
def test_every_click_is_there_at_its_time(many: list[list[int]]) -> None:
    found = ClickHistogram.merged([ClickHistogram.of(part) for part in many])
    sent = np.sort(np.array([ms for part in many for ms in part], np.int64))
    reported = np.repeat(found.sent_ms(), found.counts)
    assert found.total == len(sent) == len(reported)
    assert np.abs(reported - sent).max(initial=0) <= WIDTH_MS // 2
    assert found.is_valid
    assert msgspec.json.decode(msgspec.json.encode(found), type=ClickHistogram) == found


def test_clicks_of_hours_become_coarse_and_none_is_left_out() -> None:
    sent = np.arange(NOW_MS, NOW_MS + 3_600_000, 7)
    found = ClickHistogram.of(sent)
    assert len(found.counts) <= MOST_BUCKETS
    assert found.total == len(sent)
    reported = np.repeat(found.sent_ms(), found.counts)
    assert np.abs(reported - sent).max() <= found.width_ms // 2
    assert len(msgspec.json.encode(found)) < 20_000


def test_a_second_of_traffic_is_small_however_much_it_is() -> None:
    sent = np.random.default_rng(0).integers(NOW_MS, NOW_MS + 1000, 100_000)
    assert len(msgspec.json.encode(ClickHistogram.of(sent))) < 1000


@pytest.mark.parametrize(
    "clicks",
    [
        {"gaps": [1, 2], "counts": [1]},
        {"gaps": [2**53], "counts": [1]},
        {"width_ms": 2**53, "gaps": [5], "counts": [1]},
    ],
)
def test_times_that_cannot_be_read_are_an_announcement_that_cannot(clicks: dict[str, Any]) -> None:
    note = Announcement(
        kind="delta", epoch=1, version=2, claimant="c", parent="p", hash="h", digest="d", size=1, schema_id="s",
        spec={}, event_ms=0, trained=0, published_ms=0,
    )  # fmt: skip
    assert decode_announcement(msgspec.json.encode(note)) == note
    with pytest.raises(SnapshotError, match="clicks"):
        decode_announcement(msgspec.json.encode(msgspec.to_builtins(note) | {"clicks": clicks}))


def without_created(registry: CollectorRegistry) -> str:
    lines = generate_latest(registry).decode().splitlines()
    return "\n".join(line for line in lines if "_created" not in line)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.005, 0.01, 0.02, 0.3, 5.0]), st.integers(1, 5)), max_size=30))
def test_a_histogram_of_many_shows_what_the_clients_own_does(values: list[tuple[float, int]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    many = TimesHistogram("took_seconds", "Text.", bounds=(0.01, 0.25, 1), registry=ours)
    one = Histogram("took_seconds", "Text.", buckets=(0.01, 0.25, 1), registry=theirs)
    many.observe([v for v, _ in values], [n for _, n in values])
    for value, count in values:
        for _ in range(count):
            one.observe(value)

    def read(text: str) -> dict[str, float]:
        return {k: float(v) for k, v in re.findall(r"^(took\S+) (\S+)$", text, re.MULTILINE)}

    assert read(without_created(ours)) == pytest.approx(read(without_created(theirs)))


def test_a_stage_is_a_label_and_is_there_from_the_start() -> None:
    registry = CollectorRegistry()
    stages = TimesHistogram("stage_seconds", "Text.", "stage", ("a", "b"), registry=registry)
    stages.observe(0.05, 7, "b")
    assert registry.get_sample_value("stage_seconds_count", {"stage": "a"}) == 0
    assert registry.get_sample_value("stage_seconds_count", {"stage": "b"}) == 7
    assert registry.get_sample_value("stage_seconds_sum", {"stage": "b"}) == pytest.approx(0.35)


@given(st.lists(st.tuples(st.integers(0, 500_000), st.integers(1, 9)), min_size=1, max_size=60))
def test_percentiles_are_those_of_all_times(values: list[tuple[int, int]]) -> None:
    steps = Steps()
    steps.add([ms for ms, _ in values], [n for _, n in values])
    took = np.repeat([ms for ms, _ in values], [n for _, n in values])
    found = steps.figures()
    assert found["count"] == len(took)
    for name, share in (("p50", 50), ("p99", 99)):
        exact = float(np.percentile(took, share, method="inverted_cdf"))
        assert found[name] == pytest.approx(exact, abs=5.001, rel=0.0051)


def test_figures_are_over_all_clicks_and_over_the_newest() -> None:
    trace = ClickTrace()
    assert trace.figures() == {
        "p50": None, "p99": None, "count": 0, "recent": {"p50": None, "p99": None, "count": 0}
    }  # fmt: skip
    slow = ClickHistogram.of([NOW_MS - 2000], [3 * RECENT])
    trace.served([VersionClicks(NOW_MS - 100, slow)], NOW_MS)
    for _ in range(3):
        trace.served([VersionClicks(NOW_MS, ClickHistogram.of([NOW_MS - 300], [RECENT // 2]))], NOW_MS)
    found = trace.figures()
    assert found["count"] == 4 * RECENT + RECENT // 2
    assert found["p50"] == pytest.approx(2000, abs=10)
    assert found["recent"]["p50"] == found["recent"]["p99"] == pytest.approx(300, abs=10)
    assert found["recent"]["count"] == RECENT


def test_a_clock_that_is_behind_the_clients_gives_no_time_below_nothing() -> None:
    trace = ClickTrace()
    trace.served([VersionClicks(NOW_MS + 50, ClickHistogram.of([NOW_MS + 5000]))], NOW_MS)
    assert trace.figures()["p50"] == pytest.approx(0, abs=5)


def test_a_quantile_lies_where_the_line_crosses_it() -> None:
    assert quantile_ms({}, 0.5) is None
    assert quantile_ms({"0.1": 0.0, "+Inf": 0.0}, 0.5) is None
    assert quantile_ms({"+Inf": 10, "0.4": 10, "0.2": 0}, 0.5) == pytest.approx(300)
    assert quantile_ms({"0.1": 0, "0.2": 4, "+Inf": 10}, 0.99) == pytest.approx(200), "beyond the last bound"


def test_the_stream_observes_each_click_that_labels_and_no_follow_up() -> None:
    def seen() -> tuple[float, float]:
        found = [
            REGISTRY.get_sample_value(f"millrace_click_stage_seconds_{n}", {"stage": "joined"})
            for n in ("count", "sum")
        ]
        return found[0] or 0.0, found[1] or 0.0

    batch = make_samples(20, 0)
    kinds = np.full(20, POSITIVE, np.uint8)
    kinds[3], kinds[4] = FOLLOW_UP, CORRECTION
    sent = np.zeros(20, np.int64)
    sent[3:6] = NOW_MS - 500
    before = seen()
    joined(replace(batch, kind=kinds, origin_ms=sent), NOW_MS)
    after = seen()
    assert after[0] - before[0] == 2
    assert after[1] - before[1] == pytest.approx(1.0)
