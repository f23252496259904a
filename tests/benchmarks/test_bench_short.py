"""Benchmarks in their short form, as a user runs them: they end with figures. And what is left when a part fails."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import peers, runner
from benchmarks.parts.tasteshop import Followed, Taste, followed
from benchmarks.runner import BENCHMARKS, bench
from benchmarks.tools.bench_figures import Figure, Say, figure
from benchmarks.tools.traffic import make
from millrace.basics.errors import ServiceError
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.schema import shop_schema
from millrace.contracts.topics import PAGE_LOGS
from stream.partition import partition_checkpoint
from tests.scenes.checkpointed import checkpoint_amplification
from tests.scenes.waiting import LONG


def of_intake(figures: dict[str, float]) -> None:
    assert figures["acknowledged"] > 0
    assert figures["lost"] == figures["twice"] == 0


def of_peers(figures: dict[str, float]) -> None:
    assert len(figures) == 3 * 2 * len(peers.CONTESTANTS)
    assert len({len(who.rates) for who in peers.CONTESTANTS.values()}) == 1


def of_scorer(figures: dict[str, float]) -> None:
    assert figures["asked_pages"] > 100
    assert figures["lost_pages"] == 0
    assert "without_user" in figures
    assert figures["failed_pages"] < figures["asked_pages"] / 10  # a busy machine may refuse some, and says so
    for page in ("page_20", "page_600"):
        assert 0 < figures[f"{page}_p50_ms"] <= figures[f"{page}_p99_ms"]
        assert figures[f"{page}_cpu_ms"] > 0
    stages = {name: value for name, value in figures.items() if name.startswith("stage_")}
    assert len(stages) == 9
    assert all(value > 0 for value in stages.values())
    assert sum(stages.values()) == pytest.approx(2 * stages["stage_all_ms"])
    assert stages["stage_network_ms"] > 0.1 * stages["stage_all_ms"]


def of_stores(figures: dict[str, float]) -> None:
    assert figures["scorer_restart_seconds"] > 0
    assert figures["scorer_restart_without_index_seconds"] > 0


OWN: dict[str, Callable[[dict[str, float]], None] | None] = {
    "content": None,
    "intake": of_intake,
    "judge": None,
    "learner": None,
    "peers": of_peers,
    "replay": None,
    "scorer": of_scorer,
    "stores": of_stores,
}
"""What holds for a benchmark's own figures. Recall and stream have tests of their own; the others take minutes."""


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("name", OWN)
def test_a_short_run_ends_with_figures(tmp_path: Path, name: str) -> None:
    """Each in a process of its own, with Kafka clients of its own."""
    assert name in BENCHMARKS
    command = [sys.executable, "-m", "millrace", "dev", "bench", name, "--short", "--out", str(tmp_path)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    figures = {f["name"]: f["value"] for f in json.loads((tmp_path / "report.json").read_text())}
    assert figures
    assert all(math.isfinite(value) for value in figures.values())
    assert json.loads((tmp_path / "run.json").read_text())["short"] is True
    if (own := OWN[name]) is not None:
        own(figures)


@pytest.mark.slow
@pytest.mark.services
def test_all_parts_run_and_their_figures_are_written(tmp_path: Path) -> None:
    said: list[str] = []
    figures = {f["name"]: f for f in bench("stream", tmp_path, True, said.append)}
    assert list(figures.values()) == json.loads((tmp_path / "report.json").read_text())
    assert json.loads((tmp_path / "run.json").read_text())["benchmark"] == "stream"
    assert list(figures) == [
        *("core", "core_cpu", "core_join", "core_windows", "core_outcomes"),
        *("bytes_per_key", "kafka_worker", "kafka_workers_2"),
    ]
    assert all(figure["value"] > 0 for figure in figures.values())
    assert figures["bytes_per_key"]["value"] < 1024
    assert said[-1] == f"2 on Kafka: {figures['kafka_workers_2']['value']:,.0f} exposures/s"


def test_what_was_measured_is_kept_when_a_later_part_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(out: Path, say: Say, size: object) -> Iterator[Figure]:
        yield figure("first", 1.0, "s")
        assert json.loads((out / "report.json").read_text()) == [figure("first", 1.0, "s")], "as it is measured"
        yield figure("second", 2.0, "s")
        raise ServiceError("the third part is out of order", "mend it")

    module = ModuleType("benchmarks.broken")
    module.run, module.Size = run, object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(runner, "BENCHMARKS", ("broken",))
    (tmp_path / "run.json").write_text("{}")  # of a run before
    with pytest.raises(ServiceError, match="out of order"):
        bench("broken", tmp_path)
    assert [f["name"] for f in json.loads((tmp_path / "report.json").read_text())] == ["first", "second"]
    assert not (tmp_path / "run.json").exists(), "a report without it is not whole"


@pytest.mark.slow
def test_what_a_checkpoint_writes_stays_in_proportion_to_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a short stretch of traffic (of live traffic ``dev bench capacity`` says it), with bases among the journals;
    and the figure can be missed: it is when each checkpoint has a base."""
    traffic = make(shop_schema(), 100, 50, 200, 0.1, seed=3)
    pages = [decode_page_log(m.raw) for m in traffic.messages if m.topic == PAGE_LOGS]
    monkeypatch.setattr(partition_checkpoint, "LEAST_BYTES", 0)
    found = checkpoint_amplification(pages, hours=0.6, warm_hours=0.1)
    assert found["bases"] > 0
    assert found["settled"] > 0
    assert 0.1 < found["checkpoint_amplification"] <= 1.5
    monkeypatch.setattr(partition_checkpoint, "GROWN", 0)
    found = checkpoint_amplification(pages, hours=0.02, warm_hours=0.05)
    assert found["checkpoint_amplification"] > 1.5


# -- the shop whose visitors' taste is known ----------------------------------------------------------------------


def test_how_far_an_order_follows_the_taste() -> None:
    taste = Taste(4, 1, 0)
    taste.category[:], taste.likes[0] = [0, 1, 2, 3], [1, 2]
    a, b, c, d = taste.ids
    assert followed(taste, [(0, [b, c, a, d])]) == Followed(auc=1.0, first=0.5)
    assert followed(taste, [(0, [a, b, c, d])]) == Followed(auc=0.5, first=0.5)
