# shell
"""Redis clients, made of an address in one place: ``host:port`` or a URL, for instance::

    rediss://millrace:${file:/run/secrets/redis}@host:6380/0?ssl_ca_certs=/etc/redis/ca.pem

``${NAME}`` and ``${file:PATH}`` stand for secrets (:mod:`millrace.connections.secrets`). Each new connection takes
user, password, authority (``ssl_ca_certs``) and client certificate (``ssl_certfile``, ``ssl_keyfile``) as they are.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

import redis
import redis.asyncio
import redis.asyncio.connection
import structlog
from redis.credentials import CredentialProvider

from millrace.basics.errors import SettingError, StoreError, one_line
from millrace.connections.refusals import Refusal, why
from millrace.connections.secrets import filled
from millrace.contracts.settings import without_password

log = structlog.get_logger("redis")

REMEDY = "start Redis there, or set MILLRACE_REDIS to its host:port"

_USER = re.compile(r"((?:\$\{[^{}]*\}|[^:])*)(?::(.*))?", re.DOTALL)


class _Credentials(CredentialProvider):
    """User and password, asked for anew at each connection; the former ones while they cannot be read.

    Raises:
        SettingError: they cannot be read at first.
    """

    def __init__(self, user_info: str) -> None:
        found = _USER.fullmatch(user_info)
        assert found is not None
        self._texts = [unquote(text or "") for text in found.groups()]
        self._now = [filled(text) for text in self._texts]

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            self._now = [filled(text) for text in self._texts]
        except SettingError as error:
            log.warning("the secret of Redis cannot be read; the former one is used", error=str(error))
        user, password = self._now
        return (user, password) if user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


class _FreshTls(redis.asyncio.connection.SSLConnection):
    """Reads its certificates at each connection, as the client without asyncio does."""

    def _connection_arguments(self) -> Any:
        self.ssl_context.context = None
        return super()._connection_arguments()


def redis_client(address: str, **options: Any) -> redis.Redis:
    """A client that connects at its first use.

    Raises:
        StoreError: the address or a certificate cannot be used.
        SettingError: a secret is not where the address says.
    """
    client: redis.Redis = _made(redis.Redis, address, options)
    return client


def async_redis_client(address: str, **options: Any) -> Any:
    """As :func:`redis_client`, for an asyncio loop."""
    client = _made(redis.asyncio.Redis, address, options)
    pool = client.connection_pool
    if issubclass(pool.connection_class, redis.asyncio.connection.SSLConnection):
        pool.connection_class = _FreshTls
    return client


def redis_refusal(error: BaseException) -> Refusal | None:
    """Why Redis refused; None: it did not."""
    return why(error, "MILLRACE_REDIS")


def store_error(problem: str, error: BaseException) -> StoreError:
    """An error of the client as ours, with the cause where Redis refused."""
    refusal = redis_refusal(error)
    if refusal is not None:
        return StoreError(f"{problem} ({refusal.cause})", refusal.remedy)
    return StoreError(f"{problem} ({one_line(error)})", REMEDY)


def _made(kind: Any, address: str, options: dict[str, Any]) -> Any:
    if not address:
        raise StoreError("no Redis address is set", "set MILLRACE_REDIS to host:port, or use 'millrace demo'")
    scheme, _, rest = address.partition("://") if "://" in address else ("redis", "", address)
    user_info, at, place = rest.rpartition("@")
    if at:
        options = {**options, "credential_provider": _Credentials(user_info)}
    url = f"{scheme}://{filled(place, lambda secret: quote(secret, safe=''))}"
    try:
        client = kind.from_url(url, **options)
    except ValueError as error:
        raise StoreError(f"Redis address '{without_password(address)}' is not usable ({error})", REMEDY) from None
    if scheme == "rediss":
        _check_certificates(address, client.connection_pool.connection_kwargs)
    return client


def _check_certificates(address: str, given: Mapping[str, Any]) -> None:
    try:
        context = ssl.create_default_context(cafile=given.get("ssl_ca_certs"), capath=given.get("ssl_ca_path"))
        if name := given.get("ssl_certfile"):
            # With a password, though an empty one, OpenSSL asks nobody for it.
            context.load_cert_chain(name, given.get("ssl_keyfile"), given.get("ssl_password") or "")
    except OSError as error:  # an SSLError is one
        text = f"certificates of Redis '{without_password(address)}' cannot be used ({error})"
        raise StoreError(text, "name PEM files with ssl_ca_certs, ssl_certfile and ssl_keyfile") from None
