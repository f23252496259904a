# shell
"""The processes that runs are spread over."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from learner.custom.ownclass import name_of
from millrace.basics.errors import SettingError


@contextmanager
def pool(
    workers: int | None, begin: Callable[..., None] | None = None, given: tuple[Any, ...] = ()
) -> Iterator[Executor]:
    """Worker processes; runs that have not begun are cancelled when the experiment fails.

    Args:
        workers: how many (default: one for each core); 0 runs all in this process.
        begin: called in each process before its first run, with the arguments ``given``.
    """
    if workers == 0:
        if begin is not None:
            begin(*given)
        yield _Here()
        return
    if workers is not None and workers < 0:
        raise SettingError(f"{workers} workers", "use 1 or more, or 0 for this process alone")
    processes = ProcessPoolExecutor(workers or os.cpu_count(), get_context("spawn"), begin, given)
    try:
        yield processes
    except BaseException:
        processes.shutdown(wait=False, cancel_futures=True)
        raise
    processes.shutdown()


def for_workers(model: str | type[Any], workers: int | None) -> str | type[Any]:
    """A model for runs in a :func:`pool`: its name, or the class where all run in this process. Raises SettingError for
    a class that other processes cannot import."""
    if workers == 0 or not isinstance(model, type):
        return model
    shell = model.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__")
    if shell or "<locals>" in model.__qualname__:
        raise SettingError(
            f"model '{name_of(model)}' was made in {'a notebook' if shell else 'a function'}, where worker processes "
            "cannot find it",
            "put the class into a file and import it, or use workers=0",
        )
    return name_of(model)


class _Here(Executor):
    """Runs submitted work immediately, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future
