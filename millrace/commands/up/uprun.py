# shell
"""`millrace up`: broker, Redis, every role and the live page, for your shop. It goes on from its last state.

::

    your shop ─HTTP─► intake ─► Kafka ─► stream ─► learner ─► scorer ─HTTP─► your shop
                                  └────► archive ─► Parquet

    folder and ports are ours ► services ► roles ► ready ► up.json ► ... Ctrl-C ► intake stops ► the others ► services

No shoppers are simulated, and event time is wall time. The data folder has all lasting state. A restart needs only the
roles' checkpoints, the snapshots and the broker's files, so a killed run starts again like a stopped one.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from millrace.basics.errors import SettingError
from millrace.commands.loop.host import Host, made
from millrace.commands.loop.monitor import fetch, readiness
from millrace.commands.loop.signals import AtOnce, Signals
from millrace.commands.loop.status import RunStatus
from millrace.commands.up import data_folder as folders
from millrace.commands.up import upwords
from millrace.commands.up.ports import Ports, check, choose, url
from millrace.contracts.settings import Settings, without_password
from millrace.processes.profiles import check_whole
from millrace.processes.tokens import Tokens, bearer, own_token
from millrace.processes.wall import wall_ms

ROLES = ("stream", "learn", "serve", "intake", "archive")
LINE_SECONDS = 60.0
"""Between two lines of state where the output is no terminal: this program runs for months."""
GRACE_SECONDS = 30.0
QUIET_SECONDS = 5.0
"""Between two looks at the roles' figures while nobody has the page or a terminal open: each costs every role some
milliseconds."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    free_ports: bool = False
    sync: bool = False  # the embedded broker syncs to the disk before it acknowledges
    archive: bool = True

    def roles(self, settings: Settings) -> tuple[str, ...]:
        """The roles of the run: with all learners."""
        return (*(name for name in ROLES if self.archive or name != "archive"), *settings.learner_roles)


class Up(Host):
    """One run of :func:`up`. ``settings``: of every role, made by :func:`prepared`."""

    name = "up"
    keeps_series = True

    def __init__(
        self, settings: Settings, options: UpOptions, folder: Path, ports: Ports, ending: threading.Event
    ) -> None:
        speed = settings.event_clock().speed
        settles_s = (60 * settings.attribution_minutes + settings.disorder_seconds) / speed
        self.roles = options.roles(settings)
        resumed = (folder / "checkpoints").exists()
        shown = RunStatus(self.roles, control=settings.control_share > 0, settles_s=settles_s, resumed=resumed)
        super().__init__(settings, folder, ending, shown, speed, LINE_SECONDS)
        self.ports = ports
        self.ready = False
        self._looked_at = 0.0

    def start_roles(self) -> None:
        """Starts every role, and waits until each can work. The scorer then waits for the shop's items. Raises
        ServiceError if one is not ready in time, or died too often."""
        self.watch(self.ports.metrics, self.metrics(), self.ask, url(self.settings.host, self.settings.admin_port))
        for name in self.roles:
            self.start(name)
        self.await_roles(name for name in self.roles if name not in self.settings.learner_roles)

    def ask(self, address: str) -> str:
        """The body of a GET; with a token where it goes to the scorer and tokens are set."""
        return fetch(address, headers=self.credentials() if address.startswith(self.settings.scorer) else None)

    def credentials(self) -> dict[str, str]:
        """The header with a token; empty: none is set, or the file cannot be read just now."""
        try:
            return bearer(self.settings)
        except SettingError:
            return {}

    def where(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "pid": os.getpid(),
            "scorer": settings.scorer,
            "intake": settings.intake,
            "page": self.view.page,
            "admin": url(settings.host, settings.admin_port),
            "kafka": settings.kafka,
            "redis": without_password(settings.redis),
            "metrics": self.metrics(),
        }

    def metrics(self) -> dict[str, str]:
        return self.ports.targets(self.settings.host)

    def serve(self) -> None:
        """Runs until somebody asks for the end. Raises ServiceError if a role or service died so often that it is given
        up."""
        assert self.monitor is not None
        self.monitor.quiet_seconds = QUIET_SECONDS
        found = self.where()
        folders.say_where(self.folder, found)
        self.started_ms, self.phase = wall_ms(), "running"
        self.shown.addresses = {
            **{name: found[name] for name in ("scorer", "intake", "kafka", "redis")},
            "data folder": str(self.folder),
        }
        scrape = self.write_scrape(self.metrics())
        for line in upwords.welcome(found, str(self.folder), str(scrape), self.settings.prefix):
            self.view.say(line)
        self.wait(self._watch, float("inf"))

    def _watch(self) -> bool:
        """Looks each second whether the scorer has what it needs. Always False, so that :meth:`wait` goes on."""
        if time.monotonic() < self._looked_at + 1.0:
            return False
        self._looked_at = time.monotonic()
        reason = self._not_ready()
        before, self.shown.awaits = self.shown.awaits, upwords.awaited(reason, self.settings.intake)
        if self.shown.awaits and self.shown.awaits != before:
            self.view.say(self.shown.awaits)  # the page shows it for as long as it holds
            if reason.startswith(upwords.CATALOGUE):
                schema, token = self.settings.load_schema(), bool(self.credentials())
                self.view.say(f"for instance: {upwords.first_item(schema, self.settings.intake, token)}")
        if not reason and not self.ready:
            self.ready = True
            self.say(f"ready: {upwords.first_page(self.settings.scorer, bool(self.credentials()))}")
        return False

    def _not_ready(self) -> str:
        """Why the scorer makes no pages of its model yet; empty: it does."""
        picture = self.monitor.picture if self.monitor is not None else None
        if picture is not None and picture.ready.get("serve"):
            return ""
        try:
            status, said, _ = readiness(self.settings.scorer)
        except OSError:
            return "it does not answer"
        return "" if status == 200 else said

    def close(self) -> None:
        """Stops every role: the intake first, then those that serve pages, then those that save their state."""
        self.phase = "stopping"
        self.say("stopping: intake first, then the others, which write down how far they have come")
        for names in (("intake",), ("serve",), ("stream", "learn", "archive", *self.settings.learner_roles)):
            self.supervisor.stop(*names, grace_seconds=GRACE_SECONDS)


