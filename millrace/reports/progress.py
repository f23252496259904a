# shell
"""Progress of long work in the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
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
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def draw(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(tasks[what], completed=done)

        yield draw
