"""Bearer tokens: who gets in, which paths need none, a file that changes, and that no token is seen anywhere."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import structlog
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from millrace.basics.errors import SettingError
from millrace.contracts.settings import Settings
from millrace.processes import tokens as module
from millrace.processes.tokens import TokenGate, Tokens, bearer, is_loopback, warn_if_open
from tests.scenes.intake_desk import ask


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'"hello"'})


def get(tokens: Tokens, header: str | None, path: str = "/events") -> tuple[int, Any, dict[str, str]]:
    headers = {} if header is None else {"authorization": header}
    return asyncio.run(ask(TokenGate(hello, tokens), "GET", path, headers=headers))


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer one", 200),
        ("bearer  two ", 200),
        ("Bearer three", 200),
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        ("Bearer on", 401),
        ("Bearer one two", 401),
        ("Basic one", 401),
        ("one", 401),
        ("Bearer #", 401),
        ("Bearer \xff", 401),
    ],
)
def test_only_whoever_has_a_token_gets_in(tmp_path: Path, header: str | None, status: int) -> None:
    file = written(tmp_path / "tokens", "# for the shop\n\n three \n")
    tokens = Tokens.of(Settings(tokens="one, two", token_file=str(file)))
    found, answer, headers = get(tokens, header)
    assert found == status
    if status == 401:
        assert headers["www-authenticate"].startswith("Bearer")
        assert set(answer) == {"error"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2/models/millrace", 401),
        ("/metrics", 401),
        ("/openapi.json", 401),
        ("/healthz/", 401),
        ("/recommend", 401),
    ],
)
def test_whether_a_process_lives_may_be_asked_without_one(path: str, status: int) -> None:
    assert get(Tokens(["one"]), None, path)[0] == status


def test_without_tokens_everybody_gets_in_and_a_public_address_is_warned_of() -> None:
    tokens = Tokens.of(Settings())
    assert get(tokens, None)[0] == 200
    structlog.reset_defaults()
    for host, warned in (
        ("0.0.0.0", 1),
        ("::", 1),
        ("shop.example", 1),
        ("127.0.0.1", 0),
        ("localhost", 0),
        ("::1", 0),
    ):
        assert is_loopback(host) == (not warned)
        with capture_logs() as lines:
            warn_if_open(host, tokens, "intake")
            warn_if_open(host, Tokens(["one"]), "intake")
        assert len(lines) == warned


def test_the_file_is_read_again_when_it_changes(tmp_path: Path, no_wait: None) -> None:
    file = written(tmp_path / "tokens", "old\n")
    tokens = Tokens.of(Settings(token_file=str(file)))
    assert get(tokens, "Bearer old")[0] == 200
    new = written(tmp_path / "new", "new\n")
    os.replace(new, file)
    assert [get(tokens, f"Bearer {one}")[0] for one in ("old", "new")] == [401, 200]


@pytest.mark.parametrize("change", ["empty", "gone", "garbage"])
def test_a_file_that_is_of_no_use_any_more_opens_no_listener(tmp_path: Path, no_wait: None, change: str) -> None:
    file = written(tmp_path / "tokens", "good\n")
    tokens = Tokens.of(Settings(token_file=str(file)))
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(b"" if change == "empty" else b"\xff\xfe")
    with capture_logs() as lines:
        assert [get(tokens, header)[0] for header in (None, "Bearer good", "Bearer bad")] == [401, 200, 401]
    assert [line["log_level"] for line in lines] == ["warning"]


def test_a_file_that_others_can_read_is_warned_of(tmp_path: Path, no_wait: None) -> None:
    for mode, warned in ((0o644, 1), (0o640, 1), (0o602, 1), (0o600, 0), (0o400, 0)):
        file = written(tmp_path / f"tokens-{mode}", "good\n", mode)
        with capture_logs() as lines:
            Tokens.of(Settings(token_file=str(file)))
        assert len(lines) == warned


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "two words\n", "ümlaut\n"])
def test_a_file_without_a_usable_token_ends_the_start(tmp_path: Path, text: str) -> None:
    file = written(tmp_path / "tokens", text)
    with pytest.raises(SettingError) as caught:
        Tokens.of(Settings(token_file=str(file)))
    assert str(file) in str(caught.value)
    assert not text.strip() or text.strip() not in str(caught.value)
    with pytest.raises(SettingError):
        Tokens.of(Settings(token_file=str(tmp_path / "no such")))
    with pytest.raises(SettingError):
        Tokens.of(Settings(tokens=" , "))


def test_our_own_requests_carry_the_first_token(tmp_path: Path) -> None:
    file = written(tmp_path / "tokens", "of-file\nother\n")
    assert bearer(Settings()) == {}
    assert bearer(Settings(token_file=str(file))) == {"Authorization": "Bearer of-file"}
    assert bearer(Settings(tokens="own", token_file=str(file))) == {"Authorization": "Bearer own"}


def test_no_token_and_no_password_is_seen_in_settings_or_log(no_wait: None) -> None:
    settings = Settings(tokens="s3cret", redis="redis://:passw0rd@host:6379/0")
    assert "s3cret" not in repr(settings)
    assert "passw0rd" not in repr(settings)
    assert "host:6379" in repr(settings)
    assert settings.environment()["MILLRACE_TOKENS"] == "s3cret", "a child process is told, by its environment"
    with capture_logs() as lines:
        get(Tokens.of(settings), "Bearer wr0ng")
    assert "s3cret" not in str(lines)
    assert "s3cret" not in repr(vars(Tokens.of(settings)))
