# core
"""The entries ``[log]``, ``[[join]]`` and ``[[outcome]]`` of a schema: how logs and their side tables are read."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import force_setattr

from millrace.basics import durations
from millrace.contracts.events import ACTIONS

TimeUnit = Literal["ms", "s", "us", "ns"]

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


LINE = "line of the log"
"""The page's name where a line is a page with lists and no column names it. Made, as no file has such a column."""


class LogColumns(Struct, frozen=True, forbid_unknown_fields=True):
    """How to read an exposure log: which columns mean what. A log has one row an exposure."""

    time: str
    user: str  # in a file also several: see ``users``
    item: str
    label: str
    time_unit: TimeUnit = "ms"
    identity: tuple[str, ...] = ()  # rows equal in these columns are one exposure; default: each row is one
    day: str | None = None  # column that names the local day (YYYYMMDD); default: from time and utc_offset
    request: str | None = None  # page id; default: each row of the file is a page of its own
    position: str | None = None
    action_times: dict[str, str] = {}  # action kind -> column with its time (null: did not happen)
    born: str | None = None  # column with the time at which the item came: the field age_days follows from it
    attribution_minutes: float = 0.0  # with action times: a label is known at the click, or this long after
    events: str | None = None  # folder with later events of the exposures, as an archive has: outcomes count them

    # How times are written. rows_per_day makes the time of a log that has none of each row's place.
    time_format: str | None = None  # a strptime format, or one of NAMED
    local_times: bool = False  # times without a zone are local (of utc_offset), not UTC
    time_start: str | None = None  # ISO date or time that numbers of time are counted from; default: 1970
    rows_per_day: Annotated[int, Meta(ge=1)] | None = None
    never: tuple[float, ...] = ()  # numbers that mean "did not happen" among action times

    # Columns that are made.
    label_at_least: float | None = None  # the label is 1 where its column is at least this
    label_action: str | None = None  # the label is made: 1 where this action has a time
    combine: dict[str, tuple[str, ...]] = {}  # name -> columns whose texts it joins; none: a constant
    users: tuple[str, ...] = ()  # as ``user`` of a file names them: the first that is there, under the last one's name

    # One row a page, with lists of candidates: item and label are made, as are position and request that are not there.
    items: str | None = None
    labels: str | None = None  # lists of 0 and 1, as long as items
    clicked: str | None = None  # lists of clicked items, or one item
    pairs: str | None = None  # texts like "N12-1 N7-0": item and label
    along: tuple[str, ...] = ()  # other columns with a list as long as items
    list_separator: Annotated[str, Meta(min_length=1)] = " "  # where a list is a text
    pair_separator: Annotated[str, Meta(min_length=1)] = "-"

    # The form of text files.
    columns: tuple[str, ...] = ()  # names of the columns of a file without a header line
    separator: Annotated[str, Meta(min_length=1)] | None = None  # default: by the file's ending
    encoding: str = "utf-8"
    quoting: bool = True  # of CSV: a value in quotes may hold separators; false: a quote is a letter like others
    texts: tuple[str, ...] = ()  # columns of CSV that are text though they look like numbers
    disorder: str = "1h"  # how much earlier than a row before it a row may be; others are counted, and sorted too

    # Of a database.
    table: str | None = None  # of a .duckdb file; default: the only one
    attach: dict[str, str] = {}  # name -> file or address of a database that a SELECT (.sql) may name; read-only
    extensions: tuple[str, ...] = ()  # of DuckDB, installed, that the SELECT needs: postgres, httpfs

    def __post_init__(self) -> None:
        if self.listed and self.request is None:
            force_setattr(self, "request", LINE)

    @property
    def listed(self) -> bool:
        """Whether a row of the file is a page with lists of items."""
        return self.items is not None or self.pairs is not None


