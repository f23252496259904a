"""A scorer as a process, with a real broker and a real Redis: what only shows in the shells."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.tools.taken import below
from millrace.basics.store import Store
from millrace.connections.redis_clients import redis_client
from millrace.contracts.online_layout import PROFILE, pack_profile, user_key
from millrace.contracts.page_logs import decode_page_log
from millrace.contracts.settings import Settings
from millrace.processes.kafka import create_topics, make_producer
from millrace.processes.services import EmbeddedBroker, EmbeddedRedis, free_port
from stream.worker.listkeeper import write
from tests.scenes.scorer_process import COMMAND, Scorer, opened
from tests.scenes.scorer_shop import SCHEMA, SCHEMA_TOML, Learner
from tests.scenes.topic_records import records
from tests.scenes.waiting import LONG, PATIENCE

pytestmark = [pytest.mark.services, pytest.mark.timeout(LONG)]

TOKEN = "a-token-of-the-live-scorer"


@contextmanager
def started(tmp_path: Path, user: str = "") -> Iterator[tuple[Scorer, EmbeddedRedis]]:
    """A scorer. ``user``: name and password by which it asks Redis, which knows none."""
    schema = tmp_path / "schema.toml"
    schema.write_text(SCHEMA_TOML.read_text())
    with EmbeddedBroker(tmp_path / "broker") as broker, EmbeddedRedis(tmp_path / "redis") as store:
        settings = Settings(
            kafka=broker.address,
            redis=f"redis://{user}@{store.address}" if user else store.address,
            data=str(tmp_path / "scorer"),
            store=f"file://{tmp_path / 'store'}",
            index_seconds=2.0,
            schema=str(schema),
            port=free_port(),
            tokens=TOKEN,
            partitions=3,
            control_share=0,
            redis_seconds=PATIENCE,  # crowded machines are slow: that is not being away
        )
        create_topics(settings)
        running = Scorer(settings, tmp_path)
        try:
            yield running, store
        finally:
            if running.process.poll() is None:
                running.process.kill()
            running.process.wait()


@pytest.mark.slow
def test_a_scorer_serves_follows_survives_and_ends(tmp_path: Path) -> None:
    with started(tmp_path) as (one, store), closing(make_producer(one.settings)) as producer:
        _life(one, store, producer)


@pytest.mark.slow
def test_a_scorer_that_redis_refuses_serves_users_as_new_ones_and_says_why_once(tmp_path: Path) -> None:
    with started(tmp_path, "shop:wrong") as (one, _), closing(make_producer(one.settings)) as producer:
        filled(one, producer)
        for user in ("ann", "bob", "cid"):
            status, page = one.ask("/recommend", {"user_id": user, "size": 5})
            assert (status, len(page["items"])) == (200, 5)
            assert page["notes"] == ["the online store is away: served as a new user"]
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(PATIENCE) == 0
        log = one.log.read_text()
    (line,) = [line for line in log.splitlines() if "refused" in line]
    assert "user name, password or token are refused" in line
    assert "correct them in MILLRACE_REDIS" in line
    assert "wrong" not in log
    assert "Traceback" not in log


def filled(one: Scorer, producer: Any) -> Learner:
    """Waits until the scorer has items and a model, and returns the model's learner."""
    learner = opened(one.settings, producer)
    one.until(lambda: one.ask("/readyz")[0] == 200, "ready")
    one.until(lambda: len(one.ask("/recommend", {"user_id": 1, "size": 200})[1]["items"]) == 200, "full")
    return learner


def another(one: Scorer) -> None:
    """A second scorer, with nothing but Kafka, Redis and the store in common with the first, is ready and the same to
    the bit: the store has the choice of arithmetic."""
    folder = one.log.parent / "another"
    folder.mkdir()
    other = Scorer(msgspec.structs.replace(one.settings, data=str(folder), port=free_port()), folder)
    try:
        other.until(lambda: other.ask("/readyz")[0] == 200, "the second one is ready")
        asked = {"user_id": 1, "size": 5, "request_id": "twice"}
        assert other.ask("/recommend", asked)[1]["items"] == one.ask("/recommend", asked)[1]["items"]
        assert "item index loaded" in other.log.read_text()
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait(PATIENCE) == 0
    finally:
        if other.process.poll() is None:
            other.process.kill()
        other.process.wait()


