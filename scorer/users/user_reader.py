# shell
"""The online store as the scorer reads it: one round trip a request, with a short timeout.

::

    read ── in time ─────────────────► the user         a user who is not in the cache has more time
      └──── later, in the background ─► the cache ─► requests while the store is slow or away
      ├──── an error, or an invalid answer ─► this request goes without it
      └──── no connection ─► away: nobody asks; a ping every half second finds out when it is back
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from millrace.basics.errors import one_line
from millrace.connections.redis_clients import async_redis_client, redis_refusal
from millrace.contracts.events import Id
from millrace.contracts.online_layout import LIST_NAMES, list_key, user_key
from millrace.contracts.settings import Settings
from scorer.users.userrecord import AWAY, BUSY, ERROR, SLOW, UserCache, UserRecord

log = structlog.get_logger("scorer")

PROBE_SECONDS = 0.5
"""Between two pings of a store that is away."""
ANSWER_SECONDS = 1.0
"""A store without an answer for so long, or for a request's timeout if that is longer, is away."""
FIRST_SECONDS = 0.05
"""Minimum timeout for a user who is not in the cache: the first page of a visit."""
LIST_SECONDS = 0.25
"""Minimum timeout for the shop's lists: their page has no other source."""
MOST_READS = 64
"""Limit of running reads, including those without a waiting request."""
_CONNECTIONS = 8
_LOOKS = 3  # turns of the loop after the time is up: an answer may have come while a page was made

T = TypeVar("T")
_FAILURES = (RedisError, OSError, TimeoutError)


def connect(settings: Settings) -> Any:
    """A client for ``settings.redis``; connects at its first use. Raises as
    :func:`~millrace.connections.redis_clients.redis_client`."""
    seconds = max(ANSWER_SECONDS, settings.redis_seconds)
    options: dict[str, Any] = {
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "retry": Retry(NoBackoff(), 1),  # a connection from before a restart of Redis fails once
    }
    return async_redis_client(settings.redis, **options)


