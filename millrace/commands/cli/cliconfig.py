# shell
"""``millrace init`` and ``millrace config``: the settings file, and where each value comes from."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import cyclopts

from millrace.basics.errors import MillraceError, SettingError
from millrace.commands.cli.cliflags import Data, Json, absolute, emit
from millrace.contracts.settings import (
    FILE,
    SECRET,
    SECTIONS,
    SettingSources,
    read_settings,
    unread_variables,
    without_password,
)

app = cyclopts.App(name="config", help="Settings: show where each comes from, check them.")


def init(*, out: Path = Path(FILE)) -> None:
    """Write a settings file with every public setting, its meaning and its default, all commented out.

    Args:
        out: File to write. One that is there already is not overwritten.
    """
    from millrace.basics.atomic_files import write_whole
    from millrace.commands.reference.settings_page import template

    if out.exists():
        raise SettingError(f"'{out}' is there already", "edit it, or name another with --out")
    write_whole(out, template().encode(), durable=False)
    print(f"settings in {out}; 'millrace config show' tells what holds")


@app.command
def show(*, data: Data = None, json: Json = False) -> None:
    """Print each setting, its value and its origin. Hidden settings are printed where somebody set them."""
    from millrace.commands.reference.settings_page import as_toml

    found = read_settings({"data": absolute(data)})
    public = {name for names in SECTIONS.values() for name in names}
    hidden = tuple(name for name in found.given if name not in public)
    rows = [
        {"section": section, "name": name, "value": _value(found, name), "origin": _origin(found, name)}
        for section, names in {**SECTIONS, "hidden": hidden}.items()
        for name in names
    ]
    lines = [f"file: {found.file or 'none (it may be named by MILLRACE_CONFIG, or be millrace.toml here)'}"]
    for section, names in itertools.groupby(rows, lambda row: str(row["section"])):
        lines += ["", f"[{section}]"]
        lines += [f"{row['name']:<20} {as_toml(row['value']):<28} {row['origin']}" for row in names]
    lines += ["", *found.mistakes] if found.mistakes else []
    file = None if found.file is None else str(found.file)
    emit({"file": file, "settings": rows, "mistakes": found.mistakes}, lines, json)


@app.command
def check(*, data: Data = None, json: Json = False) -> None:
    """Print every mistake in the settings, one a line. Status 1: there is one."""
    from learner.evaluation.traffic_segments import Segments
    from learner.gate.quota import Quota
    from millrace.connections import redis_clients
    from millrace.connections.kafka_security import security_of
    from millrace.processes.tokens import Tokens
    from scorer.recall.candidate_lists import Shares

    found = read_settings({"data": absolute(data)})
    settings = found.settings
    looks: tuple[Callable[[], object], ...] = (
        settings.event_clock,
        lambda: security_of(settings),
        lambda: redis_clients.redis_client(settings.redis).close() if settings.redis else None,
        lambda: Tokens.of(settings),
        lambda: [Shares.of(recall) for recall in settings.recalls],
        lambda: Segments(settings.load_schema(), settings.segments),
        lambda: Quota(settings.load_schema(), settings.teach_limits),
    )
    mistakes = dict.fromkeys([*found.mistakes, *unread_variables(os.environ)])
    for look in looks:
        try:
            look()
        except MillraceError as error:
            mistakes[str(error)] = None
    emit(list(mistakes), mistakes or [f"no mistake in {found.file or 'the settings'}"], json)
    sys.exit(1 if mistakes else 0)


def _value(found: SettingSources, name: str) -> object:
    value = getattr(found.settings, name)
    if name in SECRET:
        return "***" if value else ""
    return without_password(value) if name == "redis" else value


def _origin(found: SettingSources, name: str) -> str:
    return found.given[name].origin if name in found.given else "default"
