# core
"""The page of all commands with the table of exit codes, made from the command line itself. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from inspect import Parameter
from typing import NamedTuple

from cyclopts import App

from millrace.basics.errors import EXIT_CODES

_HEAD = """# Commands

This page is made by `millrace dev reference --out docs/`; do not edit it. `millrace --install-completion` lets your
shell complete them. A flag `--[no-]NAME` has both forms. A command lists [common flags](#common-flags) by name only.
An asterisk marks what it requires; code in parentheses is the default.

## Exit codes

| code | meaning |
|---|---|
"""
_COMMON = "\n## Common flags\n\n"
_OFTEN = 2
"""A flag that more commands have, in the same words, is common; of two with one name that of more commands."""


class Flag(NamedTuple):
    """A flag or an argument, as the page says it: equal ones of several commands are said once."""

    name: str
    about: str
    default: str

    def line(self, required: bool) -> str:
        about = f": {self.about}" if self.about else ""
        return f"- `{self.name}`{'*' if required else ''}{about}{f' (`{self.default}`)' if self.default else ''}\n"


def page(app: App) -> str:
    """The page as Markdown."""
    codes = "".join(f"| {code} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    found = list(commands(app))
    uses = Counter(flag for _, command in found for flag, _ in _flags(command))
    oftenest = {flag.name: flag for flag, n in reversed(uses.most_common()) if n > _OFTEN}
    common = {flag for flag in uses if oftenest.get(flag.name) == flag}
    flags = "".join(flag.line(False) for flag in uses if flag in common)
    return f"{_HEAD}{codes}{_COMMON}{flags}{''.join(_command(words, one, common) for words, one in found)}"


def commands(app: App, before: str = "millrace") -> Iterator[tuple[str, App]]:
    """Every command below ``app``, with its words; groups come before what is in them."""
    for name in app:
        if not name.startswith("-"):
            words = f"{before} {name}"
            yield words, app[name]
            yield from commands(app[name], words)


def _command(words: str, command: App, common: set[Flag]) -> str:
    mark = "##" if words.count(" ") == 1 else "###"
    about = " ".join((command.help or "").partition("\n    Args:\n")[0].split())
    flags = _flags(command)
    named = [f"`{flag.name}`{'*' if required else ''}" for flag, required in flags if flag in common]
    own = "".join(flag.line(required) for flag, required in flags if flag not in common)
    shared = f"- {', '.join(named)}\n" if named else ""
    return f"\n{mark} {words}\n\n{about}\n" + (f"\n{own}{shared}" if flags else "")


def _flags(command: App) -> list[tuple[Flag, bool]]:
    """What a command takes, each with whether it must be given."""
    if command.default_command is None:
        return []
    return [
        (
            Flag(
                _name(a.names, a.field_info.is_positional),
                " ".join((a.parameter.help or "").split()),
                _default(a.field_info.default),
            ),
            a.required,
        )
        for a in command.assemble_argument_collection(parse_docstring=True)
    ]


def _name(names: tuple[str, ...], positional: bool) -> str:
    """A flag that is on or off has a second name, by which it is switched off."""
    name, *off = names
    if positional:
        return name.lstrip("-").upper()
    return f"--[no-]{name.removeprefix('--')}" if off else name


def _default(value: object) -> str:
    return "" if value in (None, False, "", Parameter.empty) else str(value)
