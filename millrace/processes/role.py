# shell
"""The common entry of every role: logs on standard error with the role's name, SIGTERM and SIGINT as a request to stop,
and the last figures in a file at the end.

The demo's supervisor, the container and a person at a terminal all start a role by ``millrace run NAME``, which calls
:func:`run_role`. This module knows the roles' names but imports none of their code.
"""

from __future__ import annotations

import _thread
import logging
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TextIO

import structlog
from structlog.stdlib import ProcessorFormatter, add_logger_name

from millrace.basics.atomic_files import write_whole
from millrace.connections.kafka_security import security_of
from millrace.contracts.settings import Settings
from millrace.processes.metrics import latest

ROLES = ("simulate", "stream", "learn", "serve", "intake", "archive")
"""The name of each role: as a command, in compose, in logs, in the supervisor, and as the label ``role``."""

Run = Callable[[Settings, threading.Event], None]
"""A role's entry. It works until the event is set, then finishes the work in hand and returns."""


def calm_logs(out: TextIO = sys.stderr, log_format: Literal["text", "json"] = "text") -> None:
    """Structured lines on ``out``: time, level, event, then its values; in JSON an object a line. Libraries log
    warnings and errors only."""
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    libraries = logging.StreamHandler(out)
    if log_format == "json":
        processors[2] = structlog.processors.TimeStamper(fmt="iso", utc=True)
        renderer: Any = structlog.processors.JSONRenderer()
        libraries.setFormatter(ProcessorFormatter(renderer, foreign_pre_chain=[*processors, add_logger_name]))
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=0)
        libraries.setFormatter(logging.Formatter("%(asctime)s [warning] %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[libraries])
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=True,
    )


def run_role(name: str, settings: Settings, run: Run) -> None:
    """Runs the role ``name`` in this process, in its main thread, until it ends or SIGTERM or SIGINT asks it to.

    The second signal raises KeyboardInterrupt in the main thread; the command line then exits with status 130.
    SystemExit would not do: inside a custom model's call it would count as the model's failure. ``run`` imports the
    role's package itself, so that signals work while torch or numba load.

    Raises:
        BrokerError: no broker is named. This is raised before the role is imported, which takes seconds.
        MillraceError: an expected failure of the role. The command line prints it in one line and ends with status 1.
    """
    calm_logs(log_format=settings.log_format)
    stop = _stop_on_signals()
    structlog.contextvars.bind_contextvars(role=name)
    try:
        _ = settings.brokers, security_of(settings)
        run(settings, stop)
    finally:
        _leave_figures(settings, name)


def set_from_signal(event: threading.Event) -> None:
    """Sets an event from a signal handler. ``Event.set`` takes a lock, which the main thread may hold where the signal
    interrupts it in ``Event.wait``: it would then wait for itself, for ever."""
    _thread.start_new_thread(event.set, ())


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    asked = False

    def on_signal(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        set_from_signal(stop)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop


def last_figures(data: str | Path, name: str) -> Path:
    """The file for the last metrics of a role. Otherwise the work after the last scrape would be lost."""
    return Path(data, "metrics", f"{name}.prom")


def _leave_figures(settings: Settings, name: str) -> None:
    if not settings.data:
        return
    settings.folder("metrics")
    path = last_figures(settings.data, name)
    write_whole(path, latest(), durable=False)
