"""What a loop takes: processes by role, files by topic, and figures that are differences over the pages between."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.capacity import Look, figures_of
from benchmarks.tools.taken import Taken, folder_bytes, processes, topic_bytes
from experiments.runs import BenchError
from tests.scenes.waiting import until

MIB = 2**20
BURN = "s = 0\nfor i in range(3_000_000): s += i\nprint('done', flush=True)\nimport sys; sys.stdin.read()"
ROLE = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[3]], stdin=sys.stdin)"


def test_a_process_belongs_to_the_role_that_it_or_its_parent_names() -> None:
    """A role's unnamed child does the work."""
    role = subprocess.Popen(
        [sys.executable, "-c", ROLE, "millrace", "stream", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert role.stdout is not None
        assert role.stdout.readline() == b"done\n"
        found = processes(role.pid, ("stream",), "up")
        assert found.cpu_s.keys() == {"up"}  # what is asked for has the name that it was given, and so has its child
        assert found.cpu_s["up"] > 0.02
        assert found.memory["up"] > 5 * MIB
        mine = processes(role.pid, ("learn",), "other")
        assert mine.cpu_s.keys() == {"other"}
    finally:
        role.communicate(b"")
    until(lambda: not processes(role.pid, ("stream",), "up").cpu_s, "a process that is gone takes nothing")


def test_a_child_is_told_by_its_command_line() -> None:
    code = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', *sys.argv[1:]], stdin=sys.stdin)"
    root = subprocess.Popen(
        [sys.executable, "-c", code, BURN, "millrace", "learn"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert root.stdout is not None
        assert root.stdout.readline() == b"done\n"
        found = processes(root.pid, ("stream", "learn"), "up")
        assert found.cpu_s.keys() == found.memory.keys() == {"up", "learn"}
        assert found.cpu_s["learn"] > 0.02
    finally:
        root.communicate(b"")


def test_bytes_of_topics_are_those_of_their_files(tmp_path: Path) -> None:
    logs = tmp_path / "topics" / "logs"
    for name, sizes in {"events.0a-1": (5, 7), "features.items.0b-2": (11,)}.items():
        for number, size in enumerate(sizes):
            (logs / name / str(number)).mkdir(parents=True)
            (logs / name / str(number) / "0.log").write_bytes(b"x" * size)
    assert topic_bytes(tmp_path) == {"events": 12, "features.items": 11}
    assert topic_bytes(tmp_path / "nowhere") == {}
    assert folder_bytes(tmp_path) == 23


def look(second: float, pages: float, cpu: float, events: int, archive: int, deltas: int) -> Look:
    counts = {
        "millrace_pages_total": pages,
        "millrace_exposures_sent_total": 16 * pages,
        "millrace_clicks_sent_total": 0.5 * pages,
        "millrace_deltas_applied_total": second,
        "millrace_checkpoint_bytes_total": 100.0 * pages,
        "millrace_delta_bytes_total": 7 * MIB * second / 100,
    }
    taken = Taken({"stream": cpu, "up": 1.0}, {"stream": 100 * MIB, "up": 50 * MIB}, {"archive": archive})
    return Look(second, taken, {"events": events, "model.deltas": deltas}, counts, 20 * MIB)


def test_figures_are_what_was_added_over_the_pages_between() -> None:
    first, last = look(10, 1000, 5.0, 10 * MIB, MIB, 0), look(110, 3000, 9.0, 12 * MIB, 3 * MIB, 5 * MIB)
    found = figures_of(first, last)
    value = {f["name"]: f["value"] for f in found}
    assert value["pages"] == 2000
    assert (value["pages_per_s"], value["exposures_per_page"], value["clicks_per_page"]) == (20, 16, 0.5)
    assert (value["cpu stream"], value["cpu up"], value["cpu all"]) == (2000, 0, 2000)  # 4 s for 2,000 pages
    assert (value["memory stream"], value["memory all"]) == (100, 150)
    assert (value["kafka events"], value["disk archive"]) == (1000, 1000)
    assert value["kafka model.deltas"] == pytest.approx(7 * 36)  # what was sent, though the topic has 5 MiB
    assert value["redis"] == 20
    with pytest.raises(BenchError, match="no page"):
        figures_of(first, look(20, 1000, 5.0, 0, 0, 0))
