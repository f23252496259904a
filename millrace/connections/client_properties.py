# core
"""The file ``client.properties`` of MILLRACE_KAFKA_CLIENT: how Kafka lets us in, as managed Kafkas hand it out. Names
are those of librdkafka::

    security.protocol=SASL_SSL
    sasl.mechanism=SCRAM-SHA-512
    sasl.username=millrace
    sasl.password=${file:/run/secrets/kafka}
    ssl.ca.location=/etc/kafka/ca.pem
"""

from __future__ import annotations

import difflib
from pathlib import Path

from msgspec import Struct

from millrace.basics.errors import SettingError
from millrace.connections.secrets import file_bytes, files_in, filled

PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
BY_PASSWORD = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
OAUTH, MSK = "OAUTHBEARER", "AWS_MSK_IAM"
MECHANISMS = (*BY_PASSWORD, OAUTH, MSK)
ENDPOINT = "sasl.oauthbearer.token.endpoint.url"

_PASSWORD = ("sasl.username", "sasl.password")
_TOKEN = (ENDPOINT, "sasl.oauthbearer.client.id", "sasl.oauthbearer.client.secret", "sasl.oauthbearer.scope")
_PAIR = ("ssl.certificate.location", "ssl.key.location")
_TLS = ("ssl.ca.location", *_PAIR, "ssl.key.password")
KEYS = ("security.protocol", "sasl.mechanism", *_PASSWORD, *_TOKEN, "https.ca.location", *_TLS)
_ALIKE = {"sasl.mechanisms": "sasl.mechanism"}
_LOCATIONS = tuple(key for key in KEYS if key.endswith(".location"))


class ClientProperties(Struct, frozen=True):
    """A checked file.

    Attributes:
        values: by key, secrets filled in.
        files: all that the values depend on: the file itself and those that it names.
    """

    values: dict[str, str]
    files: tuple[str, ...]

    def __repr__(self) -> str:
        return f"ClientProperties({', '.join(self.values)})"

    def __getitem__(self, key: str) -> str:
        """The value of a key; "" where the file has none."""
        return self.values.get(key, "")

    @property
    def protocol(self) -> str:
        return self["security.protocol"] or "PLAINTEXT"

    @property
    def mechanism(self) -> str:
        """Empty without SASL."""
        return self["sasl.mechanism"] if self.protocol.startswith("SASL") else ""

    @property
    def tls(self) -> bool:
        return self.protocol.endswith("SSL")


def read_properties(path: str) -> ClientProperties:
    """Reads and checks a file. A relative location in it is relative to the file.

    Raises:
        SettingError: a line, a key or a value cannot be used, a key is missing, or a variable or a file is not there.
            Its text has no secret.
    """
    values: dict[str, str] = {}
    files = [path]
    for number, raw in enumerate(file_bytes(path).decode("utf-8", "replace").splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#!":
            continue
        name, equals, text = (part.strip() for part in line.partition("="))
        key = _ALIKE.get(name, name)
        if not equals:
            raise SettingError(f"{path}:{number}: the line is no key=value", "write one key=value a line")
        if key not in KEYS:
            raise SettingError(f"{path}:{number}: there is no key '{name}'", _meant(name))
        if key in values:
            raise SettingError(f"{path}:{number}: '{name}' is there twice", "leave one")
        files += files_in(text)
        try:
            values[key] = filled(text)
        except SettingError as error:
            raise SettingError(f"{path}:{number}: {error.problem}", error.remedy) from None
    for key in _LOCATIONS:
        if key in values:
            values[key] = str(Path(path).parent / values[key])
            file_bytes(values[key])
            files.append(values[key])
    found = ClientProperties(values, tuple(files))
    _check(found, path)
    return found


def _meant(name: str) -> str:
    if name == "bootstrap.servers":
        return "leave it out: MILLRACE_KAFKA has the addresses"
    near = difflib.get_close_matches(name, KEYS, n=1)
    return f"did you mean {near[0]}?" if near else f"leave it out; the keys are {', '.join(KEYS)}"


def _check(found: ClientProperties, path: str) -> None:
    def need(*keys: str) -> None:
        for key in keys:
            if not found[key]:
                raise SettingError(f"{path}: {' with '.join(why)} needs '{key}'", f"add {key}=...")

    def choose(key: str, value: str, known: tuple[str, ...]) -> None:
        if value not in known:
            raise SettingError(f"{path}: {key} '{value}'", f"use {', '.join(known[:-1])} or {known[-1]}")

    choose("security.protocol", found.protocol, PROTOCOLS)
    why = [found.protocol]
    if found.protocol.startswith("SASL"):
        need("sasl.mechanism")
        choose("sasl.mechanism", found.mechanism, MECHANISMS)
        why.append(found.mechanism)
        if found.mechanism in BY_PASSWORD:
            need(*_PASSWORD)
        elif found.mechanism == OAUTH:
            need(*_TOKEN[:3])
    elif any(key.startswith("sasl.") for key in found.values):
        problem = f"{path}: security.protocol {found.protocol} uses no sasl.* key, and there are some"
        raise SettingError(problem, "use SASL_SSL or SASL_PLAINTEXT, or leave them out")
    if not found.tls and any(key in found.values for key in _TLS):
        problem = f"{path}: security.protocol {found.protocol} uses no ssl.* key, and there are some"
        raise SettingError(problem, "use SSL or SASL_SSL, or leave them out")
    if found["ssl.certificate.location"] or found["ssl.key.location"]:
        why = ["a client certificate"]
        need(*_PAIR)
