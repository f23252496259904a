# core
"""Guesses a schema from a log: reads a sample, chooses roles, leaves outcomes out, and makes fields of the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS
from millrace.basics.errors import LogError
from millrace.commands.guess.fields import FEW, Feature, feature_of
from millrace.commands.guess.outcomes import LeftOut, verdicts
from millrace.commands.guess.pageroles import (
    action_times,
    line_role,
    list_roles,
    pages_of,
    position_role,
    request_role,
    unrolled,
)
from millrace.commands.guess.roles import (
    FILLED,
    ITEM,
    USER,
    ColumnRole,
    Roles,
    account_role,
    day_role,
    free_name,
    id_role,
    ids_of_pages,
    label_role,
    time_role,
)
from millrace.commands.guess.sample import LEFT_OUT, Sample, kinds_of, read_sample
from millrace.commands.guess.samplecolumns import Column, columns_of, held
from millrace.commands.guess.sidetables import Side, sides_beside
from millrace.commands.guess.timeformats import TIME_WORDS, TimeColumn, times_of
from millrace.contracts.schema import Side as Of
from millrace.logs.values import first_there

_ACTED = re.compile(r"click|view|cart|buy|purchase|order|transaction|fav|like|impression|exposure|^pv$")
_EVENT = {"id", "uuid", "guid", "event", "row", "exposure", "impression", "record"}
"""A column named by these words alone is an id of its row, if each row has its own."""
MADE_ITEM, MADE_LABEL = "item_id", "click"


@dataclass(frozen=True)
class FoundField:
    name: str
    of: Of
    feature: Feature
    distinct: int
    table: str | None = None


@dataclass
class SchemaFindings:
    sample: Sample
    roles: Roles
    times: dict[str, TimeColumn]
    columns: dict[str, Column]
    item: str | None = None
    """The item's column, after lists were taken apart; likewise the label's."""
    label: str | None = None
    offset_hours: int | None = None
    identity: tuple[str, ...] = ()
    rate: float | None = None
    fields: list[FoundField] = field(default_factory=list)
    outcomes: dict[str, LeftOut] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    sides: list[Side] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chosen: str | None = None
    """Which file of a folder is the log, and why."""

    @property
    def used(self) -> set[str]:
        """Columns with a role, and those that are made of them."""
        return self.roles.used | {name for name in (self.item, self.label) if name is not None}

    @property
    def time(self) -> TimeColumn | None:
        return self.times.get(self.roles.time.name or "")

    @property
    def span_days(self) -> float:
        return 0.0 if self.time is None else float(self.time.ms.max() - self.time.ms.min()) / DAY_MS


def find(path: Path) -> SchemaFindings:
    """Finds all that :func:`guess_schema` writes down. In a folder with files of several kinds, the kind that lacks
    the fewest roles is the log; of several such the one with the most bytes."""
    kinds = kinds_of(path)
    if len(kinds) == 1:
        return _find(path, kinds[0])
    found: list[SchemaFindings] = []
    others: list[str] = []
    errors: list[LogError] = []
    for files in kinds:
        try:
            found.append(_find(path, files))
        except LogError as error:
            errors.append(error)
            others.append(f"{_some(files)} cannot be read as a log")
    if not found:
        raise errors[0]
    best = min(found, key=lambda one: len(one.roles.open))
    joined = {side.file for side in best.sides}
    rest = [one for one in found if one is not best and not joined.issuperset(f.name for f in one.sample.files)]
    others += [f"{_some(one.sample.files)} has no {', '.join(one.roles.open) or 'more bytes'}" for one in rest]
    lacks = f"lacks only {', '.join(best.roles.open)}" if best.roles.open else "has time, user, item and label"
    best.chosen = "; ".join([f"{_some(best.sample.files)} is the log in this folder, since it {lacks}", *others])
    if others:
        best.chosen += ". Replay it, not the folder"
    return best


def _some(files: Sequence[Path]) -> str:
    return files[0].name + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _find(path: Path, files: Sequence[Path]) -> SchemaFindings:
    sample = read_sample(path, files)
    found = _found(path, sample)
    lacking, refused = _lacking(found)
    if lacking.any():  # what follows from the roles is seen in the rows that have them
        found = _found(path, replace(sample, table=sample.table.filter(pa.array(~lacking))))
    if refused.any():
        found.notes.append(
            f"{int(refused.sum()):,} rows of the sample lack a time, user, item, label or day, or have another text "
            f"there: {LEFT_OUT}"
        )
    found.notes += [*sample.notes, *_strays(found)]
    return found


def _lacking(found: SchemaFindings) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Rows of the sample in which a required role has no value, and those of them that the reader of logs refuses: it
    keeps an id that is no number as the others are. (n,) each."""
    roles, columns = found.roles, columns_of(found.sample.table)
    ids = {roles.user.name, roles.item.name}
    kept = {stray.name: stray.rows for stray in found.sample.strays if stray.name in ids and stray.rows is not None}
    lacking, refused = np.zeros((2, found.sample.table.num_rows), np.bool_)
    for name in (roles.time.name, roles.user.name, roles.item.name, roles.label.name, roles.day.name):
        if name is not None:
            lost = ~columns[name].there
            lacking |= lost
            refused |= lost & ~kept.get(name, np.False_)
    return lacking, refused


