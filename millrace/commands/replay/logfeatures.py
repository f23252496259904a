# core
"""What features of a log are made of: its columns as hashes, its labels and actions in event time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.basics.durations import HOUR_MIN, MINUTE_MS
from millrace.basics.hashing import U64, combine, salt
from millrace.commands.guess.agesteps import DELAYS
from millrace.commands.replay.grouped import page_codes
from millrace.contracts.logforms import LogColumns
from millrace.contracts.schema import Schema
from millrace.labels import LabelPolicy, policy_named
from millrace.labels.tellings import place_hash, turns
from millrace.logs import TS, LogTable
from millrace.logs.sorting import of_outcomes
from millrace.windows.features import FeatureBuilder, steps

CHUNK_ROWS = 16_384
_MOST_VALUES = 1 << 20  # of a column whose hashes are remembered
_TURN = salt("turn of an outcome")
_EXPOSURE_COLUMN = 0  # the exposure is the first of a schema's window actions
NEVER = np.iinfo(np.int64).max


class ValueHashes:
    """Hashes of the values in a log's columns, so that each value is hashed one time and not in each stretch.

    At most 2^20 values a column are kept; beyond that, the column's are dropped. Lists are not kept.
    """

    def __init__(self, builder: FeatureBuilder) -> None:
        self.builder = builder
        self._known: dict[str, dict[object, Any]] = {}

    def of(self, name: str, values: NDArray[Any]) -> U64:
        """As :meth:`FeatureBuilder.column` of distinct ``values``, an array of objects. (n,) or (n, slots)"""
        listed = values.tolist()
        known = self._known.setdefault(name, {})
        try:
            new = [v for v in listed if v not in known]
        except TypeError:  # lists
            return self.builder.column(name, values)
        if new and len(known) + len(new) > _MOST_VALUES:
            known.clear()
            new = listed
        made = np.empty(len(new), object)
        made[:] = new
        hashed = self.builder.column(name, made)  # (n,) or (n, slots), of no values too
        known.update(zip(new, hashed.tolist(), strict=True))
        out = np.empty((len(listed), *hashed.shape[1:]), np.uint64)
        out[:] = [known[v] for v in listed] if listed else hashed
        return out


class LogRows:
    """The log's columns as hashes: each distinct value is hashed one time, and rows hold codes. n rows, in time order.
    ``hashes``: of values met in earlier stretches; the result is the same."""

    def __init__(self, log: LogTable, schema: Schema, hashes: ValueHashes | None = None) -> None:
        assert schema.log is not None
        hashes = hashes or ValueHashes(FeatureBuilder(schema))
        table = log.table
        self.n: int = table.num_rows
        self.ts_ms: NDArray[np.int64] = table[TS].to_numpy()
        self.label: NDArray[np.int8] = table[schema.log.label].to_numpy()
        self.builder = builder = hashes.builder
        self._plain: dict[str, NDArray[Any]] = {}
        self._coded: dict[str, tuple[NDArray[np.intp], U64]] = {}
        sides = (*builder.needs("user"), *builder.needs("item"), *builder.needs("context"))
        for name in dict.fromkeys((*sides, builder.user_column, builder.item_column)):
            if name not in table.column_names:
                continue
            if builder.is_numeric(name):
                self._plain |= builder.numbers(name, table[name])
            else:
                codes, values = _distinct(table[name])
                self._coded[name] = codes, hashes.of(name, values)
        self._slots: NDArray[np.int64] | None = None
        if schema.log.position is not None:
            self._slots = table[schema.log.position].fill_null(-1).to_numpy().astype(np.int64)
        # A log without pages: each exposure is a page of its own, named by its place in the log.
        self.page: NDArray[np.intp] = np.arange(self.n)
        self._requests: NDArray[Any] | None = None  # the name of each page
        page = page_codes(log, schema)
        if page is not None:
            self.page = page.astype(np.intp)
            first = np.empty(int(self.page.max(initial=-1)) + 1, np.intp)
            first[self.page[::-1]] = np.arange(self.n)[::-1]  # of a page's rows the first is written last
            self._requests = _objects(table[schema.log.request].take(pa.array(first)))

    def requests(self, pages: NDArray[np.intp]) -> tuple[str, ...]:
        return tuple(str(p) for p in (pages if self._requests is None else self._requests[pages]).tolist())

    def names(self) -> NDArray[Any]:
        return self.page if self._requests is None else self._requests[self.page]

    def named(self) -> NDArray[np.intp]:
        """The first page that has the name of each row's page: itself, unless two users' pages have one name. (n,)"""
        if self._requests is None:
            return self.page
        first: dict[object, int] = {}
        same = [first.setdefault(name, page) for page, name in enumerate(self._requests.tolist())]
        return np.array(same, np.intp)[self.page]

    def slots(self, rows: NDArray[np.intp]) -> NDArray[np.int32]:
        """Slots on the page; 0 where the log does not tell."""
        if self._slots is None:
            return np.zeros(len(rows), np.int32)
        return np.maximum(self._slots[rows], 0).astype(np.int32)

    def steps(self) -> NDArray[np.uint32]:
        """What each row adds to the sum of each mean, if it leads to that mean's action. (n, M)"""
        means = self.builder.schema.windows.means
        out = np.zeros((self.n, len(means)), np.uint32)
        for m, mean in enumerate(means):
            if mean.of in self._plain:
                out[:, m], _ = steps(self._plain[mean.of], mean.step)
        return out

    def hashes(self, name: str, rows: NDArray[np.intp] | slice) -> U64:
        """Value hashes of some rows of a column that is not a numeric field."""
        codes, values = self._coded[name]
        return values[codes[rows]]

    def columns(self, rows: slice | NDArray[np.intp]) -> tuple[dict[str, U64], dict[str, NDArray[Any]]]:
        """(columns, plain numbers) of some rows, as :class:`FeatureBuilder` takes them."""
        columns = {name: self.hashes(name, rows) for name in self._coded}
        columns |= self.builder.context(self.ts_ms[rows])
        if self._slots is not None:
            columns["position"] = self.builder.position(self._slots[rows])
        return columns, {name: values[rows] for name, values in self._plain.items()}


