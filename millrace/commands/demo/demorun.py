# shell
"""The whole loop on one machine with simulated shoppers, and an audit at the end.

::

    services ► topics ► learner, stream, scorer ► (all there) ► simulator ► ... ► simulator stops
        ► stream and learner drain ► audit ► roles stop ► services stop ► report

The phases run in the main thread, beside the monitor's thread and the page's.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec

from millrace.basics.atomic_files import lock_of
from millrace.basics.errors import MillraceError, ServiceError, SettingError
from millrace.commands.demo.conservation import Ledger
from millrace.commands.demo.curves import draw, thirds
from millrace.commands.demo.demoreport import make_report, summary, write_report
from millrace.commands.demo.past import PastEvents, check_days, filled, held_by, learnt_until, live_through, opening
from millrace.commands.demo.personclicks import PersonClicks
from millrace.commands.demo.settle import DRAIN_SECONDS, Drained, Settlement, labels_take, settle
from millrace.commands.demo.twin import LoggedPages
from millrace.commands.loop.host import READY_SECONDS, Host, made
from millrace.commands.loop.monitor import fetch
from millrace.commands.loop.signals import AtOnce, Signals
from millrace.commands.loop.stage_times import Stages
from millrace.commands.loop.status import RunStatus
from millrace.commands.up.ports import Ports, choose, url
from millrace.contracts.clock import EventClock
from millrace.contracts.settings import Settings
from millrace.contracts.topics import PAGE_LOGS
from millrace.processes.kafka import read_all
from millrace.processes.profiles import check_whole
from millrace.processes.role import last_figures
from millrace.processes.services import EmbeddedPrometheus, prometheus_flags, prometheus_program
from millrace.processes.tokens import own_token
from millrace.processes.wall import wall_ms

SPEED = 240.0
LOOP = ("learn", "stream", "serve")
ROLES = ("simulate", "stream", "learn", "serve")
"""The roles of a demo, as they are shown; :data:`LOOP` is there before the simulator."""
GRAFANA = "grafana/grafana:12.3.1"
LABELS_SECONDS = 45.0
"""The longest wait for labels after the last exposure, by the wall clock."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What one demo is asked for. ``data`` None: a temporary folder, removed at the end; ``seconds`` None: no end."""

    seconds: float | None = None
    report: Path | None = None
    seed: int = 0
    speed: float = SPEED
    page_port: int | None = None
    data: Path | None = None
    twin: bool = False
    archive: bool = False
    history_days: int = 0
    prometheus: bool = False


