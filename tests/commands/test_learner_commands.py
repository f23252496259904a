"""The commands to a running learner: they find its address and its token, and say in a line what became of them."""

from __future__ import annotations

import io
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.gate.admin import ADDRESS, Admin
from learner.gate.quarantine import PLACE, Quarantine
from learner.gate.verdicts import GateRefusal
from millrace.basics.errors import MillraceError, ServiceError, SettingError, SnapshotError
from millrace.basics.hashing import value_hash
from millrace.basics.store import Store
from millrace.commands.cli.cli import app
from millrace.commands.cli.cliadmin import ask
from millrace.commands.cli.clidata import forget, list_quarantine, quarantine
from millrace.commands.cli.climodel import hold, list_versions, promote, rollback
from millrace.contracts.settings import Settings
from millrace.processes.tokens import OWN, own_token, tokens_of
from millrace.versions.modelstore import ModelStore
from stream.archive.archive_folder import ArchiveFolder
from stream.archive.schemafile import schema_text
from tests.scenes.learning import SCHEMA
from tests.scenes.refused_rows import rows, spans
from tests.scenes.small_snapshot import snapshot


class Learner:
    """A server, and a loop behind it that answers each command by what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.received: list[tuple[str, dict[str, Any]]] = []
        self.fails: MillraceError | None = None
        self.says: dict[str, Any] = {}
        settings = Settings(data=str(folder), admin_port=0, admin_token_file=str(own_token(folder)))
        self.server = Admin(settings, lambda: self.says)
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ends.wait(0.01):
            command = self.server.next()
            if command is None:
                continue
            self.received.append((command.name, command.args))
            if self.fails is None:
                command.answer({"version": 43, "state": "promoting", "content": None})
            else:
                command.fail(self.fails)

    def end(self) -> None:
        self._ends.set()
        self._thread.join()
        self.server.close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MILLRACE_DATA", "MILLRACE_STORE", "MILLRACE_CONFIG", "MILLRACE_ADMIN_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def learner(folder: Path) -> Iterator[Learner]:
    found = Learner(folder)
    yield found
    found.end()


def an_archive(folder: Path) -> None:
    archive = ArchiveFolder(folder / "archive")
    archive.put_schema(schema_text(SCHEMA, 30.0))
    archive.close()


def of_quarantine(*words: str) -> None:
    quarantine(words, exit_on_error=False, result_action="return_value")


def test_each_command_says_what_it_means(folder: Path, learner: Learner, capsys: pytest.CaptureFixture[str]) -> None:
    said: list[tuple[Callable[[], None], tuple[str, dict[str, Any]]]] = [
        (lambda: rollback(data=folder), ("rollback", {"version": None})),
        (lambda: rollback(42, data=folder), ("rollback", {"version": 42})),
        (lambda: promote(data=folder), ("promote", {})),
        (lambda: promote("shadow", data=folder), ("adopt", {"from": "shadow"})),
        (lambda: promote("repair", data=folder), ("adopt", {"from": "repair"})),
        (lambda: hold(data=folder), ("hold", {})),
        (lambda: of_quarantine("release", "all", "--data", str(folder)), ("release", {"names": "all"})),
        (
            lambda: of_quarantine("discard", "1-a", "2-b", "--data", str(folder)),
            ("discard", {"names": ["1-a", "2-b"]}),
        ),
    ]
    for command, _ in said:
        command()
        assert capsys.readouterr().out.endswith("version  43\nstate  promoting\n")  # the server's log is before it
    assert learner.received == [received for _, received in said]


def test_what_the_learner_refuses_is_the_commands_error(folder: Path, learner: Learner) -> None:
    learner.fails = SnapshotError("there is no snapshot of version 3", "the store has versions 9, 8")
    with pytest.raises(ServiceError) as refused:
        rollback(3, data=folder)
    assert str(refused.value) == "there is no snapshot of version 3; the store has versions 9, 8"


@pytest.mark.parametrize(("answer", "done"), [("y\n", True), ("n\n", False), ("", False), (None, False)])
def test_what_cannot_be_taken_back_is_asked_for(
    folder: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch, answer: str | None, done: bool
) -> None:
    """``None``: nobody sits there."""

    class Stdin(io.StringIO):
        def isatty(self) -> bool:
            return answer is not None

    an_archive(folder)
    learner.says = {"state": "blocked", "refusal": "labels over predictions: 2.41, beyond 1.6"}
    for command, asked in (
        (partial(promote, data=folder), "the gate refuses (labels over predictions: 2.41"),
        (partial(of_quarantine, "discard", "all", "--data", str(folder)), "all that is in quarantine"),
        (partial(forget, "7", data=folder), "all rows of user '7'"),
    ):
        monkeypatch.setattr("sys.stdin", Stdin(answer or ""))
        learner.received.clear()
        with nullcontext() if done else pytest.raises(SettingError, match=re.escape(asked)):
            command()
        assert done or not learner.received
    promote(data=folder, yes=True)
    assert learner.received[-1] == ("promote", {})
    learner.says = {"state": "held", "refusal": "an old one"}
    promote(data=folder)  # the end of a hold
    assert learner.received[-2:] == [("promote", {})] * 2


def test_the_folder_may_be_the_settings(folder: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_DATA", str(folder))
    hold()
    assert learner.received == [("hold", {})]


def test_a_learner_elsewhere_is_named_with_its_token(
    folder: Path, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = folder / "here"
    here.mkdir()
    with pytest.raises(SettingError, match="no token is known: MILLRACE_ADMIN_TOKEN_FILE is not set"):
        hold(data=here, admin=learner.server.url)
    monkeypatch.setenv("MILLRACE_ADMIN_TOKEN_FILE", str(folder / OWN))
    hold(data=here, admin=learner.server.url)
    (folder / "wrong").write_text("another\n")
    monkeypatch.setenv("MILLRACE_ADMIN_TOKEN_FILE", str(folder / "wrong"))
    with pytest.raises(ServiceError, match="the token is none that is known here; send the header"):
        hold(data=here, admin=learner.server.url)
    assert learner.received == [("hold", {})]


def test_where_no_learner_is_that_is_said(folder: Path) -> None:
    with pytest.raises(ServiceError, match=f"no learner is at work on folder '{folder}'; name its folder with --data"):
        hold(data=folder)
    with pytest.raises(SettingError, match=r"--data '.*nowhere' is no folder"):
        hold(data=folder / "nowhere")
    for wrong in ("learner:8750", "https://learner", "http://h:port", ""):
        with pytest.raises(SettingError, match=f"address '{wrong}' of the learner; give http://HOST:PORT"):
            ask(wrong, "/model/hold", {}, "t")
    server = Learner(folder)
    reported = (folder / "learner" / ADDRESS).read_bytes()
    server.end()
    (folder / "learner" / ADDRESS).write_bytes(reported)  # as a learner leaves it that was killed
    with pytest.raises(ServiceError, match=r"does not answer .*; look whether it runs"):
        hold(data=folder)


def test_names_must_be_given(folder: Path) -> None:
    with pytest.raises(
        SettingError, match="no name is given; name entries of 'millrace data quarantine list', or say: all"
    ):
        of_quarantine("release", "--data", str(folder))


def test_lists_are_read_where_they_lie(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also while no learner runs."""
    store = ModelStore(folder / "models")
    for version in (4, 9):
        snapshot(store, 1, version)
    list_versions(data=folder)
    assert capsys.readouterr().out == ("9  nothing learnt yet\n4  nothing learnt yet\n")
    kept = Quarantine(Store(folder / PLACE), "s")
    kept.keep(1, GateRefusal("labels", 2.4125, 1.6), spans(1200), (5, 6), 7)
    kept.keep(2, GateRefusal("finite", float("nan"), 0.0, "dense/w"), spans(1), (5, 6), 7)
    kept.write_list()
    list_quarantine(data=folder)
    then = "1970-01-01 00:00 UTC to 1970-01-01 00:00 UTC"
    assert capsys.readouterr().out.splitlines() == [
        f"00000001-labels  1,200 rows of {then}  labels over predictions: 2.41, beyond 1.6",
        f"00000002-finite  1 rows of {then}  tensors, rows and optimiser slots are finite: dense/w nan, beyond 0",
        "1,201 rows in 2 entries",
    ]


