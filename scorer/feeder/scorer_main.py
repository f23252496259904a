# shell
"""``millrace run serve``: binds the port, starts the template, and runs the feeder until it is to end."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
import threading
import time

from millrace.basics.errors import PortError, ServiceError
from millrace.contracts.settings import Settings
from millrace.processes.profiles import check_whole
from millrace.processes.tokens import Tokens, warn_if_open
from scorer.worker.template import Template

PORT_SECONDS = 3.0


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
    if ":" in settings.model:  # the same of a model of one's own
        from learner.custom.ownclass import own_class

        own_class(settings.model)
    warn_if_open(settings.host, Tokens.of(settings), "serve")  # the same of a token file
    allow_files()
    with bind(settings) as listener:
        template = Template(settings, stop)  # imports and compiles while we do
        try:
            from scorer.feeder.feeder import Feeder

            Feeder(settings, listener, template, stop).run()
        except ServiceError:
            if not stop.is_set():  # else it was told to end while it started
                raise
        finally:
            template.close()


def bind(settings: Settings) -> socket.socket:
    """A listening socket on ``host:port``. Workers of a killed scorer hold its port until they notice; this waits for
    them. Raises PortError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    deadline = time.monotonic() + PORT_SECONDS
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((settings.host, settings.port))
            listener.listen(1024)
            return listener
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise PortError(
                f"the scorer's address {settings.host}:{settings.port} cannot be bound ({error.strerror})",
                "set MILLRACE_PORT to a free port, or 0",
            ) from None


def allow_files() -> None:
    """Raises the limit of open files, also for our children: each shared array needs one or two."""
    with contextlib.suppress(OSError, ValueError):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
