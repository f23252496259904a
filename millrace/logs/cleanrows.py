# core
"""From raw rows of a log to clean exposures, for a whole log or a stretch of one.

Steps: made columns, lists unrolled, side tables joined, columns checked and typed, bad rows left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS, MINUTE_MS, minutes_of
from millrace.basics.errors import LogError, SchemaError
from millrace.contracts.logforms import FIRST_DAY, LogColumns, start_ms
from millrace.contracts.schema import DERIVED, Schema
from millrace.logs.columnchecks import check_columns, check_single, labels, never, numbers, positions, time_ms, vectors
from millrace.logs.faults import Faults
from millrace.logs.frames import Frame
from millrace.logs.later_events import LaterEvents
from millrace.logs.log_joins import SideTables, beside
from millrace.logs.log_times import Clock, to_ms
from millrace.logs.missing_columns import lacking
from millrace.logs.sorting import TS, of_outcomes, time_columns
from millrace.logs.unrolled import unroll
from millrace.logs.values import as_text, first_there, flat, mask, missing


class Wanted:
    """The columns to keep, and the columns to read for them. Raises SchemaError when a column has two of the four
    roles, or the outcome to be predicted is an input.

    Args:
        everything: keeps all columns of the log, fields as they come; only the roles are checked.
    """

    def __init__(self, schema: Schema, log: LogColumns, everything: bool = False) -> None:
        self.everything = everything
        aged = everything or any(field.name == "age_days" for field in schema.fields)
        self.aging = [log.born] if log.born is not None and aged else []
        """The column with birth times, where it is needed."""
        self.required, self.optional = _columns(schema, log, everything, self.aging)
        made = set(log.combine)
        sources = {name for names in log.combine.values() for name in names} | set(log.users)
        if log.rows_per_day is not None:
            made.add(log.time)
        if log.label_action is not None:
            made.add(log.label)
        if log.listed:
            made |= {log.item, log.label} | {n for n in (log.position, log.request) if n is not None}
            sources |= {n for n in (log.items, log.labels, log.clicked, log.pairs, *log.along) if n is not None}
        self.sources = sources  # sources of made columns: they must be in the log
        self.kept = {*self.required, *self.optional}
        maybe = {n for n in (log.position, log.request) if n is not None} if log.listed else set()
        read = (self.kept - made) | sources | maybe | {join.on for join in schema.join}
        self.raw = None if everything else read
        """Columns to read from the log's files; None: all."""


