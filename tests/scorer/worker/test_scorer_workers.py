"""Several workers on one port: whichever is killed, whatever was answered is logged, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import msgspec
import pytest

from millrace.contracts.events import key_of, to_json
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.settings import Settings
from millrace.processes.kafka import create_topics, make_producer, read_all, topic_ids
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port
from tests.scenes.scorer_process import Scorer
from tests.scenes.scorer_shop import ITEMS, SCHEMA_TOML, Learner
from tests.scenes.waiting import LONG, PATIENCE, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.services,
    pytest.mark.timeout(LONG),
    pytest.mark.skipif(sys.platform != "linux", reason="reads the processes' tree from /proc"),
]


def children(pid: int) -> list[int]:
    """The processes that a process has started and that run, oldest first."""
    found = list[tuple[int, int]]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append((int(fields[19]), int(path.parent.name)))
    return [one for _, one in sorted(found)]


def templates(scorer: int) -> list[int]:
    """The templates of a scorer. Its first child is none: it answers while no worker does."""
    return children(scorer)[1:]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ended(kept: HTTPConnection) -> bool:
    """Whether the other end of a connection is gone. Raises TimeoutError: it is not."""
    try:
        return kept.sock.recv(1) == b""
    except ConnectionError:
        return True


def asked(scorer: Scorer) -> tuple[int, str | None]:
    """Status and `Retry-After` of the answer to a bad request, on a connection of its own."""
    with closing(HTTPConnection("127.0.0.1", scorer.settings.port, timeout=PATIENCE)) as connection:
        connection.request("POST", "/recommend", b"{}")
        answer = connection.getresponse()
        return answer.status, answer.headers["retry-after"]


class Shop:
    """A scorer of two workers that is ready, and shoppers who never stop asking."""

    def __init__(self, settings: Settings, folder: Path, producer: Any) -> None:
        self.settings, self.scorer = settings, Scorer(settings, folder)
        self.answered: set[str] = set()
        self.failed: list[str] = []
        self._done = threading.Event()
        self._threads: list[threading.Thread] = []
        for one in ITEMS:
            producer.send("items", key=key_of(one.item_id), value=to_json(one))

        def send(message: bytes) -> int:
            return int(producer.send("model.deltas", value=message).get(PATIENCE).offset)

        self.learner = Learner(settings.place("models"), send, topic_ids(settings)["model.deltas"])
        self.learner.snapshot()

    def ready(self) -> None:
        self.scorer.until(lambda: self.scorer.ask("/readyz")[0] == 200 and len(self.workers()) == 2, "ready")
        self.scorer.until(lambda: self.metric("millrace_ready") == 1, "all are")

    @property
    def template(self) -> int:
        (template,) = templates(self.scorer.process.pid)
        return template

    def workers(self) -> list[int]:
        return children(self.template)

    def metric(self, name: str) -> float | None:
        """A sample of /metrics."""
        text = self.scorer.metrics()
        values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(name + " ")]
        return float(values[0]) if values else None

    def serves(self, version: int) -> None:
        """Waits until all workers serve a version."""
        self.scorer.until(lambda: self.scorer.model()["version"] == version, f"version {version}")

    def shoppers(self, count: int = 3) -> None:
        self._threads = [threading.Thread(target=self._shop, args=(n,), daemon=True) for n in range(count)]
        for thread in self._threads:
            thread.start()

    def asked(self, more: int) -> None:
        """Waits for so many more answers."""
        before = len(self.answered)
        until(lambda: len(self.answered) >= before + more, "answers", more=self.scorer.log.read_text)

    def stop_shoppers(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _shop(self, user: int) -> None:
        number = 0
        while not self._done.is_set():
            request_id = f"{user}.{number}"
            number += 1
            try:
                body = {"user_id": user, "size": 5, "request_id": request_id}
                status, _ = self.scorer.ask("/recommend", body)
            except (OSError, HTTPException, msgspec.DecodeError):  # the worker was killed, or nobody listens any more
                self.failed.append(request_id)
                continue
            assert status == 200, status
            self.answered.add(request_id)

    def logged(self) -> list[str]:
        found: list[str] = []
        read_all(self.settings, "page_logs", lambda r: found.append(decode_page_log(r.value).request_id))
        return found


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with EmbeddedBroker(tmp_path_factory.mktemp("broker")) as running:
        yield running.address


@pytest.fixture
def shop(broker: str, tmp_path: Path) -> Iterator[Shop]:
    with EmbeddedRedis(tmp_path / "redis") as store:
        (tmp_path / "millrace.toml").write_text("")
        settings = Settings(
            rerank_file=str(tmp_path / "millrace.toml"),
            kafka=broker,
            prefix=f"{tmp_path.name}.",
            redis=store.address,
            data=str(tmp_path / "scorer"),
            store=f"file://{tmp_path / 'store'}",
            schema=str(SCHEMA_TOML),
            port=free_port(),
            metrics_port=0,
            partitions=2,
            control_share=0,
            redis_seconds=PATIENCE,
            workers=2,
        )
        create_topics(settings)
        with closing(make_producer(settings)) as producer:
            shop = Shop(settings, tmp_path, producer)
            try:
                shop.ready()
                yield shop
            finally:
                shop.stop_shoppers()
                if shop.scorer.process.poll() is None:
                    shop.scorer.process.kill()
                shop.scorer.process.wait()


def test_killed_workers_and_a_killed_template_cost_no_log_and_the_figures_are_of_all(shop: Shop) -> None:
    first, second = shop.workers()
    shop.shoppers()
    shop.asked(30)
    os.kill(first, signal.SIGKILL)
    shop.asked(30)
    until(lambda: len(shop.workers()) == 2 and first not in shop.workers(), "another worker")
    assert second in shop.workers(), "the other one went on"

    for version in range(1, 6):
        shop.learner.delta()
        shop.serves(version)
    assert shop.metric("millrace_scorer_worker_restarts_total") == 1

    template = shop.template
    os.kill(template, signal.SIGKILL)
    until(lambda: templates(shop.scorer.process.pid) not in ([], [template]), "another template")
    shop.asked(30)
    assert runs(second), "workers outlive the template"
    os.kill(second, signal.SIGKILL)
    until(lambda: len(shop.workers()) == 1, "and another worker of it")
    shop.asked(30)
    shop.learner.delta()
    shop.serves(6)

    shop.scorer.process.send_signal(signal.SIGTERM)
    assert shop.scorer.process.wait(PATIENCE) == 0
    shop.stop_shoppers()
    logged = shop.logged()
    assert len(logged) == len(set(logged))
    assert shop.answered <= set(logged), "every page that was answered is logged"
    assert set(logged) <= shop.answered | set(shop.failed)
    assert "Traceback" not in shop.scorer.log.read_text()


def test_pages_follow_the_settings_file_without_a_restart_and_a_bad_one_changes_nothing(shop: Shop) -> None:
    file, before = Path(shop.settings.rerank_file), shop.workers()

    def first() -> set[Any]:
        asked = ({"user_id": user, "size": 3} for user in range(20))
        return {shop.scorer.ask("/recommend", body)[1]["items"][0]["item_id"] for body in asked}

    file.write_text("[serving.rerank]\npins = { 77 = 0 }\n")
    until(lambda: first() == {77}, "it is pinned", more=shop.scorer.log.read_text)
    file.write_text("[serving.rerank]\npins = { 78 = 900 }\n")
    refused = 'millrace_errors_total{what="settings"}'
    until(lambda: shop.metric(refused) == 1, "it is refused", more=shop.scorer.log.read_text)
    assert "pinned to slot 900" in shop.scorer.log.read_text()
    os.kill(before[0], signal.SIGKILL)
    shop.ready()
    until(lambda: first() == {77}, "the new worker has it, too")
    file.write_text("")
    until(lambda: 77 not in first(), "nothing is pinned any more")
    assert before[1] in shop.workers()


def test_counts_of_both_workers_are_summed(shop: Shop) -> None:
    shop.shoppers()
    shop.asked(40)
    shop.stop_shoppers()
    name = 'millrace_requests_total{route="recommend",status="200"}'
    until(lambda: shop.metric(name) == len(shop.answered), f"all of {len(shop.answered)} are counted")
    assert shop.scorer.model()["workers"] == 2
    assert shop.metric("millrace_scorer_workers") == 2


def test_workers_end_when_the_feeder_is_killed_and_the_port_is_free_and_no_answered_page_is_lost(shop: Shop) -> None:
    left = [shop.template, *shop.workers()]
    shop.shoppers()
    shop.asked(30)
    shop.scorer.process.kill()
    shop.scorer.process.wait()
    shop.stop_shoppers()
    again = Scorer(shop.settings, shop.scorer.log.parent)  # at once, as a supervisor would
    try:
        until(lambda: not any(map(runs, left)), "none is left")
        again.until(lambda: again.ask("/readyz")[0] == 200, "ready again")
    finally:
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(PATIENCE) == 0
    assert shop.answered <= set(shop.logged()), "the next scorer delivers what the dead one had not"


def test_whoever_asks_while_no_worker_answers_hears_at_once_when_to_ask_again(shop: Shop) -> None:
    """ "At once": before there is another worker, since none can be started meanwhile."""
    template, (first, second) = shop.template, shop.workers()
    with closing(HTTPConnection("127.0.0.1", shop.settings.port, timeout=PATIENCE)) as kept:
        kept.request("GET", "/healthz")
        assert kept.getresponse().read(), "one of the two has accepted it"
        os.kill(template, signal.SIGSTOP)
        os.kill(first, signal.SIGKILL)
        assert [asked(shop.scorer) for _ in range(20)] == [(400, None)] * 20, "the other one answers"
        os.kill(second, signal.SIGKILL)
        shop.scorer.until(lambda: asked(shop.scorer) == (503, "1"), "its end is seen")
        assert [asked(shop.scorer) for _ in range(20)] == [(503, "1")] * 20
        assert ended(kept)
        os.kill(template, signal.SIGCONT)
    shop.ready()

    left = [*children(shop.scorer.process.pid), *shop.workers()]
    shop.scorer.process.kill()
    shop.scorer.process.wait()
    until(lambda: not any(map(runs, left)), "none is left")
    with pytest.raises(ConnectionRefusedError):
        asked(shop.scorer)
    shop.scorer = Scorer(shop.settings, shop.scorer.log.parent)
    answers: list[tuple[int, str | None]] = []

    def answered() -> bool:
        answers.append(asked(shop.scorer))
        return True

    shop.scorer.until(answered, "an answer")
    assert answers == [(503, "1")], "long before a worker"
    shop.ready()
    assert asked(shop.scorer) == (400, None)


def test_a_worker_that_stands_still_is_replaced_and_the_versions_go_on(shop: Shop) -> None:
    first, _ = shop.workers()
    os.kill(first, signal.SIGSTOP)
    shop.learner.delta()
    until(lambda: not runs(first), "it is killed, since it does not follow", more=shop.scorer.log.read_text)
    shop.ready()
    shop.serves(1)
    assert f"killed pid={first}" in " ".join(shop.scorer.log.read_text().split())


def test_a_template_killed_while_it_starts_is_replaced(shop: Shop) -> None:
    shop.scorer.process.send_signal(signal.SIGTERM)
    assert shop.scorer.process.wait(PATIENCE) == 0
    shop.scorer = Scorer(shop.settings, shop.scorer.log.parent)
    until(lambda: bool(templates(shop.scorer.process.pid)), "a template that has not imported anything yet")
    os.kill(shop.template, signal.SIGKILL)
    shop.ready()


def test_a_scorer_that_is_asked_to_end_while_it_starts_ends(broker: str, tmp_path: Path) -> None:
    settings = Settings(
        kafka=broker,
        prefix=f"{tmp_path.name}.",
        redis="127.0.0.1:1",
        data=str(tmp_path / "scorer"),
        schema=str(SCHEMA_TOML),
        port=free_port(),
        metrics_port=0,
    )
    create_topics(settings)
    scorer = Scorer(settings, tmp_path)
    try:
        until(lambda: bool(templates(scorer.process.pid)), "its template runs, and has not imported anything yet")
        (template,) = templates(scorer.process.pid)
        scorer.process.send_signal(signal.SIGTERM)
        assert scorer.process.wait(PATIENCE) == 0, scorer.log.read_text()
        assert not runs(template)
        assert "Traceback" not in scorer.log.read_text()
    finally:
        scorer.process.kill()
        scorer.process.wait()


def test_a_template_that_cannot_work_ends_the_role_in_one_line(tmp_path: Path) -> None:
    """Its schema cannot be read: nothing is started."""
    bad = tmp_path / "schema.toml"
    bad.write_text("[")
    settings = Settings(kafka="127.0.0.1:1", redis="127.0.0.1:1", data=str(tmp_path), schema=str(bad), port=free_port())
    ended = subprocess.run(
        [sys.executable, "-m", "commands", "run", "serve"],
        env=Scorer.environment_of(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "schema.toml" in ended.stderr
