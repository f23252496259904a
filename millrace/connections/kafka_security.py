# shell
"""How Kafka's clients get in: the file of MILLRACE_KAFKA_CLIENT, as options that both Kafka clients know.

Each new connection takes what the file and its certificates hold then. So options have no secrets: they have a
:class:`LiveText` in the place of a user or password, and a context that makes each connection with today's files.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import structlog

from millrace.basics.errors import SettingError
from millrace.connections.client_properties import MSK, OAUTH, ClientProperties, read_properties
from millrace.connections.kafka_tokens import TokenSource, region_of_msk
from millrace.connections.secrets import stamp
from millrace.contracts.settings import Settings

log = structlog.get_logger("kafka")

WHERE = "the file of MILLRACE_KAFKA_CLIENT"


class LiveText:
    """A text that is asked for anew at each connection."""

    def __init__(self, now: Callable[[], str]) -> None:
        self.now = now

    def __repr__(self) -> str:
        return "***"


class _LiveContext(ssl.SSLContext):
    """Makes each connection with the context of that time."""

    _now: Callable[[], ssl.SSLContext]

    def __new__(cls, now: Callable[[], ssl.SSLContext]) -> _LiveContext:
        context = super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)
        context._now = now
        return context

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return self._now().wrap_socket(*args, **kwargs)

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self._now().wrap_bio(*args, **kwargs)


class KafkaSecurity:
    """One file, read again when it or a file that it names changes. For any thread. A change that cannot be used leaves
    the former values, and is logged.

    Raises:
        SettingError: the file, or what it names, cannot be used.
    """

    def __init__(self, path: str) -> None:
        self._path, self._lock = path, threading.Lock()
        self._found, self._context = _load(path)
        self._mark = stamp(self._found.files)
        self.tokens = TokenSource(self.now)

    def now(self) -> ClientProperties:
        return self._look()[0]

    def options(self, provider: Callable[[TokenSource], object]) -> dict[str, Any]:
        """Arguments of a client. ``provider``: makes of a token source what this client takes for one."""
        found = self.now()
        options: dict[str, Any] = {"security_protocol": found.protocol}
        if found.tls:
            options["ssl_context"] = _LiveContext(lambda: self._look()[1])
        if found.mechanism in (OAUTH, MSK):
            options |= {"sasl_mechanism": OAUTH, "sasl_oauth_token_provider": provider(self.tokens)}
        elif found.mechanism:
            options["sasl_mechanism"] = found.mechanism
            options["sasl_plain_username"] = LiveText(lambda: self.now()["sasl.username"])
            options["sasl_plain_password"] = LiveText(lambda: self.now()["sasl.password"])
        return options

    def _look(self) -> tuple[ClientProperties, ssl.SSLContext]:
        with self._lock:
            files = self._found.files
            mark = stamp(files)
            if mark != self._mark:
                self._mark = mark
                try:
                    self._found, self._context = _load(self._path)
                except SettingError as error:
                    log.warning("a changed client.properties cannot be used; the former holds", error=str(error))
                else:
                    if self._found.files != files:
                        self._mark = stamp(self._found.files)
                    log.info("client.properties, or a file that it names, was read again", file=self._path)
            return self._found, self._context


@lru_cache(maxsize=4)
def _security(path: str) -> KafkaSecurity:
    return KafkaSecurity(path)


def security_of(settings: Settings) -> KafkaSecurity | None:
    """What the settings' file says; None: they name none. All clients of a process share it. Raises SettingError as
    the class, and for a file without a broker: the embedded one asks for nothing."""
    if not settings.kafka_client:
        return None
    if not settings.kafka:
        problem = f"kafka_client '{settings.kafka_client}' is set, and no Kafka is"
        raise SettingError(problem, "set MILLRACE_KAFKA to the one that it is for, or unset it")
    return _security(settings.kafka_client)


def _load(path: str) -> tuple[ClientProperties, ssl.SSLContext]:
    found = read_properties(path)
    if found.mechanism == MSK:
        region_of_msk()
    context = ssl.create_default_context()
    name = ""
    try:
        if name := found["ssl.ca.location"]:
            context = ssl.create_default_context(cafile=name)
        if name := found["ssl.certificate.location"]:
            # With a password, though an empty one, OpenSSL asks nobody for it.
            context.load_cert_chain(name, found["ssl.key.location"], found["ssl.key.password"])
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        reason = getattr(error, "reason", None) or type(error).__name__
        problem = f"{path}: '{name}' cannot be used as a certificate ({reason})"
        remedy = "name PEM files of an authority, or of a certificate with its key and the key's password"
        raise SettingError(problem, remedy) from None
    return found, context
