# core
"""The page of all commands with the table of exit codes, made from the command line itself. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import Parameter

from cyclopts import App

from millrace.basics.errors import EXIT_CODES

_HEAD = """# Commands

This page is made by `millrace dev reference --out docs/`; do not edit it. `millrace --install-completion` lets your
shell complete them. `--data` is everywhere the folder of the loop; `--json` prints the result as one JSON value.

## Exit codes

| code | meaning |
|---|---|
"""


def page(app: App) -> str:
    """The page as Markdown."""
    codes = "".join(f"| {code} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    return f"{_HEAD}{codes}{''.join(_command(words, command) for words, command in commands(app))}"


def commands(app: App, before: str = "millrace") -> Iterator[tuple[str, App]]:
    """Every command below ``app``, with its words; groups come before what is in them."""
    for name in app:
        if not name.startswith("-"):
            words = f"{before} {name}"
            yield words, app[name]
            yield from commands(app[name], words)


def _command(words: str, command: App) -> str:
    mark = "##" if words.count(" ") == 1 else "###"
    about = " ".join((command.help or "").partition("\n    Parameters\n")[0].split())
    text = f"\n{mark} {words}\n\n{about}\n"
    if command.default_command is None:
        return text
    rows = [
        f"| {_name(names, positional)} | {_cell(about)} | {'**required**' if required else _cell(default)} |\n"
        for names, positional, about, required, default in (
            (a.names, a.field_info.is_positional, a.parameter.help or "", a.required, _default(a.field_info.default))
            for a in command.assemble_argument_collection(parse_docstring=True)
        )
    ]
    return text + ("\n| | | default |\n|---|---|---|\n" + "".join(rows) if rows else "")


def _name(names: tuple[str, ...], positional: bool) -> str:
    return f"`{names[0].lstrip('-').upper()}`" if positional else ", ".join(f"`{name}`" for name in names)


def _default(value: object) -> str:
    return "" if value in (None, False, "", Parameter.empty) else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
