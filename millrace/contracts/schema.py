# core
"""The feature schema: the columns of a log or catalogue, and the features and windows made of them.

A schema is a TOML file, read once, validated, then frozen. It determines the :class:`Layout`, the fixed order of
every feature array::

    cat (n, F)   one column per slot:   user fields | item fields | context fields   (a multi field has several)
    num (n, N)   plain numbers          user | item | context, as in the schema
                 window statistics      key 0: span 0: a0 a1 .. aA-1 rate1 .. rateA-1 mean1 .. | span 1: .. | key 1: ..
                 among candidates       [[among]] 0: its forms | [[among]] 1: ..
    keys (n, K)  uint64 window keys     one column per [windows] key

A span is a window or, after the windows, a half-life. ``a0`` is the count of exposures, ``rate_j`` the smoothed
share of exposures followed by action j, ``mean_m`` the mean of a number over one action. :attr:`Schema.id`
identifies a schema by a hash of all that changes the meaning of an array.
"""

from __future__ import annotations

import hashlib
import logging
import math
import tomllib
from collections.abc import Callable
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import fields, force_setattr

from millrace.basics import durations
from millrace.basics.errors import SchemaError, invalid
from millrace.basics.hashing import salt
from millrace.contracts.events import ACTIONS
from millrace.contracts.logforms import Join, LogColumns, OutcomeRule, log_problems, outcome_problems

Side = Literal["user", "item", "context"]
SIDES: tuple[Side, ...] = ("user", "item", "context")
Transform = Literal["raw", "log", "bucket"]
AmongForm = Literal["rank", "of_mean", "of_max", "count"]

MOST_DAYS = 3650
"""The longest window."""
MAX_COLUMNS = 16
"""The most counts and sums in a tile."""

MOST_SLOTS = 16
"""The most values of a field that is no text."""

VECTOR_NUMBERS = 32
"""The most numbers that a model sees of a vector."""

MAX_FILTERS = 16
"""Attributes in ``filters``: each takes memory for every item."""

LAST = {"last_clicks": "click", "last_purchases": "purchase"}
"""Derived fields of the user, newest first, and the action whose last items each names. Their values are item ids, with
the ids of the item's own field: both read the same rows of the model's tables."""
AGES = {f"{name}_age": name for name in LAST}
"""Derived fields of the user, and the one beside which each says how long ago, as a bucket."""
EXPOSURE_AGE = "exposure_age_days"
"""A derived number of the item: days since its first exposure, as the tiles of the longest window know it."""
ITEM_AGES = ("age_days", EXPOSURE_AGE)
"""Derived numbers of an item that are ages, in days."""
DERIVED = ("hour", "weekday", "position", *ITEM_AGES, *LAST, *AGES)
"""Columns that need not be in the data: local hour and weekday of the exposure, its slot, the item's age in days and
that since its first exposure, the user's last actions (millrace/windows/lastactions.py)."""


class Field(Struct, frozen=True, forbid_unknown_fields=True):
    """One feature. ``slots`` above 1 makes a categorical field multi-valued: its values are pooled. The values of a
    text are its words, and with ``bigrams`` pairs of neighbours (:mod:`millrace.contracts.field_values`). A vector has
    ``size`` numbers.

    ``pool``: by their mean, or, for the user's last actions, by attention of the item on the page.
    ``width`` is the embedding width (None: the model's default). ``bias`` marks a field that is known when learning
    but not when ranking (the position): it feeds the wide part only, and is missing when a page is ranked.
    """

    name: str
    of: Side
    kind: Literal["categorical", "numeric", "text", "vector"] = "categorical"
    size: Annotated[int, Meta(ge=0, le=8192)] = 0
    slots: Annotated[int, Meta(ge=1, le=32)] = 1
    separator: str = ","
    width: Annotated[int, Meta(ge=1, le=256)] | None = None
    transform: Transform = "raw"
    bias: bool = False
    pool: Literal["mean", "attention"] = "mean"
    bigrams: bool = False

    def __post_init__(self) -> None:
        if self.kind == "text" and self.slots == 1:
            force_setattr(self, "slots", 32 if self.bigrams else MOST_SLOTS)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the numbers that a model sees of this field."""
        if self.kind == "vector":
            return tuple(f"{self.name}.{k}" for k in range(min(self.size, VECTOR_NUMBERS)))
        return (self.name,) if self.kind == "numeric" else ()


class WindowKey(Struct, frozen=True, forbid_unknown_fields=True):
    """Counts are kept for each distinct combination of these columns' values."""

    columns: tuple[str, ...]
    parent: tuple[str, ...] = ()  # rates are smoothed towards this key's rate; default: towards the prior

    @property
    def name(self) -> str:
        return "*".join(self.columns)


