# shell
"""The runs of an experiment, spread over processes. Each row is a line of ``runs.jsonl`` as soon as its run has ended,
so what was measured is there if a later run fails."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commands.offline.workers import pool
from millrace.basics.errors import MillraceError
from millrace.reports import Plot, make_folder, write_all
from millrace.reports.progress import bars

Row = dict[str, Any]
Call = tuple[Callable[..., Sequence[Row]], tuple[Any, ...]]
"""A function of a module that returns rows, and its arguments: it may be called in another process."""


class BenchError(MillraceError):
    """A benchmark or an experiment cannot run here, for instance because its peer is not installed."""


@contextmanager
def runs_file(out: Path) -> Iterator[Callable[[Row], None]]:
    """Gives what writes a row to ``out/runs.jsonl``. Raises SettingError where the folder cannot be written to."""
    make_folder(out, "runs.jsonl")
    with (out / "runs.jsonl").open("w", encoding="utf-8") as lines:

        def keep(row: Row) -> None:
            lines.write(json.dumps(row) + "\n")
            lines.flush()

        yield keep


def run_calls(
    calls: Sequence[Call], keep: Callable[[Row], None], workers: int | None = None, progress: bool = True
) -> list[Row]:
    """The rows of all calls, in their order.

    Args:
        keep: takes each row as its call ends.
        workers: processes (default: one for each core); 0 runs in this one.
    """
    with pool(workers) as processes, bars(progress) as tick:
        futures = [processes.submit(function, *arguments) for function, arguments in calls]
        for done, future in enumerate(as_completed(futures), 1):
            for row in future.result():
                keep(row)
            tick("runs", done, len(futures))
        return [row for future in futures for row in future.result()]


def write_experiment(
    out: Path, report: Mapping[str, Any], plots: Sequence[Plot], title: str, began_s: float, **run: Any
) -> None:
    """Writes the report of an experiment that began at ``began_s`` (of :func:`time.monotonic`); ``run`` says with what
    it was run."""
    write_all(out, report, {"seconds": round(time.monotonic() - began_s), **run}, plots, title)
