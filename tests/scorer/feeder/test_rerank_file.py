"""``[serving.rerank]`` of the settings file is read again when it changes, and a bad file changes nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from millrace.contracts.clock import EventClock
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings, load_settings
from millrace.evidence.rerank import Rerank
from scorer.feeder.primary import Primary
from scorer.feeder.rerank_file import RerankFile
from scorer.ipc.link import Packet
from tests.scenes.scorer_feeder import delivered
from tests.scenes.scorer_shop import NOW_MS

TWO = "[serving.rerank]\nweights = { click = 2.0 }\n"


class Sent(list[Rerank]):
    """What a worker was sent."""

    def put(self, packet: Packet) -> None:
        message = delivered(packet)
        assert message.kind == "rerank"
        self.append(msgspec.convert(message.facts, Rerank))


class Watched:
    """A feeder's part that looks at a file, and the worker that was there from the beginning."""

    def __init__(self, settings: Settings) -> None:
        self.sent, self.errors = Sent(), list[str]()
        primary = Primary(settings, shop_schema(), EventClock(), lambda: NOW_MS)
        self.file = RerankFile(primary, self.errors.append)

    def look(self) -> list[str]:
        """The words of two looks: a file that has changed is read when it has not changed any more."""
        with capture_logs() as said:
            self.file.look(self.sent.put)
            self.file.look(self.sent.put)
        return [f"{line['event']} {line.get('error', '')}" for line in said]

    def later(self) -> Sent:
        """What a worker is sent that starts now."""
        worker = Sent()
        self.file.add(worker)
        return worker


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "millrace.toml"
    path.write_text(TWO)
    return path


def settings(file: Path, **environ: str) -> Settings:
    return load_settings({}, {"MILLRACE_CONFIG": str(file), **environ})


def replaced(file: Path, text: str) -> None:
    """As an editor does: another file, renamed."""
    other = file.with_suffix(".new")
    other.write_text(text)
    os.replace(other, file)


def test_new_weights_reach_the_workers_that_are_there_and_those_that_come(file: Path) -> None:
    watched = Watched(settings(file))
    assert watched.look() == []
    assert watched.later() == watched.sent == []
    replaced(file, TWO.replace("2.0", "5.0") + "diversity = 0.5\n")
    (said,) = watched.look()
    assert "as the settings file says now" in said
    assert watched.sent == watched.later() == [Rerank(0.5, weights={"click": 5.0})]
    assert watched.look() == []
    replaced(file, "")
    watched.look()
    assert watched.sent[1:] == watched.later() == [Rerank()], "none is a choice, too"
    assert watched.errors == []


def test_a_file_that_is_just_written_is_not_read_as_an_empty_one(file: Path) -> None:
    watched = Watched(settings(file))
    watched.look()
    file.write_text("")  # opened to be written
    watched.file.look(watched.sent.put)
    file.write_text(TWO.replace("2.0", "6.0"))
    watched.file.look(watched.sent.put)
    assert watched.sent == []
    watched.file.look(watched.sent.put)
    assert watched.sent == [Rerank(weights={"click": 6.0})]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[serving.rerank", "cannot be read"),
        (TWO.replace("click", "order"), "rerank: weights name 'order'; the schema has click"),
        (TWO.replace("2.0", "-1"), "the weight -1 of 'click' is none"),
        (TWO + "[serving.rerank.boosts.colour]\nred = 2.0\n", "boosts"),
        (TWO.replace("2.0", "3.0") + "[serving]\ncandidate = 5\n", "did you mean candidates?"),
        ("[services]\nkafca = 'x:1'\n" + TWO.replace("2.0", "3.0"), "did you mean kafka?"),
    ],
)
def test_a_file_with_a_mistake_is_refused_and_the_former_weights_stay(file: Path, text: str, words: str) -> None:
    watched = Watched(settings(file))
    watched.look()
    replaced(file, text)
    (said,) = watched.look()
    assert "pages are re-ranked as before" in said
    assert words in said
    assert watched.look() == [], "it is said one time"
    assert watched.sent == watched.later() == []
    assert watched.errors == ["settings"]
    replaced(file, TWO.replace("2.0", "4.0"))
    watched.look()
    assert watched.sent == [Rerank(weights={"click": 4.0})]


def test_a_file_that_is_gone_changes_nothing(file: Path) -> None:
    watched = Watched(settings(file))
    watched.look()
    file.unlink()
    (said,) = watched.look()
    assert "cannot be read" in said
    assert watched.sent == []


def test_a_role_that_is_started_again_with_former_settings_has_what_the_file_says_now(file: Path) -> None:
    """A supervisor hands settings on as variables."""
    environ: dict[str, Any] = settings(file).environment()
    replaced(file, TWO.replace("2.0", "7.0"))
    started = load_settings({}, environ)
    assert started.rerank == Rerank(weights={"click": 2.0})
    watched = Watched(started)
    watched.look()
    assert watched.sent == [Rerank(weights={"click": 7.0})]


def test_where_a_variable_says_it_the_file_is_not_looked_at(file: Path) -> None:
    own = settings(file, MILLRACE_RERANK='{"diversity": 1.0}')
    assert own.rerank == Rerank(1.0)
    watched = Watched(own)
    replaced(file, TWO.replace("2.0", "7.0"))
    assert watched.look() == []
    assert watched.sent == []