class Mean(Struct, frozen=True, forbid_unknown_fields=True):
    """The mean of a numeric field over the events of one action, kept as their sum in steps and their count.

    An event adds ``value / step``, rounded; a value that is negative or not finite adds 0, one beyond 2^24 - 1 steps
    that many. A tile (an hour, at most a day, of one key) holds a sum of 2^32 - 1 steps and stays there.
    """

    of: str
    step: float
    action: str = "click"

    @property
    def name(self) -> str:
        return f"{self.of}_mean_{self.action}"


class Windows(Struct, frozen=True, forbid_unknown_fields=True):
    """Sliding windows ``[ts - length, ts)`` over counts of actions, and the same counts with exponential decay.

    Lengths are named as ``days`` or, when some are no whole days, as ``lengths`` (``"15min"``, ``"6h"``, ``"7d"``);
    ``days`` is empty then. Lengths of whole days alone become ``days``: it is the same schema.
    """

    keys: tuple[WindowKey, ...] = ()
    days: tuple[Annotated[int, Meta(ge=1, le=MOST_DAYS)], ...] = (1, 3, 5, 7, 15, 30)
    actions: tuple[str, ...] = ACTIONS
    prior_rate: Annotated[float, Meta(ge=0, le=1)] = 0.1
    prior_weight: Annotated[float, Meta(ge=0)] = 20.0
    transform: Transform = "log"  # how models see the counts
    half_lives: tuple[float, ...] = ()  # days
    means: tuple[Mean, ...] = ()
    lengths: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError when a length is no duration."""
        if self.lengths:
            minutes = durations.lengths_in_minutes(self.lengths)
            whole = not any(m % durations.DAY_MIN for m in minutes)
            days = tuple(m // durations.DAY_MIN for m in minutes) if whole else ()
            force_setattr(self, "days", days)
            force_setattr(self, "lengths", () if whole else tuple(map(durations.text_of, minutes)))

    @property
    def durations(self) -> tuple[int | str, ...]:
        """(W,) the windows' lengths, ascending: days, or texts."""
        return self.days or self.lengths

    @property
    def minutes(self) -> tuple[int, ...]:
        """(W,) the windows' lengths in minutes."""
        return durations.lengths_in_minutes(self.durations)

    @property
    def unit_ms(self) -> int:
        """The windows' unit, milliseconds: all events within one count alike."""
        return durations.unit_minutes(self.minutes) * 60_000

    @property
    def labelling(self) -> str:
        """The action that a log's label of 1 means: a click; in a log without clicks, the first that is counted."""
        return "click" if "click" in self.actions or len(self.actions) == 1 else self.actions[1]

    @property
    def priors(self) -> list[float]:
        """(A - 1,) what rates of keys without a parent are shrunk towards: of actions other than clicks a tenth."""
        return [
            self.prior_rate if k == 0 and name == "click" else self.prior_rate / 10
            for k, name in enumerate(self.actions[1:])
        ]

    @property
    def order(self) -> list[tuple[int, int | None]]:
        """(key, parent key) as indices, each parent before its children.

        Raises:
            SchemaError: the parents form a ring.
        """
        index = {key.columns: k for k, key in enumerate(self.keys)}
        order: list[tuple[int, int | None]] = []
        done: set[int] = set()
        while len(order) < len(index):
            ready = [
                (k, index[key.parent] if key.parent else None)
                for k, key in enumerate(self.keys)
                if k not in done and (not key.parent or index[key.parent] in done)
            ]
            if not ready:
                ring = next(key.name for k, key in enumerate(self.keys) if k not in done)
                raise SchemaError(
                    f"window key '{ring}' is its own ancestor", "let its parents end at a key without one"
                )
            order += ready
            done |= {k for k, _ in ready}
        return order

    @property
    def columns(self) -> int:
        """What a tile holds: a count for each action, then a sum for each mean."""
        return len(self.actions) + len(self.means)

    @property
    def spans(self) -> tuple[str, ...]:
        """Names of what is counted over: windows, then half-lives."""
        lengths = self.lengths or (f"{days}d" for days in self.days)
        return (*lengths, *(f"h{_life(h)}" for h in self.half_lives))