class Demo(Host):
    """One run of :func:`demo`. Arguments as in :class:`~millrace.commands.loop.host.Host`."""

    name = "demo"

    ports: Ports  # from open() on

    def __init__(self, settings: Settings, options: DemoOptions, folder: Path, ending: threading.Event) -> None:
        self.beside = (*(("archive",) if options.archive else ()), *settings.learner_roles)
        super().__init__(settings, folder, ending, RunStatus((*ROLES, *self.beside)), options.speed)
        self.options, self.keeps_folder = options, bool(options.data or settings.data)
        self.held, self.person = PastEvents(), PersonClicks()
        self.began_s = time.monotonic()
        self.past_s = 0.0
        self.clicks: list[Stages] = []  # what clicks took until the shop opened, and until the end of each third
        self.ready_s = 0.0  # from the start until the first page could be served, with all that is known of the past

    # -- phases ----------------------------------------------------------------------------------------------

    def open(self, stack: ExitStack) -> None:
        """Replays the past that was asked for, starts the services that no setting names, creates the topics, and sets
        the event clock. Stops early when the end is asked for."""
        self.usual = may_take_usual_ports(stack)
        own = msgspec.structs.replace(self.settings, metrics_port=self.settings.metrics_port and None)  # of one role
        ports = self.ports = choose(own, (*ROLES, *self.beside), free=not self.usual).or_free(own.host)
        self.settings = msgspec.structs.replace(
            self.settings,
            port=ports.scorer,
            scorer=url(self.settings.host, ports.scorer),
            data=str(self.folder),
            seed=self.options.seed,
            archive_features=self.options.archive or self.settings.archive_features,
            tokens="",  # our shoppers have none
            token_file="",
            admin_port=ports.admin,
            admin_token_file=self.settings.admin_token_file or str(own_token(self.folder)),
        )
        if self.options.history_days:
            self.past_s = live_through(self, self.options.history_days)
            if self.ending.is_set():
                return
        check_whole(self.settings)
        self.start_services(stack)
        self.held = held_by(self.settings)  # of the embedded broker too: its topics lie in the folder
        learnt_ms = 0 if self.held.newest_ms or self.options.history_days else learnt_until(self.settings)
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
        self.shown.settles_s = labels_take(self.settings)
        self._show_figures(stack)

    def _show_figures(self, stack: ExitStack) -> None:
        """Writes what Prometheus needs, and says how it and Grafana are started; starts Prometheus where asked to."""
        scrape, kept = self.write_scrape(self.ports.targets(self.settings.host)), self.folder / "prometheus"
        if self.options.prometheus:
            prometheus = EmbeddedPrometheus(kept, scrape, usual=self.usual)
            self.say(f"Prometheus: http://{stack.enter_context(prometheus).address}   asks by {scrape}")
            self.services.append(prometheus)
        else:
            self.view.say(f"Prometheus: {shlex.join(['prometheus', *prometheus_flags(scrape, kept)])}")
        self.view.say(f"Grafana: {_grafana()}")

    def start_roles(self) -> None:
        """Starts all but the simulator, and waits until each can work. Raises ServiceError if one is not ready in time,
        or died too often."""
        host = self.settings.host
        self.watch(self.ports.metrics, self.ports.targets(host), fetch, url(host, self.settings.admin_port))
        for name in (*LOOP, *self.beside):
            self.start(name)
        self.await_roles(LOOP)  # of the scorer an answer: it is ready when it has items, which the simulator brings
        if not self.options.history_days or self.wait(lambda: filled(self.settings), READY_SECONDS):
            return  # so the first page already knows its user
        if not self.ending.is_set():
            raise ServiceError(
                f"the stream did not write the users of the past to Redis within {READY_SECONDS:g} s",
                f"see {self.folder / 'logs'}",
            )

    def run_traffic(self) -> None:
        """Lets shoppers come until the time is over or somebody asks for the end. Time counts from the shop's opening,
        since a busy machine may take long to build it. Raises ServiceError if it does not open in time, or its role
        died too often."""
        last_figures(self.settings.data, "simulate").unlink(missing_ok=True)  # of an earlier run in this folder
        self.start("simulate")
        monitor = self.monitor
        assert monitor is not None
        if not self.wait(lambda: bool(monitor.picture.ready.get("simulate")), READY_SECONDS):
            if self.ending.is_set():
                return
            raise ServiceError(
                f"the simulator did not open the shop within {READY_SECONDS:g} s", f"see {self.folder / 'logs'}"
            )
        # The simulator opens when the scorer says that it can serve: it has a model and items.
        self.ready_s = time.monotonic() - self.began_s
        if self.options.history_days:
            self.say(f"ready after {self.ready_s:.0f} s, {self.past_s:.0f} of them for the past")
        self.started_ms = wall_ms()
        self.person.open(self.settings)
        self.phase = "running"
        self.clicks = [monitor.stages()]
        for _ in range(3):
            self.wait(lambda: False, self.options.seconds / 3 if self.options.seconds is not None else float("inf"))
            if self.ending.is_set():
                return
            self.clicks.append(monitor.stages())

    def settle(self) -> tuple[Ledger, Settlement]:
        """Waits until the loop has handled everything, then accounts for every exposure. Raises ConservationError if
        some are missing, or counted twice."""
        assert self.monitor is not None
        self.phase = "draining"
        self.say("stopping the shoppers; draining")
        last = self.monitor.look()
        ended_ms = wall_ms()
        self.person.close()
        self.stop_role("simulate")
        dry = Drained(self.monitor, self.settings.idle_seconds)
        if labels_take(self.settings) > LABELS_SECONDS:
            # By a slow clock labels come for minutes yet: what the stream holds then stays pending.
            if not self.wait(dry.read, DRAIN_SECONDS, ends_early=False):
                self.say(f"not read to the end after {DRAIN_SECONDS:g} s: {dry.why}")
            self.stop_role("stream")
            dry = Drained(self.monitor, self.settings.idle_seconds, ("learn",))
        self.wait(dry, DRAIN_SECONDS, ends_early=False)
        self.phase = "auditing"
        self.view.tick()
        freshness_s, since = last.figures["freshness_s"], self.held.offsets
        return settle(self, dry, freshness_s, since, ended_ms, self.person)


