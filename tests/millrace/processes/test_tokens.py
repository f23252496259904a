"""Bearer tokens: who gets in, which paths need none, a file that changes, and that no token is seen anywhere. Without
tokens: who asks on behalf of a web page of elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import pytest
import structlog
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from millrace.basics.errors import SettingError
from millrace.contracts.settings import Settings, load_settings
from millrace.processes import tokens as module
from millrace.processes.tokens import AccessGate, Tokens, bearer, is_loopback, warn_if_open
from tests.architecture import ROOT
from tests.scenes.intake_desk import ask


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'"hello"'})


def get(tokens: Tokens, header: str | None, path: str = "/events") -> tuple[int, Any, dict[str, str]]:
    headers = {} if header is None else {"authorization": header}
    return asyncio.run(ask(AccessGate(hello, tokens, Settings()), "GET", path, headers=headers))


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


FORM, TEXT, JSON = "application/x-www-form-urlencoded", "text/plain;charset=UTF-8", "application/json"
OWN = {"host": "127.0.0.1:8720", "origin": "http://127.0.0.1:8720"}
HERE = {"host": "127.0.0.1:8720"}
ASKED: list[tuple[dict[str, str], str]] = [
    # Programs: they say no page. What they name must be this machine, or a name that is set.
    ({}, ""),
    ({"content-type": FORM}, ""),
    (HERE | {"content-type": FORM}, ""),
    (HERE | {"content-type": FORM, "user-agent": "Mozilla/5.0 WindowsPowerShell/5.1"}, ""),
    (HERE | {"content-type": TEXT, "sec-fetch-mode": "cors"}, ""),  # fetch() of Node
    (HERE | {"x-forwarded-host": "evil.example"}, ""),
    ({"host": "localhost:8720"}, ""),
    ({"host": "LocalHost.:8720"}, ""),
    ({"host": "127.0.0.2"}, ""),
    ({"host": "[::1]:8720"}, ""),
    ({"host": "[::1]"}, ""),
    ({"host": "Shop.example:80"}, ""),
    ({"host": "shop.example."}, ""),
    ({"host": "[fd00::7]:8720"}, ""),
    ({"host": "10.0.0.7:8720"}, ""),  # what the listener is bound to
    ({"host": "evil.example:8720"}, "'evil.example:8720': name it in MILLRACE_ALLOWED_HOSTS"),
    ({"host": "evil.example", "x-forwarded-host": "127.0.0.1"}, "ALLOWED_HOSTS"),
    ({"host": "10.0.0.8:8720"}, "ALLOWED_HOSTS"),
    ({"host": "0.0.0.0:8720"}, "ALLOWED_HOSTS"),
    ({"host": "[fd00::8]:8720"}, "ALLOWED_HOSTS"),
    ({"host": "127.0.0.1.evil.example"}, "ALLOWED_HOSTS"),
    ({"host": "localhost.evil.example"}, "ALLOWED_HOSTS"),
    ({"host": "evil.example@127.0.0.1"}, "ALLOWED_HOSTS"),
    ({"host": "127.0.0.1, evil.example"}, "ALLOWED_HOSTS"),
    ({"host": "127.0.0.1:8720:80"}, "ALLOWED_HOSTS"),
    ({"host": "www.shop.example"}, "ALLOWED_HOSTS"),
    ({"host": ""}, "ALLOWED_HOSTS"),
    ({"host": "\xff"}, "ALLOWED_HOSTS"),
    # Pages of this listener, and of origins that are set.
    (OWN | {"content-type": JSON, "sec-fetch-site": "same-origin"}, ""),
    ({"host": "LOCALHOST:8710", "origin": "http://localhost:8710", "content-type": JSON}, ""),
    ({"host": "shop.example", "origin": "https://shop.example", "content-type": JSON}, ""),
    (HERE | {"origin": "https://www.shop.example", "sec-fetch-site": "cross-site", "content-type": TEXT}, ""),
    (HERE | {"origin": "https://WWW.shop.example", "content-type": FORM}, ""),
    (OWN | {"content-type": TEXT}, "type 'text/plain': send application/json"),
    (OWN | {"content-type": "Text/Plain"}, "text/plain"),
    (OWN | {"content-type": FORM}, "application/x-www-form-urlencoded"),
    (OWN | {"content-type": "multipart/form-data; boundary=x"}, "multipart/form-data"),
    (OWN, "type ''"),
    # Pages of elsewhere.
    (HERE | {"origin": "https://evil.example", "content-type": JSON}, "'https://evil.example' asks: name it in MILL"),
    (HERE | {"origin": "https://evil.example", "content-type": TEXT}, "ALLOWED_ORIGINS"),
    (HERE | {"origin": "null", "content-type": JSON}, "ALLOWED_ORIGINS"),
    (HERE | {"origin": "", "content-type": JSON}, "ALLOWED_ORIGINS"),
    (
        HERE | {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-site", "content-type": JSON},
        "ALLOWED_ORIGINS",
    ),
    (HERE | {"origin": "http://127.0.0.1:87200", "content-type": JSON}, "ALLOWED_ORIGINS"),
    (HERE | {"origin": "http://127.0.0.1", "content-type": JSON}, "ALLOWED_ORIGINS"),
    (HERE | {"origin": "http://localhost:8720", "content-type": JSON}, "ALLOWED_ORIGINS"),
    (HERE | {"origin": "http://www.shop.example", "content-type": JSON}, "ALLOWED_ORIGINS"),
    ({"origin": "http://", "content-type": JSON}, "ALLOWED_ORIGINS"),
    (HERE | {"sec-fetch-site": "cross-site", "content-type": JSON}, "another site"),
    (OWN | {"sec-fetch-site": "cross-site", "content-type": JSON}, "another site"),
    (HERE | {"sec-fetch-site": "same-site", "content-type": TEXT}, "text/plain"),
    ({"host": "evil.example", "origin": "https://www.shop.example"}, "ALLOWED_HOSTS"),
    ({"host": "evil.example:8720", "origin": "http://evil.example:8720", "content-type": JSON}, "ALLOWED_HOSTS"),
]
"""Headers of a POST, and what the refusal says; empty: there is none."""


@pytest.mark.parametrize(("headers", "why"), ASKED)
def test_without_tokens_programs_get_in_and_web_pages_of_elsewhere_do_not(headers: dict[str, str], why: str) -> None:
    refused: list[str] = []
    settings = Settings(
        host="10.0.0.7",
        allowed_hosts="shop.example, [fd00::7]",
        allowed_origins="https://www.shop.example",
    )
    gate = AccessGate(hello, Tokens(), settings, refused.append)
    status, answer, _ = asyncio.run(ask(gate, "POST", "/events", headers=headers))
    if why:
        assert (status, refused) == (403, ["403"])
        assert why in answer["error"]
    else:
        assert (status, answer, refused) == (200, "hello", [])
    for path in ("/healthz", "/readyz", "/metrics", "/v2/health/live"):  # of a pod, by its address
        assert asyncio.run(ask(gate, "GET", path, headers=headers))[0] == 200
    with_tokens = AccessGate(hello, Tokens(["one"]), settings)
    assert asyncio.run(ask(with_tokens, "POST", "/events", headers=headers))[0] == 401
    known = headers | {"authorization": "Bearer one"}
    assert asyncio.run(ask(with_tokens, "POST", "/events", headers=known))[0] == 200, "no page knows a token"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_an_address_of_all_interfaces_is_no_name_of_this_machine(host: str) -> None:
    gate = AccessGate(hello, Tokens(), Settings(host=host))
    for name, status in (("[::]" if host == "::" else host, 403), ("127.0.0.1", 200)):
        assert asyncio.run(ask(gate, "GET", "/model", headers={"host": f"{name}:8700"}))[0] == status


def test_what_a_browser_reads_or_deletes_for_its_own_page_may_have_no_body() -> None:
    gate = AccessGate(hello, Tokens(), Settings())
    for method in ("GET", "DELETE"):
        for headers, status in ((OWN, 200), (HERE | {"sec-fetch-site": "none"}, 200), (HERE | {"origin": "null"}, 403)):
            assert asyncio.run(ask(gate, method, "/users/ann", headers=headers))[0] == status
    preflight = HERE | {"origin": "https://evil.example", "access-control-request-method": "DELETE"}
    status, _, headers = asyncio.run(ask(gate, "OPTIONS", "/users/ann", headers=preflight))
    assert status == 403
    assert not [name for name in headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("allowed_hosts", "a.example, shop.example:8720", "name or address alone"),
        ("allowed_hosts", "https://shop.example", "name or address alone"),
        ("allowed_hosts", "*", "name or address alone"),
        ("allowed_origins", "shop.example", "as https://shop.example"),
        ("allowed_origins", "https://shop.example/", "as https://shop.example"),
        ("allowed_origins", "null", "as https://shop.example"),
    ],
)
def test_a_host_or_an_origin_that_is_none_is_a_mistake_in_one_line(name: str, value: str, remedy: str) -> None:
    with pytest.raises(SettingError) as caught:
        load_settings({name: value}, {})
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_http_listener_is_behind_the_gate() -> None:
    """But that of the stand-in, which says the same to everybody (scorer/worker/door.py), and of /metrics."""
    rooms = ("millrace", "simulator", "stream", "learner", "scorer")
    text = {path: path.read_text() for room in rooms for path in (ROOT / room).rglob("*.py")}
    starts = re.compile(r"uvicorn\.Config\(|import .*\bHttpServer\b.*\bconfig\b|import config$", re.M)
    listening = {path.name for path, code in text.items() if starts.search(code)}
    guarded = {path.name for path, code in text.items() if "AccessGate(" in code}
    assert listening - guarded == {"httpserver.py", "door.py"}
    assert guarded == {"intake_main.py", "scorer_worker.py", "admin.py", "page_server.py"}
    assert {path.name for path, code in text.items() if "http.server" in code or "start_http_server" in code} == {
        "metrics.py"
    }