class LabelRows(NamedTuple):
    """What labels need of a log's rows."""

    n: int
    ts_ms: NDArray[np.int64]
    label: NDArray[np.int8]

    @classmethod
    def of(cls, log: LogTable, schema: Schema) -> LabelRows:
        assert schema.log is not None
        return cls(log.table.num_rows, log.table[TS].to_numpy(), log.table[schema.log.label].to_numpy())


@dataclass(slots=True)
class EventOutcome:
    """An outcome of an event. n rows; ``base_ms`` is the exposure or the click."""

    column: int
    policy: LabelPolicy
    within_ms: int
    base_ms: NDArray[np.int64]  # (n,)
    came_ms: NDArray[np.int64]  # (n,) NEVER: it did not
    back_ms: NDArray[np.int64]  # (n,) when it was taken back; a log does not tell
    defined: NDArray[np.bool_]  # (n,)
    ends_ms: int  # what is due later is not known
    turns: NDArray[np.uint8]  # (n,) at which telling each row has its turn, if it is told by age


class Labels:
    """When each exposure's label is known, and when each action happened (:mod:`millrace.commands.replay.replayrun`).

    An action before its exposure counts at the exposure. The exposure's own features never see it.
    """

    def __init__(self, log: LogTable, schema: Schema, rows: LogRows | LabelRows, end_ms: int | None = None) -> None:
        """``end_ms``: the last exposure of the log; default: that of these rows. What is due later is not known."""
        assert schema.log is not None
        columns: LogColumns = schema.log
        actions = schema.windows.actions
        self.action = schema.windows.labelling
        self.wait_ms = wait_ms = round(columns.attribution_minutes * 60_000) if columns.action_times else 0
        times = {
            action: np.maximum(log.table[name].fill_null(NEVER).to_numpy(), rows.ts_ms)
            for action, name in columns.action_times.items()
        }
        settled = rows.ts_ms + wait_ms
        acted = times.get(self.action, np.full(rows.n, NEVER))
        beyond = (acted < NEVER) & ((acted >= settled) | (columns.events is not None))
        self.corrects = (rows.label == 0) & beyond & (wait_ms > 0)
        """(n,) whether the label is a 0, and a click came after it: beyond the window, or when the row was written."""
        acted = np.where(acted == NEVER, settled, acted)
        self.clicked = (rows.label == 1) | self.corrects
        self.late = self.clicked & (acted > settled)
        self.acted_ms: NDArray[np.int64] = acted

        self.on_click = np.array([one.on == "click" for one in schema.outcome], np.bool_)
        """(K,) whether each outcome is of the click."""
        self.outcomes = np.full((rows.n, len(schema.outcome)), np.nan, np.float32)
        """(n, K) 0 or 1, NaN where it is not defined or not known to the log."""
        self.outcome_ms = np.zeros((rows.n, len(schema.outcome)), np.int64)
        """(n, K) when each is known; 0: with the label."""
        self.of_events: list[EventOutcome] = []
        for k, one in enumerate(schema.outcome):
            base = acted if one.on == "click" else rows.ts_ms
            if one.within is not None:
                self.outcome_ms[:, k] = base + one.within_ms
            value: Any = np.nan
            if one.column:
                value = log.table[one.column].cast("float32").fill_null(float("nan")).to_numpy()
            elif one.event is not None:
                came = times[one.event]
                if (name := of_outcomes(columns.action_times[one.event])) in log.table.column_names:
                    came = np.maximum(log.table[name].fill_null(NEVER).to_numpy(), rows.ts_ms)
                value = came < self.outcome_ms[:, k]
            ends = int(rows.ts_ms.max(initial=0)) if end_ms is None else end_ms
            defined = self.clicked | (one.on == "page")
            self.outcomes[:, k] = np.where(defined & (self.outcome_ms[:, k] <= ends), value, np.nan)
            if one.event is not None:
                never = np.full(rows.n, NEVER)
                how = policy_named(one.told)
                turn = _turns(log, columns, base) if how.early else np.zeros(rows.n, np.uint8)
                self.of_events.append(EventOutcome(k, how, one.within_ms, base, came, never, defined, ends, turn))

        row, ts_ms, column = [np.arange(rows.n)], [rows.ts_ms], [np.full(rows.n, _EXPOSURE_COLUMN, np.uint8)]
        for k, action in enumerate(actions[1:], 1):
            if action in times:
                when = times[action]
                who = np.flatnonzero(when < NEVER)
            elif action == self.action:
                who, when = np.flatnonzero(self.clicked), acted
            else:
                continue
            row.append(who)
            ts_ms.append(when[who])
            column.append(np.full(len(who), k, np.uint8))
        order = np.argsort(np.concatenate(ts_ms), kind="stable")
        self.event_row: NDArray[np.intp] = np.concatenate(row)[order]
        self.event_ms: NDArray[np.int64] = np.concatenate(ts_ms)[order]
        self.event_action: NDArray[np.uint8] = np.concatenate(column)[order]


