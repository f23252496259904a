# shell
"""``millrace run serve``: binds the port, starts the template, and runs the feeder until it is to end."""

from __future__ import annotations

import contextlib
import resource
import threading

from millrace.basics.errors import ServiceError
from millrace.contracts.settings import Settings
from millrace.processes.httpserver import bind
from millrace.processes.profiles import check_whole
from millrace.processes.tokens import Tokens, warn_if_open
from scorer.worker.door import Door
from scorer.worker.template import Template

PORT_SECONDS = 3.0
"""Workers of a killed scorer hold its port until they notice."""


def run(settings: Settings, stop: threading.Event) -> None:
    """Serves until ``stop`` is set, then drains: workers answer open requests, and page logs are delivered.

    Raises:
        PortError: the port is taken.
        BrokerError, StoreError, SettingError: an address or folder is unusable, the history in the store is not whole,
            or the class that the setting ``model`` names is unusable.
        ServiceError: no worker can be started.
    """
    check_whole(settings)
    settings.load_schema()  # before anything is started: a file that is none ends the role in one line
    for model in {settings.of_learner(name).model for name in ("", *settings.served_learners)}:
        if ":" in model:  # the same of a model of one's own
            from learner.custom.ownclass import own_class

            own_class(model)
    warn_if_open(settings.host, Tokens.of(settings), "serve")  # the same of a token file
    allow_files()
    host, port = settings.host, settings.port
    with (
        bind("scorer", host, port, "MILLRACE_PORT", listens=True, patience_seconds=PORT_SECONDS) as listener,
        contextlib.closing(Door(listener, settings.workers)) as door,
    ):
        template = Template(settings, stop, forks=True)  # compiles while we start
        try:
            from scorer.feeder.feeder import Feeder

            Feeder(settings, door, template, stop).run()
        except ServiceError:
            if not stop.is_set():  # else it was asked to end while it started
                raise
        finally:
            template.close()


def allow_files() -> None:
    """Raises the limit of open files, also for our children: each shared array needs one or two."""
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
