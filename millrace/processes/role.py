# shell
"""What every role shares: calm logs on standard error, SIGTERM and SIGINT as a request to stop, the role's name in each
line of its log, and its last figures in a file when it ends.

:func:`run_role` is the only entry to a role. The command line calls it. The demo's supervisor, the container and a
person at a terminal all start a role with the same command, ``millrace run NAME``. This module knows the roles'
names, not their code: only the command line imports that.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import structlog

from millrace.basics.files import write_whole
from millrace.contracts.settings import Settings
from millrace.processes.metrics import latest

ROLES = ("simulate", "stream", "learn", "serve", "intake", "archive", "shadow")
"""The name of each role: as a command, in compose, in logs, in the supervisor, and as the label ``role``."""

Run = Callable[[Settings, threading.Event], None]
"""A role's entry. It works until the event is set. Then it finishes the work it has begun, and returns."""


def calm_logs(out: TextIO = sys.stderr) -> None:
    """Structured lines on ``out``: time, level, event, then its values. Libraries log warnings and errors only."""
    logging.basicConfig(stream=out, level=logging.WARNING, format="%(asctime)s [warning] %(name)s: %(message)s")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=0),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=True,
    )


def run_role(name: str, settings: Settings, run: Run) -> None:
    """Runs a role in this process, in its main thread, until it ends or SIGTERM or SIGINT asks it to.

    The second signal raises KeyboardInterrupt wherever the main thread is; the command line then ends the process with
    status 130. SystemExit would not do: where it comes out of a model of one's own, it counts as that model's fault.

    Args:
        name: one of :data:`ROLES`.
        run: the role's entry. It imports the role's package itself, so that a signal is also handled when it comes
            while torch or numba load.

    Raises:
        BrokerError: no broker is named. This is raised before the role is imported, which takes seconds.
        MillraceError: an expected failure of the role. The command line prints it in one line and ends with status 1.
    """
    calm_logs()
    stop = _stop_on_signals()
    structlog.contextvars.bind_contextvars(role=name)
    try:
        _ = settings.brokers
        run(settings, stop)
    finally:
        _leave_figures(settings, name)


def _stop_on_signals() -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets."""
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop


def last_figures(data: str | Path, name: str) -> Path:
    """The file to which a role that ends writes its metrics. Otherwise its work after the last scrape would be lost."""
    return Path(data, "metrics", f"{name}.prom")


def _leave_figures(settings: Settings, name: str) -> None:
    if not settings.data:
        return
    settings.folder("metrics")
    path = last_figures(settings.data, name)
    write_whole(path, latest(), durable=False)
