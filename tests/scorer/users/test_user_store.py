"""The online store: one round trip, and a Redis that is slow or away costs nobody a page."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from millrace.basics.errors import StoreError
from millrace.contracts.online_layout import user_key
from millrace.contracts.settings import Settings
from millrace.processes.services import EmbeddedRedis, free_port
from scorer.users import user_reader as module
from scorer.users.user_reader import MOST_READS, OnlineReader, connect
from scorer.users.userrecord import MOST_SECONDS, UserCache, UserRecord
from tests.scenes.waiting import LONG, PATIENCE, in_loop

KNOWN = {b"profile": b"{}"}
PATIENT = 60.0
"""Seconds for a read that comes in time, on however busy a machine."""


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
        await self.client.answer(" ".join(self.names))
        return [[b"b", b"a"] if name == "list:hot" else [] for name in self.names]


class Client:
    """Answers, or raises what it is told to, as soon as it may."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.users: dict[str, dict[bytes, bytes]] = {"user:7": KNOWN}
        self.values: dict[str, bytes] = {}
        self.may = asyncio.Event()
        self.may.set()
        self.closed = False

    async def answer(self, name: str) -> None:
        self.asked.append(name)
        await self.may.wait()
        if self.error:
            raise self.error

    async def hgetall(self, name: str) -> dict[bytes, bytes]:
        await self.answer(name)
        return self.users.get(name, {})

    async def smembers(self, name: str) -> set[bytes]:
        await self.answer(name)
        return {b"list:new", b"list:hot"}

    async def get(self, name: str) -> bytes | None:
        await self.answer(name)
        return self.values.get(name)

    async def set(self, name: str, value: bytes, px: int) -> None:
        await self.answer(name)
        self.values[name] = value + b" for %d" % px

    async def ping(self) -> bool:
        await self.answer("ping")
        return True

    def pipeline(self, transaction: bool) -> Pipeline:
        assert not transaction
        return Pipeline(self)

    async def aclose(self) -> None:
        self.closed = True


class Scene:
    """A reader and its client. Made within the loop."""

    def __init__(self, seconds: float = PATIENT, prefix: str = "") -> None:
        self.client, self.counted, self.now = Client(), list[tuple[str, bool]](), 100.0
        self.store = OnlineReader(
            self.client, lambda reason, cached: self.counted.append((reason, cached)), seconds, lambda: self.now, prefix
        )

    async def settled(self) -> None:
        """Until no read is under way."""
        while self.store._reads:
            await asyncio.sleep(0)

    async def back(self) -> None:
        """Until the store has been found again."""
        while self.store._probing:
            await asyncio.sleep(0)


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), PATIENCE))


@pytest.fixture(autouse=True)
def probes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.0)


@in_loop
async def test_one_round_trip_a_user() -> None:
    scene = Scene()
    assert await scene.store.record(7) == UserRecord(KNOWN)
    assert await scene.store.record("x") == UserRecord({})
    assert scene.client.asked == ["user:7", "user:x"]
    assert not scene.counted


@in_loop
async def test_lists_and_values_are_read_in_one_round_trip() -> None:
    scene = Scene()
    assert await scene.store.list_keys() == ["list:hot", "list:new"]
    assert await scene.store.lists(["hot", "new"]) == [["b", "a"], []]
    assert await scene.store.kept("ranked:1") is None
    await scene.store.keep("ranked:1", b"some", 0.5)
    assert await scene.store.kept("ranked:1") == b"some for 500"
    assert scene.client.asked == ["list:names", "list:hot list:new", *["ranked:1"] * 3]


@in_loop
async def test_every_key_has_the_prefix_and_callers_know_nothing_of_it() -> None:
    scene = Scene(prefix="b.")
    assert await scene.store.record(7) == UserRecord({})  # user:7 is another loop's
    assert await scene.store.list_keys() == ["list:hot", "list:new"]
    await scene.store.lists(["hot"])
    await scene.store.keep("ranked:1", b"some", 0.5)
    assert await scene.store.kept("ranked:1") == b"some for 500"
    assert scene.client.asked == ["b.user:7", "b.list:names", "b.list:hot", *["b.ranked:1"] * 2]


