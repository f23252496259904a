# shell
"""Clients of ``aiokafka``, for processes with an asyncio loop. They get in as :mod:`millrace.processes.kafka`'s do."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError

from millrace.basics.errors import MillraceError
from millrace.connections.kafka_hooks import LISTENER
from millrace.connections.kafka_security import LiveText
from millrace.connections.kafka_tokens import TokenSource
from millrace.contracts.settings import Settings
from millrace.processes.kafka import BATCH_BYTES, IDEMPOTENT, client_options


class _TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    def __init__(self, source: TokenSource) -> None:
        self._source = source

    async def token(self) -> str:
        try:
            return await asyncio.to_thread(self._source.token)
        except MillraceError as error:
            raise KafkaConnectionError(str(error)) from error  # the client tries again after its own errors only


def async_options(settings: Settings) -> dict[str, Any]:
    """As :func:`~millrace.processes.kafka.client_options`, for this library."""
    return client_options(settings, _TokenProvider)


def make_async_producer(settings: Settings, **options: Any) -> AIOKafkaProducer:
    """An idempotent producer of raw bytes, not started yet. It waits for a broker that is away as long as a running
    worker does. Raises as :func:`async_options`."""
    seconds = round(settings.outage_seconds * 1000)
    base = {**IDEMPOTENT, **async_options(settings), "max_batch_size": BATCH_BYTES, "request_timeout_ms": seconds}
    return AIOKafkaProducer(**{**base, **options})


def _with_live_texts(connection: Any) -> None:
    """Has each connection take user and password as they are when it is made."""
    strict = connection.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        strict(self, *args, **{k: v.now() if isinstance(v, LiveText) else v for k, v in kwargs.items()})

    connection.__init__ = init


_with_live_texts(AIOKafkaConnection)
logging.getLogger("aiokafka").addFilter(LISTENER)
