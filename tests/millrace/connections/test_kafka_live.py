"""Apache Kafka with SASL, TLS and ACLs: each way in, each refusal, and secrets that change under running clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from kafka.errors import KafkaError

from millrace.basics.errors import BrokerError
from millrace.contracts.settings import Settings
from millrace.contracts.topics import EVENTS
from millrace.processes.async_kafka import make_async_producer
from millrace.processes.kafka import make_producer, make_reader, open_broker, wait_for_broker
from tests.scenes.left_sockets import LEFT
from tests.scenes.left_sockets import collected as collected
from tests.scenes.secured_kafka import PASSWORD, STRANGER, USER, Secured, secured_kafka
from tests.scenes.token_endpoint import CLIENT, SECRET, TokenEndpoint, token_endpoint
from tests.scenes.waiting import LONG, PATIENCE, until

pytestmark = [
    pytest.mark.services,
    pytest.mark.kafka,
    pytest.mark.timeout(LONG),
    LEFT,
]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_kafka(tmp_path_factory.mktemp("kafka") / "secured") as secured:
        with contextlib.closing(KafkaAdminClient(bootstrap_servers=[secured.broker.address])) as admin:
            for user in (USER, CLIENT):
                allow(admin, user)
        yield secured


def allow(admin: KafkaAdminClient, user: str, operation: ACLOperation = ACLOperation.ALL, topic: str = "*") -> None:
    of = ResourcePattern(ResourceType.TOPIC, topic)
    admin.create_acls([ACL(f"User:{user}", "*", operation, ACLPermissionType.ALLOW, of)])


@pytest.fixture(scope="module")
def endpoint() -> Iterator[TokenEndpoint]:
    with token_endpoint() as endpoint:
        yield endpoint


Named = Callable[..., Settings]


@pytest.fixture
def named(kafka: Secured, endpoint: TokenEndpoint, tmp_path: Path) -> Named:
    """Makes the settings of a client: the listener, and what differs from a file that works there."""

    def make(listener: str, **changed: str | None) -> Settings:
        mine = str(kafka.certificates.sign("mine"))
        tls = {"ssl.ca.location": str(kafka.certificates.authority)}
        lines: dict[str, str | None]
        if listener == "mutual":
            certificate = {"ssl.certificate.location": mine, "ssl.key.location": mine}
            lines = {"security.protocol": "SSL", **tls, **certificate}
        elif listener == "oauth":
            own = {"token.endpoint.url": endpoint.url, "client.id": CLIENT, "client.secret": SECRET}
            lines = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "OAUTHBEARER"}
            lines |= {f"sasl.oauthbearer.{name}": value for name, value in own.items()}
        else:
            user = {"sasl.username": USER, "sasl.password": PASSWORD}
            lines = {"security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-512", **user, **tls}
        lines |= {name.replace("_", "."): value for name, value in changed.items()}
        path = tmp_path / "client.properties"
        path.write_text("".join(f"{name}={value}\n" for name, value in lines.items() if value is not None))
        return Settings(kafka=kafka.address[listener], kafka_client=str(path), patience_seconds=1e9)

    return make


async def sent_in_a_loop(settings: Settings, value: bytes) -> None:
    producer = make_async_producer(settings)
    try:
        await producer.start()
        await producer.send_and_wait(settings.topic(EVENTS), value)
    finally:
        await producer.stop()


def read(settings: Settings, count: int) -> set[bytes]:
    found: set[bytes] = set()
    with contextlib.closing(make_reader(settings, EVENTS)) as reader:

        def enough() -> bool:
            found.update(r.value for records in reader.poll(timeout_ms=100).values() for r in records)
            return len(found) >= count

        until(enough, f"{count} messages are read", more=lambda: str(found))
    return found


@pytest.mark.parametrize(
    ("listener", "mechanism"),
    [("scram", "SCRAM-SHA-512"), ("scram", "SCRAM-SHA-256"), ("scram", "PLAIN"), ("mutual", None), ("oauth", None)],
)
def test_each_way_in_is_open_to_both_clients(listener: str, mechanism: str | None, named: Named) -> None:
    settings = named(listener, sasl_mechanism=mechanism) if mechanism else named(listener)
    settings = Settings(
        kafka=settings.kafka, kafka_client=settings.kafka_client, prefix=f"{listener}.{mechanism}.", partitions=1
    )
    open_broker(settings)
    with contextlib.closing(make_producer(settings)) as producer:
        producer.send(EVENTS, b"one").get(PATIENCE)
    asyncio.run(sent_in_a_loop(settings, b"two"))
    assert read(settings, 2) == {b"one", b"two"}


REFUSALS: dict[str, tuple[str, dict[str, str | None], str]] = {
    "a wrong password": ("scram", {"sasl_password": "wrong"}, "are refused.*correct them in the file of"),
    "a wrong password in the clear": ("scram", {"sasl_mechanism": "PLAIN", "sasl_password": "wrong"}, "are refused"),
    "a user whom nobody knows": ("scram", {"sasl_username": "nobody"}, "are refused"),
    "a mechanism that is off": ("mechanism", {}, "does not know the mechanism"),
    "an expired certificate of the server": ("expired", {}, "the server's certificate has expired.*renew it"),
    "another host's certificate": ("elsewhere", {}, "certificate is for another host name .*127.0.0.1.*use the name"),
    "an authority that we do not know": ("scram", {"ssl_ca_location": None}, "is not to be trusted.*name the file"),
    "a client certificate that is missing": (
        "mutual",
        {"ssl_certificate_location": None, "ssl_key_location": None},
        "refuses our client certificate, or that there is none",
    ),
    "TLS where the client has none": ("plain", {}, "the server speaks TLS there, and we do not.*name a security"),
    "a client secret that the endpoint does not know": (
        "oauth",
        {"sasl_oauthbearer_client_secret": "wrong"},
        "the token endpoint '.*' refuses with 401.*see that",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_at_the_start_ends_it_with_cause_and_remedy(
    case: str, named: Named, capsys: pytest.CaptureFixture[str]
) -> None:
    listener, changed, cause = REFUSALS[case]
    if listener == "plain":
        settings = Settings(kafka=named("scram").kafka, patience_seconds=1e9)
    elif listener == "mechanism":
        settings = named("oauth", sasl_mechanism="PLAIN", sasl_username=USER, sasl_password=PASSWORD)
    else:
        settings = named(listener, **changed)
    with pytest.raises(BrokerError, match=f"refuses us.*{cause}") as error:  # within a patience of years
        wait_for_broker(settings)
    said = f"{error.value}{capsys.readouterr().out}"
    assert "\n" not in str(error.value)
    assert not [secret for secret in (PASSWORD, SECRET, "wrong") if secret in said]


def test_where_no_tls_is_spoken_it_is_named_as_what_may_be_wrong(kafka: Secured, named: Named) -> None:
    settings = Settings(kafka=kafka.broker.address, kafka_client=named("mutual").kafka_client)
    with pytest.raises(BrokerError, match=r"does not answer .*maybe the server speaks no TLS there; take TLS out"):
        wait_for_broker(settings, patience_seconds=3.0)


@pytest.mark.parametrize(
    ("changed", "cause", "remedy"),
    [
        (
            {"sasl_password": "wrong"},
            "user name, password or token are refused",
            "correct them in the file of MILLRACE_KAFKA_CLIENT",
        ),
        (
            {"sasl_username": STRANGER},
            "the server's ACLs forbid it",
            "grant what docs/how-to/run-in-production.md lists",
        ),
    ],
    ids=["a wrong password", "a right that is missing"],
)
def test_a_role_that_is_refused_at_its_start_ends_in_one_line(
    changed: dict[str, str], cause: str, remedy: str, named: Named, tmp_path: Path
) -> None:
    settings = named("scram", **changed)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
    own = {**settings.environment(), "MILLRACE_DATA": str(tmp_path / "data"), "MILLRACE_METRICS_PORT": "0"}
    argv = [sys.executable, "-m", "millrace", "run", "archive"]
    done = subprocess.run(argv, env={**clean, **own}, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1, done
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if cause in line]
    assert remedy in line
    assert "Traceback" not in done.stdout + done.stderr


def test_a_certificate_that_is_renewed_is_taken_at_the_next_connection(kafka: Secured, named: Named) -> None:
    settings = named("mutual")
    kafka.certificates.sign("mine", days=-1)
    with pytest.raises(BrokerError, match="refuses our client certificate"):
        wait_for_broker(settings)
    kafka.certificates.sign("mine")
    wait_for_broker(settings)


def test_a_changed_password_is_waited_for_and_taken_without_a_restart(
    kafka: Secured, named: Named, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever is connected must prove himself again every other second here, so clients meet the change at once."""
    settings = named("brief")
    topic = f"changing.{EVENTS}"
    said: list[str] = []

    def change(password: str) -> None:
        upsertion = UserScramCredentialUpsertion(USER, ScramMechanism.SCRAM_SHA_512, password)
        with contextlib.closing(KafkaAdminClient(bootstrap_servers=[kafka.broker.address])) as admin:
            admin.alter_user_scram_credentials([upsertion])

    def heard(what: str) -> Callable[[], bool]:
        def look() -> bool:
            said.append(capsys.readouterr().out)
            return what in "".join(said)

        return look

    settings = Settings(kafka=settings.kafka, kafka_client=settings.kafka_client, prefix="changing.", partitions=1)
    open_broker(settings)
    numbers = iter(range(1_000_000))
    sent: set[bytes] = set()
    begun, ending = threading.Event(), threading.Event()

    async def in_a_loop() -> None:
        producer = make_async_producer(settings, request_timeout_ms=3_600_000)
        await producer.start()
        while not ending.is_set():
            value = b"loop %d" % next(numbers)
            await producer.send_and_wait(topic, value)
            sent.add(value)
            begun.set()
            await asyncio.sleep(0.05)
        await producer.stop()

    loop = threading.Thread(target=lambda: asyncio.run(in_a_loop()))
    with (
        contextlib.closing(make_producer(settings, delivery_timeout_ms=3_600_000)) as producer,
        contextlib.closing(make_reader(settings, EVENTS)) as reader,
    ):
        found: set[bytes] = set()

        def send() -> Any:
            value = b"plain %d" % next(numbers)
            sent.add(value)
            return producer.send(EVENTS, value)

        def poll() -> None:
            found.update(r.value for records in reader.poll(timeout_ms=50).values() for r in records)

        loop.start()
        try:
            send().get(PATIENCE)
            assert begun.wait(PATIENCE)
            change("another: password")
            waiting = []

            def refused() -> bool:
                if not heard("are refused")():
                    waiting.append(send())
                    poll()
                    return False
                return True

            until(refused, "a client says that it is refused", every=0.05)
            assert "correct them in the file of MILLRACE_KAFKA_CLIENT" in "".join(said)
            named("brief", sasl_password="another: password")
            for one in waiting:
                one.get(PATIENCE)
            send().get(PATIENCE)
            before = len(sent)
            until(lambda: len(sent) > before, "the client in a loop sends again")
        finally:
            ending.set()
            loop.join()
            change(PASSWORD)
        named("brief")

        def all_found() -> bool:
            poll()
            return found >= sent

        until(all_found, "all messages are read", more=lambda: str(sorted(sent - found)[:20]))
    assert PASSWORD not in "".join(said)
    assert "another: password" not in "".join(said)


