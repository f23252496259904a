"""Several workers on one port: whichever is killed, whatever was answered is logged, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.settings import Settings
from millrace.processes.kafka import create_topics, make_producer
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port
from tests.scenes.demo_process import born
from tests.scenes.scorer_process import Scorer, opened
from tests.scenes.scorer_shop import SCHEMA_TOML
from tests.scenes.topic_records import records
from tests.scenes.waiting import LONG, PATIENCE, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.services,
    pytest.mark.timeout(LONG),
    pytest.mark.skipif(sys.platform != "linux", reason="reads the processes' tree from /proc"),
]


def children(pid: int) -> list[int]:
    """The processes that a process has started and that run, oldest first."""
    try:
        found = sorted(psutil.Process(pid).children(), key=psutil.Process.create_time)
    except psutil.NoSuchProcess:
        return []
    return [one.pid for one in found if born(one.pid)]


def templates(scorer: int) -> list[int]:
    """The templates of a scorer. Its first child is none: it answers while no worker does."""
    return children(scorer)[1:]


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
    """A scorer of two workers that is ready, and shoppers who ask."""

    def __init__(self, settings: Settings, folder: Path, producer: Any) -> None:
        self.settings, self.scorer = settings, Scorer(settings, folder)
        self.answered: set[str] = set()
        self.failed: list[str] = []
        self._names = 0
        self.learner = opened(settings, producer)

    def ready(self) -> None:
        self.scorer.until(lambda: self.scorer.ask("/readyz")[0] == 200 and len(self.workers()) == 2, "ready")
        self.scorer.until(lambda: self.metric("millrace_ready") == 1, "all are")

    def again(self) -> None:
        """Starts the scorer, which has ended, once more."""
        self.scorer = Scorer(self.settings, self.scorer.log.parent)

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

    @contextmanager
    def shoppers(self, some: int = 3) -> Iterator[None]:
        """Shoppers of new names ask on and on."""
        done, self._names = threading.Event(), self._names + some
        names = range(self._names - some, self._names)
        threads = [threading.Thread(target=self._shop, args=(n, done), daemon=True) for n in names]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            done.set()
            for thread in threads:
                thread.join()

    def asked(self, more: int) -> None:
        """Waits for so many more answers."""
        before = len(self.answered)
        until(lambda: len(self.answered) >= before + more, "answers", more=self.scorer.log.read_text)

    def page(self, name: str, user: int) -> Any:
        """Asks for a page of this name."""
        status, page = self.scorer.ask("/recommend", {"user_id": user, "size": 5, "request_id": name})
        assert status == 200, status
        self.answered.add(name)
        return page

    def _shop(self, user: int, done: threading.Event) -> None:
        numbers = count()
        while not done.is_set():
            name = f"{user}.{next(numbers)}"
            try:
                self.page(name, user)
            except (OSError, HTTPException, msgspec.DecodeError):  # the worker was killed, or nobody listens any more
                self.failed.append(name)

    def logged(self) -> list[str]:
        return [decode_page_log(record.value).request_id for record in records(self.settings, "page_logs")]


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
                if shop.scorer.process.poll() is None:
                    shop.scorer.process.kill()
                shop.scorer.process.wait()


def test_what_is_killed_costs_no_log_the_figures_are_of_all_and_pages_follow_the_settings_file(shop: Shop) -> None:
    """Workers and their template are killed under shoppers, and the settings file changes without a restart; a bad one
    changes nothing."""
    first, second = shop.workers()
    with shop.shoppers():
        shop.asked(40)
    counted = 'millrace_requests_total{route="recommend",status="200"}'
    until(lambda: shop.metric(counted) == len(shop.answered), f"all of {len(shop.answered)} are counted")
    assert shop.scorer.model()["workers"] == 2
    assert shop.metric("millrace_scorer_workers") == 2

    file, numbers = Path(shop.settings.rerank_file), count()

    def tops() -> set[Any]:
        return {shop.page(f"top.{next(numbers)}", user)["items"][0]["item_id"] for user in range(20)}

    file.write_text("[serving.rerank]\npins = { 77 = 0 }\n")
    until(lambda: tops() == {77}, "it is pinned", more=shop.scorer.log.read_text)
    file.write_text("[serving.rerank]\npins = { 78 = 900 }\n")
    refused = 'millrace_errors_total{what="settings"}'
    until(lambda: shop.metric(refused) == 1, "it is refused", more=shop.scorer.log.read_text)
    assert "pinned to slot 900" in shop.scorer.log.read_text()

    with shop.shoppers():
        shop.asked(30)
        os.kill(first, signal.SIGKILL)
        shop.asked(30)
        until(lambda: len(shop.workers()) == 2 and first not in shop.workers(), "another worker")
        assert second in shop.workers(), "the other one went on"
        shop.ready()
        until(lambda: tops() == {77}, "the new worker has it, too")
        file.write_text("")
        until(lambda: 77 not in tops(), "nothing is pinned any more")

        for version in range(1, 6):
            shop.learner.delta()
            shop.serves(version)
        assert shop.metric("millrace_scorer_worker_restarts_total") == 1

        template = shop.template
        os.kill(template, signal.SIGKILL)
        until(lambda: templates(shop.scorer.process.pid) not in ([], [template]), "another template")
        shop.asked(30)
        assert born(second), "workers outlive the template"
        os.kill(second, signal.SIGKILL)
        until(lambda: len(shop.workers()) == 1, "and another worker of it")
        shop.asked(30)
        shop.learner.delta()
        shop.serves(6)

        shop.scorer.process.send_signal(signal.SIGTERM)
        assert shop.scorer.process.wait(PATIENCE) == 0
    logged = shop.logged()
    assert len(logged) == len(set(logged))
    assert shop.answered <= set(logged), "every page that was answered is logged"
    assert set(logged) <= shop.answered | set(shop.failed)
    assert "Traceback" not in shop.scorer.log.read_text()


def test_a_scorer_goes_on_whoever_stands_still_or_is_killed_and_no_answered_page_is_lost(shop: Shop) -> None:
    """A worker that stands still is replaced. When the feeder is killed, its workers end: the next one, started at once
    as a supervisor does, has the port, and delivers what the dead one had not. Asked to end while it starts, it ends; a
    template that is killed meanwhile is replaced."""
    first, _ = shop.workers()
    os.kill(first, signal.SIGSTOP)
    shop.learner.delta()
    until(lambda: not born(first), "it is killed, since it does not follow", more=shop.scorer.log.read_text)
    shop.ready()
    shop.serves(1)
    assert f"killed pid={first}" in " ".join(shop.scorer.log.read_text().split())

    left = [shop.template, *shop.workers()]
    with shop.shoppers():
        shop.asked(30)
        shop.scorer.process.kill()
        shop.scorer.process.wait()
    shop.again()
    until(lambda: not any(map(born, left)), "none is left")
    shop.ready()
    shop.scorer.process.send_signal(signal.SIGTERM)
    assert shop.scorer.process.wait(PATIENCE) == 0
    assert shop.answered <= set(shop.logged())

    for how in (signal.SIGTERM, signal.SIGKILL):
        shop.again()
        until(lambda: bool(templates(shop.scorer.process.pid)), "a template that has not imported anything yet")
        template = shop.template
        if how == signal.SIGKILL:
            os.kill(template, signal.SIGKILL)
            shop.ready()
        else:
            shop.scorer.process.send_signal(how)
            assert shop.scorer.process.wait(PATIENCE) == 0, shop.scorer.log.read_text()
            assert not born(template)
            assert "Traceback" not in shop.scorer.log.read_text()


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
    until(lambda: not any(map(born, left)), "none is left")
    with pytest.raises(ConnectionRefusedError):
        asked(shop.scorer)
    shop.again()
    answers: list[tuple[int, str | None]] = []

    def answered() -> bool:
        answers.append(asked(shop.scorer))
        return True

    shop.scorer.until(answered, "an answer")
    assert answers == [(503, "1")], "long before a worker"
    shop.ready()
    assert asked(shop.scorer) == (400, None)


def test_a_template_that_cannot_work_ends_the_role_in_one_line(tmp_path: Path) -> None:
    """Its schema cannot be read: nothing is started."""
    bad = tmp_path / "schema.toml"
    bad.write_text("[")
    settings = Settings(kafka="127.0.0.1:1", redis="127.0.0.1:1", data=str(tmp_path), schema=str(bad), port=free_port())
    ended = subprocess.run(
        [sys.executable, "-m", "millrace", "run", "serve"],
        env=Scorer.environment_of(settings),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "schema.toml" in ended.stderr
