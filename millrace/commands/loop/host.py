# shell
"""The loop on one machine: its services and roles as processes, watched, shown, and stopped. `demo` and `up` share it.

::

    services (broker, Redis) ► topics ► roles ► (ready) ► tick, tick, tick ... ► roles stop ► services stop

The command calls :meth:`Host.wait`, which meanwhile looks at everything a few times a second. Roles and services
cannot outlive this process. One that ends is started again: the broker has its files, and the stream fills an empty
Redis, since the mark that says that it was filled is gone too.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from millrace.basics.atomic_files import write_whole
from millrace.basics.errors import UNFIT, BrokerError, ServiceError, SettingError, one_line
from millrace.commands.loop.monitor import Monitor, Picture
from millrace.commands.loop.page import PageServer, Send, unsent
from millrace.commands.loop.scrape import scrape_file
from millrace.commands.loop.series import Series
from millrace.commands.loop.signals import AtOnce
from millrace.commands.loop.status import RunStatus, State, state_of
from millrace.commands.loop.titles import titles, watchable
from millrace.commands.loop.view import View
from millrace.connections.kafka_security import security_of
from millrace.contracts.settings import Settings
from millrace.processes.kafka import create_topics, wait_for_broker
from millrace.processes.resident_memory import resident
from millrace.processes.role import calm_logs, last_figures
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, EmbeddedService, tail
from millrace.processes.spawn import bound
from millrace.processes.supervisor import Patience, Supervisor, role_argv
from millrace.processes.wall import wall_ms
from stream.worker.online_writer import OnlineStore

T = TypeVar("T")

READY_SECONDS = 300.0
"""In a fresh clone on a busy machine, the roles compile their kernels for a minute or two."""
SLOW_SECONDS = 15.0
"""The host explains a start that takes longer."""
TICK_SECONDS = 0.25
READS = 5
"""Attempts to read from a broker that goes away."""
SERIES = "series.json"
KEEP_SECONDS = 60.0
"""Between two times at which the charts' points are written: a killed run loses as much of them."""
HEALTH_SECONDS = 0.5
"""Between two looks at the services: all wait for one that died."""
NAMED_SECONDS = 10.0
"""How long a broker or Redis that a setting names may take to answer; ``patience_seconds`` where that is less."""


