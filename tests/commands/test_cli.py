"""The command line: what goes wrong is one line that names the value and the remedy, with status 1 and no traceback."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from cyclopts import App

from millrace.basics.errors import USAGE_STATUS, SchemaError, SettingError
from millrace.commands.cli.cli import app, main
from millrace.commands.up.data_folder import locked
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings, load_settings
from millrace.processes.role import ROLES, last_figures
from millrace.versions.modelstore import ModelStore
from tests.scenes.schemas import named, of_item, of_user
from tests.scenes.small_snapshot import snapshot
from tests.scenes.waiting import LONG, PATIENCE

pytestmark = pytest.mark.timeout(LONG)  # in a fresh clone `learn` and `stream` compile first

MAINS = {
    "stream": "stream.worker.stream_worker",
    "learn": "learner.role.service",
    "serve": "scorer.feeder.scorer_main",
    "intake": "stream.intake.intake_main",
    "archive": "stream.archive.archive_main",
}
CSV = "ts,who,what,hit\n1000,1,2,0\n2000,1,3,1\n"
LOG = {"time": "ts", "user": "who", "item": "what", "label": "hit"}
SCHEMA = named("t", log=LOG) + of_user("who") + of_item("what")


def millrace(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, as a person would."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_")}
    return subprocess.run(
        [sys.executable, "-m", "millrace", *args],
        env=clean | {"MILLRACE_PATIENCE_SECONDS": "0.2"} | env,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )


def the_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that an expected failure prints (warnings while waiting come before it)."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("millrace: ")]
    assert len(lines) == 1, done.stderr
    assert ";" in lines[0], "no remedy"
    return lines[0]


def commands(of: App, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that there is, with those below it."""
    for name in of:
        if not name.startswith("-"):
            yield (*before, name)
            yield from commands(of[name], (*before, name))


