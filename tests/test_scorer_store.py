"""The online store: one round trip, and a Redis that is away costs nobody a page."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from millrace.contracts.errors import StoreError
from millrace.contracts.settings import Settings
from scorer.store import RETRY_SECONDS, OnlineReader, connect


class Pipeline:
    """Reads sorted sets when it is executed."""

    def __init__(self, client: Client) -> None:
        self.client, self.names = client, list[str]()

    async def __aenter__(self) -> Pipeline:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def zrange(self, name: str, first: int, last: int, desc: bool) -> None:
        assert (first, last, desc) == (0, -1, True)
        self.names.append(name)

    async def execute(self) -> list[list[bytes]]:
        self.client.asked.append(" ".join(self.names))
        if self.client.error:
            raise self.client.error
        return [[b"b", b"a"] if name == "list:hot" else [] for name in self.names]


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

    async def smembers(self, name: str) -> set[bytes]:
        self.asked.append(name)
        if self.error:
            raise self.error
        return {b"list:new", b"list:hot"}

    def pipeline(self, transaction: bool) -> Pipeline:
        assert not transaction
        return Pipeline(self)


def test_one_round_trip_a_user() -> None:
    client = Client()
    store = OnlineReader(client, lambda: None)
    assert asyncio.run(store.record(7)) == {b"profile": b"{}"}
    assert asyncio.run(store.record("x")) == {}
    assert client.asked == ["user:7", "user:x"]


def test_lists_are_read_in_one_round_trip_and_not_while_redis_is_away() -> None:
    client = Client()
    errors: list[int] = []
    store = OnlineReader(client, lambda: errors.append(1))
    assert asyncio.run(store.list_keys()) == ["list:hot", "list:new"]
    assert asyncio.run(store.lists(["hot", "new"])) == [["b", "a"], []]
    assert client.asked == ["list:names", "list:hot list:new"]
    client.error = RedisConnectionError()
    assert asyncio.run(store.lists(["hot"])) is None
    assert asyncio.run(store.list_keys()) is None
    assert asyncio.run(store.record(7)) is None
    assert len(client.asked) == 3, "what is away for one question is away for all"
    assert len(errors) == 3


@pytest.mark.parametrize("error", [RedisConnectionError(), RedisTimeoutError(), OSError(), TimeoutError()])
def test_while_redis_is_away_nobody_waits_and_it_is_said_once(error: Exception) -> None:
    now = [100.0]
    errors: list[int] = []
    client = Client()
    client.error = error
    store = OnlineReader(client, lambda: errors.append(1), lambda: now[0])
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