def _life(days: float) -> str:
    """A half-life in a name: in days, but for those that only finer tiles allow."""
    minutes = round(days * durations.DAY_MIN)
    if days < 0.25 and abs(minutes / durations.DAY_MIN - days) < 1e-9:
        return durations.text_of(minutes)
    return f"{int(days) if days == int(days) else days}d"


class Among(Struct, frozen=True, forbid_unknown_fields=True):
    """A number that the model also gets in relation to the page's other candidates
    (:mod:`millrace.windows.among_kernels`)."""

    number: str  # its name in the layout, such as item_id.click_rate.1h
    forms: tuple[AmongForm, ...] = ("rank", "of_mean", "of_max")

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(f"{self.number}.{form}" for form in self.forms)


class Schema(Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    """See the module's text. :func:`parse_schema` makes one of text, :func:`shop_schema` is the simulated shop's."""

    name: str
    fields: tuple[Field, ...]
    windows: Windows = Windows()
    among: tuple[Among, ...] = ()
    crosses: tuple[tuple[str, ...], ...] = ()  # categorical fields crossed in the wide part
    utc_offset: str = "+00:00"
    log: LogColumns | None = None
    join: tuple[Join, ...] = ()
    filters: tuple[str, ...] = ()  # attributes of items that pages are filtered by and that are no features
    outcome: tuple[OutcomeRule, ...] = ()
    age: str = ""  # how fine ages of items are, "5min"; empty: whole hours

    def __post_init__(self) -> None:
        """Raises ValueError when ``age`` is no duration of a minute to a day."""
        if self.age:
            minutes = durations.minutes_of(self.age)
            if minutes > durations.DAY_MIN or durations.DAY_MIN % minutes:
                raise ValueError(f"age = '{self.age}' is no whole part of a day; name one, such as '5min'")
            force_setattr(self, "age", "" if minutes == durations.HOUR_MIN else durations.text_of(minutes))

    @property
    def age_minutes(self) -> int:
        """How fine ages of items are, minutes."""
        return durations.minutes_of(self.age) if self.age else durations.HOUR_MIN

    @classmethod
    def read(cls, path: Path | str) -> Schema:
        """As :func:`load_schema`."""
        return load_schema(path)

    def write(self, path: Path | str) -> None:
        """Writes the schema as TOML; one that was read or guessed with its comments. Raises SchemaError when the file
        cannot be written."""
        try:
            Path(path).write_text(self.text, encoding="utf-8")
        except OSError as error:
            raise SchemaError(f"schema file '{path}' cannot be written ({error.strerror})", "name another") from None

    def edit(self, **entries: Any) -> Schema:
        """This schema with other entries, named as in the file. In a table such as ``log``, other entries stay; None
        takes an entry out: ``schema.edit(log={"label_at_least": 4, "position": None})``.

        Raises:
            SchemaError: as :func:`parse_schema`.
        """
        told = entries_of(self)
        for name, value in entries.items():
            new = entries_of(value)
            told[name] = {**told.get(name, {}), **new} if isinstance(new, dict) else new
            if isinstance(new, dict):
                told[name] = {key: one for key, one in told[name].items() if one is not None}
        try:
            text = _toml({name: value for name, value in told.items() if value is not None})
        except (TypeError, ValueError) as error:
            raise SchemaError(
                f"schema '{self.name}' cannot hold this entry ({error})",
                "give plain values; what a function gives is a column, frame.assign(x=...), and a field of that name",
            ) from None
        return parse_schema(text, f"{self.source}, edited")

    def __repr__(self) -> str:
        log = {} if self.log is None else {role: getattr(self.log, role) for role in ("time", "user", "item", "label")}
        roles = "".join(f", {role} '{column}'" for role, column in log.items()) or ", no [log]"
        return f"<Schema '{self.name}': {len(self.fields)} fields, {len(self.windows.keys)} window keys{roles}>"

    @cached_property
    def text(self) -> str:
        """TOML of the schema."""
        return _toml(entries_of(self))

    @cached_property
    def source(self) -> str:
        """Where the schema was read; its name, if it was made otherwise."""
        return self.name

    @cached_property
    def id(self) -> str:
        """Hash of what gives arrays their meaning (not of how a log is read, nor of ``filters``). 16 hex digits.

        Newer entries are left out while they are empty, so that a schema without them keeps its identity.
        """
        windows = msgspec.to_builtins(self.windows)
        newer = ("half_lives", "means", "lengths")
        windows = {name: value for name, value in windows.items() if value or name not in newer}
        plain = ("pool", "mean"), ("bigrams", False), ("size", 0)
        fields = [msgspec.to_builtins(field) for field in self.fields]
        fields = [{n: v for n, v in field.items() if (n, v) not in plain} for field in fields]
        late = [
            entry
            for entry in (self.among, [(one.name, one.on, one.event, one.within) for one in self.outcome], self.age)
            if entry
        ]
        meaning = (fields, windows, self.crosses, self.utc_offset, *late)
        return hashlib.sha256(msgspec.json.encode(meaning)).hexdigest()[:16]

    @cached_property
    def layout(self) -> Layout:
        return Layout.of(self)

    @cached_property
    def utc_offset_ms(self) -> int:
        sign = -1 if self.utc_offset.startswith("-") else 1
        hours, minutes = self.utc_offset.lstrip("+-").split(":")
        return sign * (int(hours) * 60 + int(minutes)) * 60_000

    @property
    def outcome_columns(self) -> list[str]:
        """The columns of a log with outcomes, each one time."""
        return list(dict.fromkeys(one.column for one in self.outcome if one.column))

    def columns_of(self, side: Side) -> tuple[str, ...]:
        """The columns of one side that fields and window keys are made of, in the schema's order."""
        named = [f.name for f in self.fields] + [c for k in self.windows.keys for c in k.columns]
        return tuple(name for name in dict.fromkeys(named) if self.side_of(name) == side)

    @property
    def ids(self) -> tuple[str, str]:
        """The columns of the user's and the item's id, live too: the log's names for them, else the messages'."""
        return (self.log.user, self.log.item) if self.log else ("user_id", "item_id")

    def side_of(self, column: str) -> Side:
        """The side of a column: a field's own side; derived columns are of the context, ages of the item; the log's
        user and item columns of the user and the item."""
        for field in self.fields:
            if field.name == column:
                return field.of
        if self.log is not None and column == self.log.user:
            return "user"
        if self.log is not None and column == self.log.item:
            return "item"
        if column in DERIVED:
            return "item" if column in ITEM_AGES else "context"
        raise SchemaError(
            f"schema '{self.name}' names the column '{column}', which is no field",
            "add it to [[fields]], or correct the name",
        )

    def key_side(self, key: WindowKey) -> Literal["user", "item"]:
        """Where a window key's state lives: with the user (Redis) if any column is the user's, else the item index."""
        return "user" if any(self.side_of(c) == "user" for c in key.columns) else "item"


class Layout(Struct, frozen=True):
    cat_fields: tuple[Field, ...]  # categorical fields, user then item then context
    cat_names: tuple[str, ...]  # one per column of cat: the field's name, repeated for each slot
    cat_starts: tuple[int, ...]  # first column of each field
    plain_fields: tuple[Field, ...]  # numeric fields in the order of num's first columns
    num_names: tuple[str, ...]
    key_names: tuple[str, ...]
    window_start: int  # first window statistic in num
    among_start: int  # first number among candidates in num; N if there are none
    item: str  # the column of the item's id

    @property
    def F(self) -> int:
        return len(self.cat_names)

    @property
    def N(self) -> int:
        return len(self.num_names)

    @property
    def K(self) -> int:
        return len(self.key_names)

    @property
    def item_numbers(self) -> list[int]:
        """Columns of num that an item brings itself: those that depend on no count."""
        return [i for i, f in enumerate(self.plain_fields) if f.of == "item" and f.name != EXPOSURE_AGE]

    @property
    def last_columns(self) -> list[int]:
        """Columns of cat that follow from the user's last actions."""
        return [c for c, name in enumerate(self.cat_names) if name in LAST or name in AGES]

    @property
    def bias_columns(self) -> list[int]:
        """Columns of cat that read as missing while a page is ranked, since they are known only when it is made."""
        bias = {f.name for f in self.cat_fields if f.bias}
        return [c for c, name in enumerate(self.cat_names) if name in bias]

    @classmethod
    def of(cls, schema: Schema) -> Layout:
        ordered = [f for side in SIDES for f in schema.fields if f.of == side]
        cats = tuple(f for f in ordered if not f.numbers)
        plain = tuple(f if f.kind == "numeric" else Field(n, f.of, f.kind, f.size) for f in ordered for n in f.numbers)
        names: list[str] = []
        starts: list[int] = []
        for f in cats:
            starts.append(len(names))
            names.extend([f.name] * f.slots)
        num = [f.name for f in plain]
        w = schema.windows
        for key in w.keys:
            for span in w.spans:
                num.extend(f"{key.name}.{action}.{span}" for action in w.actions)
                num.extend(f"{key.name}.{action}_rate.{span}" for action in w.actions[1:])
                num.extend(f"{key.name}.{mean.name}.{span}" for mean in w.means)
        among = [column for one in schema.among for column in one.columns]
        keys, item = tuple(k.name for k in w.keys), schema.ids[1]
        return cls(cats, tuple(names), tuple(starts), plain, (*num, *among), keys, len(plain), len(num), item)

    def field_salt(self, field: Field) -> np.uint64:
        return salt("field", self.item if field.name in LAST else field.name)

    def key_salt(self, name: str) -> np.uint64:
        return salt("window", name)


COUNTED = (
    "among has the form 'count'. The list of a log is often what came into view, so its length is partly an outcome, "
    "and is not known when a page is ranked: do not expect live what this form gains on such a log"
)

BLANK = "?"
"""Stands in a guessed schema for an unknown column."""


def parse_schema(text: str, source: str = "schema") -> Schema:
    """A schema from TOML text.

    Raises:
        SchemaError: the text is not TOML, has an unknown or ill-typed entry, or names a column that does not exist.
    """
    try:
        raw = tomllib.loads(text)
        log = raw.get("log")
        blank = [name for name, column in log.items() if column == BLANK] if isinstance(log, dict) else []
        if blank:
            remedy = "write the columns there that the comments of these lines name"
            raise SchemaError(f"{source}: {' and '.join(blank)} under [log] still to be filled in ('{BLANK}')", remedy)
        schema: Schema = msgspec.convert(_with_users(_with_days(raw)), Schema)
    except msgspec.ValidationError as error:
        raise SchemaError(
            f"{source}: {invalid(error, Schema)}", "correct the entry; docs/reference/schema.md lists them all"
        ) from None
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{source}: {error}", "correct the entry; docs/reference/schema.md lists them all") from None
    _check(schema, source)
    schema.__dict__.update(text=text, source=source)
    if any("count" in one.forms for one in schema.among):
        logging.getLogger(__name__).warning("%s: %s", source, COUNTED)
    return schema


def _with_days(raw: dict[str, Any]) -> dict[str, Any]:
    """The entries with half-lives that are written as durations in days. Raises ValueError where that cannot be."""
    windows = raw.get("windows")
    if not isinstance(windows, dict):
        return raw
    if windows.get("days") and windows.get("lengths"):
        raise ValueError("windows.days and windows.lengths are both named; keep one of them")
    lives = windows.get("half_lives")
    if not isinstance(lives, list) or not any(isinstance(life, str) for life in lives):
        return raw
    try:
        lives = [durations.minutes_of(life) / durations.DAY_MIN if isinstance(life, str) else life for life in lives]
    except ValueError as error:
        raise ValueError(f"windows.half_lives: {error}") from None
    return {**raw, "windows": {**windows, "half_lives": lives}}


def _with_users(raw: dict[str, Any]) -> dict[str, Any]:
    """The entries with one ``log.user``, the last of several; all of them are in ``log.users``."""
    log = raw.get("log")
    if not isinstance(log, dict) or not isinstance(log.get("user"), list) or not log["user"]:
        return raw
    return {**raw, "log": {**log, "user": log["user"][-1], "users": log["user"]}}


def load_schema(path: Path | str | Schema) -> Schema:
    """A schema from a TOML file, or itself. Raises SchemaError as :func:`parse_schema` does, or when the file cannot be
    read."""
    if isinstance(path, Schema):
        return path
    if not isinstance(path, Path | str):
        raise SchemaError(f"a schema is no {type(path).__name__}", "give a Schema, or the path of its TOML file")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, TypeError, ValueError) as error:
        raise SchemaError(f"schema file '{path}' cannot be read ({error})", "give the path of a TOML schema") from None
    return parse_schema(text, str(path))


