"""Apache Kafka as one rents it: SASL, TLS and ACLs, on a listener for each way to get in, or to be refused.

::

    scram      SASL_SSL: SCRAM-SHA-256, SCRAM-SHA-512 and PLAIN
    brief      the same; who is connected must prove himself again every other second
    mutual     SSL, with a client's certificate
    expired    SASL_SSL, with a certificate that ended yesterday
    elsewhere  SASL_SSL, with a certificate for another host
    oauth      SASL_PLAINTEXT: OAUTHBEARER; unsigned tokens are taken
    PLAINTEXT  for the broker itself, and for what tests change: whoever comes here may do everything
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import trustme
from cryptography.hazmat.primitives import serialization

from millrace.processes.services import free_port
from tests.scenes.demo_kafka import ApacheKafka

USER, STRANGER = "millrace", "stranger"
PASSWORD = "correct=horse: battery"
"""With signs that mean something in SCRAM and in files of properties."""
LISTENERS = ("scram", "brief", "mutual", "expired", "elsewhere", "oauth")

_SETTINGS = """
listeners={listeners}
advertised.listeners={advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SCRAM:SASL_SSL,BRIEF:SASL_SSL,MUTUAL:SSL,EXPIRED:SASL_SSL,\
ELSEWHERE:SASL_SSL,OAUTH:SASL_PLAINTEXT
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN
ssl.truststore.type=PEM
ssl.truststore.location={authority}
ssl.keystore.type=PEM
ssl.keystore.location={good}
listener.name.expired.ssl.keystore.location={expired}
listener.name.elsewhere.ssl.keystore.location={elsewhere}
listener.name.mutual.ssl.client.auth=required
listener.name.mutual.ssl.principal.mapping.rules=RULE:^.*$/{user}/
listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER
listener.name.oauth.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";
"""
_BRIEF = "listener.name.brief.{mechanism}.connections.max.reauth.ms=2000\n"
_JAAS = """listener.name.{name}.{mechanism}.sasl.jaas.config={module} required {options};
"""


class Certificates:
    """An authority of one's own and what it signs, as PEM files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._own, self._other = folder, trustme.CA(), trustme.CA()
        self.authority = folder / "ca.pem"
        self._own.cert_pem.write_to_path(self.authority)

    def sign(self, name: str, *hosts: str, days: int = 30, stranger: bool = False) -> Path:
        """A key and its certificate, in one file. ``days`` below 0: it has ended. ``stranger``: another authority,
        which nobody trusts, signs it."""
        now = datetime.datetime.now(datetime.UTC)
        begin, end = now - datetime.timedelta(365), now + datetime.timedelta(days)
        authority = self._other if stranger else self._own
        signed = authority.issue_cert(*(hosts or ("127.0.0.1", "localhost")), not_before=begin, not_after=end)
        # Java reads keys as PKCS 8 only.
        key = serialization.load_pem_private_key(signed.private_key_pem.bytes(), None)
        kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        path = self._folder / f"{name}.pem"
        chain = b"".join(one.bytes() for one in signed.cert_chain_pems)
        path.write_bytes(key.private_bytes(*kinds) + chain)
        return path


class Secured(NamedTuple):
    """A running broker. ``address``: by listener."""

    broker: ApacheKafka
    address: dict[str, str]
    certificates: Certificates


@contextmanager
def secured_kafka(folder: Path) -> Iterator[Secured]:
    folder.mkdir()
    certificates = Certificates(folder / "certificates")
    port, controller = free_port(), free_port()
    address = {name: f"127.0.0.1:{free_port()}" for name in LISTENERS}
    advertised = [f"PLAINTEXT://127.0.0.1:{port}", *(f"{name.upper()}://{at}" for name, at in address.items())]
    more = _SETTINGS.format(
        listeners=",".join([*advertised, f"CONTROLLER://127.0.0.1:{controller}"]),
        advertised=",".join(advertised),
        authority=certificates.authority,
        good=certificates.sign("good"),
        expired=certificates.sign("expired", days=-1),
        elsewhere=certificates.sign("elsewhere", "elsewhere.example"),
        user=USER,
    )
    for name in ("scram", "brief", "expired", "elsewhere"):
        package = "org.apache.kafka.common.security"
        for mechanism in ("scram-sha-256", "scram-sha-512"):
            more += _BRIEF.format(mechanism=mechanism)
            more += _JAAS.format(name=name, mechanism=mechanism, module=f"{package}.scram.ScramLoginModule", options="")
        user = f'user_{USER}="{PASSWORD}"'
        more += _JAAS.format(name=name, mechanism="plain", module=f"{package}.plain.PlainLoginModule", options=user)
    users = {USER: PASSWORD, STRANGER: PASSWORD}
    with ApacheKafka(folder / "kafka", port=port, controller=controller, more=more, users=users) as broker:
        yield Secured(broker, address, certificates)
