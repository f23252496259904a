"""Every reason that the code has is in the table of reasons and on the page, and no other; dead letters for people."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commands.cli import clidata
from commands.reference.dead_letters import DeadLetterReport
from commands.up.data_folder import locked
from millrace.basics.errors import SettingError
from millrace.contracts.dead_letter_reasons import REASONS, WARNINGS
from millrace.contracts.events import DeadLetter, dead_letter_bytes
from millrace.contracts.settings import Settings
from millrace.contracts.topics import DEAD_LETTERS
from tests.architecture import ROOT

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
