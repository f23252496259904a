# core
"""What the entries of a schema's ``[log]`` and ``[[join]]`` may say together: named time formats, and what is refused.

:mod:`millrace.contracts.schema` asks when a schema is read; :mod:`millrace.logs` reads logs by it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from millrace.basics import durations

if TYPE_CHECKING:
    from millrace.contracts.schema import Join, LogColumns

NAMED: dict[str, str] = {
    "iso": "",
    "yymmddhh": "%y%m%d%H",
    "yyyymmdd": "%Y%m%d",
    "yyyymmddhh": "%Y%m%d%H",
    "mind": "%m/%d/%Y %I:%M:%S %p",
}
"""Time formats by name. ISO 8601 has variants, and is what a text is taken for anyway: it has no strptime format."""

FIRST_DAY = "2000-01-01"
"""Where the clock of a log without times begins."""


def strptime_of(time_format: str | None) -> str:
    """The strptime format of a schema's entry; empty for ISO 8601 and numbers."""
    return "" if time_format is None else NAMED.get(time_format.lower(), time_format)


def start_ms(text: str) -> int:
    """Unix ms of an ISO date or time, UTC where it names no zone. Raises ValueError.

    >>> start_ms("1970-01-02")
    86400000
    """
    at = datetime.fromisoformat(text)
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def log_problems(log: LogColumns, joins: Sequence[Join]) -> Iterator[tuple[str, str]]:
    """(what is wrong, the remedy) of entries that no log could be read by."""
    for where, time_format in (("log", log.time_format), *(("join", j.time_format) for j in joins)):
        if time_format is not None and time_format.lower() not in NAMED and "%" not in time_format:
            yield f"{where}.time_format '{time_format}' is not known", f"use {', '.join(NAMED)}, or like '%y%m%d%H'"
    if log.time_start is not None:
        try:
            start_ms(log.time_start)
        except ValueError:
            yield f"log.time_start '{log.time_start}' is no date", "write it like '2017-01-01'"
    if log.time_start is not None and log.time_format is not None:
        yield "log.time_start and log.time_format are both named", "a start is for numbers that count from it"
    try:
        durations.minutes_of(log.disorder)
    except ValueError as error:
        yield f"log.disorder: {error}", "correct it"
    for where, encoding in (("log", log.encoding), *(("join", j.encoding) for j in joins)):
        try:
            codecs.lookup(encoding)
        except LookupError:
            yield f"{where}.encoding '{encoding}' is not known", "use 'utf-8', 'latin-1' or another that Python knows"
    yield from _label_problems(log)
    yield from _list_problems(log)


def _label_problems(log: LogColumns) -> Iterator[tuple[str, str]]:
    if log.label_action is not None and log.label_action not in log.action_times:
        yield f"log.label_action '{log.label_action}' has no column", "name its column in log.action_times"
    ways = [name for name in ("label_at_least", "label_action") if getattr(log, name) is not None]
    if len(ways) > 1:
        yield "log.label_at_least and log.label_action are both named", "keep one of them"
    if ways and log.listed:
        yield f"log.{ways[0]} beside lists of items", "the lists say what was clicked: leave it out"


def _list_problems(log: LogColumns) -> Iterator[tuple[str, str]]:
    said = [name for name in ("labels", "clicked", "pairs") if getattr(log, name) is not None]
    if log.items is None and log.pairs is None:
        if said or log.along:
            yield f"log.{(said or ['along'])[0]} without log.items", "name the column with the list of items"
    elif len(said) != 1:
        named = " and ".join(f"log.{name}" for name in said) or "none"
        yield f"log.items with {named}", "name one of log.labels, log.clicked, log.pairs"
    elif log.pairs is not None and log.items is not None:
        yield "log.items and log.pairs are both named", "pairs have the items in them: leave log.items out"
