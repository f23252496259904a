"""Redis with TLS and users: who gets in, what a refusal says, and secrets and certificates that change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.asyncio.retry import Retry as RetryInALoop
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from millrace.basics.errors import MillraceError, StoreError
from millrace.connections.redis_clients import async_redis_client, redis_client, redis_refusal
from millrace.contracts.settings import Settings, without_password
from stream.worker.online_writer import OnlineStore
from tests.scenes.left_sockets import LEFT
from tests.scenes.left_sockets import collected as collected
from tests.scenes.secured_kafka import PASSWORD, STRANGER, USER, Certificates
from tests.scenes.secured_redis import ADMIN, SecuredRedis, Unasked
from tests.scenes.waiting import until

pytestmark = LEFT
TYPED = PASSWORD.replace(" ", "%20")
"""As a URL has it."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[SecuredRedis]:
    with SecuredRedis(tmp_path_factory.mktemp("redis") / "good", certificates) as server:
        yield server


def client_of(url: str) -> Redis:
    return redis_client(url, retry=Retry(NoBackoff(), 0))


def client_in_a_loop(url: str) -> Any:
    return async_redis_client(url, retry=RetryInALoop(NoBackoff(), 0))


def asked(url: str) -> bool:
    with client_of(url) as client:
        return bool(client.ping())


async def asked_in_a_loop(url: str) -> bool:
    client = client_in_a_loop(url)
    try:
        return bool(await client.ping())
    finally:
        await client.aclose()


