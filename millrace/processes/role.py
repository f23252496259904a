"""One role as a process: ``python -m millrace.processes.role NAME``, with its settings in the environment.

What every role shares is here: calm logs on standard error, SIGTERM and SIGINT as a request to stop, an expected
failure as one line and status 1. Compose, Kubernetes and the demo's supervisor all start roles this way.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import structlog
from prometheus_client import generate_latest

from millrace.contracts.errors import MillraceError, SettingError
from millrace.contracts.settings import Settings, load_settings

ROLES = ("simulator", "stream", "learner", "scorer")


def calm_logs(out: TextIO = sys.stderr) -> None:
    """Structured lines on ``out``: time, level, event, then what belongs to it. Libraries speak from warnings on."""
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


def entry(name: str) -> Callable[[Settings, threading.Event], None]:
    """The function that is the role. Only that role's package is imported.

    Raises:
        SettingError: no role has this name.
    """
    if name == "simulator":
        live, playback = import_module("simulator.live"), import_module("simulator.playback")

        def simulate(settings: Settings, stop: threading.Event) -> None:
            if settings.from_log:
                playback.play(settings, playback.PlaybackOptions(log=Path(settings.from_log), quiet=True), stop)
                stop.wait()  # the log is over, the role is not: it would be started, and the log played, again
            else:
                live.run(settings, simulator_options(live), stop)

        return simulate
    modules = {"stream": "stream.worker", "learner": "learner.service", "scorer": "scorer.app"}
    if name not in modules:
        raise SettingError(f"there is no role '{name}'", f"name one of {', '.join(ROLES)}")
    run: Callable[[Settings, threading.Event], None] = import_module(modules[name]).run
    return run


def simulator_options(live: Any) -> Any:
    """The simulator's own options at their defaults."""
    return live.Options()


def stop_on_signals() -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets; the second ends the process at once with status 130."""
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        if stop.is_set():
            sys.exit(130)
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop


def last_figures(data: str | Path, name: str) -> Path:
    """Where a role that ended leaves its metrics: what it did after the last scrape would be unknown otherwise."""
    return Path(data, "metrics", f"{name}.prom")


def _leave_figures(settings: Settings, name: str) -> None:
    if not settings.data:
        return
    settings.folder("metrics")
    path = last_figures(settings.data, name)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(generate_latest())
    temporary.replace(path)


def main(argv: list[str] | None = None) -> int:
    """Runs the role named by the only argument until it is told to stop; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    calm_logs()
    stop = stop_on_signals()
    try:
        if len(arguments) != 1:
            raise SettingError(
                f"{len(arguments)} arguments where one role is needed", f"name one of {', '.join(ROLES)}"
            )
        name, settings = arguments[0], load_settings()
        structlog.contextvars.bind_contextvars(role=name)
        run = entry(name)
        try:
            run(settings, stop)
        finally:
            _leave_figures(settings, name)
    except MillraceError as error:
        print(f"millrace: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