def test_a_deleted_user_leaves_the_copies_in_quarantine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = Quarantine(Store(folder / PLACE), "s")
    kept.keep(1, GateRefusal("labels", 2.4125, 1.6), spans(6), (5, 6), 7)
    users = np.array([value_hash(user) for user in ("7", "8", "7", "9", "9", "7")], np.uint64)
    kept.copy("00000001-labels", replace(rows(6), user=users))
    an_archive(folder)
    app(["data", "forget", "7", "--yes", "--data", str(folder)], exit_on_error=False, result_action="return_value")
    assert capsys.readouterr().out.splitlines() == [
        "0 rows of user '7' removed from 0 of 0 files",
        "3 rows removed from quarantine",
    ]
    assert kept.read_copy("00000001-labels")[0].user.tolist() == users[[1, 3, 4]].tolist()


@pytest.mark.parametrize(
    "words",
    [
        ["model", "list"],
        ["data", "quarantine", "list"],
        ["model", "repair", "--since", "1h", "--without-arm", "control"],
        ["model", "bisect", "--since", "1h"],
        ["data", "forget", "7", "--yes"],
        ["model", "hold"],
    ],
)
def test_a_command_in_a_wrong_folder_names_the_folder_and_makes_none(
    words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(MillraceError, match=f"{folder}/millrace-data.*; .*--data"):
        app(words, exit_on_error=False, result_action="return_value")
    assert list(folder.iterdir()) == []


def test_the_token_of_a_run_is_its_owners_alone_and_stays(tmp_path: Path) -> None:
    file = own_token(tmp_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    (token,) = tokens_of(file)
    assert len(token) == 64
    assert tokens_of(own_token(tmp_path)) == [token], "scripts keep working over restarts"
    (tmp_path / "other").mkdir()
    assert tokens_of(own_token(tmp_path / "other")) != [token]
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [OWN]
    with pytest.raises(SettingError, match="cannot be written"):
        own_token(tmp_path / "nowhere")