def _strays(found: SchemaFindings) -> list[str]:
    roles, sample = found.roles, found.sample
    fields = {one.name: one.feature.kind for one in found.fields if one.table is None}
    strict = {roles.time.name, roles.label.name, roles.day.name, roles.position.name, *roles.actions.values()}
    strict |= {name for name, kind in fields.items() if kind == "numeric"}
    used = roles.used | fields.keys()
    out = []
    for stray in sample.strays:
        if stray.name in strict or (stray.name in used and stray.rows is None):
            out.append(f"{stray.what}: {LEFT_OUT}")
        elif stray.name in used:
            out.append(f"{stray.what}: the column is read as text, and no row is lost for it")
        else:
            out.append(f"{stray.what}: taken as missing in the sample; the column is not used")
    return out


def _found(path: Path, sample: Sample) -> SchemaFindings:
    sample, clock = _with_clock(sample)
    columns = columns_of(sample.table)
    roles = Roles(clock=clock)
    items, roles.labels, roles.clicked, roles.pairs, roles.list_separator = list_roles(columns)
    taken = {r.name for r in (items, roles.labels, roles.clicked, roles.pairs) if r.name is not None} | {*clock}
    times = {n: t for n, c in columns.items() if n not in taken and (t := times_of(c)) is not None}
    found = SchemaFindings(sample, roles, times, columns)
    roles.time = time_role(columns, times)
    if roles.time.name is None and not roles.time.candidates:
        roles.time.candidates = _relative(columns)
    ms = times[roles.time.name].ms if roles.time.name else None
    unlike_ids = taken | ({roles.time.name} if roles.time.name else set()) | _surely_times(columns, times)
    unlikely = {*times, *(n for n, c in columns.items() if ms is not None and _is_clock(c, ms))}
    roles.user = id_role(columns, USER, unlike_ids, unlikely, sample.table.num_rows > 0, ITEM)
    _with_account(found, unlike_ids)
    if items.name is not None or roles.pairs.name is not None:
        roles.item = items
        found.item, found.label = MADE_ITEM, MADE_LABEL
        roles.request = line_role(columns, unlike_ids | {roles.user.name or ""})
        own = (n for n, c in columns.items() if c.distinct == len(c.codes) > 1 and n not in roles.used)
        found.unused = dict.fromkeys(own, "each page has a value of its own")
        table, at = unrolled(found.sample.table, roles, found.item, found.label)
        columns = columns_of(table)
        found.columns = columns
        found.times = times = {n: replace(t, ms=t.ms[at]) for n, t in times.items() if n in columns}
    else:
        taken = unlike_ids | ({roles.user.name} if roles.user.name else set())
        roles.item = id_role(columns, ITEM, taken, unlikely, roles.user.name is not None, USER)
        if ms is not None and times[str(roles.time.name)].grain_ms <= 60_000:
            roles.user, roles.item = ids_of_pages(roles.user, roles.item, columns, ms)
            _with_account(found, unlike_ids | {roles.item.name or ""})
        found.item = roles.item.name
    _finish(path, found)
    return found


def _with_account(found: SchemaFindings, taken: set[str]) -> None:
    """Fills the user's column from another id, as the reader of logs will."""
    roles, columns = found.roles, found.columns
    if roles.account.name is not None:
        return
    roles.account, roles.user = account_role(columns, roles.user, taken)
    if roles.account.name is not None:
        user = str(roles.user.name)
        table = found.sample.table
        one = first_there(table[name] for name in (roles.account.name, user))
        found.sample = replace(found.sample, table=table.set_column(table.column_names.index(user), user, one))
        columns[user] = Column(user, found.sample.table[user])


