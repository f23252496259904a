"""Pages made from types: they lie in docs/ as they would be made, and say what the decoders do."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import msgspec
import pytest
from referencing import Registry, Resource

from millrace.basics.errors import EXIT_CODES, SettingError
from millrace.commands.cli import clidata
from millrace.commands.cli.cli import app
from millrace.commands.reference import commandpage as commands
from millrace.commands.reference import message_pages, settings_page
from millrace.commands.reference.dead_letters import DeadLetterReport
from millrace.commands.reference.examples import EXAMPLES
from millrace.commands.reference.made_pages import pages, write
from millrace.commands.reference.message_pages import CHANNELS, KINDS, MEANS
from millrace.commands.up.data_folder import locked
from millrace.contracts.dead_letter_reasons import REASONS, WARNINGS
from millrace.contracts.events import BadEventError, DeadLetter, dead_letter_bytes, decode_dead_letter, decode_event
from millrace.contracts.profile_reader import Intake
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import ABOUT, SECTIONS, Settings
from millrace.contracts.topics import DEAD_LETTERS, EVENTS, ITEMS, TOPICS, USERS
from tests.architecture import ROOT
from tests.scenes.bad_messages import Bad, bad_events, bad_items, bad_users

DOCS = ROOT / "docs"
SCHEMAS = message_pages.schemas()
REGISTRY: Registry[Any] = Registry().with_resources((name, Resource.from_contents(s)) for name, s in SCHEMAS.items())
INTAKE = Intake(shop_schema())
DECODERS = {"user": INTAKE.user, "item": INTAKE.item, "item-change": INTAKE.item, "dead-letter": decode_dead_letter}


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(SCHEMAS[f"{name}.json"], registry=REGISTRY)


def test_the_pages_in_docs_are_those_that_would_be_made(tmp_path: Path) -> None:
    """After a change of a type or a setting: `millrace dev reference --out docs/`."""
    made = pages(app)
    for name, content in made.items():
        assert (DOCS / name).read_bytes() == content, f"docs/{name} is old: run 'millrace dev reference --out docs/'"
    there = {str(path.relative_to(DOCS)) for path in (DOCS / "reference").rglob("*.json")}
    assert there == {name for name in made if name.endswith(".json")}, "and there is no page of old types"
    assert len(write(tmp_path, made)) == len(made)
    assert write(tmp_path, made) == []


def test_every_field_has_words_and_no_words_are_left_over() -> None:
    for name, kind in KINDS.items():
        fields = {field.encode_name for field in msgspec.structs.fields(kind)}
        assert MEANS[name].keys() - {"type"} == fields, name
        assert "description" in SCHEMAS[f"{name}.json"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[name])


@pytest.mark.parametrize("name", KINDS)
def test_examples_are_taken_by_decoder_and_schema_and_come_out_as_they_went_in(name: str) -> None:
    raw = msgspec.json.encode(EXAMPLES[name])
    assert DECODERS.get(name, decode_event)(raw) == EXAMPLES[name]
    validator(name).validate(json.loads(raw))
    if name in message_pages.EVENTS:
        validator("event").validate(json.loads(raw))


def differing(bads: list[Bad], name: str) -> list[str]:
    """Messages that schema and decoder do not agree about."""
    decode, found = DECODERS.get(name, decode_event), list[str]()
    for bad in bads:
        try:
            value = json.loads(bad.value or b"", parse_constant=lambda _: 1 / 0)
        except (ValueError, ZeroDivisionError, RecursionError):
            continue  # no JSON: nothing that a schema could say
        try:
            decode(bad.value)
            taken = True
        except BadEventError as error:
            if error.reason in ("malformed", "oversized", "bad-value"):  # size, depth, the shop's schema
                continue
            taken = False
        if validator(name).is_valid(value) != taken:
            found.append(bad.name)
    return found


def test_schema_and_decoder_agree_about_messages_that_nobody_should_send() -> None:
    ts_ms = 1_772_414_000_000
    events = differing([bad for bad in bad_events(ts_ms) if bad.topic == EVENTS], "event")
    # What a JSON Schema cannot say: as many slots as items, none of them twice.
    assert all(name.startswith(("slots [", "slots: ", "items: ")) for name in events), events
    assert len(events) < 20
    # Nor that a number in an attribute is beyond what a float or an integer of 64 bits holds.
    beyond = {"1e400", "400 digits", "2^63", "2^64", "-2^63-1", "2^70 in a list"}
    for bads, name in ((bad_users(), "user"), (bad_items(ts_ms), "item")):
        odd = differing([bad for bad in bads if bad.topic in (USERS, ITEMS)], name)
        assert {what.partition(": ")[2] for what in odd} == beyond
        assert all(what.startswith("attributes.") for what in odd)


def test_the_asyncapi_document_has_every_topic_and_each_reference_leads_somewhere() -> None:
    document = message_pages.asyncapi()
    assert {c["address"] for c in document["channels"].values()} == {topic.name for topic in TOPICS} == CHANNELS.keys()

    def look(part: Any) -> None:
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                place: Any = document
                for step in part["$ref"].removeprefix("#/").split("/"):
                    place = place[step]
            for value in part.values():
                look(value)
        elif isinstance(part, list):
            for value in part:
                look(value)

    look(document)
    for name in KINDS:
        (example,) = document["components"]["messages"][name]["examples"]
        validator(name).validate(example["payload"])
    events = document["channels"][EVENTS]["bindings"]["kafka"]
    assert events["partitions"] == Settings().partitions
    assert events["topicConfiguration"]["retention.ms"] == 7 * 86_400_000


def test_the_settings_page_has_every_public_setting_once_with_what_its_type_says_of_it() -> None:
    assert ABOUT.keys() == SECTIONS.keys()
    rows = {row.name: row for section in SECTIONS for row in settings_page.rows(section)}
    assert list(rows) == [name for names in SECTIONS.values() for name in names]
    assert rows["workers"].type == "whole number, 1 to 64"
    assert rows["workers"].meaning == "processes that answer requests, on one port"
    assert rows["store"].meaning.startswith("Folder or object store")
    assert (rows["attribution_minutes"].type, rows["attribution_minutes"].default) == ("number, above 0", 5.0)
    assert rows["teach_limits"].type == "table of whole number, 1 to 9,223,372,036,854,775,807"
    page = settings_page.page()
    assert all(page.count(f"| `MILLRACE_{name.upper()}` |") == 1 for name in rows)


def test_the_page_of_commands_has_every_command_with_its_flags_and_the_exit_codes() -> None:
    text = commands.page(app)
    assert "inspect." not in text
    for words, command in commands.commands(app):
        part = text.partition(f"# {words}\n")[2].partition("\n##")[0]
        assert part, words
        if command.default_command is not None:
            names = set(inspect.signature(command.default_command).parameters) - {"arguments"}
            assert names <= {name.replace("-", "_").lower() for name in re.findall(r"[\w-]+", part.replace("--", " "))}
    assert all(f"| {code} | {meaning} |" in text for code, meaning in EXIT_CODES.items())


def test_a_common_flag_is_described_once_and_named_by_each_command_that_has_it() -> None:
    text = commands.page(app)
    assert text.count("Print the result as one JSON value.") == 1
    replay = text.partition("### millrace log replay\n")[2].partition("\n##")[0]
    assert "`--out`*" in replay
    assert "`--seed`" in replay
    assert text.count("- `--seed`: Seed of the model.") == 1
    simulate = text.partition("### millrace run simulate\n")[2].partition("\n##")[0]
    assert "- `--seed`: Seed of the simulated world." in simulate, "of the flags of one name only one is common"


# -- Reasons of dead letters -------------------------------------------------------------------------------------------
# Every reason that the code has is in the table of reasons and on the page, and no other.


MAKERS = {"Dead", "BadEventError", "DeadLetter", "DeadLetter.of", "outcome.refuse", "Dropped"}
INNER = {"bad-value", "bad-key", "unmapped"}
"""Reasons of BadEventError within `bad-user` and `bad-item`, or of the intake alone."""


def words(node: ast.expr) -> Iterator[str]:
    """The texts that an argument may be."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from words(node.body)
        yield from words(node.orelse)


