# shell
"""The online store as the scorer reads it: one round trip a request, and never a request that waits long for Redis."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from millrace.contracts.errors import StoreError
from millrace.contracts.events import Id
from millrace.contracts.online import LIST_NAMES, REDIS_REMEDY, list_key, redis_url, user_key
from millrace.contracts.settings import Settings

log = structlog.get_logger("scorer")

RETRY_SECONDS = 1.0

T = TypeVar("T")


def connect(settings: Settings) -> Any:
    """A client for ``settings.redis``; connects at its first use.

    Raises:
        StoreError: no address is set, or it is none.
    """
    options: dict[str, Any] = {
        "socket_timeout": settings.redis_seconds,
        "socket_connect_timeout": settings.redis_seconds,
        "retry": Retry(NoBackoff(), 1),  # a connection from before a restart of Redis fails once
    }
    try:
        return Redis.from_url(redis_url(settings.redis), **options)
    except ValueError as error:
        raise StoreError(f"Redis address '{settings.redis}' is not usable ({error})", REDIS_REMEDY) from None


class OnlineReader:
    """Reads users and the shop's lists, laid out as :mod:`millrace.contracts.online` says.

    While Redis is away requests go on without it: one of them tries again every second.

    Args:
        client: an asyncio Redis client that answers in bytes.
        count_error: called for each request that had to do without the store.
        monotonic: seconds that only go forward.
    """

    def __init__(
        self, client: Any, count_error: Callable[[], None], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._client, self._count_error, self._monotonic = client, count_error, monotonic
        self._away = False
        self._retry_at = 0.0

    async def record(self, user_id: Id) -> dict[bytes, bytes] | None:
        """Everything the store holds of a user, in one round trip; empty: nothing. None: the store is away."""
        found: dict[bytes, bytes] | None = await self._ask(lambda: self._client.hgetall(user_key(user_id)))
        return found

    async def list_keys(self) -> list[str] | None:
        """The keys of the shop's lists that there are. None: the store is away."""
        found: set[bytes] | None = await self._ask(lambda: self._client.smembers(LIST_NAMES))
        return None if found is None else sorted(key.decode("utf-8", "replace") for key in found)

    async def lists(self, names: Sequence[str]) -> list[list[str]] | None:
        """The item ids of each of the lists ``names``, best first, in one round trip; empty: there is no such list.
        None: the store is away."""

        async def read() -> list[list[bytes]]:
            async with self._client.pipeline(transaction=False) as pipeline:
                for name in names:
                    pipeline.zrange(list_key(name), 0, -1, desc=True)
                entries: list[list[bytes]] = await pipeline.execute()
                return entries

        found = await self._ask(read)
        return None if found is None else [[item.decode("utf-8", "replace") for item in entries] for entries in found]

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """The answer of ``call``, None when the store is away."""
        now = self._monotonic()
        if self._away:
            if now < self._retry_at:
                self._count_error()
                return None
            self._retry_at = now + RETRY_SECONDS  # whoever comes meanwhile does not wait as well
        try:
            found = await call()
        except (RedisError, OSError, TimeoutError) as error:
            self._count_error()
            self._retry_at = self._monotonic() + RETRY_SECONDS
            if not self._away:
                self._away = True
                log.warning("Redis is away: users are served as new ones until it is back", error=type(error).__name__)
            return None
        if self._away:
            self._away = False
            log.info("Redis is back")
        return found
