"""Apache Kafka and a Redis of one's own, for tests: started from MILLRACE_TEST_KAFKA_HOME's jars, stopped by pid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from millrace.contracts.settings import Settings
from millrace.processes.kafka import wait_for_broker
from millrace.processes.services import EmbeddedRedis, free_port
from tests.waiting import PATIENCE, until

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


_MACHINE = ("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""A broker of a minute's life: what the second compiler would win later costs more than it is worth."""

_CLUSTER = "MkU3OEVBNTcwNTJENDM2Qg"
"""An id as Kafka makes them. Each broker has a folder of its own, so all may have the same."""


def _java() -> list[str]:
    home = os.environ.get("MILLRACE_TEST_KAFKA_HOME", "")
    if not home:
        pytest.skip("MILLRACE_TEST_KAFKA_HOME does not name a folder with Kafka's libs/")
    java = shutil.which("java")
    if java is None:
        pytest.skip("no Java runtime (Debian: default-jre-headless)")
    libs = Path(home).absolute() / "libs"
    assert any(libs.glob("kafka*.jar")), f"no Kafka in {libs}"
    return [java, *_MACHINE, "-cp", f"{libs}/*"]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


class ApacheKafka:
    """A KRaft broker of one node on free loopback ports, in a folder of its own; ``with`` starts and ends it. It may be
    killed and started again: what it had acknowledged is there."""

    def __init__(self, folder: Path) -> None:
        self._java = _java()
        port, controller = free_port(), free_port()  # bound seconds later, once a Java machine is up
        folder.mkdir()
        self._config, self._out = folder / "server.properties", folder / "kafka.out"
        self._config.write_text(_SETTINGS.format(port=port, controller=controller, folder=folder))
        self._port, self.address = port, f"127.0.0.1:{port}"
        self._broker: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it, and returns when it answers."""
        with self._out.open("ab") as log:
            broker = self._broker = subprocess.Popen(
                [*self._java, "kafka.Kafka", str(self._config)], stdout=log, stderr=log, start_new_session=True
            )
        # By hand first: each refused connection of kafka-python's client leaves a socket to the garbage collector.
        until(lambda: _listens(self._port) or broker.poll() is not None, "Kafka listens or has ended")
        assert broker.poll() is None, self._out.read_text()[-2000:]
        wait_for_broker(Settings(kafka=self.address), PATIENCE)

    def kill(self) -> None:
        """SIGKILL. Does nothing to one that is not running."""
        if self._broker is not None:
            self._broker.kill()
            self._broker.wait()

    def __enter__(self) -> Self:
        with self._out.open("wb") as log:
            form = [*self._java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(self._config)]
            subprocess.run(form, stdout=log, stderr=log, check=True)
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@contextmanager
def apache_kafka(folder: Path) -> Iterator[str]:
    """Such a broker; its address."""
    with ApacheKafka(folder) as broker:
        yield broker.address


@contextmanager
def own_redis(folder: Path) -> Iterator[str]:
    """A redis-server; its address."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server (Debian: redis-server)")
    with EmbeddedRedis(folder) as server:
        yield server.address


def command_lines(pids: Iterable[int]) -> list[str]:
    """What the processes are, those that are gone left out. Between fork and exec a process is its parent still."""
    found = []
    for pid in pids:
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
