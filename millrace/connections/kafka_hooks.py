# shell
"""What ``kafka-python`` is taught when this is imported: secrets that change, refusals that are heard, and pauses.

The client logs a lost connection and tries another one. Its log is the only way to hear why while it works, so
:class:`RefusalListener` listens to it, and says each refusal once in a while, in our words.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from kafka.errors import KafkaConnectionError
from kafka.net.connection import KafkaConnection
from kafka.net.inet import KafkaNetSocket
from kafka.net.sasl import register_sasl_mechanism
from kafka.net.sasl.oauth import AbstractTokenProvider
from kafka.net.sasl.plain import SaslMechanismPlain
from kafka.net.sasl.scram import SaslMechanismScram
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from millrace.connections.client_properties import BY_PASSWORD
from millrace.connections.kafka_security import WHERE, LiveText
from millrace.connections.kafka_tokens import TokenSource
from millrace.connections.refusals import Refusal, hangs_up, why

log = structlog.get_logger("kafka")

AGAIN_SECONDS = 30.0
"""Between two lines about one cause."""


class RefusalListener(logging.Filter):
    """Hears from a client's log why connections fail, and says a refusal in place of its line."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said_s: dict[str, float] = {}
        self._attentive = 0
        self._heard: tuple[float, Refusal] | None = None
        self.hung_up = False  # in a TLS handshake, since somebody was attentive

    @property
    def heard(self) -> Refusal | None:
        """The newest refusal of the last :data:`AGAIN_SECONDS`, and since somebody was :meth:`attentive`."""
        return self._heard[1] if self._heard and self._clock() - self._heard[0] < AGAIN_SECONDS else None

    @contextmanager
    def attentive(self) -> Iterator[None]:
        """Says nothing: the caller will, of what was ``heard``."""
        self._heard, self.hung_up = None, False
        self._attentive += 1
        try:
            yield
        finally:
            self._attentive -= 1
            if (heard := self.heard) is not None:
                self._said_s[heard.cause] = self._clock()

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args if isinstance(record.args, tuple) else ()
        found = next((found for arg in args if isinstance(arg, BaseException) and (found := why(arg, WHERE))), None)
        if found is None:
            self.hung_up |= any(hangs_up(arg) for arg in args if isinstance(arg, BaseException))
            return True
        now_s = self._clock()
        self._heard = now_s, found
        if not self._attentive and now_s - self._said_s.get(found.cause, -AGAIN_SECONDS) >= AGAIN_SECONDS:
            self._said_s[found.cause] = now_s
            log.warning("Kafka refuses a connection; trying again", cause=found.cause, remedy=found.remedy)
        return False


LISTENER = RefusalListener()


def hush(name: str) -> None:
    """Keeps a client's log lines to itself: it logs each try, and we log one line."""
    logger = logging.getLogger(name)
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """A token source as this client takes it."""

    def __init__(self, source: TokenSource) -> None:
        super().__init__()
        self._source = source

    def token(self) -> str:
        return self._source.token()


def _with_live_texts(strict: type[Any]) -> type[Any]:
    class Live(strict):  # type: ignore[misc]
        def __init__(self, **config: Any) -> None:
            super().__init__(**{k: v.now() if isinstance(v, LiveText) else v for k, v in config.items()})

    return Live


def _hear_last_words(transport: Any) -> None:
    """The client drops an answer when the end of the connection comes with it: the reason of a refusal, always."""
    strict = transport._sock_recv

    def recv(self: Any) -> Any:
        data, error = strict(self)
        return (data, None) if data else (data, error)  # the next read finds the end again

    transport._sock_recv = recv


def _wait_refusals_out(connection: Any) -> None:
    """A refusal becomes a lost connection: the client pauses longer and longer and tries again. By itself it takes a
    refused connection for a good one, which it tries again at once, and its producer gives up for good."""
    close, initialize = connection.close, connection.initialize

    def closed(self: Any, error: BaseException | None = None) -> None:
        if error is not None and why(error, WHERE) is not None:
            lost = KafkaConnectionError("refused")
            lost.__cause__ = error
            error = lost
        close(self, error)

    async def initialized(self: Any, timeout_at: Any = None) -> None:
        await initialize(self, timeout_at)
        if self.init_future.failed():
            raise KafkaConnectionError("not initialized")  # those who wait have the cause

    connection.close, connection.initialize = closed, initialized


def _close_what_fails(owner: Any, name: str, close: Callable[..., None]) -> None:
    """The client leaves a socket that gets no connection to the garbage collector."""
    strict = getattr(owner, name)

    async def closing(*args: Any, **kwargs: Any) -> Any:
        try:
            return await strict(*args, **kwargs)
        except BaseException:
            close(*args)
            raise

    setattr(owner, name, closing)


for _name in BY_PASSWORD:
    _strict = SaslMechanismPlain if _name == "PLAIN" else SaslMechanismScram
    register_sasl_mechanism(_name, _with_live_texts(_strict), overwrite=True)
_hear_last_words(KafkaTCPTransport)
_hear_last_words(KafkaSSLTransport)
_wait_refusals_out(KafkaConnection)
_close_what_fails(KafkaNetSocket, "sock_connect", lambda _, net, sock, *__: sock.close())
_close_what_fails(KafkaSSLTransport, "handshake", lambda transport: transport.abort())
hush("kafka")
logging.getLogger("kafka.net.connection").addFilter(LISTENER)
