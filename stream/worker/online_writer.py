# shell
"""The stream's writer of the online store: users' tile lists, last clicks and profiles, laid out as
:mod:`millrace.contracts.online_layout` says.

Every write is absolute (the whole tile list, the whole field), so that writing again, after a crash or a lost
answer, changes nothing. If Redis loses its data (a restart, FLUSHALL), it loses the mark ``filled:{partition}`` too,
and the partition's worker fills the store again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any

import msgspec
import structlog
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from tenacity import AsyncRetrying

from millrace.basics.errors import StoreError
from millrace.connections.redis_clients import async_redis_client, redis_refusal, store_error
from millrace.contracts.events import Id, User
from millrace.contracts.online_layout import (
    FILLED,
    FILLING,
    GUESTS,
    PROFILE,
    RECENT,
    filled_key,
    pack_profile,
    unpack_guests,
    user_key,
    window_field,
)
from millrace.contracts.settings import without_password
from millrace.processes.patience import patience

log = structlog.get_logger("online")

PIPELINE_COMMANDS = 1000
NO_TILES = b"\0\0"  # the count of tiles in the packed form, see millrace/windows/tiles.py

UserTiles = tuple[Id, Sequence[tuple[int, bytes]]]
"""A user and some of its window keys, each with its packed tile list."""


class OnlineStore:
    """Writes user tiles and profiles. One per worker, used from one asyncio loop.

    Args:
        address: ``host:port`` or a ``redis://`` URL.
        patience_seconds: how long Redis may be away before a write gives up.
        prefix: before each key.
    """

    def __init__(self, address: str, patience_seconds: float = 60.0, prefix: str = "") -> None:
        self.address, self._prefix = without_password(address), prefix
        self.patience_seconds = patience_seconds
        # Our retries, with log lines, replace the client's silent ones.
        self._client = async_redis_client(address, retry=Retry(NoBackoff(), 0), socket_timeout=5.0)

    async def wait(self) -> None:
        """Waits until Redis answers. Raises StoreError when the patience ends, and at once when Redis refuses us."""
        await self._insist(self._client.ping, refused=False)

    async def write(
        self,
        tiles: Sequence[UserTiles],
        profiles: Sequence[User],
        recents: Sequence[tuple[Id, bytes]] = (),
        forgotten: Collection[Id] = (),
    ) -> None:
        """Writes changed tile lists, last clicks and profiles; returns when Redis has them all.

        Args:
            forgotten: users whose hash is deleted before anything else is written.
            tiles: for each user, its changed window keys with their packed tile lists (empty: the field is deleted).
            profiles: with all attributes and ids of guests.
            recents: for each user, the value of the field ``recent`` (empty: the field is deleted).

        Raises:
            StoreError: Redis stayed away longer than the patience, or refuses the write.
        """
        of_user = {str(user_id): value for user_id, value in recents}
        key = self._user
        commands: list[list[tuple[Any, ...]]] = [[("DEL", key(user_id))] for user_id in forgotten]
        commands += [_commands(key(user_id), entries, of_user.pop(str(user_id), None)) for user_id, entries in tiles]
        commands += [_commands(key(user_id), (), value) for user_id, value in of_user.items()]
        for user in profiles:
            name, guests = key(user.user_id), msgspec.json.encode(user.sessions)
            commands.append([("HSET", name, PROFILE, pack_profile(user.attributes))])
            commands.append([("HSET", name, GUESTS, guests) if user.sessions else ("HDEL", name, GUESTS)])
        flat = [command for group in commands for command in group]
        for start in range(0, len(flat), PIPELINE_COMMANDS):
            part = flat[start : start + PIPELINE_COMMANDS]

            async def send(part: list[tuple[Any, ...]] = part) -> None:
                async with self._client.pipeline(transaction=False) as pipeline:
                    for command in part:
                        pipeline.execute_command(*command)
                    await pipeline.execute()

            await self._insist(send)

    async def guests(self, users: Collection[Id]) -> list[Id]:
        """The ids that these users had as guests. Raises as :meth:`write`."""
        found: list[Id] = []

        async def ask() -> None:
            found.clear()
            for user_id in users:
                found.extend(unpack_guests(await self._client.hget(self._user(user_id), GUESTS)))

        await self._insist(ask)
        return found

    async def filled(self, partition: int) -> bool:
        """Whether all of the partition's users were written to this Redis, and it has kept its data since."""
        found: list[Any] = []

        async def ask() -> None:
            found.append(await self._client.get(self._filled(partition)))

        await self._insist(ask)
        return bool(found[-1] == FILLED)

    async def begin_filling(self, partition: int) -> None:
        """Call it before the first write of a filling."""
        await self._insist(lambda: self._client.set(self._filled(partition), FILLING))

    async def end_filling(self, partition: int) -> None:
        """Call it after the last write. If data was lost in between, the partition is not :meth:`filled`."""
        await self._insist(lambda: self._client.set(self._filled(partition), FILLED, xx=True))

    def _user(self, user_id: Id) -> str:
        return self._prefix + user_key(user_id)

    def _filled(self, partition: int) -> str:
        return self._prefix + filled_key(partition)

    async def _insist(self, call: Callable[[], Awaitable[Any]], *, refused: bool = True) -> None:
        """``refused``: a refusal is waited out too."""
        aloud = partial(log.warning, "waiting for Redis", address=self.address)
        started = time.monotonic()

        async def ask() -> None:
            try:
                await call()
            except RedisError as error:
                if redis_refusal(error) is None:
                    raise
                raise store_error(f"Redis '{self.address}' refuses us", error) from None

        errors = (RedisError, OSError, StoreError) if refused else (RedisError, OSError)
        tries = patience(self.patience_seconds, errors, aloud, first_pause_seconds=0.1)
        try:
            async for attempt in AsyncRetrying(**tries):
                with attempt:
                    await ask()
        except (RedisError, OSError) as error:
            waited_s = time.monotonic() - started
            raise store_error(f"Redis '{self.address}' could not be used for {waited_s:.0f} s", error) from None

    async def close(self) -> None:
        await self._client.aclose()


def _commands(name: str, entries: Sequence[tuple[int, bytes]], recent: bytes | None) -> list[tuple[Any, ...]]:
    kept: list[bytes] = []
    gone: list[bytes] = []
    for key, blob in entries:
        if blob and blob[2:4] != NO_TILES:
            kept += (window_field(key), blob)
        else:
            gone.append(window_field(key))
    if recent:
        kept += (RECENT, recent)
    elif recent is not None:
        gone.append(RECENT)
    commands: list[tuple[Any, ...]] = []
    if kept:
        commands.append(("HSET", name, *kept))
    if gone:
        commands.append(("HDEL", name, *gone))
    return commands
