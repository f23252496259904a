"""The online store as the scorer reads it: one round trip a request, and never a request that waits for Redis long."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from millrace.contracts.errors import StoreError
from millrace.contracts.events import Id
from millrace.contracts.settings import Settings

log = structlog.get_logger("scorer")

TIMEOUT_SECONDS = 0.5
RETRY_SECONDS = 1.0


class HashClient(Protocol):
    """What is asked of a Redis client."""

    def hgetall(self, name: str) -> Awaitable[dict[bytes, bytes]]: ...


def connect(settings: Settings) -> Any:
    """A client for ``settings.redis``; connects at its first use.

    Raises:
        StoreError: no address is set, or it is none.
    """
    if not settings.redis:
        raise StoreError("no Redis address is set", "set MILLRACE_REDIS to host:port, or use 'millrace demo'")
    url = settings.redis if "://" in settings.redis else f"redis://{settings.redis}"
    options: dict[str, Any] = {
        "socket_timeout": TIMEOUT_SECONDS,
        "socket_connect_timeout": TIMEOUT_SECONDS,
        "retry": Retry(NoBackoff(), 1),  # a connection from before a restart of Redis fails once
    }
    try:
        return Redis.from_url(url, **options)
    except ValueError as error:
        raise StoreError(
            f"Redis address '{settings.redis}' is not usable ({error})", "give host:port or redis://…"
        ) from None


class UserStore:
    """Reads user hashes. While Redis is away requests go on without: one of them tries again every second.

    Args:
        client: an asyncio Redis client that answers in bytes.
        count_error: called for each request that had to do without the store.
        monotonic: seconds that only go forward.
    """

    def __init__(
        self, client: HashClient, count_error: Callable[[], None], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._client, self._count_error, self._monotonic = client, count_error, monotonic
        self._away = False
        self._retry_at = 0.0

    async def record(self, user_id: Id) -> dict[bytes, bytes] | None:
        """Everything the store holds of a user, in one round trip; empty: nothing. None: the store is away."""
        now = self._monotonic()
        if self._away:
            if now < self._retry_at:
                self._count_error()
                return None
            self._retry_at = now + RETRY_SECONDS  # whoever comes meanwhile does not wait as well
        try:
            found = await self._client.hgetall(f"user:{user_id}")
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
