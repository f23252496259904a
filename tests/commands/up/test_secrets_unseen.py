"""What the commands say of Kafka's and Redis' security: mistakes by name, and no secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from commands.cli import cliconfig
from commands.up.doctor import examine
from millrace.basics.errors import SettingError
from millrace.connections.kafka_security import security_of
from millrace.contracts.settings import load_settings

SECRET = "geheim"
MISTAKEN = "security.protocol=SASL_SSL\nsasl.mechanism=SCRAM-SHA-1\nsasl.username=ann\nsasl.password=geheim\n"


@pytest.fixture
def properties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "client.properties"
    path.write_text(MISTAKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILLRACE_KAFKA", "127.0.0.1:1")
    monkeypatch.setenv("MILLRACE_KAFKA_CLIENT", str(path))
    monkeypatch.setenv("MILLRACE_REDIS", f"rediss://ann:{SECRET}@127.0.0.1:1?ssl_ca_certs=/gone.pem")
    monkeypatch.setattr("commands.up.doctor.check", lambda *_: None)
    return path


def said_by(call: Any, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        call()
    return capsys.readouterr().out


def test_check_names_each_mistake_and_show_hides_secrets(properties: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = json.loads(said_by(lambda: cliconfig.check(json=True), capsys))
    assert f"{properties}: sasl.mechanism 'SCRAM-SHA-1'; use PLAIN" in mistakes[0]
    assert "certificates of Redis 'rediss://***@127.0.0.1:1?***' cannot be used" in mistakes[1]
    cliconfig.show()
    shown = capsys.readouterr().out
    assert str(properties) in shown
    assert "rediss://***@127.0.0.1:1?***" in shown
    assert SECRET not in shown + "".join(mistakes)


def test_doctor_names_the_mistake_or_the_refusal(properties: Path) -> None:
    (settings,) = [found for found in examine({}) if found.check == "settings" and found.state == "mend"]
    assert "sasl.mechanism 'SCRAM-SHA-1'" in str(settings)
    properties.write_text(MISTAKEN.replace("SHA-1\n", "SHA-256\n"))
    found = examine({"redis": f"redis://ann:{SECRET}@127.0.0.1:1"})
    assert SECRET not in "".join(map(str, found))


def test_a_file_without_a_broker_is_a_mistake(properties: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    properties.write_text("")
    monkeypatch.delenv("MILLRACE_KAFKA")
    with pytest.raises(SettingError, match="is set, and no Kafka is; set MILLRACE_KAFKA"):
        security_of(load_settings())