class OnlineReader:
    """Reads users and the shop's lists, laid out as in :mod:`millrace.contracts.online_layout`. For one event loop.

    Args:
        client: an asyncio Redis client that returns bytes.
        count: called for each read that failed or was late: why (:mod:`scorer.users.userrecord`), and whether the cache
            had the record.
        seconds: timeout of a request; at least :data:`FIRST_SECONDS` for a user who is not in the cache.
        prefix: before each key. Callers know keys without it.
    """

    def __init__(
        self,
        client: Any,
        count: Callable[[str, bool], None],
        seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
        prefix: str = "",
    ) -> None:
        self._client, self._count, self._seconds, self._monotonic = client, count, seconds, monotonic
        self._prefix = prefix
        self._list_seconds, self._first_seconds = max(seconds, LIST_SECONDS), max(seconds, FIRST_SECONDS)
        self._cache, self._turns = UserCache(), RequestTurns()
        self._reads: set[asyncio.Task[Any]] = set()
        self._logged: set[str] = set()
        self._probing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connects before the first request. If the store is away, pings start in the background."""
        pings = await asyncio.gather(*(self._client.ping() for _ in range(_CONNECTIONS)), return_exceptions=True)
        for found in pings:
            if isinstance(found, BaseException) and _is_away(found):
                self._leave(found)

    async def close(self) -> None:
        tasks = [*self._reads, *([self._probing] if self._probing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    async def record(self, user_id: Id) -> UserRecord:
        """A user's whole record, in one round trip, or from the cache. It returns in an own turn of the loop
        (:class:`RequestTurns`), because what follows may take long."""
        held = self._cache.get(user_id, self._monotonic())
        fields, missing = await self._ask(self._user(user_id), self._first_seconds if held is None else self._seconds)
        age_ms: int | None = None
        if missing:
            held = self._cache.get(user_id, self._monotonic())
            if held is not None:
                fields, age_ms = held
            self._count(missing, held is not None)
        await self._turns.take()
        return UserRecord(fields or {}, missing, age_ms)

    async def list_keys(self) -> list[str] | None:
        """Keys of the shop's existing lists. None: the store is away."""

        async def read() -> list[str]:
            return sorted(_texts(await self._client.smembers(self._prefix + LIST_NAMES)))

        return await self._read(read(), self._list_seconds)

    async def lists(self, names: Sequence[str]) -> list[list[str]] | None:
        """Item ids of each of the lists ``names``, best first, in one round trip; empty: there is no such list. None:
        the store is away."""

        async def read() -> list[list[str]]:
            async with self._client.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.zrange(self._prefix + list_key(name), 0, -1, desc=True)
                return [_texts(entries) for entries in await pipeline.execute()]

        return await self._read(read(), self._list_seconds)

    async def kept(self, key: str) -> bytes | None:
        """The value of :meth:`keep`. None: nothing, or the store is slow or away."""
        return await self._read(self._value(key), self._seconds)

    async def keep(self, key: str, value: bytes, seconds: float) -> None:
        """Stores ``value`` under ``key`` for so long. A slow write continues in the background."""
        ms = max(1, round(1000 * seconds))
        await self._read(self._client.set(self._prefix + key, value, px=ms), self._seconds)

    async def _user(self, user_id: Id) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = await self._client.hgetall(self._prefix + user_key(user_id))
        self._cache.put(user_id, found, self._monotonic())
        return found

    async def _value(self, key: str) -> bytes | None:
        found = await self._client.get(self._prefix + key)
        if not isinstance(found, bytes | None):
            raise TypeError(f"{key} holds no value, but {type(found).__name__}")
        return found

    async def _read(self, call: Coroutine[Any, Any, T], seconds: float) -> T | None:
        found, missing = await self._ask(call, seconds)
        if missing:
            self._count(missing, False)
        return found

    async def _ask(self, call: Coroutine[Any, Any, T], seconds: float) -> tuple[T | None, str]:
        """The answer of ``call``, or why there is none. A slow call continues in the background."""
        if self._probing is not None or len(self._reads) >= MOST_READS:
            call.close()
            return None, BUSY if self._probing is None else AWAY
        task = asyncio.create_task(call)
        self._reads.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait({task}, timeout=seconds)
        for _ in range(_LOOKS):
            if task.done():
                break
            await asyncio.sleep(0)
        if not task.done():
            return None, SLOW
        error = task.exception()
        if error is not None:
            return None, AWAY if _is_away(error) else ERROR
        return task.result(), ""

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._reads.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        if _is_away(error):
            self._leave(error)
        elif (kind := type(error).__name__) not in self._logged:  # the metrics tell how many there are
            self._logged.add(kind)
            log.error("Redis gave no usable answer", error=str(redis_refusal(error) or one_line(error)))

    def _leave(self, error: BaseException) -> None:
        if self._probing is None:
            said = str(redis_refusal(error) or type(error).__name__)
            log.warning("Redis is away: users are served as last known, or as new ones", error=said)
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            with contextlib.suppress(*_FAILURES):
                await self._client.ping()
                break
        self._probing = None
        log.info("Redis is back")


def _is_away(error: BaseException) -> bool:
    """Whether the store is unreachable. An error answer (wrong type of a key, full memory) does not affect other
    reads."""
    return isinstance(error, _FAILURES) and not isinstance(error, ResponseError)


def _texts(found: Iterable[bytes]) -> list[str]:
    return [raw.decode("utf-8", "replace") for raw in found]


LOOKS = 16
"""Turns of the loop between two requests; each takes some microseconds."""
IDLE_LOOKS = 4
"""The same when nobody waits."""


class RequestTurns:
    """Serves requests in order of arrival, with some turns of the loop between them. For one event loop.

    Redis returns several answers in one read, and uvloop accepts one connection a turn. With a page in each turn,
    connections under overload would wait in the kernel, where nobody counts or refuses them. The extra turns let new
    connections, model changes and ``/healthz`` in between two pages.
    """

    def __init__(self) -> None:
        self._taken = False
        self._looks = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Returns when it is the caller's turn, which lasts until the caller awaits anything."""
        loop = asyncio.get_running_loop()
        if self._taken:
            mine = loop.create_future()
            self._waiting.append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():
                    self._look()  # the turn had come, and nobody takes it
                raise
        self._taken, self._looks = True, 0
        loop.call_soon(self._look)

    def _look(self) -> None:
        self._looks += 1
        if self._looks < (LOOKS if self._waiting else IDLE_LOOKS):
            asyncio.get_running_loop().call_soon(self._look)
            return
        while self._waiting:
            following = self._waiting.popleft()
            if not following.done():
                following.set_result(None)
                return
        self._taken = False