def _with_clock(sample: Sample) -> tuple[Sample, tuple[str, ...]]:
    """(the sample with a time made of a day and a time of day, if two columns have them; the two)."""
    columns = columns_of(sample.table)
    clocks = [n for n, c in columns.items() if c.is_text and c.distinct and c.filled > FILLED
              and pc.all(pc.match_substring_regex(c.values, r"^(\d\d:\d\d(:\d\d)?)?$")).as_py()]  # fmt: skip
    times = {n: t for n, c in columns.items() if clocks and c.is_text and (t := times_of(c)) is not None}
    days = [n for n, t in times.items() if t.grain_ms == DAY_MS and t.there.mean() > FILLED]
    if len(clocks) != 1 or len(days) != 1 or len(times) > 1:
        return sample, ()
    made = pc.binary_join_element_wise(sample.table[days[0]], sample.table[clocks[0]], "/")
    name = free_name("time", sample.table.column_names)
    return replace(sample, table=sample.table.append_column(name, made)), (days[0], clocks[0])


def _is_clock(column: Column, ms: NDArray[np.int64]) -> bool:
    """Whether it is a number that grows with the time, by many rows alike."""
    if not column.is_numeric or column.is_list or column.filled < 1 or not 10 < column.distinct <= 0.9 * len(ms):
        return False
    return bool((np.diff(column.numbers[np.argsort(ms, kind="stable")]) >= 0).mean() >= 0.999)


def _relative(columns: dict[str, Column]) -> tuple[str, ...]:
    """Columns of relative times: numbers that rise from row to row, else those called times."""
    whole = {n: c for n, c in columns.items() if c.is_whole and c.filled == 1 and c.distinct > 10}
    rising = tuple(n for n, c in whole.items() if (np.diff(c.numbers) >= 0).mean() >= 0.99)
    words = {"time", "timestamp", "ts", "seconds", "hour"}
    return rising or tuple(n for n, c in whole.items() if words & set(c.tokens))


def _surely_times(columns: dict[str, Column], times: dict[str, TimeColumn]) -> set[str]:
    """Columns that are times by type, format or name, and so hold no ids. Ids may happen to read as times."""
    sure = {n for n, t in times.items() if t.unit is None or t.never is not None}
    return sure | {n for n in times if TIME_WORDS & set(columns[n].tokens)}


def _finish(path: Path, found: SchemaFindings) -> None:
    """Finds the roles that rest on others, then the fields and the columns that are left out."""
    roles, columns, times = found.roles, found.columns, found.times
    named: dict[Of, str | None] = {"user": roles.user.name, "item": found.item}
    groups: dict[Of, Column] = {of: columns[name] for of, name in named.items() if name is not None}
    belongs = {n: _owner(c, groups) for n, c in columns.items() if n not in found.used}
    attributes = {n for n, of in belongs.items() if of != "context"}
    if found.label is None:
        roles.label = _label(found, attributes)
        found.label = roles.label.name
    label = columns[found.label].flags == 1 if found.label else None
    found.rate = float(label.mean()) if label is not None else None
    time = found.time
    if time is not None:
        ms = time.ms
        if "user" in groups and roles.request.name is None and not roles.listed:
            roles.request = request_role(columns, groups["user"].name, ms, found.used)
        pages = columns[roles.request.name].codes if roles.request.name else _page(found, ms)
        roles.position = position_role(columns, pages, found.used)
        roles.day, found.offset_hours = day_role(columns, times, roles.time.name or "")
        if not roles.listed:
            roles.actions = action_times(columns, times, ms, label)
        roles.born = _born(found, belongs, time)
        _identity(found, ms)
    rest = {n: c for n, c in columns.items() if n not in {*found.used, *found.identity, *found.unused}}
    if time is not None:
        clocks = [
            n for n, c in rest.items() if belongs.get(n) == "context" and n not in times and _is_clock(c, time.ms)
        ]
        found.unused |= dict.fromkeys(clocks, "it grows with the time: a clock tells late rows from early ones")
        rest = {n: c for n, c in rest.items() if n not in clocks}
    could_be: dict[str, list[str]] = {}
    for name, role in roles.open.items():
        for candidate in (c for c in role.candidates if c in rest):
            if name in ("user", "item"):  # an id is a feature too, whatever it is the id of
                could_be.setdefault(candidate, []).append(name)
            else:
                found.unused[candidate] = f"it could be the {name}"
                del rest[candidate]
    _outcomes(found, rest, attributes, groups)
    for name, column in rest.items():
        if name in found.outcomes:
            continue
        _field(found, column, belongs.get(name, "context"), None, could_be.get(name, []))
    if groups:
        _side_tables(path, found, groups)


