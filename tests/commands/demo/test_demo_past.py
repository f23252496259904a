"""A demo's past: how far its replay is can be seen, it ends when the demo is to end, and a failure says why."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from millrace.basics.durations import DAY_MS
from millrace.basics.errors import ServiceError, SettingError, StoreError
from millrace.basics.store import Store
from millrace.commands.cli.cli import app
from millrace.commands.demo import past
from millrace.commands.demo.curves import draw, thirds
from millrace.commands.demo.demorun import Demo, DemoOptions, demo
from millrace.commands.demo.past import MOST_DAYS, PastEvents, check_days, live_through, opening
from millrace.commands.loop.host import Host, made
from millrace.commands.loop.monitor import Monitor
from millrace.commands.loop.series import COLUMNS
from millrace.commands.loop.status import RunStatus
from millrace.contracts.settings import Settings, load_settings
from millrace.processes.profiles import PLACE, UNFINISHED
from millrace.processes.supervisor import PYTHON
from millrace.processes.wall import event_now_ms
from simulator import daylog
from simulator.daylog import day_table
from simulator.world import World
from tests.scenes.demo_process import born


def host(folder: Path) -> Host:
    settings = Settings(data=str(folder), shoppers=20, partitions=2)
    return Host(settings, made(folder), threading.Event(), RunStatus(()), speed=240.0)


def scripted(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """In place of the replay, a program of a few lines."""
    monkeypatch.setattr(past, "write_days", lambda *_, **__: None)
    monkeypatch.setattr(past, "_command", lambda *_: [sys.executable, "-c", script])


def test_the_replay_is_a_command_that_the_program_knows(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path), seed=7)
    argv = past._command("days", settings)
    words = argv[argv.index("log") :]
    assert argv[: -len(words)] == [*PYTHON, "millrace"]
    command, given, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert command.__name__ == "bootstrap"
    assert given.arguments["data"] == tmp_path
    assert given.arguments["people"] is False
    assert given.arguments["seed"] == 7


def test_the_event_clock_of_the_replay_is_that_of_the_opening() -> None:
    reported = past._environment(Settings(shoppers=20), 240.0)
    clock = load_settings(environ=reported).event_clock()
    assert load_settings(environ=reported).shoppers == 20
    assert 0 <= event_now_ms(clock) - round(opening(PastEvents()).timestamp() * 1000) < DAY_MS


def test_of_the_lines_of_progress_the_page_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script waits after each line until the page has it."""
    folder = tmp_path / "seen"
    folder.mkdir()
    scripted(
        monkeypatch,
        "import pathlib, time\n"
        "for line in ('learning 5 of 10, about 2 s left', 'learning 9 of 10, about 1 s left', 'all 10 are learnt'):\n"
        "    print(line, flush=True)\n"
        f"    while not pathlib.Path({str(folder)!r}, line[:10]).exists(): time.sleep(0.01)\n",
    )
    run = host(tmp_path / "data")

    class Notes(list[str]):
        """Of the page, which looks whenever there is a line more."""

        def append(self, line: str) -> None:
            super().append(line)
            (folder / line[:10]).touch()

    run.notes = Notes()
    live_through(run, 2)
    before, *replayed, after = run.notes
    assert "the 2 days before the opening" in before
    assert replayed == ["all 10 are learnt"]
    assert "the loop has lived through 2 days in" in after


def test_a_failed_replay_ends_the_run_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, "print('some', flush=True); raise SystemExit('store is full; give more')")
    with pytest.raises(ServiceError, match=r"the days before failed: store is full; give more; see .*log"):
        live_through(host(tmp_path), 1)


