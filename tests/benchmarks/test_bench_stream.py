"""``millrace dev bench stream`` in a short form, through the runner; and what is left when a part fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import runner
from benchmarks.runner import bench
from benchmarks.tools.bench_figures import Figure, Say, figure
from millrace.basics.errors import ServiceError


@pytest.mark.slow
@pytest.mark.services
def test_all_parts_run_and_their_figures_are_written(tmp_path: Path) -> None:
    said: list[str] = []
    figures = {f["name"]: f for f in bench("stream", tmp_path, True, said.append)}
    assert list(figures.values()) == json.loads((tmp_path / "report.json").read_text())
    assert json.loads((tmp_path / "run.json").read_text())["benchmark"] == "stream"
    assert list(figures) == [
        *("core", "core_cpu", "core_join", "core_windows", "core_outcomes"),
        *("bytes_per_key", "kafka_worker"),
    ]
    assert all(figure["value"] > 0 for figure in figures.values())
    assert figures["bytes_per_key"]["value"] < 1024
    assert said[-1] == f"kafka_worker: {figures['kafka_worker']['value']:,.0f} exposures/s"


def test_what_was_measured_is_kept_when_a_later_part_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(out: Path, say: Say) -> Iterator[Figure]:
        yield figure("first", 1.0, "s")
        assert json.loads((out / "report.json").read_text()) == [figure("first", 1.0, "s")], "as it is measured"
        yield figure("second", 2.0, "s")
        raise ServiceError("the third part is out of order", "mend it")

    module = ModuleType("benchmarks.broken")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(runner, "BENCHMARKS", ("broken",))
    (tmp_path / "run.json").write_text("{}")  # of a run before
    with pytest.raises(ServiceError, match="out of order"):
        bench("broken", tmp_path)
    assert [f["name"] for f in json.loads((tmp_path / "report.json").read_text())] == ["first", "second"]
    assert not (tmp_path / "run.json").exists(), "a report without it is not whole"
