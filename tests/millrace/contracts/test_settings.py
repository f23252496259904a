"""Settings: where they come from, the file and its sections, and what is said of mistakes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from millrace.basics.errors import SettingError
from millrace.commands.reference.settings_page import template
from millrace.contracts.settings import (
    FILE,
    SECTIONS,
    Settings,
    load_settings,
    read_settings,
    unread_variables,
    variable,
)
from tests.architecture import ROOT


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_section_has_settings_that_there_are_and_each_setting_one_section() -> None:
    names = [name for of_section in SECTIONS.values() for name in of_section]
    assert tuple(names) == Settings.__struct_fields__[: len(names)], "public ones first, in the order of the sections"
    assert len(set(names)) == len(names)


def test_the_file_of_init_with_no_line_commented_out_says_the_defaults(here: Path) -> None:
    assert tomllib.loads(template()) == {section: {} for section in SECTIONS}
    (here / FILE).write_text(re.sub(r"^#(?=\w)", "", template(), flags=re.MULTILINE))
    found = read_settings({}, {})
    assert (found.settings, found.mistakes) == (Settings(), [])
    assert len(found.given) == sum(map(len, SECTIONS.values()))


def test_a_flag_goes_before_the_environment_before_the_file_before_the_default(here: Path) -> None:
    (here / FILE).write_text("[ports]\nport = 1\nintake_port = 1\n\n[serving]\nworkers = 3\n")
    found = read_settings({"port": 3, "workers": None}, {"MILLRACE_PORT": "2", "MILLRACE_INTAKE_PORT": "2"})
    s = found.settings
    assert (s.port, s.intake_port, s.workers, s.page_port) == (3, 2, 3, Settings().page_port), "None is no flag"
    origins = {name: given.origin for name, given in found.given.items()}
    assert origins == {"port": "flag", "intake_port": "MILLRACE_INTAKE_PORT", "workers": f"{FILE}:6"}


def test_the_file_is_the_one_that_is_named_else_that_of_the_loop_else_that_of_this_folder(here: Path) -> None:
    for number, folder in enumerate(("", "loop", "named", "millrace-data"), 1):
        (here / folder).mkdir(exist_ok=True)
        (here / folder / FILE).write_text(f"[demo]\nseed = {number}\n")
    assert load_settings({"data": "elsewhere"}, {}).seed == 1
    assert load_settings({"data": "loop"}, {}).seed == load_settings({}, {"MILLRACE_DATA": "loop"}).seed == 2
    assert load_settings({"data": "loop"}, {"MILLRACE_CONFIG": f"named/{FILE}"}).seed == 3
    assert load_settings({}, {}).seed == 4, "the folder of a loop that nobody names"
    assert load_settings({}, {"MILLRACE_CONFIG": ""}).seed == 0, "no file"


def test_a_child_process_gets_the_settings_and_looks_for_no_file(here: Path) -> None:
    (here / FILE).write_text("[demo]\nseed = 5\n")
    settings = Settings(model_spec={"width": 8}, recall={"hot": 1.0}, archive_features=True)
    assert load_settings({}, settings.environment()) == settings


def test_paths_in_a_file_are_relative_to_it(here: Path) -> None:
    (here / "loop").mkdir()
    (here / "loop" / FILE).write_text('[schema]\nschema = "s.toml"\n[services]\nstore = "s3://b/p"\ndata = ""\n')
    settings = load_settings({}, {"MILLRACE_CONFIG": f"loop/{FILE}"})
    assert (settings.schema, settings.store, settings.data) == (str(here / "loop" / "s.toml"), "s3://b/p", "")


def test_a_table_is_a_table_in_the_file_and_short_or_json_in_the_environment(here: Path) -> None:
    (here / FILE).write_text(
        '[serving.recall]\nhot = 1\n[model]\nsegments = {kind = ["a", "b"]}\n[gate.teach_limits]\nuser = 5\n'
    )
    short = {"RECALL": "hot=1", "SEGMENTS": "kind:a|b", "TEACH_LIMITS": " user = 5"}
    json = {"RECALL": '{"hot": 1}', "SEGMENTS": '{"kind": ["a", "b"]}', "TEACH_LIMITS": '{"user": 5}'}
    for env in ({}, short, json):
        s = load_settings({}, {f"MILLRACE_{name}": text for name, text in env.items()})
        assert (s.recall, s.segments, s.teach_limits) == ({"hot": 1.0}, {"kind": ["a", "b"]}, {"user": 5})
    assert load_settings({}, {"MILLRACE_TEACH_LIMITS": ""}).teach_limits == {}, "no limit"


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("[ports]\nport = 70000\n", [f"{FILE}:2: port '70000': Expected `int` <= 65535"]),
        ("[ports]\nprot = 1\n", [f"{FILE}:2: [ports] has no setting 'prot'; did you mean port?"]),
        ("[ports]\nkafka = 'h:1'\n", [f"{FILE}:2: [ports] has no setting 'kafka'; it belongs in [services]"]),
        ("[ports]\nclock = ''\n", [f"{FILE}:2: [ports] has no setting 'clock'; docs/reference/settings.md"]),
        ("\n[port]\nport = 1\n", [f"{FILE}:2: there is no section [port]; did you mean ports?"]),
        (
            "colour = 3\n",
            [f"{FILE}:1: outside of the sections there is no setting 'colour'; docs/reference/settings.md"],
        ),
        ("seed = 7\n", [f"{FILE}:1: outside of the sections there is no setting 'seed'; it belongs in [demo]"]),
        ("[ports\n", [f"the settings file '{FILE}' cannot be read"]),
        (
            "[gate]\ngate = 'maybe'\n[gate.teach_limits]\nuser = 0\n",
            [
                f"{FILE}:2: gate 'maybe': Invalid enum value 'maybe'",
                f"{FILE}:3: teach_limits '{{'user': 0}}': Expected",
            ],
        ),
    ],
)
def test_every_mistake_in_a_file_is_one_line_with_its_place(here: Path, text: str, mistakes: list[str]) -> None:
    (here / FILE).write_text(text)
    found = read_settings({}, {}).mistakes
    assert len(found) == len(mistakes)
    for said, begins in zip(found, mistakes, strict=True):
        assert said.startswith(begins)
    with pytest.raises(SettingError) as caught:
        load_settings({}, {})
    assert "config check" in str(caught.value)


@pytest.mark.parametrize("text", ["user", "user=", "=3", "user=0", "user=-1", "user=1.5", "user=1,user=2", "[1", "{"])
def test_a_table_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(SettingError, match=f"MILLRACE_TEACH_LIMITS: teach_limits '{re.escape(text)}': "):
        load_settings({}, {"MILLRACE_TEACH_LIMITS": text})


def test_variables_that_nothing_reads_are_named() -> None:
    env = {"MILLRACE_PORTT": "1", "MILLRACE_PORT": "1", "MILLRACE_CONFIG": "", "MILLRACE_TEST_LOG": "x", "HOME": "/"}
    kubernetes = {
        "MILLRACE_REDIS_SERVICE_HOST": "10.0.0.7",
        "MILLRACE_REDIS_SERVICE_PORT": "6379",
        "MILLRACE_REDIS_SERVICE_PORT_RESP": "6379",
        "MILLRACE_REDIS_PORT": "tcp://10.0.0.7:6379",
        "MILLRACE_REDIS_PORT_6379_TCP_ADDR": "10.0.0.7",
    }
    assert unread_variables(env | kubernetes) == ["nothing reads MILLRACE_PORTT; did you mean MILLRACE_PORT?"]


def test_no_text_of_the_code_names_a_setting_that_there_is_not() -> None:
    own = {"MILLRACE_CONFIG", "MILLRACE_TOKEN"}  # the file's, and the client's
    known = own | {variable(name) for name in Settings.__struct_fields__}
    named = {
        (path.relative_to(ROOT).as_posix(), name)
        for top in ("millrace", "stream", "learner", "scorer", "simulator", "client", "deploy", "docs")
        for path in (ROOT / top).rglob("*")
        if path.suffix in {".py", ".md", ".toml", ".yaml", ".yml"} and "lab" not in path.parts
        for name in re.findall(r"MILLRACE_[A-Z_]*[A-Z]", path.read_text())
    }
    assert {name for _, name in named} & known, "settings are found"
    assert not sorted(one for one in named if one[1] not in known)
