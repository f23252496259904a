# shell
"""``millrace replay LOG --schema S --into DATA`` in the terminal: progress, and a line of what was left."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from millrace.contracts.settings import Settings
from millrace.history.into import Left, check_empty, check_schema, leave
from millrace.replay.reading import reading


def replay_into(log: Path | list[Path], settings: Settings, *, people: bool = True, skip_bad: bool = False) -> Left:
    """Reads a log, replays it and leaves its end in the store of ``settings``; prints what was left.

    Args:
        people: leave users and items too.
        skip_bad: see :func:`millrace.logs.read_log`.

    Raises:
        MillraceError: see :func:`millrace.history.into.leave` and :func:`millrace.logs.read_log`.
    """
    began = time.perf_counter()
    schema = settings.load_schema()
    check_schema(schema)
    check_empty(settings)
    with reading(log, schema, Path(settings.data), skip_bad) as table:
        read_s = time.perf_counter() - began
        columns = (
            TextColumn("{task.description:>8}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
            tasks: dict[str, Any] = {}

            def tick(what: str, done: int, of: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=of)
                bar.update(tasks[what], completed=done)

            left = leave(table, schema, settings, people=people, tick=tick)
    took_s = time.perf_counter() - began
    end = datetime.fromtimestamp(left.end_ms / 1000, UTC)
    parts = ", ".join(f"{what} {seconds:.1f}" for what, seconds in {"read": read_s, **left.seconds}.items())
    console = Console()
    console.print(
        f"{left.exposures:,} exposures up to {end:%Y-%m-%d %H:%M} UTC replayed in {took_s:.0f} s ({parts}); progressive"
        f" AUC {left.auc:.4f}",
        highlight=False,
    )
    console.print(
        f"left in {settings.store or settings.data}: {left.window_keys:,} window keys, {left.users:,} users,"
        f" {left.items:,} items, a model that has learnt {left.learnt:,} samples",
        highlight=False,
    )
    return left