@pytest.mark.parametrize("command", list(commands(app)), ids=" ".join)
def test_each_command_explains_itself(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        app([*command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"Usage: millrace {' '.join(command)} ")
    what = reduce(lambda of, name: of[name], command, app).help.split(".")[0]
    assert len(what.split()) > 2, "it says what the command does"
    passed_on = command == ("dev", "experiment")  # the experiments say themselves what they are
    assert " ".join(what.split()) in said or passed_on


@pytest.mark.slow
def test_a_process_of_its_own_explains_a_command() -> None:
    done = millrace("run", "learn", "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: millrace run learn" in done.stdout
    assert {("demo",), ("run", "learn"), ("data", "quarantine", "list"), ("log", "guess")} <= set(commands(app))


@contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses connections: it is bound, so nobody else can come to listen on it, and does not listen."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["dev topics", "run stream", "run learn", "run serve", "run simulate"])
def test_a_broker_that_does_not_answer_is_named(command: str, tmp_path: Path) -> None:
    with closed_port() as port:
        address = f"127.0.0.1:{port}"
        at = dict.fromkeys(("MILLRACE_KAFKA", "MILLRACE_REDIS"), address) | {"MILLRACE_SCHEMA": "shop"}
        done = millrace(*command.split(), **at, MILLRACE_DATA=str(tmp_path), MILLRACE_PORT="0")
    line = the_line(done)
    assert address in line
    assert "MILLRACE_KAFKA" in line
    if (role := command.split()[1]) in ROLES:
        assert "millrace_ready 0.0" in last_figures(tmp_path, role).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["dev topics", "run stream", "run learn", "run serve", "run simulate"])
def test_a_missing_broker_address_is_said(command: str, tmp_path: Path) -> None:
    line = the_line(millrace(*command.split(), MILLRACE_DATA=str(tmp_path)))
    assert "MILLRACE_" in line


@pytest.mark.parametrize("role", list(MAINS))
def test_a_role_takes_no_schema_that_nobody_named(role: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``shop`` names the simulated shop's; shoppers mean it anyway."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.__struct_fields__:
        monkeypatch.delenv(f"MILLRACE_{name.upper()}", raising=False)
    begun: list[Settings] = []
    monkeypatch.setattr("millrace.processes.role.run_role", lambda _, settings, run: run(settings, Event()))
    monkeypatch.setattr(f"{MAINS[role]}.run", lambda settings, stop: begun.append(settings))
    for empty in (None, ""):
        if empty is not None:
            monkeypatch.setenv("MILLRACE_SCHEMA", empty)
        with pytest.raises(SettingError, match=rf"no schema is named for the role '{role}'.*MILLRACE_SCHEMA.*'shop'"):
            app(["run", role])
    monkeypatch.setenv("MILLRACE_SCHEMA", "shop")
    app(["run", role], result_action="return_value")
    (tmp_path / "millrace.toml").write_text('[schema]\nschema = "shop"\n')
    monkeypatch.delenv("MILLRACE_SCHEMA")
    app(["run", role], result_action="return_value")
    (tmp_path / "millrace.toml").write_text('[schema]\nschema = "my.toml"\n')
    app(["run", role], result_action="return_value")
    assert [one.schema for one in begun] == ["", "", str(tmp_path / "my.toml")]
    assert begun[0].load_schema().id == shop_schema().id
    assert load_settings({}, begun[0].environment()) == begun[0]


def test_a_wrong_setting_is_named() -> None:
    assert "partitions" in the_line(millrace("dev", "topics", MILLRACE_PARTITIONS="none"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["demo", "run simulate"])
def test_users_that_cannot_come_are_named(command: str, tmp_path: Path) -> None:
    assert "shoppers" in the_line(millrace(*command.split(), "--users", "0"))
    log = tmp_path / "log.csv"
    log.write_text(CSV)
    line = the_line(millrace(*command.split(), "--users", "5", "--from-log", str(log)))
    assert "--users 5" in line
    assert str(log) in line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log.csv", "s.toml", "hits"])
def test_a_missing_file_or_log_column_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "log.csv").write_text(CSV)
    (tmp_path / "s.toml").write_text(SCHEMA.replace('"hit"', '"hits"') if name == "hits" else SCHEMA)
    (tmp_path / name).unlink(missing_ok=True)
    args = (str(tmp_path / "log.csv"), "--schema", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"))
    line = the_line(millrace("log", "replay", *args))
    assert name in line
    assert name != "hits" or re.search(r"\bhit\b", line)


@pytest.mark.slow
def test_an_unknown_benchmark_and_an_empty_store_are_named(tmp_path: Path) -> None:
    assert "nonesuch" in the_line(millrace("dev", "bench", "nonesuch", "--out", str(tmp_path)))
    assert "nowhere" in the_line(millrace("model", "verify", str(tmp_path / "nowhere")))


def test_a_result_is_printed_as_json(tmp_path: Path) -> None:
    snapshot(ModelStore(tmp_path / "models"), 1, 4)
    for words, key in ((("status",), "version"), (("model", "list"), "version")):
        done = millrace(*words, "--json", "--data", str(tmp_path))
        assert done.returncode == (1 if words == ("status",) else 0), "no loop runs there"
        found = json.loads(done.stdout)
        assert (found[0] if isinstance(found, list) else found)[key] == 4


def test_a_schema_is_guessed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = tmp_path / "log.csv", tmp_path / "s.toml"
    log.write_text(CSV)
    with pytest.raises(SchemaError, match="open roles"):
        app(["log", "guess", str(log), "--out", str(out), "--json"], result_action="return_value")
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == out.read_text()
    assert found["out"] == str(out)
    assert {"user", "item"} <= found["open"].keys()
    assert found["summary"][0].startswith("read ")


def test_simulated_days_are_named_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["log", "simulate", "--days", "1", "--users", "20", "--out", str(tmp_path), "--json"]
    app(words, result_action="return_value")
    assert [Path(path) for path in json.loads(capsys.readouterr().out)["logs"]] == list(tmp_path.glob("*.parquet"))


def test_the_broker_alone_has_the_folder_and_the_limits_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, argv: started.append(argv))
    app(["run", "broker", "--data", str(tmp_path), "--port", "0"], result_action="return_value")
    ((*_, disk, _, folder, _, port),) = started
    assert (folder, port) == (str(tmp_path / "broker" / "topics"), "0")
    assert float(disk) == Settings().broker_gib


def test_a_settings_file_is_made_shown_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "millrace.toml"
    assert millrace("init", "--out", str(file)).returncode == 0
    assert "is there already" in the_line(millrace("init", "--out", str(file)))
    file.write_text(file.read_text().replace("#port = 8700", "port = 8701"))
    shown = millrace("config", "show", "--json", "--data", str(tmp_path), MILLRACE_WORKERS="2")
    rows = {row["name"]: (row["value"], row["origin"]) for row in json.loads(shown.stdout)["settings"]}
    line = 1 + file.read_text().splitlines().index("port = 8701")
    assert rows["port"] == (8701, f"{file}:{line}")
    assert (rows["workers"], rows["data"]) == ((2, "MILLRACE_WORKERS"), (str(tmp_path), "flag"))
    assert rows["candidates"] == (1000, "default")
    assert millrace("config", "check", "--data", str(tmp_path)).returncode == 0
    file.write_text("[ports]\nport = 0.5\nprot = 1\n[schema]\nschema = 'none.toml'\n[serving.recall]\nhot = 0.5\n")
    checked = millrace("config", "check", "--data", str(tmp_path), MILLRACE_COLOUR="red")
    assert checked.returncode == 1
    assert len(checked.stdout.splitlines()) == 5, checked.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("judge", "x", "--out", "y", "--outcome", "clik"), 'Choose from: "click", "collect", "cart", "purchase"'),
        (("demo", "--sceonds", "3"), "Did you mean --seconds?"),
        (("model", "hist"), "see: millrace model --help"),
        (("nonesuch",), "see: millrace --help"),
    ],
)
def test_a_wrong_flag_is_one_line_and_a_status_of_its_own(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["millrace", *words])
    with pytest.raises(SystemExit, match=str(USAGE_STATUS)):
        main()
    out, error = capsys.readouterr()
    assert not out
    (line,) = error.splitlines()
    assert line.startswith("millrace: ")
    assert said in line