def _toml(entries: dict[str, Any]) -> str:
    import tomli_w  # no role writes a schema but the archive

    return tomli_w.dumps(entries)


def entries_of(value: Any) -> Any:
    """A schema, or a part of one, as plain values that TOML can hold: what differs from the default."""
    if isinstance(value, msgspec.Struct):
        said = {}
        for field in fields(value):
            found, default = getattr(value, field.name), field.default
            if field.default_factory is not msgspec.NODEFAULT:
                default = field.default_factory()
            if found is not None and (default is msgspec.NODEFAULT or found != default):
                said[field.encode_name] = entries_of(found)
        return said
    if isinstance(value, list | tuple):
        return [entries_of(one) for one in value]
    return dict(value) if isinstance(value, dict) else value


def shop_schema() -> Schema:
    """The schema of the simulated shop, which ships with Millrace."""
    return parse_schema(resources.files(__package__).joinpath("shop.toml").read_text(encoding="utf-8"), "shop.toml")


def _check(schema: Schema, source: str) -> None:
    def fail(problem: str, remedy: str) -> Any:
        raise SchemaError(f"{source}: {problem}", remedy)

    names = [f.name for f in schema.fields]
    for name in names:
        if names.count(name) > 1:
            fail(f"field '{name}' stands twice", "name each field once")
    if not names:
        fail("no fields", "add at least one [[fields]] entry")
    w = schema.windows
    if w.actions[:1] != ("exposure",):
        fail(f"windows.actions starts with '{(w.actions or ('nothing',))[0]}'", "start it with 'exposure'")
    for action in w.actions:
        if action not in ACTIONS:
            fail(f"unknown action '{action}'", f"use {', '.join(ACTIONS)}")
    if w.lengths:
        if problem := durations.length_problem(w.minutes):
            fail(f"windows.lengths {problem[0]}", problem[1])
    elif list(w.days) != sorted(set(w.days)) or not w.days:
        fail(f"windows.days {list(w.days)} is not ascending", "list each window once, shortest first")
    for days in w.days:
        if days > MOST_DAYS:  # named as a length
            fail(f"windows.lengths has {days}d", f"name at most {MOST_DAYS}d")
    for h in w.half_lives:
        if problem := durations.half_life_problem(h, w.minutes):
            fail(f"windows.half_lives {problem[0]}", problem[1])
    if list(w.half_lives) != sorted(set(w.half_lives)):
        fail(
            f"windows.half_lives {list(map(durations.life_text, w.half_lives))} is not ascending",
            "list each half-life once, shortest first",
        )
    numeric = [f.name for f in schema.fields if f.kind == "numeric"]
    for mean in w.means:
        if mean.of not in numeric:
            fail(f"windows.means names '{mean.of}', which is no numeric field", "take the mean of a numeric [[fields]]")
        if mean.action not in w.actions:
            fail(f"the mean of '{mean.of}' is over '{mean.action}', which is not counted", "add it to windows.actions")
        if not (math.isfinite(mean.step) and mean.step > 0):
            fail(f"the mean of '{mean.of}' has the step {mean.step}", "name the precision to keep, above 0")
        if [m.name for m in w.means].count(mean.name) > 1:
            fail(f"the mean of '{mean.of}' over '{mean.action}' stands twice", "name each mean once")
    if w.columns > MAX_COLUMNS:
        fail(f"{len(w.actions)} actions and {len(w.means)} means", f"keep at most {MAX_COLUMNS} together")
    key_columns = [k.columns for k in w.keys]
    for key in w.keys:
        if not key.columns:
            fail("a window key without columns", "name at least one column")
        for column in key.columns:
            try:
                schema.side_of(column)
            except SchemaError as error:
                fail(f"window key '{key.name}': {error.problem}", error.remedy)
        if key.parent and key.parent not in key_columns:
            fail(
                f"window key '{key.name}' smooths towards '{'*'.join(key.parent)}', which is no window key",
                "add that key",
            )
    categorical = {f.name for f in schema.fields if f.kind == "categorical"}
    for cross in schema.crosses:
        for name in cross:
            if name not in categorical:
                fail(
                    f"cross {list(cross)} names '{name}', which is no categorical field",
                    "cross categorical fields only",
                )
    try:
        _ = schema.utc_offset_ms
    except ValueError:
        fail(f"utc_offset '{schema.utc_offset}' is not like '+08:00'", "write sign, hours and minutes")
    if schema.log is not None:
        for action in schema.log.action_times:
            if action not in ACTIONS[1:]:
                fail(f"log.action_times names '{action}'", f"use {', '.join(ACTIONS[1:])}")
        for what, remedy in log_problems(schema.log, schema.join):
            fail(what, remedy)
    for what, remedy in outcome_problems(schema.outcome, numeric):
        fail(what, remedy)
    _check_contents(schema, fail)
    _check_last(schema, fail)
    _check_ages(schema, fail)
    _check_among(schema, fail)
    _check_filters(schema, fail)