class Rows:
    """Cleans the rows of one log, stretch by stretch."""

    def __init__(
        self, paths: Sequence[Path | Frame], schema: Schema, wanted: Wanted, side: SideTables, faults: Faults
    ) -> None:
        assert schema.log is not None
        self._paths, self._schema, self._log, self._wanted = paths, schema, schema.log, wanted
        self._side, self._faults = side, faults
        self._path = str(paths[0])
        self._later_actions = {one.event for one in schema.outcome if one.event is not None}
        self._later: LaterEvents | None = None
        if schema.log.events is not None:
            self._later = LaterEvents(beside(paths, schema.log.events, "schema's log.events"), self._later_actions)
        self._clock = Clock.of(schema.log, schema)

    def clean(self, raw: pa.Table, row: int = 0) -> tuple[dict[str, pa.ChunkedArray], NDArray[np.intp]] | None:
        """(the kept columns of the good rows, ``ts_ms`` among them; (n,) the row of the log that each comes from). None
        when a column cannot be read at all; ``faults`` has the reason. ``row``: number of rows of the log before these.

        Raises SchemaError when a column is neither in the log nor in a side table.
        """
        log, faults = self._log, self._faults
        origin = np.arange(raw.num_rows) + row
        faults.begin(origin)
        self._there(raw, sorted(self._wanted.sources))
        table = self._made(raw, row)
        if log.listed:
            table, parent = unroll(table, log, self._path, faults, row)
            skipped, kept = int(faults.bad.sum()), faults.good[parent]
            faults.leave_out(skipped)
            table, origin = table.filter(pa.array(kept)), origin[parent][kept]
            faults.begin(origin)
        if self._schema.join:
            table = self._side.join(table, self._join_times(table), self._paths[0])
        self._there(table, [n for n in self._wanted.required if n != log.label or log.label_action is None])
        columns = {name: table[name] for name in table.column_names if name in self._wanted.kept}
        typed = self._typed(columns)
        if typed is None:
            return None
        if self._wanted.everything:
            typed = {name: typed.get(name, table[name]) for name in table.column_names} | typed
            typed[log.time] = typed[TS]
        if faults.bad.any():
            good = pa.array(faults.good)
            faults.leave_out(int(faults.bad.sum()))
            return {n: pa.chunked_array([flat(c).filter(good)]) for n, c in typed.items()}, origin[faults.good]
        return typed, origin

    def _there(self, table: pa.Table, names: Sequence[str]) -> None:
        lost = [name for name in names if name not in table.column_names]
        if lost:
            raise lacking(lost, self._schema, self._paths)

    def _made(self, table: pa.Table, row: int) -> pa.Table:
        log = self._log
        if log.users:
            at = table.column_names.index(log.user)
            table = table.set_column(at, log.user, first_there(table[one] for one in log.users))
        for name, of in log.combine.items():
            made = pa.array([""] * table.num_rows) if not of else pc.binary_join_element_wise(
                *(flat(as_text(table[n])) for n in of), "/", null_handling="replace", null_replacement=""
            )  # fmt: skip
            table = table.append_column(name, made if of else pa.array(["all"] * table.num_rows))
        if log.rows_per_day is not None:
            start = start_ms(log.time_start or FIRST_DAY)
            at = start + (np.arange(table.num_rows, dtype=np.int64) + row) * DAY_MS // log.rows_per_day
            table = table.append_column(log.time, pa.array(at))
        return table

    def _join_times(self, table: pa.Table) -> pa.Array | None:
        """Times of the exposures for tables with a time of validity. A later check reports their faults."""
        if all(join.at is None for join in self._schema.join):
            return None
        if self._log.time in table.column_names:
            column = table[self._log.time]
            if self._log.rows_per_day is not None:
                return flat(column)
            try:
                check_single(column, "time", self._log.time, self._path)
                return to_ms(column, self._clock)[0]
            except LogError:
                pass
        return pa.nulls(table.num_rows, pa.int64())

    def _typed(self, columns: dict[str, pa.ChunkedArray]) -> dict[str, pa.ChunkedArray] | None:
        """Each column in the type to keep; None if one cannot be read."""
        log, faults, path = self._log, self._faults, self._path
        actions = dict.fromkeys(log.action_times.values())
        columns |= {name: never(columns[name], log.never) for name in actions if log.never}
        if log.label_action is not None:
            columns[log.label] = pc.cast(pc.is_valid(columns[log.action_times[log.label_action]]), pa.int8())
        broken = check_columns(columns, self._schema, log, path, faults)
        out = dict(columns)
        if log.time not in broken:
            made = log.rows_per_day is not None
            out[TS] = columns[log.time] if made else time_ms(columns[log.time], log.time, self._clock, path, faults)
        if log.label not in broken:
            out[log.label] = labels(columns[log.label], log.label, path, faults, log.label_at_least)
        at_least = {one.column: one.at_least for one in self._schema.outcome}
        for name in self._schema.outcome_columns:
            if name not in broken:
                known = pa.array(~missing(columns[name]))
                out[name] = pc.if_else(known, labels(columns[name], name, path, faults, at_least[name]), None)
        for name in [*actions, *self._wanted.aging]:
            if name not in broken:
                same = name == log.time and TS in out
                out[name] = out[TS] if same else time_ms(columns[name], name, self._clock, path, faults)
        if log.position is not None and log.position not in broken:
            out[log.position] = positions(columns[log.position], log.position, path, faults)
        if self._later is not None and not broken:
            about = columns[log.user], columns[str(log.request)], columns[log.item]
            for action, name in log.action_times.items():
                if action in self._later_actions:
                    out[of_outcomes(name)] = self._later.times(action, out[name], *about)
                out[name] = self._later.counted(action, out[name], *about)
        if not broken:
            self._leave_early(out)
        for field in () if self._wanted.everything else self._schema.fields:
            if field.kind == "numeric" and field.name in columns and field.name not in broken:
                out[field.name] = numbers(columns[field.name], field.name, path, faults)
            elif field.kind == "vector" and field.name in columns and field.name not in broken:
                out[field.name] = vectors(columns[field.name], field, path, faults)
        if broken:
            return None
        for name in () if self._wanted.everything else self._wanted.aging:
            out["age_days"] = _age_days(out[TS], out[name])
        return {n: c if isinstance(c, pa.ChunkedArray) else pa.chunked_array([c]) for n, c in out.items()}

    def _leave_early(self, out: dict[str, pa.Array]) -> None:
        """Actions too early for their exposure did not happen (:meth:`millrace.labels.Waits.too_early`)."""
        log = self._log
        first_ms = pc.subtract(flat(out[TS]), minutes_of(log.disorder) * MINUTE_MS)
        for action, name in time_columns(log, out):
            early = mask(pc.less(flat(out[name]), first_ms))
            if not early.any():
                continue
            what = f"'{name}' is more than {log.disorder} before its exposure: the {action} counts nowhere"
            self._faults.decide(
                what, name, int((early & self._faults.good).sum()), "correct the times, or log.disorder"
            )
            out[name] = pc.if_else(early, None, flat(out[name]))
            if action == self._schema.windows.labelling:
                out[log.label] = pc.if_else(early, pa.scalar(0, pa.int8()), flat(out[log.label]))


