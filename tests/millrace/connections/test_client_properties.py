"""client.properties: what is read, and what a file is refused for, without a secret in any text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from millrace.basics.errors import SettingError
from millrace.connections.client_properties import read_properties
from millrace.connections.kafka_security import KafkaSecurity, security_of
from millrace.contracts.settings import Settings
from tests.scenes.secured_kafka import Certificates

SCRAM = "security.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-512\nsasl.username=ann\nsasl.password=geheim\n"


def written(folder: Path, text: str) -> str:
    path = folder / "client.properties"
    path.write_text(text)
    return str(path)


def test_a_file_as_a_managed_kafka_hands_it_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_USER", "ann")
    (tmp_path / "password").write_text("ge=heim#1\n")
    (tmp_path / "ca.pem").write_text("")
    found = read_properties(
        written(
            tmp_path,
            "# of the cloud\n! and more\n\nsecurity.protocol = SASL_SSL\nsasl.mechanisms=PLAIN\n"
            f"sasl.username=${{SHOP_USER}}\nsasl.password=${{file:{tmp_path / 'password'}}}\nssl.ca.location=ca.pem\n",
        )
    )
    assert (found.protocol, found.mechanism, found.tls) == ("SASL_SSL", "PLAIN", True)
    assert (found["sasl.username"], found["sasl.password"]) == ("ann", "ge=heim#1")
    assert found["ssl.ca.location"] == str(tmp_path / "ca.pem")
    assert {Path(name).name for name in found.files} == {"client.properties", "password", "ca.pem"}
    assert "heim" not in repr(found)
    assert read_properties(written(tmp_path, "")).protocol == "PLAINTEXT"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("security.protocol=TLS", "security.protocol 'TLS'; use PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"),
        (SCRAM.replace("-512", "-1"), "sasl.mechanism 'SCRAM-SHA-1'; use PLAIN, SCRAM-SHA-256"),
        ("security.protocol=SASL_SSL", "SASL_SSL needs 'sasl.mechanism'; add sasl.mechanism=..."),
        (SCRAM.replace("sasl.password=geheim\n", ""), "SASL_SSL with SCRAM-SHA-512 needs 'sasl.password'"),
        (SCRAM.replace("geheim", "${NOT_SET_ANYWHERE}"), ":4: the variable 'NOT_SET_ANYWHERE' is not set"),
        (SCRAM.replace("geheim", "${file:/gone}"), ":4: file '/gone' cannot be read (No such file or directory)"),
        (SCRAM + "ssl.ca.location=/gone.pem", "file '/gone.pem' cannot be read"),
        (SCRAM + "sasl.usernam=bob", ":5: there is no key 'sasl.usernam'; did you mean sasl.username?"),
        (SCRAM + "bootstrap.servers=h:1", "leave it out: MILLRACE_KAFKA has the addresses"),
        (SCRAM + "acks=all", ":5: there is no key 'acks'; leave it out; the keys are security.protocol"),
        (SCRAM + "sasl.password=geheim", ":5: 'sasl.password' is there twice"),
        (SCRAM + "geheim", ":5: the line is no key=value"),
        (SCRAM.replace("SASL_SSL", "SSL"), "security.protocol SSL uses no sasl.* key"),
        ("ssl.key.password=geheim", "security.protocol PLAINTEXT uses no ssl.* key"),
        ("security.protocol=SASL_SSL\nsasl.mechanism=OAUTHBEARER", "needs 'sasl.oauthbearer.token.endpoint.url'"),
        ("security.protocol=SSL\nssl.key.location=k.pem", "file"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as error:
        read_properties(written(tmp_path, text))
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "geheim" not in str(error.value)


def test_certificates_must_be_some(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "certificates")
    mine, other = certificates.sign("mine"), certificates.sign("other")
    lines = f"security.protocol=SSL\nssl.ca.location={certificates.authority}\nssl.certificate.location={mine}\n"
    KafkaSecurity(written(tmp_path, f"{lines}ssl.key.location={mine}"))
    with pytest.raises(SettingError, match="a client certificate needs 'ssl"):
        KafkaSecurity(written(tmp_path, lines))
    key = tmp_path / "key.pem"
    key.write_bytes(other.read_bytes().partition(b"-----BEGIN CERTIFICATE")[0])
    with pytest.raises(SettingError, match=r"mine.pem' cannot be used as a certificate \(KEY_VALUES_MISMATCH\)"):
        KafkaSecurity(written(tmp_path, f"{lines}ssl.key.location={key}"))
    with pytest.raises(SettingError, match=r"client.properties' cannot be used as a certificate"):
        KafkaSecurity(written(tmp_path, "security.protocol=SSL\nssl.ca.location=client.properties"))


def test_options_have_no_secret(tmp_path: Path) -> None:
    options = KafkaSecurity(written(tmp_path, SCRAM)).options(lambda source: source)
    assert "geheim" not in repr(options)
    assert "geheim" not in str(options)
    assert options["sasl_plain_password"].now() == "geheim"


def test_what_changes_is_read_again_and_a_mistake_leaves_the_former(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    security = KafkaSecurity(written(tmp_path, SCRAM))
    password = security.options(lambda source: source)["sasl_plain_password"]
    secret = tmp_path / "secret"
    secret.write_text("second")
    written(tmp_path, SCRAM.replace("geheim", f"${{file:{secret}}}"))
    assert password.now() == "second"
    assert "read again" in capsys.readouterr().out
    os.replace(_beside(secret, "third"), secret)
    assert password.now() == "third"
    assert "read again" in capsys.readouterr().out
    secret.unlink()
    for _ in range(2):
        assert password.now() == "third"
    said = capsys.readouterr().out
    assert said.count("the former holds") == 1
    assert "third" not in said
    secret.write_text("fourth")
    assert password.now() == "fourth"


def _beside(path: Path, text: str) -> Path:
    other = path.with_suffix(".new")
    other.write_text(text)
    return other


def test_all_clients_of_a_process_share_one(tmp_path: Path) -> None:
    settings = Settings(kafka="h:1", kafka_client=written(tmp_path, SCRAM))
    assert security_of(settings) is security_of(settings)
    assert security_of(Settings(kafka="h:1")) is None