def _check_contents(schema: Schema, fail: Callable[[str, str], Any]) -> None:
    texts = [f.name for f in schema.fields if f.kind == "text"]
    vectors = [f.name for f in schema.fields if f.kind == "vector"]
    names = [name for f in schema.fields for name in {f.name, *f.numbers}]
    for field in schema.fields:
        if (field.kind == "vector") != (field.size > 0):
            fail(f"field '{field.name}' is a {field.kind} of size {field.size}", "a vector has a size, as size = 384")
        if field.kind == "vector" and field.of == "context":
            fail(f"field '{field.name}' is a vector of the context", "send it with the item or the user")
        if field.kind == "vector" and (field.name in (*schema.ids, *DERIVED)):
            fail(f"field '{field.name}' is a vector", "make it categorical: it is an id, or computed")
        if double := [name for name in field.numbers if names.count(name) > 1]:
            fail(f"'{double[0]}' is a field and a number of the vector '{field.name}'", "give one of them another name")
        if field.name in texts and field.name in (*schema.ids, *DERIVED):
            fail(f"field '{field.name}' is a text", "make it categorical: it is an id, or computed")
        if field.name not in texts and field.bigrams:
            fail(f"field '{field.name}' has bigrams", 'they are of words: give it kind = "text"')
        if field.name not in texts and field.slots > MOST_SLOTS:
            fail(f"field '{field.name}' has {field.slots} slots", f"name at most {MOST_SLOTS}; a text has up to 32")
    for key in schema.windows.keys:
        for column in {*key.columns} & {*texts, *vectors}:
            fail(f"window key '{key.name}' names '{column}', a text or vector", "count by a category instead")


