"""The learner's door: who may command, what is a command, and that nobody waits for ever."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from learner.gate import admin as doors
from learner.gate.admin import COMMANDS, Admin, Command, address
from learner.gate.quarantine import PLACE, Quarantine
from learner.gate.verdicts import GateRefusal
from millrace.basics.errors import BrokerError, MillraceError, SettingError, SnapshotError, StoreError
from millrace.basics.store import Store
from millrace.contracts.settings import Settings
from millrace.versions.modelstore import ModelStore
from tests.scenes.refused_rows import spans
from tests.scenes.small_snapshot import snapshot
from tests.scenes.waiting import until

TOKEN = "a-token"
STATE = {"state": "promoting", "refusal": None}


def settings_of(folder: Path, token: str | None = TOKEN, port: int = 0) -> Settings:
    file = folder / "tokens"
    if token is not None:
        file.write_text(f"{token}\n")
        file.chmod(0o600)
    return Settings(data=str(folder), admin_port=port, admin_token_file="" if token is None else str(file))


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    """A door that stays open: a test leaves no command behind it."""
    door = Admin(settings_of(tmp_path_factory.mktemp("door")), lambda: STATE)
    yield door
    door.close()


def ask(
    door: Admin, method: str, path: str, body: bytes | None = None, token: str | None = TOKEN
) -> tuple[int, Any, dict[str, str]]:
    parts = urlsplit(door.url)
    connection = HTTPConnection(parts.hostname or "", parts.port or 0, timeout=60)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), {k.lower(): v for k, v in answer.getheaders()}
    finally:
        connection.close()


def taken(door: Admin) -> Command:
    """The next command, as the learner's loop takes it: it looks again and again."""
    found: list[Command] = []

    def look() -> bool:
        if (command := door.next()) is not None:
            found.append(command)
        return bool(found)

    until(look, "a command comes")
    return found[0]


def test_verdicts_need_no_token_and_are_those_of_now(door: Admin) -> None:
    folder = Path(door._settings.data)
    assert ask(door, "GET", "/model", token=None)[:2] == (200, STATE)
    assert ask(door, "GET", "/versions", token=None)[:2] == (200, [])
    assert ask(door, "GET", "/quarantine", token=None)[:2] == (200, [])
    store = ModelStore(folder / "models")
    for version in (4, 9):
        snapshot(store, 1, version)
    kept = Quarantine(Store(folder / PLACE), "s")
    kept.keep(3, GateRefusal("finite", float("nan"), 0.0, "dense/w"), spans(3), (5, 6), 7)
    kept.write_list()
    status, found, headers = ask(door, "GET", "/versions", token=None)
    assert status == 200
    assert [(n["epoch"], n["version"], n["event_ms"], n["way_back"]) for n in found] == [
        (1, 9, 1, None),
        (1, 4, 1, None),
    ]
    assert headers["cache-control"] == "no-store"
    status, found, _ = ask(door, "GET", "/quarantine", token=None)
    assert (status, found) == (200, [msgspec.to_builtins(entry) for entry in kept.entries()])


@pytest.mark.parametrize(
    ("path", "body", "name", "args"),
    [
        ("/model/rollback", b"", "rollback", {"version": None}),
        ("/model/rollback", b'{"version": 42}', "rollback", {"version": 42}),
        ("/model/promote", b"{}", "promote", {}),
        ("/model/hold", None, "hold", {}),
        ("/model/adopt", b'{"from": "repair"}', "adopt", {"from": "repair"}),
        ("/quarantine/release", b'{"names": "all"}', "release", {"names": "all"}),
        ("/quarantine/discard", b'{"names": ["00000001-auc"]}', "discard", {"names": ["00000001-auc"]}),
    ],
)
def test_a_command_is_done_by_the_learner_and_answered(
    door: Admin, path: str, body: bytes | None, name: str, args: dict[str, Any]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, door, "POST", path, body)
        command = taken(door)
        assert (command.name, command.args) == (name, args)
        command.answer({"version": 43, "said": "done"})
        assert asked.result()[:2] == (200, {"version": 43, "said": "done"})
    assert door.next() is None


def test_what_the_learner_cannot_do_is_said_in_a_line(door: Admin) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, door, "POST", "/model/rollback", b'{"version": 3}')
        taken(door).fail(SnapshotError("version 3 is not kept", "take one of GET /versions"))
        assert asked.result()[:2] == (409, {"error": "version 3 is not kept; take one of GET /versions"})


@pytest.mark.parametrize(
    "error", [BrokerError("it is not durable", "start the broker"), StoreError("no root is written", "make room")]
)
def test_what_is_done_and_may_be_lost_is_no_success(door: Admin, error: MillraceError) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, door, "POST", "/model/hold")
        taken(door).fail(error)
        assert asked.result()[:2] == (503, {"error": str(error)})


