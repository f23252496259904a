# shell
"""The processes that an experiment's runs are spread over, and the runs that an earlier one has ended."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any


@contextmanager
def pool(
    workers: int | None, begin: Callable[..., None] | None = None, given: tuple[Any, ...] = ()
) -> Iterator[Executor]:
    """Worker processes; what has not begun is given up when the experiment fails.

    Args:
        workers: how many (default: one for each core); 0 runs all in this process.
        begin: called in each process before its first run, with the arguments ``given``.
    """
    if workers == 0:
        if begin is not None:
            begin(*given)
        yield _Here()
        return
    processes = ProcessPoolExecutor(workers or os.cpu_count(), get_context("spawn"), begin, given)
    try:
        yield processes
    except BaseException:
        processes.shutdown(wait=False, cancel_futures=True)
        raise
    processes.shutdown()


class _Here(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def ended(path: Path, key: Callable[[Mapping[str, Any]], tuple[Any, ...]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Runs that have ended, from the lines of a ``runs.jsonl``, by ``key``. A line that was cut off is passed over: its
    runs are done again."""
    out = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found = json.loads(line)
            out[key(found)] = found
        except (ValueError, KeyError, TypeError):
            continue
    return out