def _check_last(schema: Schema, fail: Callable[[str, str], Any]) -> None:
    fields = {f.name: f for f in schema.fields}
    item = fields.get(schema.layout.item)
    for field in schema.fields:
        name, of = field.name, AGES.get(field.name, field.name)
        if field.pool == "attention" and (name not in LAST or f"{name}_age" not in fields):
            remedy = f"it is for {' and '.join(LAST)}, each with a field of its ages ('last_clicks_age') beside it"
            fail(f"field '{name}' has pool = \"attention\"", remedy)
        if of not in LAST:
            continue
        if field.of != "user" or field.kind != "categorical" or field.bias:
            fail(f"field '{name}' is derived", 'declare it of = "user", categorical, without bias')
        if of != name and (of not in fields or fields[of].slots != field.slots):
            fail(f"field '{name}' has no '{of}' of {field.slots} slots beside it", "declare both with the same slots")
        if of == name and (item is None or item.of != "item" or item.kind != "categorical" or item.slots > 1):
            fail(f"field '{name}' needs the item's id, '{schema.layout.item}', as a field", "add it to [[fields]]")
        if of == name and field.width is not None:
            fail(f"field '{name}' has a width", f"leave it out: it has that of '{schema.layout.item}'")
        if LAST[of] not in schema.windows.actions:
            fail(f"field '{name}' is of {LAST[of]}s, which are not counted", "add them to windows.actions")
    for key in schema.windows.keys:
        for column in key.columns:
            if column in LAST or column in AGES:
                fail(f"window key '{key.name}' names '{column}', which changes with each action", "leave it out")