@pytest.mark.parametrize("path", COMMANDS)
@pytest.mark.parametrize("wrong", [None, "another", ""])
def test_nobody_commands_without_the_token(door: Admin, path: str, wrong: str | None) -> None:
    body = b'{"names": "all"}' if path.startswith("/quarantine") else b'{"from": "shadow"}' if "adopt" in path else b""
    status, said, headers = ask(door, "POST", path, body, wrong)
    assert status == 401
    assert "MILLRACE_ADMIN_TOKEN_FILE" in said["error"]
    assert headers["www-authenticate"] == ("Bearer" if wrong is None else 'Bearer error="invalid_token"')
    assert TOKEN not in said["error"]
    assert door.next() is None


def test_without_a_token_file_nobody_commands_at_all(tmp_path: Path) -> None:
    door = Admin(settings_of(tmp_path, None), lambda: STATE)
    try:
        for token in (None, "", "x"):
            status, said, _ = ask(door, "POST", "/model/hold", token=token)
            assert status == 403
            assert "set MILLRACE_ADMIN_TOKEN_FILE" in said["error"]
        assert ask(door, "GET", "/model", token=None)[0] == 200
        assert door.next() is None
    finally:
        door.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/model/rollback", b"42"),
        ("/model/rollback", b'{"version": "42"}'),
        ("/model/rollback", b'{"versoin": 42}'),
        ("/model/rollback", b"\xff"),
        ("/model/adopt", b"{}"),
        ("/model/adopt", b'{"from": 42}'),
        ("/quarantine/release", b""),
        ("/quarantine/discard", b'{"names": "some"}'),
        ("/model/rollback", b"[" * 5000),
    ],
)
def test_what_is_no_command_never_reaches_the_learner(door: Admin, path: str, body: bytes) -> None:
    status, said, _ = ask(door, "POST", path, body)
    assert status == 400
    assert f"the body of {path} is no such command" in said["error"]
    assert door.next() is None


def test_other_paths_methods_and_sizes_are_refused(door: Admin) -> None:
    assert ask(door, "GET", "/elsewhere")[0] == 404
    status, said, _ = ask(door, "GET", "/model/hold")
    assert status == 405
    assert "/model/rollback" in said["error"]
    assert ask(door, "POST", "/model")[0] == 405
    assert ask(door, "POST", "/quarantine/release", b'"' + b"x" * doors.MOST_BODY)[0] == 413
    assert door.next() is None


def test_a_command_that_is_not_taken_in_time_is_never_done(door: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "TAKEN_SECONDS", 0.0)
    status, said, _ = ask(door, "POST", "/model/rollback")
    assert status == 503
    assert "'rollback' was not done: the learner took it not within" in said["error"]
    assert door.next() is None


def test_one_that_takes_too_long_is_told_as_begun(door: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, door, "POST", "/model/rollback")
        command = taken(door)
        monkeypatch.setattr(doors, "DONE_SECONDS", 0.0)
        status, said, _ = asked.result()
    assert status == 504
    assert "was begun, its end is not known" in said["error"]
    command.answer({})  # nobody is hurt by it


def test_who_waits_when_the_learner_ends_hears_it(tmp_path: Path) -> None:
    door = Admin(settings_of(tmp_path), lambda: STATE)
    assert address(Settings(data=str(tmp_path))) == door.url
    with ThreadPoolExecutor(2) as pool:
        begun = pool.submit(ask, door, "POST", "/model/rollback")
        taken(door)
        waiting = pool.submit(ask, door, "POST", "/model/hold")
        until(lambda: not door._commands.empty(), "the second waits")
        door.close()
        assert begun.result()[0] == 504
        status, said, _ = waiting.result()
    assert status == 503
    assert "the learner ends" in said["error"]
    assert address(Settings(data=str(tmp_path))) is None, "nobody is sent to a port that another may have tomorrow"


def test_commands_of_many_come_one_after_another(door: Admin) -> None:
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, door, "POST", "/model/rollback", b'{"version": %d}' % i) for i in range(8)]
        for _ in asked:
            command = taken(door)
            command.answer({"back_at": command.args["version"]})
        assert [a.result()[1] for a in asked] == [{"back_at": i} for i in range(8)]


def test_a_taken_port_becomes_any_free_one(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        door = Admin(settings_of(tmp_path, port=port), lambda: STATE)
        try:
            assert urlsplit(door.url).port not in (0, port)
            assert address(Settings(data=str(tmp_path))) == door.url
            assert ask(door, "GET", "/model")[0] == 200
        finally:
            door.close()


def test_a_token_file_that_cannot_be_used_ends_the_start(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    (tmp_path / "tokens").write_text("# none\n")
    with pytest.raises(SettingError, match="holds no token; mend the file of MILLRACE_ADMIN_TOKEN_FILE"):
        Admin(settings, lambda: STATE)
