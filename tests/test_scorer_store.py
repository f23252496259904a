"""The online store: one round trip, and a Redis that is away costs nobody a page."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from millrace.contracts.errors import StoreError
from millrace.contracts.settings import Settings
from scorer.store import RETRY_SECONDS, UserStore, connect


class Client:
    """Answers, or raises what it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[str] = []

    async def hgetall(self, name: str) -> dict[bytes, bytes]:
        self.asked.append(name)
        if self.error:
            raise self.error
        return {b"profile": b"{}"} if name == "user:7" else {}


def test_one_round_trip_a_user() -> None:
    client = Client()
    store = UserStore(client, lambda: None)
    assert asyncio.run(store.record(7)) == {b"profile": b"{}"}
    assert asyncio.run(store.record("x")) == {}
    assert client.asked == ["user:7", "user:x"]


@pytest.mark.parametrize("error", [RedisConnectionError(), RedisTimeoutError(), OSError(), TimeoutError()])
def test_while_redis_is_away_nobody_waits_and_it_is_said_once(error: Exception) -> None:
    now = [100.0]
    errors: list[int] = []
    client = Client()
    client.error = error
    store = UserStore(client, lambda: errors.append(1), lambda: now[0])
    with structlog.testing.capture_logs() as said:
        for _ in range(5):
            assert asyncio.run(store.record(7)) is None
        assert len(client.asked) == 1, "only the first asked; the others did not wait for it"
        now[0] += RETRY_SECONDS
        assert asyncio.run(store.record(7)) is None
        assert asyncio.run(store.record(7)) is None
        assert len(client.asked) == 2
        assert len(errors) == 7, "each request without the store counts"
        client.error = None
        now[0] += RETRY_SECONDS
        assert asyncio.run(store.record(7)) == {b"profile": b"{}"}
        assert asyncio.run(store.record(7)) == {b"profile": b"{}"}
    assert [line["log_level"] for line in said] == ["warning", "info"]


@pytest.mark.parametrize(("address", "word"), [("", "no Redis address"), ("http://here", "http://here")])
def test_an_unusable_address_is_one_line(address: str, word: str) -> None:
    with pytest.raises(StoreError, match=word):
        connect(Settings(redis=address))
