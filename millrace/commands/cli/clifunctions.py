# shell
"""Commands that are functions of the public package. A flag has the name, type, default and words (Args) of the
function; this says what only the command line has.

Functions load slowly, so the command line names them as text, ``millrace.commands.cli.clifunctions:replay``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from inspect import Parameter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import millrace
from millrace.commands.cli.cliflags import Json, Labels, Log, Model, Out, SchemaFile, Seed, SkipBad, report
from millrace.commands.guess import guess_schema

ON_LOGS: dict[str, Any] = {"log": Log, "schema": SchemaFile, "out": Out, "seed": Seed, "skip_bad": SkipBad}
WITH_MODEL = ON_LOGS | {"model": Model, "label_policy": Labels}
FLAGS: dict[str, dict[str, Any]] = {
    "replay": WITH_MODEL,
    "freshness": ON_LOGS,
    "delays": WITH_MODEL,
    "audit": WITH_MODEL | {"out": Out | None},
    "bootstrap": WITH_MODEL,
    "guess": {"log": Log},
    "judge": {"out": Out},
}
"""By function: flags that say the same in many commands."""

LEFT_OUT = {"spec", "batch_rows", "settings", "workers", "progress"}
"""What no command has: values that are no text, or that a test and a program need."""


def __getattr__(name: str) -> Callable[..., None]:
    if name not in FLAGS:
        raise AttributeError(name)
    found = command_of(getattr(millrace, name), FLAGS[name], guess_schema if name == "guess" else None)
    found.__name__ = name
    return found


def command_of(
    function: Callable[..., Any], flags: dict[str, Any], run: Callable[..., Any] | None = None
) -> Callable[..., None]:
    """A command that calls a function, or what that calls (``run``), and prints the result. The first parameter is an
    argument, others are flags, and the folder :data:`Out` is required."""

    def command(*args: Any, json: Json = False, **given: Any) -> None:
        report(json, run or function, *args, **given)

    hints, taken = get_type_hints(function), list[Parameter]()
    for name, one in inspect.signature(function).parameters.items():
        if name not in LEFT_OUT:
            kind = Parameter.KEYWORD_ONLY if taken else one.kind
            default = Parameter.empty if flags.get(name) is Out else one.default
            taken.append(Parameter(name, kind, default=default, annotation=flags.get(name) or _of_text(hints[name])))
    taken.append(inspect.signature(command).parameters["json"])
    command.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    command.__doc__ = re.sub(
        r"(?m)^ {8}\w+: \w", lambda found: found[0][:-1] + found[0][-1].upper(), function.__doc__ or ""
    )
    return command


def _of_text(hint: Any) -> Any:
    """The type of a flag, of those that a function takes: a path or text, where it takes one.

    >>> _of_text(str | list[int] | None)
    str | None
    """
    kinds = get_args(hint)
    plain = next((one for one in (Path, str) if one in kinds), hint)
    return plain | None if type(None) in kinds else plain
