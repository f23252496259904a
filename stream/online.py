"""The user side of the online store: one Redis hash a user, read by the scorer in one round trip.

::

    user:{user_id}   profile        -> JSON of the user's attributes
                     <8 bytes>      -> packed tile list of the window key (little-endian uint64)

Every write is absolute (the whole tile list, the whole profile), so that writing again, after a crash or a lost
answer, changes nothing. A key whose tile list is empty, or whose windows have ended, loses its field; a reader takes a
missing field for zeros. A profile stays.

``filled:{partition}`` says that all of a partition's users are here. A Redis that lost its data (a restart, FLUSHALL)
has lost that mark too, and the partition's worker fills it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec
import redis.asyncio as redis
import structlog
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from millrace.contracts.errors import StoreError
from millrace.contracts.events import Attribute, Id

log = structlog.get_logger("online")

PROFILE = b"profile"
PIPELINE_COMMANDS = 1000
FILLED, FILLING = b"filled", b"filling"
NO_TILES = b"\0\0"  # the count of tiles in the packed form, see millrace/windows/tiles.py
REMEDY = "start Redis there, or set MILLRACE_REDIS to its host:port"

UserTiles = tuple[Id, Sequence[tuple[int, bytes]]]
_json = msgspec.json.Encoder()


def user_hash(user_id: Id) -> str:
    """The name of a user's hash."""
    return f"user:{user_id}"


def field_of(key: int) -> bytes:
    """The field of a window key: its 8 bytes, little-endian."""
    return int(key).to_bytes(8, "little")


def redis_url(address: str) -> str:
    """``host:port`` or a URL, as a URL."""
    if not address:
        raise StoreError("no Redis address is set", "set MILLRACE_REDIS to host:port, or use 'millrace demo'")
    return address if "://" in address else f"redis://{address}"


class OnlineStore:
    """Writes user tiles and profiles. One per worker, used from one asyncio loop.

    Args:
        address: ``host:port`` or a ``redis://`` URL.
        patience_seconds: how long Redis may be away before a write gives up.
    """

    def __init__(self, address: str, patience_seconds: float = 60.0) -> None:
        self.address = address
        self.patience_seconds = patience_seconds
        try:
            # Our own patience, aloud, replaces the client's silent one.
            self._client = redis.Redis.from_url(redis_url(address), retry=Retry(NoBackoff(), 0), socket_timeout=5.0)
        except ValueError as error:
            raise StoreError(f"Redis address '{address}' is not usable ({error})", REMEDY) from None

    async def wait(self) -> None:
        """Waits until Redis answers.

        Raises:
            StoreError: not within the patience.
        """
        await self._insist(self._client.ping)

    async def write(self, tiles: Sequence[UserTiles], profiles: Sequence[tuple[Id, Mapping[str, Attribute]]]) -> None:
        """Writes changed tile lists and profiles; returns when Redis has them all.

        Args:
            tiles: for each user, its changed window keys with their packed tile lists (empty: the field goes).
            profiles: for each user, all of its attributes.

        Raises:
            StoreError: Redis stayed away longer than the patience, or refuses the write.
        """
        commands = [_tile_commands(user_id, entries) for user_id, entries in tiles]
        commands += [[("HSET", user_hash(user_id), PROFILE, _json.encode(dict(a)))] for user_id, a in profiles]
        flat = [command for group in commands for command in group]
        for start in range(0, len(flat), PIPELINE_COMMANDS):
            part = flat[start : start + PIPELINE_COMMANDS]

            async def send(part: list[tuple[Any, ...]] = part) -> None:
                async with self._client.pipeline(transaction=False) as pipeline:
                    for command in part:
                        pipeline.execute_command(*command)
                    await pipeline.execute()

            await self._insist(send)

    async def filled(self, partition: int) -> bool:
        """Whether everything of the partition's users was written to this Redis, and it has kept its data since."""
        found: list[Any] = []

        async def ask() -> None:
            found.append(await self._client.get(_mark(partition)))

        await self._insist(ask)
        return bool(found[-1] == FILLED)

    async def begin_filling(self, partition: int) -> None:
        """To be called before the first write of a filling."""
        await self._insist(lambda: self._client.set(_mark(partition), FILLING))

    async def end_filling(self, partition: int) -> None:
        """To be called after the last one. Data lost in between keeps the partition from being :meth:`filled`."""
        await self._insist(lambda: self._client.set(_mark(partition), FILLED, xx=True))

    async def _insist(self, call: Callable[[], Awaitable[Any]]) -> None:
        started, pause = time.monotonic(), 0.1
        while True:
            try:
                await call()
                return
            except (RedisError, OSError) as error:
                away = time.monotonic() - started
                if away >= self.patience_seconds:
                    raise StoreError(
                        f"Redis '{self.address}' took no write for {away:.0f} s ({type(error).__name__}: {error})",
                        REMEDY,
                    ) from None
                log.warning("waiting for Redis", address=self.address, error=str(error), seconds=round(away))
                await asyncio.sleep(min(pause, max(self.patience_seconds - away, 0.01)))
                pause = min(pause * 2, 5.0)

    async def close(self) -> None:
        await self._client.aclose()


def _mark(partition: int) -> str:
    return f"filled:{partition}"


def _tile_commands(user_id: Id, entries: Sequence[tuple[int, bytes]]) -> list[tuple[Any, ...]]:
    """One HSET of what has tiles and one HDEL of what has none."""
    name = user_hash(user_id)
    kept: list[bytes] = []
    gone: list[bytes] = []
    for key, blob in entries:
        if blob and blob[2:4] != NO_TILES:
            kept += (field_of(key), blob)
        else:
            gone.append(field_of(key))
    commands: list[tuple[Any, ...]] = []
    if kept:
        commands.append(("HSET", name, *kept))
    if gone:
        commands.append(("HDEL", name, *gone))
    return commands