def test_the_replay_ends_when_the_run_is_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the signal of Ctrl-C, so that it can remove what it wrote."""
    ended = tmp_path / "ended"
    scripted(
        monkeypatch,
        "import os, pathlib, signal, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # where these tests run, it may be ignored
        "try:\n"
        "    print('begun', os.getpid(), flush=True)\n"
        "    threading.Event().wait()\n"
        "except KeyboardInterrupt:\n"
        f"    pathlib.Path({str(ended)!r}).touch()\n",
    )
    run, pids = host(tmp_path / "data"), list[int]()

    class Notes(list[str]):
        def append(self, line: str) -> None:
            super().append(line)
            if line.startswith("begun"):
                pids.append(int(line.split()[1]))
                run.ending.set()

    run.notes = Notes()
    live_through(run, 1)
    assert ended.exists()
    assert born(pids[0]) == ""
    assert not any("has lived" in note for note in run.notes)


def test_days_are_written_no_longer_than_the_run_is_to_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end is asked for while the first of many days is written."""
    run, written = host(tmp_path / "data"), list[int]()

    def table(world: World, number: int) -> pa.Table:
        written.append(number)
        run.ending.set()
        return day_table(world, number)

    monkeypatch.setattr(daylog, "day_table", table)
    monkeypatch.setattr(past, "spawn", lambda *_: pytest.fail("a replay was started"))
    live_through(run, MOST_DAYS)
    assert len(written) == 1
    assert not any("has lived" in note for note in run.notes)


def test_a_demo_on_a_history_that_is_not_whole_ends_before_it_starts_anything(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path))
    Store(settings.place(PLACE)).put(UNFINISHED, None)
    with pytest.raises(StoreError, match="is not whole; wait for"):
        demo(settings, DemoOptions(page_port=0))
    assert not (tmp_path / "broker").exists()


class Opened(Demo):
    """A demo whose simulator opens the shop at the first look; the end may come before."""

    def start(self, name: str) -> None:
        self.phase = f"{name} is started"

    def wait(self, until: Callable[[], bool], seconds: float, *, ends_early: bool = True) -> bool:
        return not self.ending.is_set()


@pytest.mark.parametrize("ended", [False, True], ids=["the shop opens", "the end is asked for"])
def test_a_demo_is_ready_when_the_shop_has_opened(ended: bool, tmp_path: Path) -> None:
    ending = threading.Event()
    options = DemoOptions(history_days=1, seconds=1.0)
    run = Opened(Settings(data=str(tmp_path)), options, made(tmp_path), ending)
    run.monitor = Monitor({}, "", run.settings.event_clock(), lambda url: "", memory=dict)
    if ended:
        ending.set()
    run.run_traffic()
    assert run.phase == ("simulate is started" if ended else "running")
    assert (run.ready_s > 0) is not ended
    assert any(note.startswith("ready after") for note in run.notes) is not ended


def test_a_folder_in_which_a_loop_has_lived_is_refused_before_days_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, "")
    monkeypatch.setattr(past, "write_days", lambda *_, **__: pytest.fail("days were written"))
    run = host(tmp_path)
    Store(run.settings.place("models")).put("one", None)
    with pytest.raises(SettingError, match="a loop has lived there"):
        live_through(run, 1)


@pytest.mark.parametrize("days", [-1, MOST_DAYS + 1])
def test_days_out_of_range_are_refused(days: int) -> None:
    with pytest.raises(SettingError, match=f"--history-days {days}"):
        check_days(days)


# -- The picture that a demo draws beside its report, and the figures of a run's beginning and end ---------------------


def report(points: int = 90) -> dict[str, Any]:
    page: dict[str, list[float | None]] = {name: [None] * points for name in COLUMNS}
    page["wall_ms"] = [1000.0 * i for i in range(points)]
    page["memory_total"] = [float(i << 20) for i in range(points)]
    page["memory_stream"] = [None, *(float(i << 19) for i in range(1, points))]
    page["click_to_served_p50_ms"] = ([None] * 10 + [800.0] * 40 + [900.0] * points)[:points]
    return {"page": page, "began_wall_ms": 0, "ended_wall_ms": 1000 * points}


def test_a_run_is_drawn_with_what_was_never_measured_left_out(tmp_path: Path) -> None:
    draw(report(), tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    draw(report(0), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_the_first_and_the_last_third_are_distinguished() -> None:
    assert thirds(report(), "click_to_served_p50_ms") == (800.0, 900.0)
    assert thirds(report(), "auc") == (None, None)
