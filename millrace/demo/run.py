# shell
"""The whole loop on one machine: services, roles, a picture of it all, and at the end an audit.

::

    services ► topics ► learner, stream, scorer ► (all there) ► simulator ► ... ► simulator stops
        ► stream and learner drain ► audit ► roles stop ► services stop ► report

A run is a sequence of phases in the main thread. Beside it live the monitor's thread and the page's; the roles and
services are processes that cannot outlive this one.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from millrace.contracts.clock import EventClock
from millrace.contracts.errors import MillraceError, ServiceError, SettingError
from millrace.contracts.settings import Settings
from millrace.contracts.topics import IMPRESSIONS
from millrace.demo.audit import Ledger
from millrace.demo.curves import draw, thirds
from millrace.demo.monitor import Monitor
from millrace.demo.page import PageServer
from millrace.demo.preflight import Held, held_by, learnt_until, opening, wait_for_redis
from millrace.demo.proved import proved
from millrace.demo.report import make_report, missing_keys, summary, write_report
from millrace.demo.settle import Drained, Settlement, labels_take, settle
from millrace.demo.status import State, state_of
from millrace.demo.twin import Pages
from millrace.demo.view import View
from millrace.processes.kafka import create_topics, read_all, wait_for_broker
from millrace.processes.memory import resident
from millrace.processes.role import calm_logs, last_figures
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port
from millrace.processes.supervisor import Supervisor
from millrace.processes.wall import wall_ms

SPEED = 240.0
UNKNOWN_OF_A_LOG = ("oracle_auc", "first_20000", "ctr_model", "ctr_control")
"""What a report cannot tell when a log is played: nobody knows its true rates, and its pages were made by others."""
READY_SECONDS = 300.0
"""In a fresh clone, on a busy machine, the roles compile their kernels for a minute or two."""
TICK_SECONDS = 0.25
HEALTH_SECONDS = 5.0
DRAIN_SECONDS = 60.0
LABELS_SECONDS = 45.0
"""Labels that take longer than this after the last exposure, by the wall, are not waited for."""
NAMED_SECONDS = 10.0
"""How long a broker or Redis that a setting names may take to answer; ``patience_seconds`` where that is less."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What one demo is asked for. ``data`` None: a temporary folder, removed at the end; ``seconds`` None: no end."""

    seconds: float | None = None
    report: Path | None = None
    seed: int = 0
    speed: float = SPEED
    page_port: int | None = None
    data: Path | None = None
    open_browser: bool = False
    twin: bool = False


class _AtOnce(BaseException):
    """The second Ctrl-C."""


