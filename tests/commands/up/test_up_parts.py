"""What `millrace up` is made of: ports, the folder that one run has at a time, services that die, words, the page."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from rich.console import Console

from millrace.basics.errors import PortError, ServiceError, SettingError
from millrace.commands.cli import cliconfig, clidata
from millrace.commands.loop import host as hosts
from millrace.commands.loop.host import works
from millrace.commands.loop.monitor import Monitor, Picture
from millrace.commands.loop.page import PageServer
from millrace.commands.loop.series import Series
from millrace.commands.loop.status import RunStatus, state_of
from millrace.commands.loop.view import line_of, table_of
from millrace.commands.up import data_folder as folders
from millrace.commands.up import upwords
from millrace.commands.up.doctor import examine
from millrace.commands.up.ports import Ports, check, choose, url
from millrace.commands.up.running import running, status_lines
from millrace.commands.up.uprun import ROLES, Up, UpOptions, prepared, up
from millrace.connections.kafka_security import security_of
from millrace.contracts.clock import EventClock
from millrace.contracts.schema import load_schema, parse_schema, shop_schema
from millrace.contracts.schemabook import SchemaBook
from millrace.contracts.settings import Settings, load_settings
from millrace.processes.metrics import PORTS
from millrace.processes.services import EmbeddedRedis
from millrace.processes.supervisor import Supervisor
from tests.scenes.schemas import of_item, of_user, windows_of
from tests.scenes.waiting import PATIENCE

SCHEMA = of_user("user_id") + of_item("item_id")


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def shop(**other: Any) -> Settings:
    """Settings that name the simulated shop's schema."""
    return Settings(schema=str(resources.files("millrace.contracts").joinpath("shop.toml")), **other)


def ports_of(settings: Settings | None = None, *, free: bool = True) -> Ports:
    return choose(settings or Settings(), ROLES, free=free)


def noted(folder: Path) -> None:
    """A schema 'one', that the folder's state is of."""
    (folder / "one.toml").write_text(f'name = "one"\n{SCHEMA}')
    folders.schema_note(folder, Settings(schema=str(folder / "one.toml"))).write(folder)


# -- ports ---------------------------------------------------------------------------------------------------------


def test_ports_are_the_settings_and_each_roles_own() -> None:
    ports = ports_of(Settings(port=8000, redis="127.0.0.1:6379"), free=False)
    assert (ports.scorer, ports.intake, ports.page, ports.broker, ports.redis) == (8000, 8720, 8710, 8730, 0)
    assert ports.metrics == {role: PORTS[role] for role in ROLES}
    numbers = [port for _, _, port, _ in ports.wanted("127.0.0.1")]
    assert len(set(numbers)) == len(numbers) == 10  # no Redis: a setting names one


def test_free_ports_are_all_different_and_0_is_any() -> None:
    ports = ports_of()
    numbers = [port for _, _, port, _ in ports.wanted("127.0.0.1")]
    assert len(set(numbers)) == len(numbers) == 11
    check(ports, "127.0.0.1")
    some = ports_of(Settings(page_port=0, metrics_port=0), free=False)
    assert some.page not in (0, 8710)
    assert 0 not in some.metrics.values()
    with pytest.raises(SettingError, match="metrics_port 9000"):
        ports_of(Settings(metrics_port=9000), free=False)


def test_a_taken_port_is_named_with_what_wants_it_and_the_remedy(taken: int) -> None:
    ports = ports_of()
    for field, setting in (("intake", "MILLRACE_INTAKE_PORT"), ("broker", "MILLRACE_BROKER_PORT")):
        wanted = Ports(**{**{n: getattr(ports, n) for n in Ports.__slots__}, field: taken})
        with pytest.raises(PortError, match=rf"port 127\.0\.0\.1:{taken} for the {field} .*{setting}.*--free-ports"):
            check(wanted, "127.0.0.1")
    twice = Ports(**{**{n: getattr(ports, n) for n in Ports.__slots__}, "page": ports.scorer})
    with pytest.raises(PortError, match=f"port {ports.scorer} is given to scorer and to live page"):
        check(twice, "127.0.0.1")