def _check_ages(schema: Schema, fail: Callable[[str, str], Any]) -> None:
    item = schema.layout.item
    ages = [field for field in schema.fields if field.name in ITEM_AGES]
    if schema.age and not ages:
        fail(f"age = '{schema.age}', and no field is an age", f"add {' or '.join(ITEM_AGES)} to [[fields]]")
    for field in ages:
        if schema.age and field.transform != "bucket":
            remedy = f"give '{field.name}' transform = \"bucket\": as a number, each step would move all goods at once"
            fail(f"age = '{schema.age}' beside transform = \"{field.transform}\"", remedy)
        if field.name == EXPOSURE_AGE:
            if schema.age and schema.age_minutes * durations.MINUTE_MS < schema.windows.unit_ms:
                unit = durations.text_of(schema.windows.unit_ms // durations.MINUTE_MS)
                problem = f"age = '{schema.age}' is finer than '{field.name}', which counts in {unit}"
                fail(problem, f"name '{unit}' or more, or shorter windows (5min from windows of an hour on)")
            if field.of != "item" or field.kind != "numeric" or field.bias:
                fail(f"field '{field.name}' is derived", 'declare it of = "item", numeric, without bias')
            if (item,) not in [key.columns for key in schema.windows.keys]:
                remedy = f'add [[windows.keys]] with columns = ["{item}"]'
                fail(f"field '{field.name}' follows from the window key '{item}', which there is not", remedy)
            if any(f.bias for f in schema.fields if f.name == item):
                fail(f"field '{field.name}' follows from '{item}', which is a bias", "leave out one of them")
    if EXPOSURE_AGE in [mean.of for mean in schema.windows.means]:
        fail(f"windows.means names '{EXPOSURE_AGE}', which follows from counts", "take the mean of another number")


def _check_among(schema: Schema, fail: Callable[[str, str], Any]) -> None:
    layout = schema.layout
    numbers = layout.num_names[: layout.among_start]
    varying = _varying(schema)
    example = f"such as '{varying[-1]}'" if varying else "such as a count of a window key with an item's column"
    for one in schema.among:
        if one.number not in numbers:
            fail(f"among names '{one.number}', which is no number of this schema", f"name one of an item, {example}")
        if one.number not in varying:
            problem = f"among names '{one.number}', which is the same for all candidates of a page"
            fail(problem, f"name a number of an item, {example}")
        if [other.number for other in schema.among].count(one.number) > 1:
            fail(f"among names '{one.number}' twice", "write its forms into one entry")
        if not one.forms or len(set(one.forms)) < len(one.forms):
            fail(f"among has the forms {list(one.forms)} of '{one.number}'", "name each form once, at least one")
    counting = [one.number for one in schema.among if "count" in one.forms]
    if len(counting) > 1:
        fail(f"among counts candidates twice, at '{counting[0]}' and '{counting[1]}'", "name the form 'count' once")
    if schema.among and schema.log is not None and schema.log.request is None:
        remedy = "name log.request; if rows of one user and time are a page, make it: log.combine = "
        remedy += f'{{ page = ["{schema.log.user}", "{schema.log.time}"] }}'
        fail("[[among]] compares the items of a page, and the log does not say which rows are one", remedy)


def _varying(schema: Schema) -> list[str]:
    """Numbers that may differ between the candidates of a page while they are ranked, in the layout's order. A rate is
    smoothed towards its parent's, so it varies where that does."""
    late = {f.name for f in schema.fields if f.bias or f.kind == "numeric"} | {"position"}
    keys = {key.columns: key for key in schema.windows.keys}
    own = {c for c, key in keys.items() if not late & set(c) and any(schema.side_of(name) == "item" for name in c)}
    rates = set(own)
    for _ in keys:  # as deep as parents go
        rates |= {columns for columns, key in keys.items() if key.parent in rates}
    found = [f.name for f in schema.layout.plain_fields if f.of == "item" and not f.bias]
    names, start = schema.layout.num_names, schema.layout.window_start
    each = (schema.layout.among_start - start) // max(1, len(keys))
    for k, key in enumerate(schema.windows.keys):
        block = names[start + k * each : start + (k + 1) * each]
        found += [n for n in block if key.columns in (rates if "_rate." in n[len(key.name) :] else own)]
    return found


def _check_filters(schema: Schema, fail: Callable[[str, str], Any]) -> None:
    fields = {f.name: f for f in schema.fields}
    for name in schema.filters:
        field = fields.get(name)
        if not name:
            fail("filters has an empty name", "name attributes of items")
        if schema.filters.count(name) > 1:
            fail(f"filters names '{name}' twice", "name each attribute once")
        if name in DERIVED or name in schema.ids:
            fail(f"filters names '{name}', which no item sends as an attribute", "leave it out")
        if field is not None and field.of != "item":
            fail(f"filters names '{name}', which is of the {field.of}", "name attributes of items")
        if field is not None and field.kind != "categorical":
            remedy = "filters tell values apart and know no ranges: send an attribute for it, such as a price band"
            fail(f"filters names '{name}', which is a {field.kind} field", remedy)
    if len(schema.filters) > MAX_FILTERS:
        fail(f"filters names {len(schema.filters)} attributes", f"name at most {MAX_FILTERS}")
