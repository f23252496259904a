"""Ports, defaults, sections of settings and types of events that the pages name are those of the code.

The names of settings are compared in ``tests/millrace/contracts/test_settings.py``, made pages where they are made.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from learner.network.models.spec import Spec
from millrace.commands.loop.page.page_server import FIRST_PORT
from millrace.commands.up.ports import REDIS_PORT
from millrace.contracts.events import Event
from millrace.contracts.settings import SECTIONS, Settings
from millrace.processes.metrics import PORTS as METRICS
from scorer.worker.scorer_openapi import ROUTES
from tests.architecture import ROOT
from tests.docs.walk import PAGES

MADE, PAST = "settings.md", "CHANGELOG.md"
PAGES_OF_NOW = [page for page in PAGES if page.name not in (MADE, PAST) and page.parent.name != "lab"]
"""The others name what there was, or are made of the settings."""

SETTINGS = Settings()
PORTS = {
    "scorer": SETTINGS.port,
    "intake": SETTINGS.intake_port,
    "live page": SETTINGS.page_port,
    "learner": SETTINGS.admin_port,
    "broker": SETTINGS.broker_port,
    "Redis": REDIS_PORT,
}
PATHS = {
    "scorer": {route.path.split("/")[1] for route in ROUTES},
    "intake": {"items", "users", "events", "healthz", "readyz"},
    "learner": {"model", "versions", "quarantine"},
    "live page": {"", "state.json"},
}
TYPES = {one.__struct_config__.tag for one in get_args(Event)}
VALUE = r"(\.?\d[\d,.]*\d%?|\d%?|true|false)(?![\w.,]*\d)"
PORT = r"(?<![\d,.])(87\d\d)(?!\d)"


def value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    number = float(text.rstrip("%").replace(",", ""))
    return number / 100 if text.endswith("%") else number


def default(name: str) -> Any:
    return getattr(SETTINGS, name.lower(), None)


def wrong_ports(text: str) -> Iterator[str]:
    for line in text.splitlines():
        ports = [int(port) for port in re.findall(PORT, line)]
        yield from (f"no port {port}" for port in ports if port not in {*PORTS.values(), *METRICS.values()})
        for name, port in re.findall(r"(\w+) (?:answers )?at `?[\d.]*:?" + PORT, line):
            if name in PORTS and PORTS[name] != int(port):
                yield f"{name} at {port}"
        for name, port in re.findall(r"`(\w+)` (?:at )?" + PORT, line):
            if METRICS.get(name) != int(port):
                yield f"metrics of {name} at {port}"
        for port, path in re.findall(rf"(?:localhost|127\.0\.0\.1|HOST):{PORT}/([\w.]*)", line):
            if not any(PORTS[role] == int(port) and path in paths for role, paths in PATHS.items()):
                yield f":{port}/{path}"
        for name in re.findall(r"MILLRACE_(\w*PORT)`", line):
            if line.startswith("|") and ports and default(name) not in ports:
                yield f"MILLRACE_{name} is {default(name)}"
        if "metrics of" in line:
            own = [METRICS[name] for name in re.findall(r"`(\w+)`", line) if name in METRICS]
            if ports != own:
                yield f"metrics at {ports}"
        elif line.startswith("|"):
            roles = re.findall("|".join(PORTS), line)
            yield from (f"{role} at {port}" for role, port in zip(roles, ports, strict=False) if PORTS[role] != port)


def wrong_defaults(text: str) -> Iterator[str]:
    for name, said in re.findall(rf"`MILLRACE_(\w+)`(?: \(|, | \| ){VALUE}(?! (?:days|rows))", text):
        if value(said) != default(name):
            yield f"MILLRACE_{name} is {default(name)}, not {said}"
    spec = msgspec.structs.asdict(Spec())
    for name, said in re.findall(rf"^\| `(\w+)` \| {VALUE} \|", text, re.MULTILINE):
        if name in spec and value(said) != spec[name]:
            yield f"{name} of a model is {spec[name]}, not {said}"
    for name, said in re.findall(r"`MILLRACE_(\w+)` (?:sets|names one)[^#]*?`([\w-]+)` \(the default\)", text):
        if default(name) != said:
            yield f"MILLRACE_{name} is {default(name)}, not {said}"


def wrong_sections(text: str) -> Iterator[str]:
    inline = [(section, key) for key, section in re.findall(r"`(\w+)(?: = [^`]*)?`,? in `\[(\w+)\]`", text)]
    inline += re.findall(r"`\[(\w+)\.(\w+)\]`", text)
    for block in re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        inline += [(name, key) for name, keys in tomllib.loads(block).items() if name in SECTIONS for key in keys]
    yield from (f"no {key} in [{section}]" for section, key in inline if key not in SECTIONS.get(section, ()))


def wrong_types(text: str) -> Iterator[str]:
    yield from (f"no event of type {name}" for name in re.findall(r'"type": ?"([^"…]+)"', text) if name not in TYPES)


def wrong(text: str) -> list[str]:
    return [*wrong_ports(text), *wrong_defaults(text), *wrong_sections(text), *wrong_types(text)]


@pytest.mark.parametrize("page", PAGES_OF_NOW, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_says_of_the_code_is_true(page: Path) -> None:
    assert wrong(page.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "curl localhost:8721/items",
        "curl -s http://127.0.0.1:8720/recommend",
        "the intake at `8700`",
        "`stream` 8703",
        "| Redis | `127.0.0.1:8730` | fixed |",
        "| 8720, 8700 | scorer, intake | tokens |",
        "| metrics of `serve`, `stream` | 8701, 8703 |",
        "| page | 8710 | `MILLRACE_PORT` |",
        "bought within `MILLRACE_BOUGHT_DAYS` (8) come last",
        "`MILLRACE_CONTROL_SHARE`, 20% of users",
        "| `MILLRACE_ARCHIVE_FEATURES` | true | whether |",
        "`MILLRACE_GATE` sets:\n\n| `off` (the default) |",
        "| `width` | 17 | of vectors |",
        "`learns_from` in `[gate]`",
        "a table `[model.rerank]`",
        '```toml\n[serving]\nkafka = "a"\n```\n',
        '{"type": "clicked"}',
    ],
)
def test_what_is_not_true_is_found(text: str) -> None:
    assert wrong(text)


def test_each_type_and_port_has_its_place() -> None:
    text = (ROOT / "docs/reference/messages.md").read_text()
    assert {name for name in TYPES if f"`{name}`" in text or f'"{name}"' in text} == TYPES
    assert PORTS["live page"] == FIRST_PORT
    shop = (ROOT / "docs/how-to/run-your-shop.md").read_text()
    assert {int(port) for port in re.findall(PORT, shop)} >= set(PORTS.values())
