"""Apache Kafka from a folder of its jars, for what must be tried on more than the embedded broker: a KRaft broker,
alone or one of several, which may be killed and started again. It cannot outlive this process.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from experiments.runs import BenchError
from millrace.contracts.settings import Settings
from millrace.processes.kafka import wait_for_broker
from millrace.processes.services import free_port
from millrace.processes.spawn import spawn, tail

START_SECONDS = 280.0
"""On a busy machine a Java machine takes its time."""

_SETTINGS = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={folder}/log
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
auto.create.topics.enable=false
"""


_MACHINE = ("-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""A broker of a minute's life: what the second compiler would win later costs more than it is worth."""

_CLUSTER = "MkU3OEVBNTcwNTJENDM2Qg"
"""An id as Kafka makes them. Each broker has a folder of its own, so all may have the same."""


def java_command(home: Path, heap_mib: int = 512) -> list[str]:
    """How a program of the Kafka in ``home`` is run: the folder has ``libs/`` with its jars.

    Raises:
        BenchError: there is no Java, or no Kafka.
    """
    java = shutil.which("java")
    if java is None:
        raise BenchError("no Java runtime is here", "install one (Debian: default-jre-headless)")
    libs = home.absolute() / "libs"
    if not any(libs.glob("kafka*.jar")):
        raise BenchError(f"no Kafka in '{libs}'", "name a folder with Kafka's libs/")
    return [java, f"-Xmx{heap_mib}m", *_MACHINE, "-cp", f"{libs}/*"]


class ApacheKafka:
    """A broker on free loopback ports, in a folder of its own; ``with`` starts and ends it. One that was killed and is
    started again has what it had acknowledged.

    Args:
        home: of the jars.
        folder: made again.
        port, controller: free ones if 0.
        heap_mib: the most that its Java machine takes for objects.
        more: lines of settings, which go before our own.
        users: names and passwords for SCRAM.

    Raises:
        BenchError: as :func:`java_command`; from :meth:`start`, it does not start.
    """

    name = "broker"

    def __init__(
        self,
        home: Path,
        folder: Path,
        *,
        port: int = 0,
        controller: int = 0,
        more: str = "",
        heap_mib: int = 512,
        users: Mapping[str, str] | None = None,
    ) -> None:
        self._java = java_command(home, heap_mib)
        port, controller = port or free_port(), controller or free_port()  # bound seconds later: Java must come up
        folder.mkdir()
        self._config, self._out = folder / "server.properties", folder / "kafka.out"
        self._config.write_text(_SETTINGS.format(port=port, controller=controller, folder=folder.absolute()) + more)
        self._users = users or {}
        self._port, self.address = port, f"127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def format(self) -> None:
        """Makes its log's folder."""
        form = [*self._java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(self._config)]
        for name, password in self._users.items():
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                form += ["--add-scram", f'{mechanism}=[name="{name}",password="{password}"]']
        with self._out.open("wb") as log:
            subprocess.run(form, stdout=log, stderr=log, check=True)

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        self.launch()
        self.await_answer()

    def launch(self) -> None:
        """Starts it, and does not wait: nodes of one cluster need one another."""
        self.process = spawn([*self._java, "kafka.Kafka", str(self._config)], None, self._out)

    def await_answer(self) -> None:
        """Returns when it answers."""
        broker = self.process
        assert broker is not None
        # By hand first: each refused connection of kafka-python's client leaves a socket to the garbage collector.
        deadline = time.monotonic() + START_SECONDS
        while not listens(self._port):
            if broker.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"Kafka does not start: {tail(self._out)}", f"see {self._out}")
            time.sleep(0.02)
        wait_for_broker(Settings(kafka=self.address), START_SECONDS)

    def kill(self) -> None:
        """SIGKILL. Does nothing to one that is not running."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        self.format()
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True