def _turns(log: LogTable, columns: LogColumns, base_ms: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(n,) as live, where the log names page and position; else by the time."""
    if columns.request is None or columns.position is None:
        return turns((combine(_TURN, base_ms.view(np.uint64)) >> np.uint64(32)).astype(np.uint32))
    pages, places = (log.table[name].cast(pa.string()).to_pylist() for name in (columns.request, columns.position))
    named = (place_hash(page or "", int(place or 0)) for page, place in zip(pages, places, strict=True))
    return turns(np.fromiter(named, np.uint32, len(pages)))


def unfit(log: LogTable, schema: Schema) -> list[str]:
    """A line for each mean that has values which count as 0 or are cut."""
    lines = []
    for mean in schema.windows.means:
        if mean.of in log.table.column_names:
            _, bad = steps(log.table[mean.of].to_numpy(), mean.step)
            if bad:
                lines.append(f"'{mean.of}': {bad} values are missing, negative or too great for the mean")
    return lines


def clock(log: LogTable, schema: Schema) -> list[str]:
    """A line where clicks come so late that ages of items tell them: ``guess`` would name longer steps."""
    name = None if schema.log is None else schema.log.action_times.get(schema.windows.labelling)
    if name is None or not schema.age or schema.age_minutes >= HOUR_MIN:
        return []
    delay_min = pc.drop_null(pc.subtract(log.table[name], log.table[TS])).to_numpy() / MINUTE_MS
    late = float(np.percentile(delay_min, 90)) if len(delay_min) else 0.0
    if schema.age_minutes >= DELAYS * late:
        return []
    share = (delay_min >= schema.age_minutes).mean()
    told = f"{share:.1%} of clicks come a whole step late, nine in ten in {late:.1f} min"
    return [f"age = '{schema.age}' is a clock here: {told}; name {DELAYS * late:.0f} minutes or more, or leave it out"]


def _distinct(column: Any) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """(code of each row, the distinct values as objects; null is None)."""
    if pa.types.is_dictionary(column.type):  # its codes are another's, and its values more than these rows have
        column = column.cast(column.type.value_type)
    column = column.combine_chunks()
    if column.type.num_fields:  # lists have no dictionary
        return np.arange(len(column)), _objects(column)
    coded = column.dictionary_encode(null_encoding="encode")
    return coded.indices.to_numpy().astype(np.intp), _objects(coded.dictionary)


def _objects(column: Any) -> NDArray[Any]:
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values