def may_take_usual_ports(stack: ExitStack) -> bool:
    """Whether no other demo of this user has the ports of `millrace up`, or is about to take them."""
    lock = None
    with suppress(OSError):
        lock = lock_of(Path(tempfile.gettempdir(), f"millrace-demo-{os.getuid()}.lock"))
    if lock is not None:
        stack.callback(os.close, lock)
    return lock is not None


def _grafana() -> str:
    """How the dashboard is opened: with the files of a checkout, which name a Prometheus at its usual port."""
    files = Path(__file__).absolute().parents[3] / "deploy" / "grafana"
    if not files.is_dir():
        return "import deploy/grafana/dashboards/millrace.json of the source; deploy/README.md says how"
    own = {"SERVER_HTTP_ADDR": "127.0.0.1", "AUTH_ANONYMOUS_ENABLED": "true"}
    own["DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] = "/etc/grafana/dashboards/millrace.json"
    set_ = [part for name, value in own.items() for part in ("-e", f"GF_{name}={value}")]
    mounted = [
        part for name in ("provisioning", "dashboards") for part in ("-v", f"{files / name}:/etc/grafana/{name}:ro")
    ]
    network = ("--network", "host", "--add-host", "prometheus:127.0.0.1")
    return f"{shlex.join(['docker', 'run', '--rm', *network, *set_, *mounted, GRAFANA])}   then http://127.0.0.1:3000"


def demo(settings: Settings, options: DemoOptions) -> int:
    """Runs a demo to its end; returns the exit status: 0 when everything held. Raises MillraceError if something could
    not be started, died for good, or an exposure is not accounted for."""
    if options.speed <= 0 or (options.seconds is not None and options.seconds <= 0):
        raise SettingError(
            f"speed {options.speed:g} and seconds {options.seconds} must be above 0", "give positive numbers"
        )
    check_days(options.history_days)
    if options.history_days and settings.from_log:
        raise SettingError(
            f"--history-days {options.history_days} with the log '{settings.from_log}'",
            "replay what was before it with 'millrace log bootstrap LOG --schema S --data DATA'",
        )
    if options.twin and options.report is None:
        raise SettingError("--twin without --report", "name the file for the report, which is where a twin appears")
    if options.prometheus:
        prometheus_program()
    named = options.data or (Path(settings.data) if settings.data else None)
    folder = (named or Path(tempfile.mkdtemp(prefix="millrace-"))).absolute()
    signals = Signals()
    kept = named is not None
    try:
        with signals.caught():
            return _run(settings, options, folder, signals)
    except AtOnce:
        return 130
    except MillraceError:
        kept = True
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def _run(settings: Settings, options: DemoOptions, folder: Path, signals: Signals) -> int:
    made(folder)
    with ExitStack() as stack:
        run = Demo(settings, options, folder, signals.ending)
        stack.callback(run.person.close)
        run.show(stack, options.page_port, run.person.send)
        run.open(stack)
        if signals.ending.is_set():
            return 143 if signals.hurry else 130
        run.attend(stack)
        run.start_roles()
        if not signals.ending.is_set():
            run.run_traffic()
        if signals.hurry or not run.started_ms:
            run.phase = "stopping"
            run.supervisor.stop()
            return 143 if signals.hurry else 130
        _finish(run, options)
        return 0


def _pages(settings: Settings) -> LoggedPages:
    pages = LoggedPages(settings.load_schema())
    read_all(settings, PAGE_LOGS, pages.message)
    return pages


def _finish(run: Demo, options: DemoOptions) -> None:
    ledger, settlement = run.settle()
    run.phase = "stopping"
    run.supervisor.stop()
    assert run.monitor is not None
    pages = None
    if options.twin:
        run.view.say("training the twin")
        pages = run.read(lambda: _pages(run.settings))
    report = make_report(ledger, settlement, run.monitor, run.supervisor, run.settings, run.started_ms, pages)
    if options.history_days:
        report["history"] = {
            "days": options.history_days,
            "seconds": round(run.past_s, 1),
            "ready_seconds": round(run.ready_s, 1),
        }
    told = [name for name in report["page"] if name.startswith("memory_")]
    report["thirds"] = {name: thirds(report, name) for name in told}
    report["click_thirds_ms"] = [
        {stage: times.since(before[stage]).figures() for stage, times in after.items()}
        for before, after in pairwise(run.clicks)
    ]
    if options.report is not None:
        write_report(options.report, report)
        draw(report, options.report.with_suffix(".png"))
    problem = settlement.problem
    run.phase = "failed" if problem else "done"
    for line in summary(report):
        run.view.say(line)
    if problem is not None:
        raise problem
