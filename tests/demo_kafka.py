"""Apache Kafka and a Redis of one's own, for tests: started from MILLRACE_TEST_KAFKA_HOME's jars, stopped by pid."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

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


@contextmanager
def apache_kafka(folder: Path) -> Iterator[str]:
    """A KRaft broker of one node on free loopback ports; its address."""
    java = _java()
    port, controller = free_port(), free_port()  # bound seconds later, once a Java machine is up
    folder.mkdir()
    config = folder / "server.properties"
    config.write_text(_SETTINGS.format(port=port, controller=controller, folder=folder))
    out = folder / "kafka.out"
    with out.open("wb") as log, ExitStack() as stack:
        form = [*java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER, "-c", str(config)]
        subprocess.run(form, stdout=log, stderr=log, check=True)
        broker = subprocess.Popen([*java, "kafka.Kafka", str(config)], stdout=log, stderr=log, start_new_session=True)
        stack.callback(broker.wait)
        stack.callback(broker.kill)
        address = f"127.0.0.1:{port}"
        # By hand first: each refused connection of kafka-python's client leaves a socket to the garbage collector.
        until(lambda: _listens(port) or broker.poll() is not None, "Kafka listens or has ended")
        assert broker.poll() is None, out.read_text()[-2000:]
        wait_for_broker(Settings(kafka=address), PATIENCE)
        yield address


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