class Host:
    """The processes of one run.

    Args:
        settings: addresses that are set are used, others are started.
        folder: of the run; its ``logs`` must exist.
        ending: set when the run shall end; waiting on it is how time passes.
        shown: what view and page show of the run.
        line_seconds: how often a line is written where the output is no terminal; None: the view's own.
    """

    name = "host"
    keeps_series = False
    """Whether the charts go on after a restart on the same folder."""
    keeps_folder = True
    """Whether the folder stays after the run."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        ending: threading.Event,
        shown: RunStatus,
        speed: float = 1.0,
        line_seconds: float | None = None,
    ) -> None:
        self.settings, self.folder, self.ending = settings, folder, ending
        self.shown, self.speed = shown, speed
        self.notes: list[str] = []
        self.phase = "starting"
        self.started_ms = 0
        self.monitor: Monitor | None = None
        self.supervisor = Supervisor(folder / "logs", say=self.say)
        self.services: list[EmbeddedService] = []
        self.view = View(self.state, line_seconds=line_seconds)
        self._ports: Mapping[str, int] = {}
        self._health_at = self._keep_at = 0.0
        self._deaths: dict[str, list[float]] = {}
        self._patience = Patience()

    # -- what is seen ----------------------------------------------------------------------------------------

    def state(self) -> State:
        if self.monitor is not None:
            self.monitor.attend()
        services = {service.name: service.pid for service in self.services}
        return state_of(
            self.phase, self.started_ms, self.speed, self.monitor, self.supervisor, list(self.notes), self.shown
        ) | {"services": services, "lateness_minutes": self.settings.lateness_minutes}

    def memory(self) -> dict[str, int]:
        """Resident memory of every process of this run, in bytes, without a broker or Redis that is not ours."""
        services = {service.name: service.pid for service in self.services}
        processes = {name: role.process for name, role in list(self.supervisor.roles.items())}
        roles = {name: process.pid if process is not None else None for name, process in processes.items()}
        return resident({**roles, **services, self.name: os.getpid()})

    def say(self, line: str) -> None:
        self.notes.append(line)
        self.view.say(line)

    # -- time ------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Looks at roles and services, and shows the state; called a few times a second. Raises ServiceError if a role
        or service died so often that it is given up."""
        self.supervisor.poll()
        if time.monotonic() >= self._health_at:
            self._health_at = time.monotonic() + HEALTH_SECONDS
            for path in (self.folder / "logs").glob("*.log"):
                bound(path)
            for service in self.services:
                if service.process is not None and service.process.poll() is not None:
                    self.lost(service)
        if time.monotonic() >= self._keep_at:
            self._keep_at = time.monotonic() + KEEP_SECONDS
            self.keep_series()
        self.view.tick()

    def resume_series(self, series: Series) -> None:
        """Goes on with the charts of the last run on this folder. A file that cannot be read is replaced."""
        path = self.folder / SERIES
        try:
            series.resume(path.read_bytes(), wall_ms())
        except FileNotFoundError:
            return
        except (OSError, *UNFIT) as error:
            self.say(f"the charts begin anew: '{path}' is damaged ({one_line(error)}), and will be written again")

    def keep_series(self) -> None:
        """Writes what the charts show."""
        if self.monitor is None or not self.keeps_series:
            return
        path = self.folder / SERIES
        try:
            write_whole(path, self.monitor.series.encoded(), durable=False)
        except OSError as error:
            self.keeps_series = False
            self.say(f"the charts will begin anew after a restart: '{path}' cannot be written ({one_line(error)})")

    def lost(self, service: EmbeddedService) -> None:
        """Starts a service of ours that ended again, at the same address. Raises ServiceError if it ended too often in
        short succession, or does not start."""
        now = time.monotonic()
        deaths = [at for at in self._deaths.get(service.name, []) if now - at < self._patience.within_seconds]
        self._deaths[service.name] = [*deaths, now]
        if len(deaths) + 1 >= self._patience.failures:
            service.check()
        status = service.process.returncode if service.process is not None else None
        said = (
            tail(service.log_path, 1) if status is not None and status > 0 else ""
        )  # who was killed said nothing of it
        self.say(
            f"the embedded {service.name} ended (status {status}{': ' + said if said else ''}); it is started again"
        )
        service.again()

    def wait(self, until: Callable[[], bool], seconds: float, *, ends_early: bool = True) -> bool:
        """Watches until a condition holds (True), until the time is over, or until the end is asked for (False)."""
        deadline = time.monotonic() + seconds
        while not until():
            self.tick()
            left = deadline - time.monotonic()
            if left <= 0 or (ends_early and self.ending.is_set()):
                return False
            pause = min(TICK_SECONDS, left)
            if ends_early:
                self.ending.wait(pause)
            else:
                time.sleep(pause)
        return True

    def read(self, work: Callable[[], T]) -> T:
        """Reads from the broker in a thread of its own, and watches roles and services meanwhile.

        Args:
            work: begins again when a broker that went away is back.

        Raises:
            BrokerError: it does not come back, or goes away again and again.
            ServiceError: a role or service died so often that it is given up.
        """
        for left in reversed(range(READS)):
            try:
                return self._beside(work)
            except BrokerError:
                if not left:
                    raise
                self.say("the broker went away; what it has is read once more when it is back")
                self._beside(lambda: wait_for_broker(self.settings, READY_SECONDS))
        raise AssertionError("unreachable")

    def _beside(self, work: Callable[[], T]) -> T:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="beside", daemon=True).start()
        self.wait(future.done, float("inf"), ends_early=False)
        return future.result()

    # -- services --------------------------------------------------------------------------------------------

    def show(self, stack: ExitStack, page_port: int | None, send: Send = unsent) -> None:
        """Opens the live page and the program's own log, until ``stack`` is closed. ``send``: see
        :class:`~millrace.commands.loop.page.PageServer`. Raises PortError if the page's port is taken."""
        stack.push(self.say_the_end)
        logs = self.folder / "logs"
        own = stack.enter_context((logs / f"{self.name}.log").open("a", encoding="utf-8"))
        calm_logs(own, self.settings.log_format)
        stack.callback(structlog.reset_defaults)
        page = PageServer(
            self.state,
            page_port,
            lambda role: getattr(self.monitor, role) if self.monitor else "",
            self.settings,
            lambda items: titles(self.settings, items),
            send,
            lambda: watchable(self.settings),
        )
        stack.callback(page.stop)
        self.view.page = page.url
        self.say(f"live page: {page.url}   logs: {logs}")

    def start_services(
        self, stack: ExitStack, broker_port: int = 0, redis_port: int = 0, *, sync: bool = False
    ) -> None:
        """Starts the services that no setting names, waits for the others, and creates the topics.

        Args:
            broker_port, redis_port: 0: any that is free.
            sync: see :class:`~millrace.processes.services.EmbeddedBroker`.

        Raises:
            MillraceError: one cannot be started or does not answer, or topics are not as they should be.
        """
        security_of(self.settings)
        own, addresses = self.settings, dict[str, object]()
        if not own.kafka:
            broker = EmbeddedBroker(self.folder / "broker", broker_port, disk_gib=own.broker_gib, sync=sync)
            addresses["kafka"] = stack.enter_context(broker).address
            self.services.append(broker)
        if not own.redis:
            redis = EmbeddedRedis(self.folder / "redis", redis_port)
            addresses["redis"] = stack.enter_context(redis).address
            self.services.append(redis)
        self.settings = msgspec.structs.replace(own, **addresses)
        seconds = min(NAMED_SECONDS, self.settings.patience_seconds)
        wait_for_broker(self.settings, seconds)
        wait_for_redis(self.settings.redis, seconds)
        create_topics(self.settings)

    # -- roles -----------------------------------------------------------------------------------------------

    def write_scrape(self, targets: Mapping[str, str]) -> Path:
        """Writes the configuration by which a Prometheus asks the roles at their ``targets``."""
        path = self.folder / "prometheus.yml"
        write_whole(path, scrape_file(targets).encode(), durable=False)
        return path

    def watch(
        self, ports: Mapping[str, int], targets: Mapping[str, str], get: Callable[[str], str], learner: str
    ) -> Monitor:
        """Starts the monitor. ``learner``: base URL of the learner's admin port, which gives the reasons of
        refusals."""
        self._ports = ports
        clock = self.settings.event_clock()
        self.monitor = Monitor(targets, self.settings.scorer, clock, get, self.memory, learner)
        if self.keeps_series:
            self.resume_series(self.monitor.series)
        self.monitor.start()
        return self.monitor

    def start(self, name: str) -> None:
        own, argv = msgspec.structs.replace(self.settings, metrics_port=self._ports[name]), None
        learner = self.settings.learner_roles.get(name, "")
        if learner:
            own, argv = msgspec.structs.replace(own, learner=learner, admin_port=0), role_argv("learn")
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")}
        # The roles share few cores. With a pool of threads in each they would only wait for one another.
        env = {"OMP_NUM_THREADS": "1", **clean, **own.environment()}
        self.supervisor.start(name, env, argv, needed=not learner)  # a model on trial may not end what serves

    def await_roles(self, names: Iterable[str]) -> None:
        """Waits until the named roles are ready; for a scorer, until it answers with a model: items may come later.
        Raises ServiceError if one is not ready in time, or died too often."""
        monitor, names = self.monitor, tuple(names)
        assert monitor is not None

        def late() -> list[str]:
            return [name for name in names if not works(monitor.picture, name)]

        if not self.wait(lambda: not late(), SLOW_SECONDS) and not self.ending.is_set():
            why = "if this is the first start after an installation, it compiles for some minutes"
            self.view.say(f"waiting for {' and '.join(late())}: {why}; else see {self.folder / 'logs'}")
        if not self.wait(lambda: not late(), READY_SECONDS) and not self.ending.is_set():
            raise ServiceError(
                f"{' and '.join(late())} did not become ready within {READY_SECONDS:g} s",
                f"see {self.folder / 'logs'}",
            )

    def stop_role(self, name: str) -> None:
        process = self.supervisor.roles[name].process
        if process is not None and process.poll() is None:
            last_figures(self.settings.data, name).unlink(missing_ok=True)  # of an earlier life: it will leave its own
        self.supervisor.stop(name, grace_seconds=20.0)
        text = None
        with suppress(OSError):  # it was killed before it could write them
            text = last_figures(self.settings.data, name).read_text()
        if self.monitor is not None:
            self.monitor.ended(name, text)

    # -- the end ---------------------------------------------------------------------------------------------

    def attend(self, stack: ExitStack) -> None:
        """Shows the run in the terminal from now on. When ``stack`` is closed, its roles end."""
        stack.callback(self.stop_watching)
        stack.push(self.end_roles)
        stack.enter_context(self.view)

    def stop_watching(self) -> None:
        if self.monitor is not None:
            self.monitor.stop()
            self.keep_series()

    def say_the_end(self, kind: type[BaseException] | None, *_: object) -> None:
        """The last line, unless an error is to be the last: by then roles and services have ended."""
        if kind is None:
            lasts = f"its data lie in {self.folder}: the same command goes on from there"
            gone = "its temporary folder goes: --data FOLDER keeps it"
            self.view.say(f"everything has stopped; {lasts if self.keeps_folder else gone}")

    def end_roles(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stops every role, whatever ended the run. Roles get some seconds for it, but none after the second Ctrl-C."""
        self.supervisor.stop(grace_seconds=0.0 if kind is AtOnce else 5.0)


def works(picture: Picture, name: str) -> bool:
    """Whether a role does its work, as far as that depends on this machine alone."""
    if name == "serve":
        return bool(picture.answers.get("serve") and picture.model.get("version", -1) >= 0)
    return bool(picture.ready.get(name))


def made(folder: Path) -> Path:
    """The folder of a run, with ``logs`` in it. Raises SettingError if it cannot be made."""
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"folder '{folder}' cannot be made ({error.strerror})", "name another with --data") from None
    return folder


def wait_for_redis(address: str, patience_seconds: float) -> None:
    """Waits until Redis answers. Raises StoreError if it did not within ``patience_seconds``."""

    async def ask() -> None:
        store = OnlineStore(address, patience_seconds)
        try:
            await store.wait()
        finally:
            await store.close()

    asyncio.run(ask())