def _age_days(ts_ms: pa.ChunkedArray | pa.Array, born_ms: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Days from birth to exposure; 0 where the birth is unknown or later. (n,)"""
    days = pc.divide(pc.cast(pc.subtract(flat(ts_ms), flat(born_ms)), pa.float64()), float(DAY_MS))
    return pc.cast(pc.fill_null(pc.max_element_wise(days, 0.0), 0.0), pa.float32())


def _columns(schema: Schema, log: LogColumns, everything: bool, born: list[str]) -> tuple[list[str], list[str]]:
    """(columns that must be there, columns that are used when there), in the schema's order."""
    roles = {"time": log.time, "user": log.user, "item": log.item, "label": log.label}
    roles |= {"born": log.born} if log.born is not None else {}
    for role, name in roles.items():
        for other in [r for r, n in roles.items() if n == name and r != role]:
            raise SchemaError(
                f"schema '{schema.name}' names '{name}' for log.{role} and log.{other}", "name a column for each"
            )
    own = schema.outcome_columns
    for name in own:
        if name in roles.values():
            raise SchemaError(f"schema '{schema.name}' has the outcome '{name}', which has a role in [log]",
                              "name a column of 0 and 1 of its own")  # fmt: skip
    for one in schema.outcome:
        if one.event is not None and one.event not in log.action_times:
            raise SchemaError(f"outcome '{one.name}' is of '{one.event}', of which the log has no time",
                              "name its column in log.action_times")  # fmt: skip
    outcomes = {log.label, *log.action_times.values(), *own}
    fields = [f.name for f in schema.fields] + [c for k in schema.windows.keys for c in k.columns]
    fields = [] if everything else fields
    for name in [*fields, *born]:
        if name in outcomes:
            raise SchemaError(
                f"schema '{schema.name}' feeds '{name}', the outcome to be predicted", "take it out of fields and keys"
            )
    named = [log.time, log.user, log.item, log.label, log.day, log.request, log.position, *log.identity]
    named += [*log.action_times.values(), *born, *own]
    required = [n for n in named if n is not None] + [n for n in fields if n not in DERIVED]
    return list(dict.fromkeys(required)), ["age_days"] if "age_days" in fields else []