class _Signals:
    """``ending``: a signal asked for the end; ``hurry``: it was SIGTERM, so without draining and audit."""

    def __init__(self) -> None:
        self.ending = threading.Event()
        self.hurry = False

    def handle(self, number: int, _: object) -> None:
        if number == signal.SIGINT and self.ending.is_set():
            raise _AtOnce
        self.hurry = self.hurry or number == signal.SIGTERM
        self.ending.set()

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Signals go to us within. Outside the main thread Python has none to give."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {n: signal.signal(n, self.handle) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Demo:
    """One run. Made and used by :func:`demo`.

    Args:
        settings: addresses that are set are used, others are started.
        options: what was asked for.
        ending: set when the run shall end; waiting on it is how time passes.
    """

    def __init__(self, settings: Settings, options: DemoOptions, folder: Path, ending: threading.Event) -> None:
        self.settings = settings
        self.options = options
        self.folder = folder
        self.ending = ending
        self.notes: list[str] = []
        self.phase = "starting"
        self.monitor: Monitor | None = None
        self.supervisor = Supervisor(folder / "logs", say=self.say)
        self.services: list[EmbeddedBroker | EmbeddedRedis] = []
        self.view = View(self.state)
        self.started_ms = 0
        self.held = Held()
        self._health_at = 0.0

    def state(self) -> State:
        return state_of(
            self.phase, self.started_ms, self.options.speed, self.monitor, self.supervisor, list(self.notes)
        )

    def memory(self) -> dict[str, int]:
        """Resident memory of every process of this run, in bytes; a broker or Redis that is not ours left out."""
        services = {service.name: service.pid for service in self.services}
        processes = {name: role.process for name, role in list(self.supervisor.roles.items())}
        roles = {name: process.pid if process is not None else None for name, process in processes.items()}
        return resident({**roles, **services, "demo": os.getpid()})

    def say(self, line: str) -> None:
        """A line for whoever watches, in the terminal and on the page."""
        self.notes.append(line)
        self.view.say(line)

    def tick(self) -> None:
        """Looks at roles and services once and shows the state; called a few times a second.

        Raises:
            ServiceError: a service has ended, or a role died so often that it is given up.
        """
        self.supervisor.poll()
        if time.monotonic() >= self._health_at:
            self._health_at = time.monotonic() + HEALTH_SECONDS
            for service in self.services:
                if service.process is not None and service.process.poll() is not None:
                    service.check()
        self.view.tick()

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

    def stop_watching(self) -> None:
        if self.monitor is not None:
            self.monitor.stop()

    def end_roles(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stops every role, whatever ended the run. Roles get some seconds for it, but none after the second Ctrl-C."""
        self.supervisor.stop(grace_seconds=0.0 if kind is _AtOnce else 5.0)

    # -- phases ----------------------------------------------------------------------------------------------

    def start_services(self, stack: ExitStack) -> None:
        """Starts the services that no setting names, creates the topics, and sets the event clock."""
        changes: dict[str, object] = {"data": str(self.folder), "seed": self.options.seed}
        if not self.settings.kafka:
            broker = EmbeddedBroker(self.folder / "broker", message_bytes=self.settings.message_bytes)
            changes["kafka"] = stack.enter_context(broker).address
            self.services.append(broker)
        if not self.settings.redis:
            redis = EmbeddedRedis(self.folder / "redis")
            changes["redis"] = stack.enter_context(redis).address
            self.services.append(redis)
        port = free_port()
        changes |= {"port": port, "scorer": f"http://127.0.0.1:{port}"}
        self.settings = msgspec.structs.replace(self.settings, **changes)
        patience_seconds = min(NAMED_SECONDS, self.settings.patience_seconds)
        wait_for_broker(self.settings, patience_seconds)
        wait_for_redis(self.settings.redis, patience_seconds)
        create_topics(self.settings)
        self.held = held_by(self.settings)  # of the embedded broker too: its topics lie in the folder
        learnt_ms = 0 if self.held.newest_ms else learnt_until(self.settings)
        opens = opening(self.held, learnt_ms)
        if learnt_ms:
            self.say(f"the topics are empty, the store is not; the shop opens on {opens:%A, %d %B}")
        if self.held.events:
            self.say(
                f"the topics hold {self.held.events:,} events of earlier runs; the shop opens on {opens:%A, %d %B}"
            )
        begins_ms = round(opens.timestamp() * 1000)
        if self.settings.from_log:
            from simulator.playback import first_ms  # the readers of logs, half a second of imports

            begins_ms = first_ms(Path(self.settings.from_log), self.settings.load_schema())
        clock = EventClock(wall_ms(), begins_ms, self.options.speed)
        self.settings = msgspec.structs.replace(self.settings, clock=clock.encode())

    def start_roles(self) -> None:
        """Starts all but the simulator, and waits until each can work.

        Raises:
            ServiceError: one is not ready in time, or died too often.
        """
        ports = {name: free_port() for name in ("simulate", "stream", "learn")}
        targets = {name: f"http://127.0.0.1:{port}/metrics" for name, port in ports.items()}
        targets["serve"] = f"{self.settings.scorer}/metrics"
        self._ports = {**ports, "serve": 0}
        self.monitor = Monitor(targets, self.settings.scorer, self.settings.event_clock(), memory=self.memory)
        self.monitor.start()
        for name in ("learn", "stream", "serve"):
            self._start(name)
        monitor = self.monitor

        def there() -> bool:
            # The scorer is ready when it has items, which the simulator brings: until then it answers, with a model.
            picture = monitor.picture
            return bool(
                picture.ready.get("learn")
                and picture.ready.get("stream")
                and picture.answers.get("serve")
                and picture.model.get("version", -1) >= 0
            )

        if not self.wait(there, READY_SECONDS) and not self.ending.is_set():
            late = [n for n in ("learn", "stream") if not monitor.picture.ready.get(n)] or ["serve"]
            raise ServiceError(
                f"{' and '.join(late)} did not become ready within {READY_SECONDS:g} s",
                f"see {self.folder / 'logs'}",
            )

    def _start(self, name: str) -> None:
        own = msgspec.structs.replace(self.settings, metrics_port=self._ports[name])
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")}
        # Four roles share few cores. With a pool of threads in each they would only wait for one another.
        self.supervisor.start(name, {"OMP_NUM_THREADS": "1", **clean, **own.environment()})

    def run_traffic(self) -> None:
        """Lets shoppers come until the time is over or somebody asks for the end.

        The time is counted from the moment at which the shop is open: a busy machine may take long to build it.

        Raises:
            ServiceError: it does not open in time, or its role died too often.
        """
        last_figures(self.settings.data, "simulate").unlink(missing_ok=True)  # of an earlier run in this folder
        self._start("simulate")
        monitor = self.monitor
        assert monitor is not None
        if not self.wait(lambda: bool(monitor.picture.ready.get("simulate")), READY_SECONDS):
            if self.ending.is_set():
                return
            raise ServiceError(
                f"the simulator did not open the shop within {READY_SECONDS:g} s", f"see {self.folder / 'logs'}"
            )
        self.started_ms = wall_ms()
        self.phase = "running"
        self.wait(lambda: False, self.options.seconds if self.options.seconds is not None else float("inf"))

    def settle(self) -> tuple[Ledger, Settlement]:
        """Waits until the loop has handled everything, then accounts for every exposure.

        Raises:
            ConservationError: some are missing, or counted twice.
        """
        assert self.monitor is not None
        self.phase = "draining"
        self.say("stopping the shoppers; draining")
        last = self.monitor.look()
        ended_ms = wall_ms()
        self._stop_role("simulate")
        dry = Drained(self.monitor, self.settings.idle_seconds)
        if labels_take(self.settings) <= LABELS_SECONDS:
            drained = self.wait(dry, DRAIN_SECONDS, ends_early=False)
        else:  # by a slow clock labels come for minutes yet: what the stream holds then stays pending
            drained = self.wait(dry.read, DRAIN_SECONDS, ends_early=False)
            self._stop_role("stream")
            dry = Drained(self.monitor, self.settings.idle_seconds, ("learn",))
            drained = self.wait(dry, DRAIN_SECONDS, ends_early=False) and drained
        if not drained:
            self.say(f"not drained after {DRAIN_SECONDS:g} s: {dry.why}")
        self.phase = "auditing"
        self.view.tick()
        freshness_s, since = last.figures["freshness_s"], self.held.offsets
        return settle(self.settings, self.monitor, self.supervisor, freshness_s, since, ended_ms)

    def _stop_role(self, name: str) -> None:
        """Stops a role, and takes in the figures that it left."""
        assert self.monitor is not None
        process = self.supervisor.roles[name].process
        if process is not None and process.poll() is None:
            last_figures(self.settings.data, name).unlink(missing_ok=True)  # of an earlier life: it will leave its own
        self.supervisor.stop(name, grace_seconds=20.0)
        text = None
        with suppress(OSError):  # it was killed before it could write them
            text = last_figures(self.settings.data, name).read_text()
        self.monitor.ended(name, text)


def demo(settings: Settings, options: DemoOptions) -> int:
    """Runs a demo to its end; returns the exit status: 0 when everything held.

    Raises:
        MillraceError: something could not be started, died for good, or an exposure is not accounted for.
    """
    if options.speed <= 0 or (options.seconds is not None and options.seconds <= 0):
        raise SettingError(
            f"speed {options.speed:g} and seconds {options.seconds} must be above 0", "give positive numbers"
        )
    if options.twin and options.report is None:
        raise SettingError("--twin without --report", "name the file for the report, which is where a twin appears")
    named = options.data or (Path(settings.data) if settings.data else None)
    folder = (named or Path(tempfile.mkdtemp(prefix="millrace-"))).absolute()
    signals = _Signals()
    kept = named is not None
    try:
        with signals.caught():
            return _run(settings, options, folder, signals)
    except _AtOnce:
        return 130
    except MillraceError:
        kept = True
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _run(settings: Settings, options: DemoOptions, folder: Path, signals: _Signals) -> int:
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"folder '{folder}' cannot be made ({error.strerror})", "name another with --data") from None
    with ExitStack() as stack:
        run = Demo(settings, options, folder, signals.ending)
        calm_logs(stack.enter_context((folder / "logs" / "demo.log").open("a", encoding="utf-8")))
        stack.callback(structlog.reset_defaults)
        page = PageServer(run.state, options.page_port)
        stack.callback(page.stop)
        run.view.page = page.url
        run.say(f"live page: {page.url}   logs: {folder / 'logs'}")
        run.start_services(stack)
        stack.callback(run.stop_watching)
        stack.push(run.end_roles)
        stack.enter_context(run.view)
        run.start_roles()
        if options.open_browser:
            webbrowser.open(page.url)
        if not signals.ending.is_set():
            run.run_traffic()
        if signals.hurry or not run.started_ms:
            run.phase = "stopping"
            run.supervisor.stop()
            return 143 if signals.hurry else 130
        return _finish(run, options)


def _finish(run: Demo, options: DemoOptions) -> int:
    ledger, settlement = run.settle()
    run.phase = "stopping"
    run.supervisor.stop()
    assert run.monitor is not None
    pages = None
    if options.twin:
        run.view.say("training the twin")
        pages = Pages(run.settings.load_schema())
        read_all(run.settings, IMPRESSIONS, pages.message)
    report = make_report(ledger, settlement, run.monitor, run.supervisor, run.settings, run.started_ms, pages)
    report["versions"], differs = proved(run.settings)
    report["thirds"] = {
        n: thirds(report, n) for n in ("click_to_served_p50_ms", "click_to_served_p99_ms", "memory_total")
    }
    if options.report is not None:
        write_report(options.report, report)
        draw(report, options.report.with_suffix(".png"))
    problem = settlement.problem or differs
    run.phase = "failed" if problem else "done"
    for line in summary(report):
        run.view.say(line)
    if problem is not None:
        raise problem
    missing = [name for name in missing_keys(report) if not (run.settings.from_log and name in UNKNOWN_OF_A_LOG)]
    if missing:
        run.view.say(f"not measured in this run: {', '.join(missing)}")
    return 1 if missing and options.report is not None else 0
