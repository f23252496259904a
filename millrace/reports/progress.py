# shell
"""Progress of long work in the terminal, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from millrace.reports.lines import Lines, Tick


@contextmanager
def bars(wanted: bool = True) -> Iterator[Tick]:
    """A bar for each kind of work on a terminal; elsewhere a line every few seconds. Nothing unless ``wanted``."""
    if not wanted:
        yield lambda what, done, of: None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(lambda line: console.print(line, highlight=False, soft_wrap=True), time.monotonic)
        return
    columns = (
        TextColumn("{task.description:>8}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} ({task.percentage:.0f}%)"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def draw(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(tasks[what], completed=done)

        yield draw


class Took:
    """How long a command takes, from when this is made."""

    def __init__(self) -> None:
        self._began, self._clock = datetime.now(UTC), time.perf_counter()

    @property
    def seconds(self) -> float:
        """So far."""
        return time.perf_counter() - self._clock

    @property
    def run(self) -> dict[str, Any]:
        """The first values of ``run.json``."""
        return {"started": self._began.isoformat(timespec="seconds"), "seconds": round(self.seconds, 3)}