def said() -> Iterator[tuple[str, str]]:
    """(module, reason) of each dead letter that stream, learner and contracts make."""
    for path in [
        *(ROOT / "stream").rglob("*.py"),
        *(ROOT / "learner").rglob("*.py"),
        *(ROOT / "millrace/contracts").rglob("*.py"),
    ]:
        tree = ast.parse(path.read_text())
        named = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name) and target.id == "reason"
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) in MAKERS:
                first = node.args[0]
                for word in words(named.get(first.id, first) if isinstance(first, ast.Name) else first):
                    yield path.name, word


def test_the_table_of_reasons_has_every_reason_of_the_code_and_no_other() -> None:
    found = {reason for _, reason in said()}
    assert found - INNER == set(REASONS)
    assert found >= INNER


def reference(name: str) -> str:
    return (ROOT / "docs" / "reference" / f"{name}.md").read_text()


def test_the_page_has_every_reason_with_a_row_of_its_own() -> None:
    page = reference("dead-letters")
    assert re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE) == [*REASONS, *WARNINGS]
    for name in ("metrics", "messages"):
        assert set(re.findall(r"dead letter `([a-z-]+)`", reference(name))) <= set(REASONS)
        assert "dead-letters.md" in reference(name)


def test_every_kind_of_warning_is_made_by_the_code_and_explained() -> None:
    source = (ROOT / "millrace" / "contracts" / "profile_warnings.py").read_text()
    made = set(re.findall(r'ProfileWarning\("([a-z-]+)"', source))
    assert made == set(WARNINGS)
    for kind in WARNINGS:
        assert f"warning `{kind}`" in reference("messages")
        assert f"`{kind}`" in reference("metrics")


