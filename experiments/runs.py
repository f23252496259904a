# shell
"""The runs of an experiment, spread over processes, each a line of ``runs.jsonl`` as soon as it ends.

::

    group   prepare ──► a folder ──► run, run, run ──► the folder is removed       one group's preparation
    group   prepare ──► a folder ──► run, run          ──► ...                     beside another's runs

An experiment that was interrupted keeps the runs that have ended.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from commands.offline.workers import pool
from millrace.basics.errors import MillraceError
from millrace.reports import make_folder

Row = dict[str, Any]
Call = tuple[Callable[..., Any], tuple[Any, ...]]
"""A function of a module, and its arguments: it may be called in another process."""


class BenchError(MillraceError):
    """A benchmark or an experiment cannot run here, for instance because its peer is not installed."""


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that share what one call prepares.

    Args:
        runs: gives the calls from the group's folder and what ``prepare`` returned; None without ``prepare``. Each
            call returns the rows of its run.
        prepare: gives the call that fills the folder.
    """

    runs: Callable[[Path, Any], Sequence[Call]]
    prepare: Callable[[Path], Call] | None = None


@contextmanager
def runs_file(out: Path, resume: bool = False) -> Iterator[Callable[[Row], None]]:
    """Gives what writes a row to ``out/runs.jsonl``; ``resume`` keeps the rows that are there.

    Raises:
        SettingError: the folder cannot be written to.
    """
    make_folder(out, "runs.jsonl")
    with (out / "runs.jsonl").open("a" if resume else "w", encoding="utf-8") as lines:

        def keep(row: Row) -> None:
            lines.write(json.dumps(row) + "\n")
            lines.flush()

        yield keep


def ended_runs(out: Path, key: Callable[[Mapping[str, Any]], tuple[Any, ...]]) -> dict[tuple[Any, ...], Row]:
    """The rows of ``out/runs.jsonl`` by ``key``. A line that was cut off is passed over: its run is done again."""
    found: dict[tuple[Any, ...], Row] = {}
    path = out / "runs.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            found[key(row)] = row
        except (ValueError, KeyError, TypeError):
            continue
    return found


def run_groups(
    groups: Sequence[Group],
    keep: Callable[[Row], None],
    workers: int | None = None,
    progress: bool = True,
    begin: Callable[..., None] | None = None,
    given: tuple[Any, ...] = (),
) -> tuple[list[Row], list[Any]]:
    """Runs all groups.

    Args:
        keep: hears of each row as its run ends.
        workers: processes (default: one for each core); 0 runs in this one.
        begin: called in each process before its first run, with the arguments ``given``.

    Returns:
        The rows in the groups' order, and what each group's preparation returned.
    """
    cores = max(1, (os.cpu_count() or 1) if workers is None else workers)
    waiting = deque(range(len(groups)))
    results: list[list[list[Row]]] = [[] for _ in groups]
    prepared: list[Any] = [None] * len(groups)
    left = [0] * len(groups)
    busy: dict[Future[Any], tuple[int, int]] = {}  # group, and run of it; -1: its preparation
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        tempfile.TemporaryDirectory(prefix="millrace-experiment-") as folder,
        pool(workers, begin, given) as processes,
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not progress) as bar,
    ):
        task = bar.add_task("runs", total=0)

        def place(number: int) -> Path:
            return Path(folder) / str(number)

        def start(number: int) -> None:
            calls = groups[number].runs(place(number), prepared[number])
            results[number], left[number] = [[] for _ in calls], len(calls)
            bar.update(task, total=(bar.tasks[0].total or 0) + len(calls))
            for i, (run, arguments) in enumerate(calls):
                busy[processes.submit(run, *arguments)] = (number, i)

        while waiting or busy:
            # What is prepared lies on the disk until the last run that reads it: no more of it than is needed next.
            while waiting and len(busy) < 2 * cores:
                number = waiting.popleft()
                place(number).mkdir()
                prepare = groups[number].prepare
                if prepare is None:
                    start(number)
                else:
                    run, arguments = prepare(place(number))
                    busy[processes.submit(run, *arguments)] = (number, -1)
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                number, i = busy.pop(future)
                if i < 0:
                    prepared[number] = future.result()
                    start(number)
                else:
                    results[number][i] = future.result()
                    for row in future.result():
                        keep(row)
                    left[number] -= 1
                    bar.advance(task)
                if not left[number]:
                    shutil.rmtree(place(number), ignore_errors=True)
    return [row for runs in results for rows in runs for row in rows], prepared
