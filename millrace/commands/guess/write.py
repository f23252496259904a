# core
"""The guessed schema as TOML, with a comment beside each decision: a person reads it before it is used."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from millrace.basics.atomic_files import write_whole
from millrace.basics.durations import DAY_MS, MINUTE_MS
from millrace.basics.errors import LogError, SchemaError, SettingError
from millrace.commands.guess.agesteps import age_step
from millrace.commands.guess.guess import FoundField, SchemaFindings, find
from millrace.commands.guess.outcomes import LeftOut
from millrace.commands.guess.roles import ColumnRole, free_name
from millrace.commands.guess.timeformats import TimeColumn
from millrace.contracts.logforms import NAMED
from millrace.contracts.schema import BLANK, MAX_COLUMNS, Schema, parse_schema
from millrace.logs.frames import Frame, Log, as_file, log_parts

_NAMED = {form: name for name, form in NAMED.items()}


@dataclass(frozen=True)
class Guess:
    text: str
    """TOML, with a comment on each line that was decided."""
    open: dict[str, tuple[str, ...]]
    """Roles that could not be found -> the columns that could have them. Empty: replay runs the schema as it is."""
    findings: SchemaFindings
    source: str
    """What a person calls the log."""
    out: Path | None
    """The file that has the text."""

    def schema(self) -> Schema:
        """The schema. Raises SchemaError while a role is open."""
        if self.error is not None:
            raise self.error
        return parse_schema(self.text, f"guess of '{self.source}'")

    @property
    def error(self) -> SchemaError | None:
        could = "; ".join(f"{role}: {', '.join(names) or 'no column fits'}" for role, names in self.open.items())
        said = f"the schema of '{self.source}' has open roles ({could})"
        return SchemaError(said, "fill in its lines with '?'") if self.open else None

    @property
    def report(self) -> dict[str, Any]:
        return {"schema": self.text, "out": self.out, "summary": self.summary(), "open": self.open}

    @property
    def lines(self) -> list[str]:
        """What the command prints."""
        if self.out is None:
            return [self.text.removesuffix("\n")]
        return [*self.summary(), f"schema in {self.out}"]

    @property
    def outcomes(self) -> dict[str, LeftOut]:
        return self.findings.outcomes

    def summary(self) -> list[str]:
        found = self.findings
        roles = {"time": found.roles.time.name, "user": found.roles.user.name, "item": found.item} | {
            "label": found.label,
            "request": found.roles.request.name,
            "position": found.roles.position.name,
        }
        lines = [*([found.chosen] if found.chosen else []), f"read {found.sample.where}"]
        lines.append(", ".join(f"{role}: {name}" for role, name in roles.items() if name is not None))
        count = {of: sum(one.of == of for one in found.fields) for of in ("user", "item", "context")}
        lines.append("fields: " + ", ".join(f"{n} of the {of}" for of, n in count.items()))
        lines += [f"left out as an outcome: {name}: {verdict.why}" for name, verdict in self.outcomes.items()]
        lines += [f"could be an outcome: {name} >= {bound}" for name, bound in _thresholds(found).items()]
        return lines


def guess_schema(log: Log, out: Path | str | None = None) -> Guess:
    """The schema of a log, as far as it can be found. As :func:`guess`, but for roles that are open."""
    place, parts = None if out is None else Path(out), log_parts(log)
    if place is not None and place.exists():
        raise SettingError(f"'{place}' is there already", "name another file, or remove it")
    if len(parts) != 1:
        raise LogError(f"a guess of {len(parts)} paths", "name one of them, or their folder")
    (part,) = parts
    with as_file(part) if isinstance(part, Frame) else nullcontext(part) as path:
        findings = find(path)
        open_roles = {name: role.candidates for name, role in findings.roles.open.items()}
        found = Guess(schema_text(path, findings), open_roles, findings, str(part), place)
    if place is not None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, found.text.encode(), durable=False)
        except OSError as error:
            raise SettingError(f"'{place}' cannot be written ({error.strerror})", "name another file") from None
    return found


def guess(log: Log, out: Path | str | None = None) -> Schema:
    """A schema from a sample of a log: roles of columns, time, lists, fields, windows, likely outcomes. Its text has a
    comment on each decision.

    Args:
        log: a path, or a frame of pandas, Polars, pyarrow or DuckDB.
        out: TOML file to write, also while a role is open (default: the command prints it). A file that is there
            already is not overwritten.

    Raises:
        LogError: there is no log, it has no rows or cannot be read.
        SchemaError: the time, the user, the item or the label cannot be found; the text names what it could be.
        SettingError: the file is there already, or cannot be written.
    """
    return guess_schema(log, out).schema()


def schema_text(path: Path, found: SchemaFindings) -> str:
    lines = [*_head(path, found), ""]
    lines.append(f"name = {_quoted(path.stem.split('.')[0] or 'log')}")
    age, said = _age(found)
    lines += [*_offset(found), *([f"age = {_quoted(age)}  # {said}"] if age else [])]
    lines += ["", *_log(found)]
    for side in found.sides:
        lines += ["", "[[join]]", f"file = {_quoted(side.file)}", f"on = {_quoted(side.on)}"]
        lines[-1] += f"  # one row for each; it has {side.match:.1%} of the sample's"
    lines += ["", *_fields(found, '"bucket"' if age else "", said), *_windows(found), *_offered(found)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _head(path: Path, found: SchemaFindings) -> list[str]:
    lines = [
        f"# Guessed from {path.name} by 'millrace log guess': {found.sample.where}.",
        "# Read it before you trust it: the meaning of a column is guessed from its values and its name.",
        *([f"# {found.chosen}."] if found.chosen else []),
        "#",
    ]
    if found.roles.open:
        lines.append("# TO BE FILLED IN, since it could not be found out:")
        for name, role in found.roles.open.items():
            lines.append(f"#   {name}: {_could_be(name, role)}")
        lines.append("#")
    if found.outcomes:
        lines.append("# LEFT OUT, since these look like outcomes of the exposure, not known when it was chosen:")
        lines += [f"#   {name}: {verdict.why}" for name, verdict in found.outcomes.items()]
        lines += [
            "# If one was known before, name it in [[fields]]. One of 0 and 1 can be an [[outcome]].",
            "#",
        ]
    if found.unused:
        lines.append("# Not used:")
        lines += [f"#   {name}: {why}" for name, why in found.unused.items()]
        lines.append("#")
    lines += [f"# {note}" for note in found.notes]
    lines.append("# docs/reference/schema.md lists all entries, docs/how-to/describe-your-data.md helps to choose.")
    return lines


def _could_be(name: str, role: ColumnRole) -> str:
    if not role.candidates:
        what = {
            "time": "no column holds times; rows_per_day makes them if rows stand in the order of time",
            "user": "no column looks like the id of a user; combine makes one of several columns, or a constant",
            "item": "no column looks like the id of an item; combine makes one of several columns",
            "label": "no column of 0 and 1 changes from row to row; label_at_least or label_action make one",
        }
        return what[name]
    more = {
        "time": " (if it counts from 0: name its beginning with time_start)",
        "label": _of_label(role) if len(role.candidates) == 1 else "",
    }
    return "it could be " + ", ".join(f"'{c}'" for c in role.candidates) + more.get(name, "")


def _of_label(role: ColumnRole) -> str:
    if role.why:
        return f" ({role.why}: a label is 0 or 1, so write a column that is 1 for the action you want)"
    return " (a rating: name the least good one with label_at_least)"


def _offset(found: SchemaFindings) -> list[str]:
    hours, times = found.offset_hours, found.time
    if hours:
        role = found.roles.day
        return [f'utc_offset = "{hours:+03d}:00"  # {role.name} is {role.why}']
    zones = () if times is None else times.zones
    if zones and zones[0][0] in "+-" and zones != ("+00:00",):
        said = f"as '{found.roles.time.name}' says in each row"
        if len(zones) > 1:
            said = f"'{found.roles.time.name}' has {', '.join(zones)}: hours and days of all rows are in this one"
        return [f'utc_offset = "{zones[0]}"  # {said}']
    zone = f"'{found.roles.time.name}' is of {zones[0]}; " if zones and zones[0][0] not in "+-" else ""
    return [f'utc_offset = "+00:00"  # {zone}hours and days are local: write the shop\'s offset if it is another']


def _age(found: SchemaFindings) -> tuple[str, str]:
    """How fine ages are to be, empty for hours, and why (:func:`age_step`); nothing without a time of birth."""
    times, born, label = found.time, found.times.get(found.roles.born.name or ""), found.label
    if times is None or born is None or label is None or times.grain_ms > MINUTE_MS:
        return "", ""
    rows = times.there & born.there
    clicks = found.times.get(found.roles.actions.get("click", ""))
    delay_ms = np.zeros(0, np.int64) if clicks is None else (clicks.ms - times.ms)[clicks.there & times.there]
    return age_step((times.ms - born.ms)[rows], found.columns[label].flags[rows] == 1, delay_ms)


# -- [log] -----------------------------------------------------------------------------------------------------------


def _log(found: SchemaFindings) -> list[str]:
    roles, form = found.roles, found.sample.form
    lines = ["[log]"]
    if form.columns:
        names = ", ".join(_quoted(n) for n in form.columns)
        lines.append(f"columns = [{names}]  # the file has no header line: give them names that say more")
    if form.separator is not None:
        lines.append(f"separator = {_quoted(form.separator)}")
    if not form.quoting:
        lines.append("quoting = false  # a quote is a letter of the text: some are never closed")
    if form.encoding != "utf-8":
        lines.append(f"encoding = {_quoted(form.encoding)}  # it is no UTF-8")
    great = (found.roles.used | {*found.identity, *(one.name for one in found.fields)}) & form.texts
    if great:
        lines.append(f"texts = {json.dumps(sorted(great))}  # ids beyond 64 bits: as numbers, many would be one")
    lines += _time(found)
    lines.append(_role("user", roles.user))
    if roles.account.name is not None:
        both = ", ".join(_quoted(name) for name in (roles.account.name, roles.user.name or ""))
        lines[-1] = f"user = [{both}]  # {roles.account.why}"
    if roles.pairs.name is not None:
        lines.append(f"pairs = {_quoted(roles.pairs.name)}  # {roles.pairs.why}")
        lines.append(f"item = {_quoted(found.item or '')}  # made of the pairs, as is the label")
        lines.append(f"label = {_quoted(found.label or '')}")
    elif roles.listed:
        lines.append(f"items = {_quoted(roles.item.name or '')}  # {roles.item.why}")
        if roles.list_separator != " ":
            lines.append(f"list_separator = {_quoted(roles.list_separator)}")
        kind, role = ("labels", roles.labels) if roles.labels.name else ("clicked", roles.clicked)
        lines.append(f"{kind} = {_quoted(role.name or '')}  # {role.why}")
        lines.append(f"item = {_quoted(found.item or '')}  # made of the lists, as is the label")
        lines.append(f"label = {_quoted(found.label or '')}")
    else:
        lines.append(_role("item", roles.item))
        lines.append(_role("label", roles.label))
    page = free_name("page", found.sample.table.column_names)
    if roles.page:
        lines.append(
            f"request = {_quoted(page)}  # made: rows of one {' and '.join(roles.page)} are proposed as a page"
        )
    combined = {page: roles.page, str(roles.time.name): roles.clock}
    joined = [f"{name} = [{', '.join(map(_quoted, of))}]" for name, of in combined.items() if of]
    if joined:
        lines.append(f"combine = {{ {', '.join(joined)} }}")
    for name, role in (("day", roles.day), ("request", roles.request), ("position", roles.position),
                       ("born", roles.born)):  # fmt: skip
        if role.name is not None:
            lines.append(_role(name, role))
    if found.identity:
        names = ", ".join(_quoted(n) for n in found.identity)
        lines.append(f"identity = [{names}]  # rows equal in these are copies of one exposure")
    if roles.actions:
        lines += _actions(found)
    return lines


def _role(name: str, role: ColumnRole) -> str:
    if role.name is None:
        return f"{name} = {_quoted(BLANK)}  # TO BE FILLED IN: {_could_be(name, role)}"
    others = [c for c in role.candidates if c != role.name]
    also = f"; it could also be {', '.join(others[:3])}" if others else ""
    return f"{name} = {_quoted(role.name)}  # {role.why}{also}"


def _time(found: SchemaFindings) -> list[str]:
    role = found.roles.time
    lines = [_role("time", role)]
    times = found.time
    if times is not None:
        if times.also is not None:
            lines[0] += f"; all of them could also be {times.also}"
        first, last = (_day(int(ms)) for ms in (times.ms.min(), times.ms.max()))
        lines[0] += f"; {first} to {last}"
        if times.unit not in (None, "ms"):
            lines.append(f"time_unit = {_quoted(times.unit or '')}")
        if times.format is not None:
            lines.append(f"time_format = {_quoted(_NAMED.get(times.format, times.format))}")
    return lines


def _day(ms: int) -> str:
    return str(np.datetime64(ms, "ms").astype("datetime64[m]")).replace("T", " ")


def _actions(found: SchemaFindings) -> list[str]:
    times, roles = found.times, found.roles
    own = times[roles.time.name or ""]
    alike = {a: n for a, n in roles.actions.items() if (times[n].unit, times[n].format) == (own.unit, own.format)}
    lines = []
    for action, name in roles.actions.items():
        if action not in alike:
            lines.append(f"# the time of '{action}' in '{name}' is written otherwise than the exposure's: left out")
    if not alike:
        return lines
    pairs = ", ".join(f"{action} = {_quoted(name)}" for action, name in alike.items())
    lines.append(f"action_times = {{ {pairs} }}")
    never = sorted({int(t.never) for n in alike.values() if (t := times[n]).never is not None})
    if never:
        lines.append(f"never = {never}  # stands for 'did not happen'")
    if "click" in alike:
        minutes = _wait(own, times[alike["click"]])
        lines.append(f"attribution_minutes = {minutes}  # 99.9% of the sample's clicks come within it")
    return lines


def _wait(exposed: TimeColumn, clicked: TimeColumn) -> int:
    delays = (clicked.ms - exposed.ms)[clicked.there]
    return max(int(np.ceil(np.percentile(np.maximum(delays, 0), 99.9) / 60_000)), 1)


# -- [[fields]] and [windows] ----------------------------------------------------------------------------------------


def _entry(name: str, of: str, comment: str = "", *rest: str) -> list[str]:
    first = f"name = {_quoted(name)}" + (f"  # {comment}" if comment else "")
    return ["[[fields]]", first, f"of = {_quoted(of)}", *rest]


def _rest(found: FoundField) -> list[str]:
    feature, lines = found.feature, []
    if feature.kind != "categorical":
        lines.append(f"kind = {_quoted(feature.kind)}")
    if feature.size:
        lines.append(f"size = {feature.size}")
    if feature.transform != "raw":
        lines.append(f"transform = {_quoted(feature.transform)}  # its values span sizes")
    if feature.slots > 1:
        lines.append(f"slots = {feature.slots}")
        if feature.separator != ",":
            lines.append(f"separator = {_quoted(feature.separator)}")
    return lines


def _fields(found: SchemaFindings, of_age: str, said: str) -> list[str]:
    """``of_age``: the transform of ages; empty: as they are, since ``said``."""
    lines: list[str] = []
    ids = {"user": found.roles.user.name, "item": found.item}
    heads = {"user": "The user", "item": "The item", "context": "The exposure"}
    for of, head in heads.items():
        lines += [f"# {head}"]
        if ids.get(of):
            count = found.columns[str(ids[of])].distinct
            lines += _entry(str(ids[of]), of, f"{count:,} in the sample")
        for one in found.fields:
            if one.of == of:
                lines += _entry(one.name, of, one.feature.why, *_rest(one))
        if of == "context":
            lines += _derived(found, of_age, said)
        lines.append("")
    return lines


def _derived(found: SchemaFindings, of_age: str, said: str) -> list[str]:
    lines: list[str] = []
    names = {one.name for one in found.fields}
    times = found.time
    if times is not None and times.grain_ms < DAY_MS and found.span_days >= 0.5 and "hour" not in found.columns:
        lines += _entry("hour", "context", "of the time, local")
    if times is not None and found.span_days >= 6 and "weekday" not in names | set(found.columns):
        lines += _entry("weekday", "context", "of the time, local")
    if found.roles.born.name is not None:
        more = [f"transform = {of_age}"] if of_age else []
        why = f"from '{found.roles.born.name}' to the exposure" + (f"; {said}" if said and not of_age else "")
        lines += _entry("age_days", "item", why, 'kind = "numeric"', *more)
    if found.roles.position.name is not None:
        lines += _entry("position", "context", "known when learning, not when a page is ranked", "bias = true")
    return lines


def _windows(found: SchemaFindings) -> list[str]:
    days, times = found.span_days, found.time
    coarse = times is not None and times.grain_ms >= 3_600_000
    old = _item_hours(found)
    brief = days >= 2 and old is not None and old <= min(24.0, 24 * days / 4)
    if days < 2 or brief:
        lengths = ["6h", "1d"] if coarse else ["1h", "6h", "1d"]
        line = f"lengths = {json.dumps([*lengths, '3d'] if brief and days >= 3 else lengths)}"
    else:
        line = f"days = {[1, 3] if days < 5 else [1, 7] if days < 21 else [1, 7, 30]}"
    known = found.times and found.roles.time.name
    said = f"  # the log has {days:.1f} days" if known else ""
    if brief:
        said += f"; half of an item's exposures come within {old:.0f} h of its first: items are soon old"
    lines = ["[windows]", line + said]
    if brief and not coarse:
        lines.append('half_lives = ["6h"]')
    actions = [a for a in ("click", "collect", "cart", "purchase") if a == "click" or a in found.roles.actions]
    lines.append(f"actions = {json.dumps(['exposure', *actions][:MAX_COLUMNS])}")
    if found.rate is not None:
        shown = f"{max(min(found.rate, 0.99), 1e-4):.2g}"
        lines.append(f"prior_rate = {float(shown)}  # the share of clicks in the sample: {found.rate:.2%}")
        if found.rate < 0.02:
            lines.append("prior_weight = 200  # clicks are rare")
    user, item = found.roles.user.name, found.item
    category = _category(found, item)
    keys: list[tuple[list[str], list[str]]] = []
    if category:
        keys.append(([category], []))
    if item:
        keys.append(([item], [category] if category else []))
    if user:
        keys.append(([user], []))
    if user and category:
        keys.append(([user, category], [user]))
    if user and item and not category:
        keys.append(([user, item], [user]))
    if not keys:
        lines.append('# Once user and item are named: a [[windows.keys]] entry for each, with columns = ["..."]')
    for columns, parent in keys:
        lines += ["[[windows.keys]]", f"columns = {json.dumps(columns, ensure_ascii=False)}"]
        if parent:
            lines.append(f"parent = {json.dumps(parent, ensure_ascii=False)}")
    return lines


def _offered(found: SchemaFindings) -> list[str]:
    """Amounts that come of an exposure, as outcomes with a threshold: to be taken by a person."""
    bounds = _thresholds(found)
    if not bounds:
        return []
    event = next((a for a in ("collect", "cart", "purchase") if a not in found.roles.actions), "purchase")
    lines = [
        "",
        "# What could be an outcome: take the # of its lines away. A live loop learns it from an event of yours; write",
        f'# event = "{event}" and within = "30min" in place of column and at_least.',
    ]
    for name, bound in bounds.items():
        on = "click" if found.outcomes[name].kind == "only-with-label" else "page"
        lines += [
            "# [[outcome]]",
            f"# name = {_quoted(re.sub('[^a-z0-9_]', '_', f'long_{name.lower()}')[:40])}"
            f"  # {name} >= {bound}, as half of those above 0 are",
            f'# on = "{on}"',
            f"# column = {_quoted(name)}",
            f"# at_least = {bound}",
        ]
    return lines


def _thresholds(found: SchemaFindings) -> dict[str, str]:
    """Names of outcomes that are amounts -> a round number near their middle, where they are above 0."""
    out = {}
    for name in found.outcomes:
        column = found.columns[name]
        some = column.numbers[column.there & (column.numbers > 0)] if column.is_numeric else np.zeros(0)
        if len(np.unique(some)) > 10 and not (column.numbers < 0).any():
            middle = float(np.median(some))
            size = 10.0 ** np.floor(np.log10(middle))
            out[name] = f"{min((1, 2, 3, 5, 10), key=lambda n: abs(n * size - middle)) * size:.15g}"
    return out


def _item_hours(found: SchemaFindings) -> float | None:
    """Hours from an item's first exposure in the sample within which half of its later ones come; None: too few items
    have several."""
    times = found.time
    if times is None or found.item is None:
        return None
    code = found.columns[found.item].codes
    there = times.there & (code >= 0)
    ms, code = times.ms[there], code[there]
    first = np.full(int(code.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, code, ms)
    later = ms > first[code]
    counted = later & (np.bincount(code)[code] >= 5)
    return float(np.median((ms - first[code])[counted])) / 3_600_000 if counted.sum() >= 200 else None


def _category(found: SchemaFindings, item: str | None) -> str | None:
    """An attribute of items to smooth towards: of those with 5 values and up to a fifth of the items, the finest."""
    if item is None:
        return None
    most = found.columns[item].distinct / 5
    fit = [one for one in found.fields if one.of == "item" and one.feature.kind == "categorical"]
    fit = [one for one in fit if 5 <= one.distinct <= most]
    words = ("category", "class", "section", "genre", "type", "tag", "author", "brand", "topic")
    called = [one for one in fit if any(word in one.name.lower() for word in words)]
    return max(called or fit, key=lambda one: one.distinct).name if called or fit else None
