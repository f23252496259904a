# shell
"""Services that a setting names rather than we start: wait for them, aloud, and no longer than a person would."""

from __future__ import annotations

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry
from tenacity import Retrying

from millrace.basics.errors import StoreError
from millrace.contracts.online import REDIS_REMEDY, redis_url
from millrace.contracts.settings import without_password
from millrace.processes.patience import patience

log = structlog.get_logger("loop")


def wait_for_redis(address: str, patience_seconds: float) -> None:
    """Waits until Redis answers.

    Raises:
        StoreError: it did not within ``patience_seconds``.
    """
    try:
        client = redis.Redis.from_url(
            redis_url(address), socket_connect_timeout=2.0, socket_timeout=2.0, retry=Retry(NoBackoff(), 0)
        )
    except ValueError as error:
        raise StoreError(f"Redis address '{without_password(address)}' is not usable ({error})", REDIS_REMEDY) from None

    def aloud(_: BaseException, left: float) -> None:
        log.warning("waiting for Redis", address=without_password(address), seconds_left=round(left))

    with client:
        try:
            Retrying(**patience(patience_seconds, redis.RedisError, aloud))(client.ping)
        except redis.RedisError as error:
            raise StoreError(
                f"Redis '{without_password(address)}' does not answer ({type(error).__name__}) "
                f"after {patience_seconds:g} s",
                REDIS_REMEDY,
            ) from None