def needs_a_token(one: Scorer) -> None:
    """All but whether it lives and is ready; and nobody sees the token."""
    assert one.ask("/recommend", {"user_id": "ann"}, token=False)[0] == 401
    assert [one.ask(path, token=False)[0] for path in ("/metrics", "/model", "/v2", "/openapi.json")] == [401] * 4
    assert [one.ask(path, token=False)[0] for path in ("/healthz", "/v2/health/live", "/readyz")] == [200, 200, 503]
    assert TOKEN not in one.log.read_text()
    processes = [" ".join(process.cmdline()) for process in below(one.process.pid)]
    assert len(processes) > 2
    assert TOKEN not in "".join(processes)


def _life(one: Scorer, store: EmbeddedRedis, producer: Any) -> None:
    settings = one.settings
    one.until(lambda: one.ask("/healthz")[0] == 200, "alive")
    one.until(lambda: "no model" in one.ask("/readyz")[1].get("error", ""), "caught up with empty topics")
    assert one.ask("/recommend", {"user_id": "ann", "size": 3})[0] == 503
    needs_a_token(one)
    with redis_client(store.address) as client:
        write(client, {"hot": {"a": 3.0, "b": 2.0}, "new": {"c": 20.0, "a": 10.0}}, {})
    status, page = one.ask("/recommend", {"user_id": "ann", "size": 3})
    assert (status, page["request_id"], page["arm"]) == (200, None, "lists")
    assert [i["item_id"] for i in page["items"]] == ["a", "b", "c"]
    assert one.ask("/readyz")[0] == 503

    learner = filled(one, producer)
    with redis_client(store.address) as client:
        client.hset(user_key("ann"), mapping={PROFILE: pack_profile({"kind": "business"})})
    status, page = one.ask("/recommend", {"user_id": "ann", "size": 5, "request_id": "mine"})
    assert (status, page["notes"], page["model_version"]) == (200, [], 0)

    learner.delta()
    one.until(lambda: one.model()["version"] == 1, "patched")
    one.until(lambda: one.model()["click_to_served_ms"]["count"] == 2, "both clicks are counted")
    index = Store(settings.place("index"), writes=False)
    one.until(lambda: any(name.count("-") == 2 for name in index.names()), "the item index is in the store")

    port = store.port
    store.stop()
    status, page = one.ask("/recommend", {"user_id": "ann", "size": 5})
    assert status == 200
    assert "is served as known" in page["notes"][0], "by what was read of her before"
    status, page = one.ask("/recommend", {"user_id": "bob", "size": 5})
    assert (status, page["notes"]) == (200, ["the online store is away: served as a new user"])
    with EmbeddedRedis(Path(settings.data) / "redis", port=port):
        one.until(
            lambda: "unknown" in "".join(one.ask("/recommend", {"user_id": "bob", "size": 5})[1]["notes"]), "back"
        )
        facts = one.model()
        assert {kind for kind, count in facts["errors_by_kind"].items() if count} == {"redis"}

        taken = subprocess.run(COMMAND, env=one.environment, capture_output=True, text=True, check=False)
        assert taken.returncode == 1
        assert taken.stderr.count("\n") == 1
        assert str(settings.port) in taken.stderr
        assert "MILLRACE_PORT" in taken.stderr

        another(one)

        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(PATIENCE) == 0
    log = one.log.read_text()
    assert "Traceback" not in log
    assert log.count("Redis is away") == 1
    assert log.count("Redis is back") == 1

    found = {decode_page_log(record.value).request_id: record for record in records(settings, "page_logs")}
    assert decode_page_log(found["mine"].value).schema_id == SCHEMA.id
    assert found["mine"].key == b"ann"
    assert page["request_id"] in found, "pages made before the end are logged"