def _label(found: SchemaFindings, attributes: set[str]) -> ColumnRole:
    columns, used = found.columns, found.used
    role = label_role(columns, attributes, used)
    if role.name is not None or role.candidates:
        return role
    if ratings := _ratings(columns, used):
        return ColumnRole(None, "", ratings)
    if events := _events(columns, used):
        return ColumnRole(None, "it names what happened", events)
    rest = {n: c for n, c in columns.items() if n not in attributes | used | {*found.roles.clock} and not c.is_list}
    if acted := tuple(n for n in rest if n in found.times and not found.times[n].there.all()):
        return ColumnRole(
            None, "a time of what some rows led to: action_times and label_action make a label of it", acted
        )
    two = tuple(n for n, c in rest.items() if c.distinct == 2 - (c.filled < FILLED) and not c.is_binary)
    return ColumnRole(None, "it has two values", two)


def _page(found: SchemaFindings, ms: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Pages that have no id: of each user and time. As long as the user is open, they are only said."""
    roles, columns, time = found.roles, found.columns, str(found.roles.time.name)
    if found.item is None or roles.listed or found.times[time].grain_ms > 60_000:
        return None
    made = roles.clock or (time,)
    for user in [roles.user.name] if roles.user.name else roles.user.candidates:
        pages = pages_of(columns[str(user)], columns[found.item], ms)
        if pages is not None and roles.user.name:
            roles.page = (str(user), *made)
            return pages
        if pages is not None:
            named = ", ".join(f'"{name}"' for name in (user, *made))
            found.notes.append(f"rows of one '{user}' and '{time}' look like a page: if '{user}' is the user, "
                               f'add combine = {{ page = [{named}] }} and request = "page"')  # fmt: skip
    return None


def _born(found: SchemaFindings, belongs: Mapping[str, Of], own: TimeColumn) -> ColumnRole:
    """The time at which the item came: one for each item, and not after its exposures."""
    alike: list[str] = []
    for name, stamp in found.times.items():
        if name in found.used or "age_days" in found.columns or stamp.grain_ms >= DAY_MS or stamp.there.mean() < 0.5:
            continue
        if found.columns[name].distinct < 3 or (stamp.ms > own.ms)[stamp.there].mean() > 0.01:
            continue
        if belongs[name] == "item" and (stamp.unit, stamp.format) == (own.unit, own.format):
            alike.append(name)
        elif belongs[name] == "item" or (found.item is None and belongs[name] == "context"):
            found.unused[name] = "none of its times is after the exposure: it could be log.born, when the item came"
    return (
        ColumnRole(alike[0], "one time for each item, not after its exposures", tuple(alike)) if alike else ColumnRole()
    )


def _owner(column: Column, groups: dict[Of, Column]) -> Of:
    """The owner of a column; if it is constant for both, the one for whom it changes less. An age is the item's."""
    if column.name == "age_days" and "item" in groups:
        return "item"
    fit = {of: held(column, c.codes) for of, c in groups.items()}
    fit = {of: h for of, h in fit.items() if h.is_attribute}
    return min(fit, key=lambda of: (fit[of].ratio, -groups[of].distinct)) if fit else "context"


def _ratings(columns: dict[str, Column], used: set[str]) -> tuple[str, ...]:
    """Columns of a few numbers that are called a rating: a label if the user says from which one on."""
    words = {"rating", "stars", "score", "grade"}
    few = {n: c for n, c in columns.items() if n not in used and c.is_numeric and 3 <= c.distinct <= 20}
    named = tuple(n for n, c in few.items() if words & {*c.tokens})
    return named or tuple(n for n, c in few.items() if c.is_whole and set(range(1, 6)) <= {*np.unique(c.numbers)})


def _events(columns: dict[str, Column], used: set[str]) -> tuple[str, ...]:
    """Columns of a few texts that name actions, such as view, cart and buy: outcomes, so no features."""
    return tuple(
        n for n, c in columns.items()
        if n not in used and c.is_text and 2 <= c.distinct <= 20
        and sum(bool(_ACTED.search(str(v).lower())) for v in c.values.to_pylist()) >= 2
    )  # fmt: skip


def _identity(found: SchemaFindings, ms: NDArray[np.int64]) -> None:
    """Finds the columns that identify exposures: page and item where a row is a page, an id of the row, or page and
    slot. Where rows repeat time, user and item (to the millisecond, or to the second and all else too), these three.
    Otherwise none, and equal rows are reported."""
    roles, columns = found.roles, found.columns
    if roles.listed:
        if roles.request.name is not None and found.item is not None:
            found.identity = (roles.request.name, found.item)
        return
    own = [n for n, c in columns.items() if n not in found.used and c.distinct == len(c.codes) > 1 and c.tokens]
    own = [n for n in own if _EVENT.issuperset(columns[n].tokens)]
    if len(own) == 1:
        found.identity = (own[0],)
        return
    if not (roles.user.name and found.item):
        return
    plain = _copies(ms, columns[roles.user.name].codes, columns[found.item].codes)
    if roles.request.name and roles.position.name:
        page = _copies(columns[roles.request.name].codes, columns[roles.position.name].codes)
        if page < plain or (page == 0 and plain == 0):
            found.identity = (roles.request.name, roles.position.name)
            return
    if not plain:
        return
    whole = _copies(*(c.codes for c in columns.values()))
    shown = f"{plain:,} rows of the sample have the time, user and item of a row before; {whole:,} have all else too"
    grain_ms = found.times[roles.time.name or ""].grain_ms
    if grain_ms < 1000 or (grain_ms == 1000 and whole == plain):
        found.identity = (roles.time.name or "", roles.user.name, found.item)
        found.notes.append(f"{shown}: they are taken for copies (identity)")
    else:
        found.notes.append(f"{shown}: none is taken for a copy; if they are, name an identity")


def _copies(*keys: NDArray[np.int64]) -> int:
    """Rows that are equal to a row before in all keys."""
    rows = np.stack(keys, axis=1)
    return len(rows) - len(np.unique(rows, axis=0))


def _outcomes(found: SchemaFindings, rest: dict[str, Column], attributes: set[str], groups: dict[Of, Column]) -> None:
    """Leaves out what looks like an outcome; as long as the label is open, of any column that it could be."""
    roles, columns = found.roles, found.columns
    labels: dict[str, NDArray[np.bool_]] = {}
    if found.label is not None:
        labels[""] = columns[found.label].flags == 1
    else:
        could_be = {n: columns[n] for n in roles.label.candidates if columns[n].distinct <= 2}
        labels |= {f"; '{n}' could be the label": c.codes == np.argmin(c.counts) for n, c in could_be.items()}
    honest = [*groups.values(), *(c for n, c in rest.items() if n in attributes)]
    honest += [columns[r.name] for r in (roles.position,) if r.name is not None and r.name in columns]
    spread = [c.codes for c in groups.values()]
    for said, label in labels.items():
        halves = np.random.default_rng(0).random(len(label)) < 0.5
        verdict = verdicts(list(rest.values()), label, attributes, spread, honest, halves)
        found.outcomes |= {n: replace(one, why=one.why + said) for n, one in verdict.items()}


def _field(found: SchemaFindings, column: Column, of: Of, table: str | None, could_be: Sequence[str] = ()) -> None:
    times = found.times.get(column.name) if table is None else None
    # A few days of an item or user are categories, as of its upload.
    days = times is not None and not (times.unit or times.format) and times.grain_ms == DAY_MS
    if times is not None and not (days and of != "context" and column.distinct <= FEW):
        found.unused.setdefault(column.name, "it holds times, which are no feature as they are")
        return
    feature = feature_of(column)
    if not isinstance(feature, str) and feature.kind == "text" and of == "user":
        feature = "free text of a person: no feature, since it may name one"
    if not isinstance(feature, str) and feature.kind == "vector" and of == "context":
        feature = (
            "a vector that differs from row to row of one item: no feature, since a page's items share its context"
        )
    if isinstance(feature, str):
        found.unused[column.name] = feature
    else:
        if could_be:
            said = " or ".join(f"the {role} (then: of = {role!r})" for role in could_be).replace("'", '"')
            feature = replace(feature, why=f"{feature.why}; it could be {said}")
        found.fields.append(FoundField(column.name, of, feature, column.distinct, table))


def _side_tables(path: Path, found: SchemaFindings, groups: dict[Of, Column]) -> None:
    sides, notes = sides_beside(path, {str(of): c for of, c in groups.items()}, found.sample)
    found.notes += notes
    for side in sides:
        of: Of = "user" if side.of == "user" else "item"
        fresh = {n: c for n, c in side.columns.items() if n not in found.columns}
        for other in found.sides:
            fresh = {n: c for n, c in fresh.items() if n not in other.columns}
        if not fresh:
            continue
        found.sides.append(side)
        for column in fresh.values():
            if times_of(column) is not None and not column.is_temporal and len(str(column.examples(1))) > 8:
                found.unused[column.name] = "it holds times, which are no feature as they are"
                continue
            _field(found, column, of, side.file)