def test_a_demo_takes_the_fixed_ports_that_are_free(taken: int) -> None:
    ports = ports_of()
    wanted = replace(ports, scorer=taken, metrics={**ports.metrics, "learn": taken})
    found = wanted.or_free("127.0.0.1")
    assert taken not in (found.scorer, *found.metrics.values())
    assert replace(found, scorer=taken, metrics={**found.metrics, "learn": taken}) == wanted, "the others stay"


def test_a_port_that_a_killed_run_still_holds_is_waited_for(taken: int) -> None:
    ports = ports_of()
    with socket.socket() as held:
        held.bind(("127.0.0.1", ports.page))
        held.listen()
        looked = threading.Event()

        def let_go() -> None:
            looked.wait(PATIENCE)
            held.close()

        threading.Thread(target=let_go, daemon=True).start()
        with pytest.raises(PortError):
            check(ports, "127.0.0.1")
        looked.set()
        check(ports, "127.0.0.1", patience_seconds=PATIENCE)


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1")],
)
def test_this_machine_reaches_what_is_bound_everywhere(host: str, address: str) -> None:
    assert url(host, 1) == address


# -- the folder ----------------------------------------------------------------------------------------------------


def test_one_run_at_a_time_has_a_folder(tmp_path: Path) -> None:
    assert not folders.in_use(tmp_path)
    with folders.locked(tmp_path):
        assert folders.in_use(tmp_path)
        with (
            pytest.raises(ServiceError, match=r"another 'millrace up' runs on folder .* \(process \d+\)"),
            folders.locked(tmp_path),
        ):
            raise AssertionError
    assert not folders.in_use(tmp_path)
    with folders.locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"file.* cannot be made .*--data"):
        up(shop(data=str(tmp_path / "file")), UpOptions())


def test_the_data_folder_is_the_settings_or_one_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert folders.on_folder(Settings(data="/b")).data == "/b"
    assert folders.on_folder(Settings()).data == str(tmp_path / "millrace-data")


def test_a_schema_that_nobody_names_is_that_of_the_folder_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SettingError, match=rf"no schema is named, and '{tmp_path}/millrace-data/schema.toml' is not there; "
    ):
        up(Settings(), UpOptions())
    assert list(tmp_path.iterdir()) == [], "a command in a wrong folder leaves nothing there"
    noted(tmp_path)
    found = folders.on_folder(Settings(data=str(tmp_path)))
    assert found.load_schema().name == "one"
    assert folders.schema_note(tmp_path, found).changed == ""
    assert folders.on_folder(Settings(schema="another", data=str(tmp_path))).schema == "another"


def test_a_folder_of_0_2_0_is_refused_with_the_way_over(tmp_path: Path) -> None:
    """It noted its schema, and no form."""
    old = tmp_path / "old"
    (old / "models").mkdir(parents=True)
    (old / "schema.toml").write_text(f'name = "one"\n{SCHEMA}')
    before = sorted(old.rglob("*"))
    way = rf"{old}' is of version 0\.2\.0 .*log bootstrap {old}/archive/exposures --schema {old}/archive/schema.toml"
    for command in (lambda: up(Settings(data=str(old)), UpOptions()), lambda: folders.of_loop(Settings(data=str(old)))):
        with pytest.raises(SettingError, match=way) as refused:
            command()
        assert "\n" not in str(refused.value)
    assert sorted(old.rglob("*")) == before, "nothing is made there"
    finding = next(one for one in examine({"data": str(old)}) if one.state == "mend")
    assert "0.2.0" in finding.text


def test_a_folder_of_this_form_is_read_and_one_of_another_is_not(tmp_path: Path) -> None:
    noted(tmp_path)
    assert folders.on_folder(Settings(data=str(tmp_path))).schema == str(tmp_path / "schema.toml")
    (tmp_path / "form").write_text("2\n")
    with pytest.raises(SettingError, match=r"is of form '2', this version reads 1; use the version that wrote it"):
        folders.on_folder(Settings(data=str(tmp_path)))