def prepared(settings: Settings, folder: Path, ports: Ports) -> Settings:
    return msgspec.structs.replace(
        settings,
        data=str(folder),
        schema=str(Path(settings.schema).absolute()),
        port=ports.scorer,
        intake_port=ports.intake,
        page_port=ports.page,
        admin_port=ports.admin,
        admin_token_file=settings.admin_token_file or str(own_token(folder)),
        scorer=url(settings.host, ports.scorer),
        intake=url(settings.host, ports.intake),
        from_log="",
    )


def up(settings: Settings, options: UpOptions) -> int:
    """Runs the loop until it is asked to end; returns the exit status, 0. Raises MillraceError if something could not
    be started, or died for good."""
    if options.sync and settings.kafka:
        raise SettingError(
            f"--sync with the Kafka '{settings.kafka}'", "leave it out: that broker's own settings say when it syncs"
        )
    Tokens.of(settings)  # a file that cannot be used ends the run now, and not role by role
    settings = folders.on_folder(settings)
    folder = Path(settings.data)
    schema = folders.schema_note(folder, settings)  # first: in a wrong folder nothing is to be made
    made(folder)
    signals = Signals()
    try:
        with signals.caught(), folders.locked(folder):
            return _run(settings, options, folder, schema, signals)
    except AtOnce:
        return 130


def _run(settings: Settings, options: UpOptions, folder: Path, schema: folders.SchemaNote, signals: Signals) -> int:
    check_whole(settings)  # each role looks too: it may be started by itself
    killed = bool(folders.addresses(folder))  # a run that ends takes them away
    ports = choose(settings, options.roles(settings), free=options.free_ports)
    if killed:
        folders.await_release(folder)
    check(ports, settings.host, folders.RELEASE_SECONDS if killed else 0.0)
    (folder / folders.ADDRESSES).unlink(missing_ok=True)
    if not schema.changed:
        schema.write(folder)
    with ExitStack() as stack:
        stack.callback((folder / folders.ADDRESSES).unlink, missing_ok=True)
        run = Up(prepared(settings, folder, ports), options, folder, ports, signals.ending)
        run.show(stack, ports.page)
        if schema.changed:
            run.say(schema.changed)
        run.start_services(stack, ports.broker, ports.redis, sync=options.sync)
        run.attend(stack)
        run.start_roles()
        schema.write(folder)
        if not signals.ending.is_set():
            run.serve()
        run.close()
        run.phase = "done"
    return 0