class Join(Struct, frozen=True, forbid_unknown_fields=True):
    """A side table beside the log, joined on one column that both have.

    With ``at``, a row of the side table holds from that time on: an exposure gets the newest row that is not later
    than itself.
    """

    file: str
    on: str
    at: str | None = None
    time_unit: TimeUnit | None = None  # of ``at``; default: as the log's
    time_format: str | None = None
    columns: tuple[str, ...] = ()
    separator: Annotated[str, Meta(min_length=1)] | None = None
    encoding: str = "utf-8"
    quoting: bool = True


MOST_OUTCOMES = 8
"""Each has tables and a network of its own."""


OutcomePolicy = Literal["wait", "fake-negative-weighted", "es-dfm"]


class OutcomeRule(Struct, frozen=True, forbid_unknown_fields=True):
    """What may come of an exposure, or of its click, and is predicted beside the click.

    It is 1 or 0, and its time says when that is known::

        event     1: the action came before base + within     known at base + within, whichever it is
        column    0 or 1 in a log, empty: not known           known at base + within; without ``within``, with the label

    A log with an empty name of the column does not have it: an archive, of a loop whose schema names another log's.
    ``base`` is the exposure, or with ``on = "click"`` the click. Without a click such an outcome is not defined.
    """

    name: Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,39}$")]
    on: Literal["page", "click"] = "page"
    event: str | None = None
    column: str | None = None
    at_least: float | None = None  # the outcome is 1 where its column has at least this
    within: str | None = None
    value: str | None = None  # a numeric field: what the outcome is worth
    policy: OutcomePolicy | None = None  # when it is learnt, and with what weight (millrace/labels)

    @property
    def within_ms(self) -> int:
        return 0 if self.within is None else durations.minutes_of(self.within) * 60_000

    @property
    def told(self) -> OutcomePolicy:
        """The policy. By default an event's outcome that waits for a week or more is told by age."""
        long = self.event is not None and self.within_ms >= 7 * durations.DAY_MS
        return self.policy or ("es-dfm" if long else "wait")


def outcome_problems(outcomes: Sequence[OutcomeRule], numeric: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(what is wrong, the remedy) of outcomes, in a schema with these ``numeric`` fields."""
    if len(outcomes) > MOST_OUTCOMES:
        yield f"{len(outcomes)} outcomes", f"name at most {MOST_OUTCOMES}: each costs as much as the click's model"
    names = [one.name for one in outcomes]
    for one in outcomes:
        if one.name == "click" or names.count(one.name) > 1:
            yield f"outcome '{one.name}' stands twice", "the click is predicted anyway; name each other one once"
        if (one.event is None) is (one.column is None):
            yield f"outcome '{one.name}' has {'no' if one.event is None else 'an'} event and column", "name one of them"
        if one.at_least is not None and one.column is None:
            yield f"outcome '{one.name}' has at_least without a column", "name the column of numbers"
        if any(one.column and other.column == one.column and other.at_least != one.at_least for other in outcomes):
            yield (
                f"outcome '{one.name}' reads '{one.column}' otherwise than another outcome",
                "use one at_least a column",
            )
        if one.event is not None and one.event not in ACTIONS[2:]:
            yield f"outcome '{one.name}' is of the event '{one.event}'", f"use {', '.join(ACTIONS[2:])}"
        if one.event is not None and one.within is None:
            yield f"outcome '{one.name}' waits for ever", "say within = '30d', after which it did not come"
        if one.policy not in (None, "wait") and one.event is None:
            yield f"outcome '{one.name}' of a column has the policy '{one.policy}'", "only events come at a known time"
        if one.value is not None and one.value not in numeric:
            yield f"outcome '{one.name}' is worth '{one.value}', which is no numeric field", "add it to [[fields]]"
        try:
            _ = one.within_ms
        except ValueError as error:
            yield f"outcome '{one.name}', within: {error}", "correct it"


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
    if log.events is not None and log.request is None:
        yield "log.events without log.request", "name the column of the page: an event names its page and item"
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