def test_the_schema_of_the_state_is_kept_and_another_one_is_refused_until_it_may_be(tmp_path: Path) -> None:
    first = Settings(schema=str(tmp_path / "one.toml"))
    (tmp_path / "one.toml").write_text(f'name = "one"\n{SCHEMA}')
    note = folders.schema_note(tmp_path, first)
    assert note.changed == ""
    note.write(tmp_path)
    assert folders.schema_note(tmp_path, first).changed == ""
    with pytest.raises(SettingError, match=r"of schema 'one'.*--evolve"):
        folders.schema_note(tmp_path, shop())
    changed = folders.schema_note(tmp_path, shop(evolve=True))
    assert "has changed" in changed.changed
    kept = folders.kept_schema(tmp_path)
    assert kept is not None
    assert kept.name == "one", "until the roles have taken the other one up"
    changed.write(tmp_path)
    kept = folders.kept_schema(tmp_path)
    assert kept is not None
    assert kept.id == shop_schema().id


def test_the_rollback_from_an_evolved_schema_is_named_and_works(tmp_path: Path) -> None:
    """A run with --evolve that ended before all roles were up: the stream's state is of the new schema, the note is of
    the former one."""
    for name, field in (("old", ""), ("new", of_item("genre"))):
        (tmp_path / f"{name}.toml").write_text(f'name = "{name}"\n{SCHEMA}{field}')
    old = Settings(schema=str(tmp_path / "old.toml"))
    folders.schema_note(tmp_path, old).write(tmp_path)
    book = SchemaBook(tmp_path / "schemas")
    for name in ("old", "new"):
        book.enter(load_schema(tmp_path / f"{name}.toml"))
    with pytest.raises(SettingError, match=r"is of schema 'new'.*the settings name 'old'.*give --evolve"):
        folders.schema_note(tmp_path, old)
    with pytest.raises(SettingError, match=r"is of schema 'old'.*the settings name 'new'.*give --evolve"):
        folders.schema_note(tmp_path, Settings(schema=str(tmp_path / "new.toml")))
    assert "has changed" in folders.schema_note(tmp_path, msgspec.structs.replace(old, evolve=True)).changed


def test_windows_that_cannot_go_on_are_refused_before_a_role_takes_its_part_over(tmp_path: Path) -> None:
    keys = SCHEMA + windows_of("item_id", days=[1, 7])
    for name, text in (
        ("one", keys),
        ("fewer", keys.replace("[1, 7]", "[7]")),
        ("more", keys.replace("[1, ", "[1, 3, ")),
    ):
        (tmp_path / f"{name}.toml").write_text(f'name = "{name}"\n{text}')
    folders.schema_note(tmp_path, Settings(schema=str(tmp_path / "one.toml"))).write(tmp_path)
    with pytest.raises(SettingError, match=r"'fewer' .* counts other actions, means or windows than 'one'"):
        folders.schema_note(tmp_path, Settings(schema=str(tmp_path / "fewer.toml"), evolve=True))
    more = folders.schema_note(tmp_path, Settings(schema=str(tmp_path / "more.toml"), evolve=True))
    assert "has changed" in more.changed


def test_a_token_file_that_cannot_be_read_ends_it_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"token file .* cannot be read"):
        up(shop(token_file=str(tmp_path / "none"), data=str(tmp_path / "data")), UpOptions())
    assert not (tmp_path / "data").exists()