def test_what_acls_forbid_is_named(kafka: Secured, named: Named) -> None:
    """A stranger who may see one topic."""
    settings = named("scram", sasl_username=STRANGER)
    with pytest.raises(BrokerError, match=r"the server's ACLs forbid it.*Topic.*; grant what"):
        open_broker(settings)
    name = f"closed.{EVENTS}"
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=[kafka.broker.address])) as admin:
        admin.create_topics({name: {"num_partitions": 1, "replication_factor": 1}})
        allow(admin, STRANGER, ACLOperation.DESCRIBE, name)
    closed = Settings(kafka=settings.kafka, kafka_client=settings.kafka_client, prefix="closed.")

    def readable() -> bool:
        try:
            with contextlib.closing(make_reader(closed, EVENTS)) as reader:
                while not reader.poll(timeout_ms=100):
                    pass
        except BrokerError as error:
            if "does not exist" in str(error):  # the ACL has not come into force yet
                return False
            raise
        return True

    with pytest.raises(BrokerError, match=r"does not let us read \(the server's ACLs forbid it.*closed"):
        until(readable, "it may be read")
    with contextlib.closing(make_producer(closed, enable_idempotence=False)) as producer, pytest.raises(KafkaError):
        producer.send(EVENTS, b"no").get(PATIENCE)