@in_loop
async def test_a_slow_read_goes_on_in_the_background_and_serves_the_next_request() -> None:
    scene = Scene(0.0)
    scene.client.may.clear()
    assert await scene.store.record(7) == UserRecord({}, "slow")
    scene.client.may.set()
    await scene.settled()
    scene.now += 2.5
    scene.client.may.clear()
    assert await scene.store.record(7) == UserRecord(KNOWN, "slow", 2500)
    assert await scene.store.record(8) == UserRecord({}, "slow")
    assert await scene.store.kept("ranked:1") is None
    await scene.store.keep("ranked:1", b"some", 1)
    scene.client.may.set()
    await scene.settled()
    assert scene.client.values == {"ranked:1": b"some for 1000"}
    assert scene.counted == [("slow", False), ("slow", True), *[("slow", False)] * 3]


@in_loop
async def test_a_user_who_was_not_read_before_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody else waits for it: a user who was read before is served from the cache meanwhile."""
    monkeypatch.setattr(module, "FIRST_SECONDS", PATIENT)
    scene = Scene(0.0)
    scene.client.users["user:8"] = KNOWN
    assert await scene.store.record(8) == UserRecord(KNOWN)
    scene.client.may.clear()
    first = asyncio.create_task(scene.store.record(7))
    while scene.client.asked[-1] != "user:7":
        await asyncio.sleep(0)
    assert await scene.store.record(8) == UserRecord(KNOWN, "slow", 0)
    assert not first.done()
    scene.client.may.set()
    assert await first == UserRecord(KNOWN)
    assert scene.counted == [("slow", True)]


@in_loop
async def test_an_answer_that_came_while_the_loop_was_busy_is_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.0)
    scene = Scene(0.0)
    assert await scene.store.record(7) == UserRecord(KNOWN), "the time was up before the loop looked"
    assert not scene.counted


@in_loop
async def test_reads_that_nobody_waits_for_do_not_pile_up() -> None:
    scene = Scene(0.0)
    await scene.store.record(7)
    scene.client.may.clear()
    for _ in range(3 * MOST_READS):
        await scene.store.record(7)
    assert len(scene.client.asked) == 1 + MOST_READS
    assert [reason for reason, _ in scene.counted].count("busy") == 2 * MOST_READS
    assert await scene.store.record(7) == UserRecord(KNOWN, "busy", 0)
    scene.client.may.set()
    await scene.settled()
    assert (await scene.store.record(7)).missing == ""


@pytest.mark.parametrize("error", [RedisConnectionError(), RedisTimeoutError(), OSError(), TimeoutError()])
def test_while_redis_is_away_no_request_asks_and_it_is_said_once(error: Exception) -> None:
    async def story() -> None:
        scene = Scene()
        await scene.store.record(7)
        scene.client.error = error
        assert await scene.store.record(8) == UserRecord({}, "away")
        scene.client.may.clear()  # the ping that follows has no answer yet
        scene.now += 60
        for _ in range(5):
            assert await scene.store.record(7) == UserRecord(KNOWN, "away", 60_000)
            assert await scene.store.lists(["hot"]) is None
            assert await scene.store.list_keys() is None
            assert await scene.store.kept("ranked:1") is None
            await scene.store.keep("ranked:1", b"", 1)
        assert [name for name in scene.client.asked if name != "ping"] == ["user:7", "user:8"]
        assert scene.counted == [("away", False), *[("away", True), *[("away", False)] * 4] * 5]
        scene.client.may.set()
        while scene.client.asked.count("ping") < 3:
            await asyncio.sleep(0)
        assert (await scene.store.record(7)).missing == "away", "a ping that fails changes nothing"
        scene.client.error = None
        await scene.back()
        assert await scene.store.record(7) == UserRecord(KNOWN)

    with structlog.testing.capture_logs() as said:
        run(story)
    assert [line["log_level"] for line in said] == ["warning", "info"]


@in_loop
async def test_a_failure_in_the_background_is_noticed() -> None:
    scene = Scene(0.0)
    scene.client.may.clear()
    assert (await scene.store.record(7)).missing == "slow"
    scene.client.error = RedisTimeoutError()
    scene.client.may.set()
    await scene.settled()
    assert (await scene.store.record(7)).missing == "away"
    await scene.store.close()
    assert scene.client.closed


@in_loop
async def test_a_request_that_is_given_up_leaves_its_read_alone() -> None:
    scene = Scene()
    scene.client.may.clear()
    request = asyncio.create_task(scene.store.record(7))
    while not scene.client.asked:
        await asyncio.sleep(0)
    request.cancel()
    with suppress(asyncio.CancelledError):
        await request
    scene.client.may.set()
    await scene.settled()
    assert await scene.store.record(7) == UserRecord(KNOWN)


WRONG_TYPE = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
FULL = b"-OOM command not allowed when used memory > 'maxmemory'\r\n"


@pytest.mark.parametrize("error", [ResponseError("WRONGTYPE"), OutOfMemoryError(), KeyError("ours"), TypeError()])
def test_an_error_of_one_read_is_not_taken_for_a_store_that_is_away(error: Exception) -> None:
    async def story() -> None:
        scene = Scene()
        assert await scene.store.record(7) == UserRecord(KNOWN)
        scene.client.error = error
        assert await scene.store.record(7) == UserRecord(KNOWN, "error", 0)
        await scene.store.keep("ranked:1", b"some", 1)
        assert await scene.store.kept("ranked:1") is None
        scene.client.error = None
        assert await scene.store.record(7) == UserRecord(KNOWN)
        assert scene.counted == [("error", True), ("error", False), ("error", False)]
        assert "ping" not in scene.client.asked

    with structlog.testing.capture_logs() as said:
        run(story)
    assert [line["log_level"] for line in said] == ["error"], "once, whatever happens often"


@pytest.mark.parametrize(
    ("raw", "missing"),
    [
        (WRONG_TYPE, "error"),
        (FULL, "error"),
        (b":5\r\n", "error"),
        (b"+OK\r\n", "error"),
        (b"*1\r\n$1\r\nx\r\n", "error"),
        (b"*2\r\n:1\r\n:2\r\n", "error"),
        (b"*2\r\n*1\r\n:1\r\n$1\r\nv\r\n", "error"),
        (b"*-1\r\n", ""),
        (b"garbage\r\n", "away"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "away"),
        (b"-NOAUTH Authentication required.\r\n", "away"),
        (b"$99999999999\r\n", "slow"),
        (b"", "slow"),
    ],
)
@in_loop
async def test_whatever_redis_answers_no_request_fails(raw: bytes, missing: str) -> None:
    """Through a real client, from a server that answers every read with these bytes."""

    open_ones: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.append(writer)
        with suppress(ConnectionError):
            while asked := await reader.read(1 << 16):
                for command in asked.split(b"*")[1:]:
                    name = command.split(b"\r\n")[2].upper()
                    writer.write(
                        b"+PONG\r\n" if name == b"PING" else b"+OK\r\n" if name in (b"HELLO", b"CLIENT") else raw
                    )
                await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    seconds = 0.0 if missing == "slow" else PATIENT
    store = OnlineReader(connect(Settings(redis=address)), lambda *_: None, seconds)
    await store.open()
    found = await store.record(7)
    assert (found.fields, found.missing) == ({}, missing)
    while store._probing:
        await asyncio.sleep(0)
    assert not isinstance(await store.kept("ranked:1"), int | str | list)
    await store.keep("ranked:1", b"some", 1)
    await store.list_keys()
    await store.lists(["hot", "new"])
    await store.close()
    server.close()
    for writer in open_ones:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for writer in open_ones), return_exceptions=True)


@in_loop
async def test_opening_connects_and_finds_out_what_is_away() -> None:
    scene = Scene()
    await scene.store.open()
    assert set(scene.client.asked) == {"ping"}
    assert (await scene.store.record(7)).missing == ""
    scene.client.error = RedisConnectionError()
    await scene.store.open()
    assert (await scene.store.record(7)).missing == "away"
    await scene.store.close()


@given(
    reads=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=40),
    most=st.integers(0, 4000),
)
def test_the_cache_holds_the_newest_within_its_bound(reads: list[tuple[int, int]], most: int) -> None:
    cache, plain = UserCache(most), dict[str, tuple[dict[bytes, bytes], int]]()

    def size(fields: dict[bytes, bytes]) -> int:
        return sum(len(k) + len(v) + 150 for k, v in fields.items()) + 300

    for at, (user, width) in enumerate(reads):
        fields = {b"f%d" % i: b"%d" % at for i in range(width)}
        cache.put(user, fields, at)
        plain.pop(str(user), None)
        if fields:
            plain[str(user)] = fields, at
        while sum(size(f) for f, _ in plain.values()) > most:
            del plain[next(iter(plain))]
        assert len(cache) == len(plain)
    for user in range(10):
        held = plain.get(str(user))
        assert cache.get(user, 100) == (held and (held[0], 1000 * (100 - held[1])))


def test_the_cache_holds_nothing_for_longer_than_an_hour() -> None:
    """A user who was deleted is served from it no longer than that, and is in memory no longer either."""
    cache = UserCache()
    cache.put(7, {b"profile": b"{}"}, 0.0)
    cache.put(8, {b"profile": b"{}"}, 10.0)
    assert cache.get(7, MOST_SECONDS) == ({b"profile": b"{}"}, 1000 * MOST_SECONDS)
    assert cache.get(7, MOST_SECONDS + 1.0) is None
    assert len(cache) == 1
    cache.put(9, {b"profile": b"{}"}, MOST_SECONDS + 11.0)
    assert len(cache) == 1
    cache.put(9, {}, MOST_SECONDS + 12.0)  # the store has it no longer
    assert len(cache) == 0


@pytest.mark.parametrize(("address", "word"), [("", "no Redis address"), ("http://here", "http://here")])
def test_an_unusable_address_is_one_line(address: str, word: str) -> None:
    with pytest.raises(StoreError, match=word):
        connect(Settings(redis=address))


@pytest.mark.services
@pytest.mark.timeout(LONG)
@in_loop
async def test_a_real_redis_that_is_stopped_killed_and_started_again(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path, free_port()) as redis:
        client = connect(Settings(redis=redis.address))
        counted: list[str] = []
        store = OnlineReader(client, lambda reason, _: counted.append(reason), 0.05)
        await store.open()
        await client.hset(user_key(7), mapping={"profile": "{}"})
        while await store.record(7) != UserRecord(KNOWN):  # on a busy machine the first may be slow
            pass
        assert redis.process is not None
        redis.process.send_signal(signal.SIGSTOP)
        try:
            found = await store.record(7)
            assert (found.fields, found.missing) == (KNOWN, "slow")
            while (await store.record(7)).missing != "away":  # it does not answer a read, and later no ping
                await asyncio.sleep(0)
        finally:
            redis.process.send_signal(signal.SIGCONT)
        while (await store.record(7)).missing:
            await asyncio.sleep(0.01)
        redis.process.kill()
        redis.process.wait()
        while (await store.record(7)).missing != "away":
            await asyncio.sleep(0)
        redis.process = None
        redis.start()
        while await store.record(7) != UserRecord({}):  # it has lost everything, and says so
            await asyncio.sleep(0.01)
        assert set(counted) <= {"slow", "busy", "away"}
        await store.close()