def test_sync_is_for_the_embedded_broker(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--sync"):
        up(Settings(kafka="127.0.0.1:1", data=str(tmp_path)), UpOptions(sync=True))


def test_every_role_gets_the_same_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ports = ports_of()
    settings = prepared(Settings(schema="my.toml", host="0.0.0.0", from_log="x"), tmp_path, ports)
    assert settings.scorer == f"http://127.0.0.1:{ports.scorer}"
    assert settings.intake == f"http://127.0.0.1:{ports.intake}"
    assert (settings.schema, settings.data, settings.from_log) == (str(tmp_path / "my.toml"), str(tmp_path), "")
    assert settings.event_clock() == EventClock()
    assert (settings.admin_port, settings.admin_token_file) == (ports.admin, str(tmp_path / "admin.token"))
    named = prepared(Settings(admin_token_file="/of/the/shop"), tmp_path, ports)
    assert named.admin_token_file == "/of/the/shop"


def test_a_run_that_goes_on_says_that_its_figures_are_of_this_start(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for goes_on in (False, True):
        state = Up(Settings(), UpOptions(), tmp_path, ports_of(), threading.Event()).state()
        assert ("since this start" in line_of(state)) == goes_on
        console = Console(file=io.StringIO(), width=200, record=True)
        console.print(table_of(state, ""))
        assert ("figures since this start" in console.export_text()) == goes_on
        (tmp_path / "checkpoints").mkdir(exist_ok=True)  # what a run before has left


# -- services that die ---------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Up:
    (tmp_path / "logs").mkdir()
    return Up(Settings(), UpOptions(), tmp_path, ports_of(), threading.Event())


class Dying(EmbeddedRedis):
    """A service whose starts are counted."""

    starts = 0

    def again(self) -> str:
        self.starts += 1
        return "here"


def test_a_service_that_dies_is_started_again_and_given_up_when_it_dies_on_and_on(run: Up, tmp_path: Path) -> None:
    service = Dying(tmp_path / "redis")
    for count in range(1, 5):
        run.lost(service)
        assert service.starts == count
    assert run.notes[-1] == "the embedded redis ended (status None); it is started again"
    with pytest.raises(ServiceError, match="redis is not running"):
        run.lost(service)


def test_the_state_names_the_processes_of_our_own_services(run: Up, tmp_path: Path) -> None:
    assert run.state()["services"] == {}
    service: Any = SimpleNamespace(name="broker", pid=12)
    run.services.append(service)
    assert run.state()["services"] == {"broker": 12}


def test_a_slow_start_is_only_called_a_first_one_if_it_is(
    run: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(run.view, "say", said.append)
    monkeypatch.setattr(hosts, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(hosts, "READY_SECONDS", 0.0)
    idle: Any = SimpleNamespace(picture=Picture(), attend=lambda: None, series=Series(), roles={})
    run.monitor = idle
    with pytest.raises(ServiceError, match="learn did not become ready"):
        run.await_roles(["learn"])
    (line,) = [line for line in said if line.startswith("waiting")]
    assert line.startswith("waiting for learn: if this is the first start after an installation")
    assert line.endswith(f"else see {tmp_path / 'logs'}")


@pytest.mark.services
def test_a_service_goes_on_at_the_address_that_it_had(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as redis:
        before = redis.address
        assert redis.process is not None
        redis.process.kill()
        redis.process.wait()
        with pytest.raises(ServiceError):
            redis.check()
        assert redis.again() == before
        redis.check()


def test_a_scorer_without_items_works_as_far_as_this_machine_can_help_it() -> None:
    assert works(Picture(answers={"serve": True}, model={"version": 0}), "serve")
    assert not works(Picture(answers={"serve": True}, model={"version": -1}), "serve")
    assert not works(Picture(answers={"serve": False}, model={"version": 3}), "serve")
    assert works(Picture(ready={"learn": True}), "learn")


# -- words and what is shown ---------------------------------------------------------------------------------------


def test_the_first_commands_are_of_the_schema_and_name_the_token_only_as_such() -> None:
    own = parse_schema(f'name = "s"\n{SCHEMA}{of_item("price:numeric")}')
    command = upwords.first_item(own, "http://i", token=False)
    body = json.loads(command.split("'")[1])
    assert body == {"item_id": "1", "attributes": {"price": 1.0}}
    assert command.startswith("curl -s http://i/items")
    log = '[log]\ntime = "at"\nuser = "user_id"\nitem = "price"\nlabel = "opened"\n'  # the id needs no attribute
    logged = parse_schema(f'name = "s"\n{SCHEMA}{log}{of_item("price")}')
    assert "price" not in upwords.first_item(logged, "http://i", token=False)
    assert "Bearer TOKEN" in upwords.first_page("http://s", token=True)
    reasons = ("no items yet; send the catalogue to the topic items", "no model yet; start the learner", "")
    assert [upwords.awaited(reason, "http://i")[:18] for reason in reasons] == [
        "waiting for items.",
        "the scorer is not ",
        "",
    ]


def exposition(name: str) -> str:
    figures = {
        "stream": 'millrace_exposures_total 40\nmillrace_events_total{type="click"} 4\n'
        'millrace_events_total{type="cart"} 9',
        "learn": 'millrace_click_rate{arm="model"} 0.125\nmillrace_click_rate{arm="control"} NaN',
        "intake": 'millrace_intake_lines_total{what="events",verdict="kept"} 44\n'
        'millrace_intake_lines_total{what="items",verdict="refused"} 2',
        "archive": 'millrace_archive_rows_total{what="events"} 30',
    }
    return f"millrace_ready 1\n{figures.get(name, '')}\n"


def test_what_only_a_simulator_knows_is_left_out_and_the_rest_comes_from_stream_learner_and_intake(
    tmp_path: Path,
) -> None:
    def get(address: str) -> str:
        return json.dumps({"version": 1}) if address.endswith("/model") else exposition(address.split("/")[2])

    monitor = Monitor({name: f"http://{name}/metrics" for name in ROLES}, "http://serve", EventClock(), get)
    monitor.look()
    shown = RunStatus(ROLES, awaits="waiting for items.", addresses={"scorer": "http://serve"})
    state = state_of("running", 1, 1.0, monitor, Supervisor(tmp_path), [], shown)
    figures = state["figures"]
    assert (figures["exposures"], figures["clicks"], figures["ctr_model"]) == (40, 4, 0.125)
    assert [figures[n] for n in ("oracle_auc", "malformed", "duplicates", "ctr_control")] == [None] * 4
    assert state["series"]["ctr_model"] == [0.125]
    assert {role["name"]: role["says"] for role in state["roles"]}.items() >= {
        "intake": "44 messages kept, 2 refused",
        "archive": "30 rows written",
    }.items()
    assert (state["simulated"], state["control"], state["awaits"]) == (False, True, "waiting for items.")
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(table_of(state, "http://page/"))
    text = console.export_text()
    assert "oracle" not in text + line_of(state)
    assert "waiting for items." in text
    assert line_of(state).endswith("waiting for items.")
    alone = state_of("running", 1, 1.0, monitor, Supervisor(tmp_path), [], RunStatus(ROLES, control=False))
    console.print(table_of(alone, ""))
    assert "random" not in console.export_text() + line_of(alone)
    assert "control" not in line_of(alone)


def test_status_says_what_the_run_on_the_folder_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("millrace.processes.kafka.read_all", lambda *_: 0)
    monkeypatch.setenv("MILLRACE_KAFKA", "h:1")
    role = {"name": "learn", "state": "running", "pid": 11, "restarts": 2, "awaits": ""}
    other = {
        "name": "stream",
        "state": "starting",
        "pid": None,
        "restarts": 1,
        "awaits": "reads the states of its partitions, 3 to go",
    }
    state = {
        "phase": "running",
        "roles": [role, other],
        "services": {"broker": 12, "redis": None},
        "gate": {"says": "nothing was refused"},
        "awaits": "waiting for items",
        "lateness_minutes": 90.0,
    }
    figures = {"served_version": 5.0, "waiting_actions": 1200.0, "intake_refused": 2.0}
    page = PageServer(lambda: state | {"figures": figures | {"auc": 0.7}}, 0)
    settings = Settings(data=str(tmp_path))
    try:
        folders.say_where(tmp_path, {"page": page.url, "redis": "redis://:secret@h:1", "pid": 3})
        assert status_lines(running(settings)) == [f"no loop runs on '{tmp_path}'"], "as a killed run leaves it"
        with folders.locked(tmp_path):
            found = running(settings)
            clidata.dead_letters(data=tmp_path)
    finally:
        page.stop()
    assert {name: found[name] for name in (*state, *figures, "pid")} == state | figures | {"pid": 3}
    assert "auc" not in found
    lines = status_lines(found | {"version": 7})
    assert lines[:5] == [
        f"a loop runs on '{tmp_path}' (process 3): running; serves model version 5",
        "learn      running, process 11, 2 restarts",
        "stream     starting (reads the states of its partitions, 3 to go), 1 restarts",
        "broker     process 12",
        "gate       nothing was refused",
    ]
    assert lines[-3:] == [
        "redis      redis://***@h:1",
        "waiting    1,200 actions, for their exposure or its page log: a dead letter (no-exposure) after 1.5 h; "
        "the intake refused 2 messages",
        "waiting for items",
    ]
    assert capsys.readouterr().out.splitlines() == ["no dead letters", lines[-2]]
    stopped = status_lines({"data": "d", "running": False, "version": 7})
    assert stopped == ["no loop runs on 'd'; newest snapshot: version 7"]
    with folders.locked(tmp_path):
        assert "phase" not in running(settings), "the page is gone"


# -- What the commands say of Kafka's and Redis' security: mistakes by name, and no secret -----------------------------


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
    monkeypatch.setattr("millrace.commands.up.doctor.check", lambda *_: None)
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
