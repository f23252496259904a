"""Tokens of an endpoint, and AWS' of credentials that nobody knows: the signer asks no server."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from millrace.basics.errors import BrokerError, SettingError
from millrace.connections.client_properties import ClientProperties
from millrace.connections.kafka_security import KafkaSecurity
from millrace.connections.kafka_tokens import TokenSource
from tests.scenes.token_endpoint import CLIENT, SECRET, token_endpoint


def properties(url: str, secret: str = SECRET) -> ClientProperties:
    own = {"token.endpoint.url": url, "client.id": CLIENT, "client.secret": secret, "scope": "shop"}
    values = {f"sasl.oauthbearer.{name}": value for name, value in own.items()}
    return ClientProperties({"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER", **values}, ())


def test_a_token_is_used_for_most_of_its_life(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1000.0]
    monkeypatch.setattr("millrace.connections.kafka_tokens.time", SimpleNamespace(time=lambda: now_s[0]))
    with token_endpoint() as endpoint:
        endpoint.life_s = 100.0
        found = [properties(endpoint.url)]
        source = TokenSource(lambda: found[0])
        first = source.token()
        now_s[0] += 79
        assert source.token() == first
        assert endpoint.asked == [{"grant_type": ["client_credentials"], "scope": ["shop"]}]
        now_s[0] += 2
        second = source.token()
        assert (second != first, len(endpoint.asked)) == (True, 2)
        found[0] = properties(endpoint.url)  # the file was read again
        source.token()
        assert len(endpoint.asked) == 3


def refused(found: ClientProperties) -> str:
    with pytest.raises(BrokerError) as error:
        TokenSource(lambda: found).token()
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_an_endpoint_may_do_is_told_in_one_line() -> None:
    with token_endpoint() as endpoint:
        assert "refuses with 401; see that sasl.oauthbearer" in refused(properties(endpoint.url, "another"))
        endpoint.status = 204
        assert "gives no token" in refused(properties(endpoint.url))
        endpoint.status = 503
        assert "refuses with 503" in refused(properties(endpoint.url))
    assert "gives no token" in refused(properties(endpoint.url))
    assert "it is no http:// or https:// URL" in refused(properties("file:///etc/passwd"))


@pytest.fixture
def msk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], KafkaSecurity]:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "client.properties"
    path.write_text("security.protocol=SASL_SSL\nsasl.mechanism=AWS_MSK_IAM\n")
    return lambda: KafkaSecurity(str(path))


def test_msk_wants_a_region_and_signs_with_aws_credentials(
    msk: Callable[[], KafkaSecurity], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match="AWS_REGION is not set; set AWS_REGION"):
        msk()
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    with pytest.raises(SettingError, match=r"AWS' signer gives no token.*give this process credentials"):
        msk().tokens.token()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    options = msk().options(lambda source: source)
    assert options["sasl_mechanism"] == "OAUTHBEARER"
    token = options["sasl_oauth_token_provider"].token()
    signed = urlsplit(base64.urlsafe_b64decode(token + "==").decode())
    assert signed.hostname == "kafka.eu-central-1.amazonaws.com"
    asked = parse_qs(signed.query)
    assert asked["Action"] == ["kafka-cluster:Connect"]
    assert asked["X-Amz-Credential"][0].startswith("AKIDEXAMPLE/")
    assert "geheim" not in token