@pytest.mark.parametrize("command", ["status", "config show", "init --help"])
def test_a_command_whose_reader_has_gone_ends_quietly(command: str, tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    env, run = {**os.environ, "MILLRACE_DATA": str(tmp_path)}, [sys.executable, "-m", "millrace", *command.split()]
    with os.fdopen(theirs, "w") as out:
        done = subprocess.run(
            run, env=env, stdout=out, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_a_broken_pipe_of_a_socket_stays_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def app_of(_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("millrace.commands.cli.cli.app", app_of)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)  # pytest's own has no file
    with pytest.raises(BrokenPipeError):
        main()


def test_exit_codes_are_listed_once(capsys: pytest.CaptureFixture[str]) -> None:
    for words, times in ((["--help"], 1), (["judge", "--help"], 0), (["model", "list", "--help"], 0)):
        with pytest.raises(SystemExit, match="0"):
            app(words)
        assert capsys.readouterr().out.count("Exit codes:") == times


def test_a_variable_that_nothing_reads_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MILLRACE_GAT", "off")
    monkeypatch.setattr("sys.argv", ["millrace", "status", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "warning: nothing reads MILLRACE_GAT; did you mean MILLRACE_GATE?" in capsys.readouterr().err.splitlines()


def test_a_store_is_proved_with_the_deltas_of_the_loop_that_runs_on_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path / "models")
    for version in (4, 9):
        snapshot(store, 1, version)
    asked: list[str] = []

    def read(settings: Settings) -> dict[str, Any]:
        asked.append(settings.kafka)
        return {}

    monkeypatch.setattr("millrace.processes.deltas.read_deltas", read)
    (tmp_path / "up.json").write_text('{"kafka": "127.0.0.1:8730"}')
    words = ["model", "verify", "--data", str(tmp_path)]
    app(words, result_action="return_value")
    assert asked == [], "a killed run leaves its address"
    with locked(tmp_path):
        app(words, result_action="return_value")
    assert asked == ["127.0.0.1:8730"]
