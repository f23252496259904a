"""``millrace bench stream`` in a short form, through the runner; and what is left when a part of a benchmark fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import contest, runner, stream
from benchmarks.runner import Figure, Say, bench, figure
from benchmarks.stream import Size
from millrace.basics.errors import ServiceError

TINY = Size(pages=100, passes=1, keys=5_000, events=30_000, tile_events=4_000, ours=400, peer=120, rounds=1)


@pytest.mark.long
@pytest.mark.services
def test_all_parts_run_and_their_figures_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "Size", lambda: TINY)
    said: list[str] = []
    figures = {f["name"]: f for f in bench("stream", tmp_path, said.append)}
    assert list(figures.values()) == json.loads((tmp_path / "report.json").read_text())
    assert json.loads((tmp_path / "run.json").read_text())["benchmark"] == "stream"
    assert list(figures) == [
        *("core", "core_published_often", "core_cpu", "reference", "core_join", "core_windows"),
        *("key_scaling", "tile_scaling_popular", "tile_ns_popular", "tile_scaling_uniform", "tile_ns_uniform"),
        *("bytes_per_key", "bytes_per_busiest_key"),
        *("checkpoint_seconds", "checkpoint_holds_up_seconds", "recovery_seconds", "checkpoint_bytes", "kafka_worker"),
    ]
    turns = json.loads((tmp_path / "kafka_worker" / "turns.json").read_text())
    ((ours,), (peer,)) = turns["kafka_worker"], turns["faust_tables"]
    assert (figures["kafka_worker"]["value"], figures["kafka_worker"]["ratio"]) == (ours, ours / peer)
    assert figures["core"]["ratio"] == figures["core"]["value"] / figures["reference"]["value"]
    assert figures["bytes_per_key"]["value"] < figures["bytes_per_busiest_key"]["value"]
    assert figures["bytes_per_key"]["value"] < 1024
    assert said[-1] == f"faust_tables: {peer:,.0f} exposures/s"


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


def test_a_turn_that_was_measured_is_kept_when_the_next_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path, argv: list[str], count: int, impressions: bool) -> float:
        if folder.name == "faust_tables":
            raise ServiceError("a contestant took 0 of 3 pages", "see contestant.log")
        return 5.0

    monkeypatch.setattr(contest, "exposures_a_second", fails)
    with pytest.raises(ServiceError):
        contest.run(tmp_path, print, 3, 3, 1)
    assert json.loads((tmp_path / "turns.json").read_text()) == {"kafka_worker": [5.0], "faust_tables": []}