def dead_letter(reason: str, offset: int, raw: bytes | None = b"{}", exposures: int = 0) -> bytes:
    return dead_letter_bytes(DeadLetter.of(reason, "why not", "events", 1, offset, raw, exposures))


def test_dead_letters_are_counted_once_with_the_newest_and_their_remedies() -> None:
    dead_letters = DeadLetterReport(last=2)
    for offset in range(5):
        dead_letters.add(dead_letter("late", offset, b'{"n": %d}' % offset, exposures=2))
    dead_letters.add(dead_letter("late", 4, b'{"n": 4}', exposures=2))  # written again after a crash
    dead_letters.add(dead_letter("seconds", 9, b"\x1b[2Jx"))
    dead_letters.add(b"rubbish")
    assert (dead_letters.counts, dead_letters.exposures["late"], dead_letters.unreadable) == (
        {"late": 5, "seconds": 1},
        10,
        1,
    )
    text = dead_letters.text()
    assert [text.count(f"events, partition 1, offset {n}") for n in (3, 4, 9)] == [0, 1, 1]
    assert '{"n": 4}' in text
    assert f"mend: {REASONS['seconds'].mend}" in text
    assert "\x1b" not in text, "a message cannot write to the terminal"


def test_the_command_reads_the_whole_topic(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def read_all(settings: Settings, topic: str, visit: Callable[[Any], None]) -> int:
        asked.append((settings.kafka, topic))
        for raw in (dead_letter("late", 1), dead_letter("seconds", 2), dead_letter("late", 3)):
            visit(SimpleNamespace(value=raw))
        return 3

    monkeypatch.setattr("millrace.processes.kafka.read_all", read_all)
    clidata.dead_letters(reason="late", last=1, kafka="broker:9092")
    out = capsys.readouterr().out
    assert asked == [("broker:9092", DEAD_LETTERS)]
    assert ("offset 3" in out, "offset 1" in out, "seconds" in out) == (True, False, False)
    assert out.splitlines()[1].split()[:3] == ["2", "0", "late:"]


def test_the_command_asks_the_broker_of_the_run_on_the_data_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []
    monkeypatch.setattr("millrace.processes.kafka.read_all", lambda settings, *_: asked.append(settings.kafka))
    (tmp_path / "up.json").write_text('{"kafka": "127.0.0.1:8730"}')  # as a killed run leaves it
    with pytest.raises(SettingError, match=rf"no 'millrace up' is ready on folder '{re.escape(str(tmp_path))}'"):
        clidata.dead_letters(data=tmp_path)
    with locked(tmp_path):
        clidata.dead_letters(data=tmp_path)
    assert asked == ["127.0.0.1:8730"]


def test_dead_letters_of_one_reason_and_none() -> None:
    dead_letters = DeadLetterReport("late")
    dead_letters.add(dead_letter("seconds", 1))
    assert dead_letters.text() == "no dead letter with the reason 'late'"
    assert DeadLetterReport().text() == "no dead letters"


@pytest.mark.parametrize(("raw", "shown"), [(b"", "(the message was empty)"), ("ü".encode() * 200, "ü" * 150)])
def test_messages_are_shown_as_text_and_cut_between_characters(raw: bytes, shown: str) -> None:
    dead_letters = DeadLetterReport()
    dead_letters.add(dead_letter("malformed", 1, raw))
    (line,) = [line.strip() for line in dead_letters.text().splitlines() if shown in line]
    assert line == shown + (" … and 100 bytes more" if raw else "")