@pytest.mark.services
@pytest.mark.parametrize("place", ["url", "variable", "file"])
def test_a_user_with_a_password_gets_in(
    place: str, server: SecuredRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(f"{PASSWORD}\n")
    monkeypatch.setenv("SHOP_REDIS", PASSWORD)
    texts = {"url": TYPED, "variable": "${SHOP_REDIS}", "file": f"${{file:{tmp_path / 'secret'}}}"}
    url = server.url(USER, texts[place])
    assert asked(url)
    assert asyncio.run(asked_in_a_loop(url))


def refused(url: str) -> str:
    """The cause that both clients tell. A server that refuses a client's certificate closes the connection, too, and
    what the client notices first is a matter of chance: so it is asked until it tells."""
    causes = [told_by(ask, url) for ask in (asked, lambda url: asyncio.run(asked_in_a_loop(url)))]
    assert causes[0] == causes[1]
    return causes[0]


def told_by(ask: Callable[[str], bool], url: str) -> str:
    causes: list[str] = []

    def told() -> bool:
        with pytest.raises(RedisError) as error:
            ask(url)
        found = redis_refusal(error.value)
        causes.extend([str(found)] if found else [])
        return bool(causes)

    until(told, "the cause is told")
    return causes[0]


@pytest.mark.services
def test_a_refusal_names_its_cause(
    server: SecuredRedis, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOP_REDIS", "not this one")
    said = refused(server.url(USER, "${SHOP_REDIS}"))
    assert "user name, password or token are refused" in said
    assert "correct them in MILLRACE_REDIS" in said
    assert "not this one" not in said
    expired, stranger = certificates.sign("mine", days=-1), certificates.sign("other", stranger=True)
    for mine in (expired, stranger):
        options = f"&ssl_certfile={mine}&ssl_keyfile={mine}"
        assert "refuses our client certificate" in refused(server.url(USER, TYPED, options))
    unknown = server.url(USER, TYPED).replace(str(certificates.authority), str(expired))
    assert "is not to be trusted" in refused(unknown)
    with client_of(server.url(STRANGER, TYPED)) as client, pytest.raises(RedisError) as error:
        client.set("a", "b")
    assert "ACLs forbid it" in str(redis_refusal(error.value))
    for name, hosts, days, cause in (
        ("late", (), -1, "the server's certificate has expired; renew it at the server"),
        ("elsewhere", ("elsewhere.example",), 30, "the server's certificate is for another host name"),
    ):
        # Nobody who checks certificates could ask such a server for its health.
        with Unasked(tmp_path / name, certificates, server=certificates.sign(name, *hosts, days=days)) as other:
            assert cause in refused(other.url(USER, TYPED))


@pytest.mark.services
def test_another_password_is_taken_at_the_next_connection(
    server: SecuredRedis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("old")
    url = server.url("worker", f"${{file:{secret}}}")
    with client_of(server.url(ADMIN, "any")) as admin, client_of(url) as client:
        admin.acl_setuser("worker", enabled=True, passwords=["+old"], keys=["*"], commands=["+@all"], reset=True)

        async def both() -> None:
            in_a_loop = client_in_a_loop(url)
            assert client.ping()
            assert await in_a_loop.ping()
            admin.acl_setuser("worker", enabled=True, passwords=["-old", "+new"])
            admin.client_kill_filter(user="worker")
            for _ in range(2):
                with pytest.raises(RedisError):
                    client.ping()
                with pytest.raises(RedisError):
                    await in_a_loop.ping()
            secret.unlink()  # for a moment there is none: the former is tried
            with pytest.raises(RedisError):
                client.ping()
            secret.write_text("new")
            assert client.ping()
            assert await in_a_loop.ping()
            await in_a_loop.aclose()

        asyncio.run(both())
    assert "the secret of Redis cannot be read; the former one is used" in capsys.readouterr().out


@pytest.mark.services
async def test_other_certificates_are_taken_at_the_next_connection(
    server: SecuredRedis, certificates: Certificates
) -> None:
    mine = certificates.sign("changing", days=-1)
    url = server.url(USER, TYPED, f"&ssl_certfile={mine}&ssl_keyfile={mine}")
    client, in_a_loop = client_of(url), client_in_a_loop(url)
    for _ in range(2):
        with pytest.raises(RedisError):
            client.ping()
        with pytest.raises(RedisError):
            await in_a_loop.ping()
    certificates.sign("changing")
    assert client.ping()
    assert await in_a_loop.ping()
    client.close()
    await in_a_loop.aclose()


@pytest.mark.services
async def test_the_store_ends_on_a_refusal_at_its_start_and_waits_it_out_later(
    server: SecuredRedis, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("wrong")
    store = OnlineStore(server.url(USER, f"${{file:{secret}}}"), 1e9)
    try:
        with pytest.raises(StoreError, match=r"user name, password or token are refused.*correct them"):
            await store.wait()
        assert "waiting" not in capsys.readouterr().out
        writing = asyncio.create_task(store.begin_filling(0))
        said = ""
        while "waiting for Redis" not in said:
            assert not writing.done()
            await asyncio.sleep(0.01)
            said += capsys.readouterr().out
        assert "user name, password or token are refused" in said
        secret.write_text(PASSWORD)
        await writing
        assert not await store.filled(0)
    finally:
        await store.close()


def test_what_cannot_be_used_is_said_at_the_start(tmp_path: Path) -> None:
    def problem(address: str) -> str:
        with pytest.raises(MillraceError) as error:
            redis_client(address)
        return str(error.value)

    assert "no Redis address is set" in problem("")
    assert "the variable 'NOT_SET_ANYWHERE' is not set" in problem("redis://:${NOT_SET_ANYWHERE}@h:1")
    assert f"file '{tmp_path / 'gone'}' cannot be read" in problem(f"redis://:${{file:{tmp_path / 'gone'}}}@h:1")
    missing = problem("rediss://ann:geheim@h:1?ssl_ca_certs=/gone.pem")
    assert "certificates of Redis 'rediss://***@h:1?***' cannot be used" in missing
    for address in ("redis://ann:geheim@h:port", "http://ann:geheim@h:1", "redis://ann:ge/hei?m@h:port"):
        said = problem(address)
        assert "is not usable" in said
        assert "geheim" not in said.replace("/", "").replace("?", "")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("h:1", "h:1"),
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://ann:geheim@h:1", "redis://***@h:1"),
        ("ann:geheim@h:1", "***@h:1"),
        ("redis://:ge@h://eim@h:1", "redis://***@h:1"),
        ("redis://:ge?heim@h:1", "redis://***@h:1"),
        ("rediss://h:1?password=geheim", "rediss://h:1?***"),
        ("rediss://h:1?ssl_password=ge@heim", "rediss://***@heim"),
    ],
)
def test_no_password_is_shown(address: str, shown: str) -> None:
    assert without_password(address) == shown
    assert "geheim" not in repr(Settings(redis=address))
