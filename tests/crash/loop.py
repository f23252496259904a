"""A loop under load that is to be struck: a demo whose ways can be cut, whose disks can be filled, whose clocks can be
stepped, and which is balanced as often as one likes.

::

    CrashLoop.begin ── shop opens ── (load) ── fault ── ... ── healed ── shop closes ── settled ─┐
                          ▲                                                                      │
                          └──────────────────────────── again ───────────────────────────────────┘
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
import redis

from millrace.basics.errors import ServiceError
from millrace.commands.demo.conservation import Ledger
from millrace.commands.demo.demorun import Demo, DemoOptions
from millrace.commands.demo.past import filled
from millrace.commands.demo.settle import Drained, Settlement, settle
from millrace.commands.loop.host import made
from millrace.commands.loop.monitor import Monitor, Picture
from millrace.commands.loop.view import View
from millrace.contracts.settings import Settings
from millrace.processes.role import last_figures
from millrace.processes.services import free_port
from millrace.processes.spawn import spawn, tail
from millrace.processes.supervisor import PYTHON, role_argv
from millrace.processes.wall import wall_ms
from tests.crash.link import Link
from tests.crash.machine import Clocks, Disks
from tests.scenes.apachekafka import ApacheKafka
from tests.scenes.waiting import PATIENCE

ROLES = ("simulate", "stream", "learn", "serve", "archive", "intake")
DISKS = ("broker", "checkpoints", "models", "spool", "index", "archive", "learner")
"""Folders of the loop that have a small disk of their own each, where we may mount one."""
FEW = 20
"""Messages that may wait in a loop that keeps up."""
LOOK_SECONDS = 0.25
IDLE_SECONDS = 1.0


class Pace(NamedTuple):
    """How fast event time goes, and the settings that go with it."""

    name: str
    speed: float
    settings: dict[str, Any]


PACES = {
    pace.name: pace
    for pace in (
        # A second is four minutes: two hours of lateness are over after half a minute.
        Pace("lapsed", 240.0, {"shoppers": 1500}),
        # As in a shop, but a label takes some seconds in place of minutes.
        Pace(
            "real",
            1.0,
            {"shoppers": 40_000, "attribution_minutes": 0.1, "observation_seconds": 2.0, "disorder_seconds": 2.0},
        ),
    )
}


class NotHealedError(Exception):
    """The loop does not work again, or its figures do not come to rest."""


class CrashLoop(Demo):
    """One life of a loop, in a folder of its own.

    Args:
        home: of Apache Kafka's jars; None: the embedded broker, whose link cannot be cut.
        through_intake: shoppers send their events to the intake, not to Kafka.
    """

    name = "crash"

    def __init__(
        self,
        folder: Path,
        pace: Pace,
        seed: int,
        home: Path | None,
        *,
        through_intake: bool = True,
        prefix: str = "",
    ) -> None:
        made(folder)
        settings = Settings(
            gate="on",
            heldout_share=0.0,  # else nobody could say by name which rows were held out, and which are lost
            control_share=0.1,
            archive_seconds=5.0,
            idle_seconds=IDLE_SECONDS,
            prefix=prefix,
            **pace.settings,
        )
        options = DemoOptions(seed=seed, speed=pace.speed, archive=True)
        super().__init__(settings, options, folder, threading.Event())
        self.beside = (*self.beside, "intake")
        self.pace, self.through_intake = pace, through_intake
        self.kafka: ApacheKafka | None = None
        self.links: dict[str, Link] = {}
        self.disks, self.clocks = Disks(), Clocks(folder / "clocks")
        self.expects_fence = False
        self.view = View(self.state, line_seconds=float("inf"))
        self._home, self._environment = home, dict[str, str]()
        self._drained: Drained | None = None
        self._restarting: threading.Thread | None = None
        self._extra: list[subprocess.Popen[bytes]] = []

    # -- its life --------------------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """The loop with its shop closed; whatever happens, nothing of it is left behind."""
        with ExitStack() as stack:
            for name in DISKS if self._home is None else DISKS[1:]:
                stack.enter_context(self.disks.mounted(name, self.folder / name))
            self._environment = self.clocks.made(ROLES)
            if self._home is not None:
                link = self.links["kafka"] = stack.enter_context(Link(()))
                port = int(link.address.rpartition(":")[2])
                more = f"advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n"
                self.kafka = ApacheKafka(self._home, self.folder / "kafka", more=more)
                stack.enter_context(self.disks.mounted("broker", self.folder / "kafka" / "log"))
                link.targets = (self.kafka.address,)
                stack.callback(self._kafka_ended)
                stack.enter_context(self.kafka)
                self.settings = msgspec.structs.replace(self.settings, kafka=link.address)
            self.open(stack)
            door = stack.enter_context(Link([self.settings.scorer.removeprefix("http://")]))
            self.links["serve"] = door
            self.attend(stack)
            stack.callback(self._end_extra)
            self.start_roles()
            yield

    def start_services(
        self, stack: ExitStack, broker_port: int = 0, redis_port: int = 0, *, sync: bool = False
    ) -> None:
        super().start_services(stack, broker_port, redis_port, sync=sync)
        link = self.links["redis"] = stack.enter_context(Link([self.settings.redis]))
        self.redis, port = self.settings.redis, free_port()
        self.settings = msgspec.structs.replace(
            self.settings, redis=link.address, intake_port=port, intake=f"http://127.0.0.1:{port}"
        )

    def start(self, name: str) -> None:
        """Starts a role; shoppers ask for pages through the link."""
        own = msgspec.structs.replace(self.settings, metrics_port=self._ports[name])
        if name == "simulate":
            own = msgspec.structs.replace(own, scorer=f"http://{self.links['serve'].address}")
        argv = [*PYTHON, "tests.crash.shoppers"] if name == "simulate" and self.through_intake else role_argv(name)
        self.supervisor.start(name, self.environment(own) | {"CRASH_ROLE": name}, argv)

    def environment(self, settings: Settings) -> dict[str, str]:
        """Of a process of the loop. Pages are computed in float32, as the learner computes: without its fast
        instructions bfloat16 is not the fastest."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")}
        own = {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2", **settings.environment()}
        return clean | own | self._environment

    def watch(
        self, ports: Mapping[str, int], targets: Mapping[str, str], get: Callable[[str], str], learner: str
    ) -> Monitor:
        monitor = super().watch(ports, targets, get, learner)
        if self.through_intake:  # what a killed intake has answered for may come again: nobody can say how often
            whole = monitor._figures
            monitor._figures = lambda *given: whole(*given) | {"duplicates": None}  # type: ignore[method-assign]
        return monitor

    def tick(self) -> None:
        try:
            super().tick()
        except ServiceError:
            if not self.expects_fence:
                raise
        if (
            self.kafka is not None
            and self.kafka.process is not None
            and self.kafka.process.poll() is not None
            and (self._restarting is None or not self._restarting.is_alive())
        ):  # as somebody does who runs it
            self._restarting = threading.Thread(target=self._start_kafka, name="kafka")
            self._restarting.start()

    def _start_kafka(self) -> None:
        assert self.kafka is not None
        with contextlib.suppress(Exception):  # the next tick tries again
            self.kafka.start()

    def _kafka_ended(self) -> None:
        if self._restarting is not None:
            self._restarting.join()

    # -- traffic ---------------------------------------------------------------------------------------------

    def open_shop(self) -> None:
        """Returns when shoppers come."""
        assert self.monitor is not None
        last_figures(self.settings.data, "simulate").unlink(missing_ok=True)
        with self.monitor._lock:
            self.monitor._targets["simulate"] = f"http://127.0.0.1:{self._ports['simulate']}/metrics"
        self.start("simulate")
        before = self.figure("exposures")
        self.until(lambda: self.look().ready.get("simulate", False), "the shop opens")
        self.until(lambda: self.figure("exposures") > before + FEW, "shoppers come")
        self.started_ms = self.started_ms or wall_ms()
        self.phase = "running"

    def close_shop(self) -> None:
        """Shoppers go; returns when everything that they did is learnt and served, and nothing moves."""
        assert self.monitor is not None
        self.phase = "draining"
        self.stop_role("simulate")
        drained = self._drained = Drained(self.monitor, self.settings.idle_seconds)
        self.until(drained, "everything is handled", more=lambda: drained.why)
        self.until(
            lambda: self.look().figures["pending"] == 0 and drained(), "every exposure has its label", more=self.seen
        )

    def come_to_rest(self) -> None:
        """Returns when every role works and the newest version serves."""

        def rests() -> bool:
            picture = self.look()
            versions = [picture.figures[name] for name in ("learner_version", "served_version")]
            return self.all_work(picture) and versions[0] is not None and versions[0] == versions[1]

        self.until(rests, "every role works, and the newest version serves", more=self.seen)

    def settled(self) -> tuple[Ledger, Settlement]:
        """The account of all exposures since the loop began."""
        assert self._drained is not None
        self.phase = "auditing"
        return settle(self, self._drained)

    # -- looking ---------------------------------------------------------------------------------------------

    def look(self) -> Picture:
        assert self.monitor is not None
        return self.monitor.look()

    def figure(self, name: str) -> float:
        assert self.monitor is not None
        return self.monitor.picture.figures.get(name) or 0.0

    def until(
        self,
        condition: Callable[[], bool],
        what: str,
        patience: float = PATIENCE,
        more: Callable[[], str] = lambda: "",
    ) -> None:
        """Waits, and keeps roles and services alive. Raises NotHealedError when it never comes true."""
        next_look = 0.0

        def looked() -> bool:
            nonlocal next_look
            if time.monotonic() < next_look:
                return False
            next_look = time.monotonic() + LOOK_SECONDS
            return condition()

        if not self.wait(looked, patience, ends_early=False):
            raise NotHealedError(f"never came true: {what} {more()}")

    def lags(self, picture: Picture) -> bool:
        waiting = [picture.figures.get(name) for name in ("stream_lag", "learner_lag")]
        return any(lag is None or lag > FEW for lag in waiting)

    def all_work(self, picture: Picture) -> bool:
        """Whether each role runs that was not stopped, and is ready."""
        roles = [role for role in self.supervisor.roles.values() if role.state != "stopped"]
        return all(role.state == "running" and picture.ready.get(role.name) for role in roles)

    def healed(self) -> Callable[[], bool]:
        """A question to be asked until it is true: shoppers get pages, nothing waits any more, Redis has the users, and
        what was learnt after that serves."""
        before = self.figure("exposures")
        learnt: float | None = None

        def asked() -> bool:
            nonlocal learnt
            picture = self.look()
            seen = picture.figures
            if learnt is None:
                shoppers = (seen.get("exposures") or 0.0) > before + FEW
                if shoppers and self.all_work(picture) and not self.lags(picture) and filled(self.settings):
                    learnt = seen.get("learner_version")
                return False
            return (seen.get("served_version") or 0.0) > learnt

        return asked

    def seen(self) -> str:
        picture = self.look()
        names = ("pending", "stream_lag", "learner_lag", "learner_version", "served_version", "exposures", "trained")
        figures = {name: picture.figures.get(name) for name in names}
        states = {name: role.state for name, role in self.supervisor.roles.items()}
        return f"{figures}, ready {picture.ready}, {states}, gate {picture.gate.state}"

    # -- striking --------------------------------------------------------------------------------------------

    def pid(self, victim: str) -> int:
        """The process that is meant; 0: it does not run now."""
        if victim == "broker" and self.kafka is not None:
            process = self.kafka.process
            return process.pid if process is not None and process.poll() is None else 0
        for service in self.services:
            if service.name == victim:
                return service.pid or 0
        if victim in ("worker", "template"):
            return self._forked(victim)
        role = self.supervisor.roles.get(victim)
        return (role.pid or 0) if role is not None else 0

    def _forked(self, victim: str) -> int:
        """The first template is a fork of its role, with the same command line; later ones are programs. The oldest
        child is neither: it answers while no worker does."""
        serve = self.pid("serve")
        if not serve:
            return 0
        with contextlib.suppress(psutil.Error):
            role = psutil.Process(serve)
            for child in sorted(role.children(), key=lambda each: each.create_time())[1:]:
                with contextlib.suppress(psutil.Error):
                    if child.cmdline() != role.cmdline() and "scorer.worker.template" not in child.cmdline():
                        continue
                    found = [child] if victim == "template" else child.children()
                    if found:
                        return int(found[0].pid)
        return 0

    def send(self, number: int, victim: str) -> bool:
        """Sends a signal; whether the victim was there. A role that is stopped is stopped whole."""
        pid = self.pid(victim)
        with contextlib.suppress(ProcessLookupError):
            if pid and number in (signal.SIGSTOP, signal.SIGCONT) and victim in self.supervisor.roles:
                os.killpg(pid, number)
            elif pid:
                os.kill(pid, number)
            return bool(pid)
        return False

    def empty_redis(self) -> None:
        host, _, port = self.redis.rpartition(":")
        with redis.Redis(host, int(port), socket_timeout=60.0) as client:
            client.flushall()

    def second(self, name: str) -> tuple[subprocess.Popen[bytes], Settings]:
        """Starts one more process of a role, with a folder and ports of its own and the store of all."""
        folder = self.folder / f"second-{name}"
        port = free_port()
        own = msgspec.structs.replace(
            self.settings,
            data=str(made(folder)),
            store=self.settings.store or str(self.folder),
            port=port,
            scorer=f"http://127.0.0.1:{port}",
            admin_port=free_port(),
            metrics_port=free_port(),
        )
        process = spawn(role_argv(name), self.environment(own), self.folder / "logs" / f"second-{name}.log")
        self._extra.append(process)
        return process, own

    def said(self, name: str) -> str:
        return tail(self.folder / "logs" / f"{name}.log")

    def _end_extra(self) -> None:
        for process in self._extra:
            if process.poll() is None:
                process.kill()
                process.wait()
