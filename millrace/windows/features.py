# core
"""Feature arrays from hashed columns, plain numbers and window counts.

``cat``, ``num`` and ``keys`` are made here alone: the scorer calls this for one user and a thousand candidates,
replay for whole stretches of a log. So training and serving features are equal to the bit. Every operation works
element by element, in float32 without reductions: a row's features do not depend on other rows. Numbers among
candidates (:meth:`FeatureBuilder.compare`) come afterwards, from whole pages.

Shapes: n rows, F categorical columns, N numbers, K window keys, W windows, H half-lives, A actions, M means. A *column*
holds value hashes (:mod:`millrace.basics.hashing`), (n,) or, where one value holds for all rows, (1,); a multi
field's is (n, slots) or (1, slots), filled from the left. Absent columns, unknown values, NaN and infinities read as 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.compiled import compiled
from millrace.basics.durations import DAY_MIN, DAY_MS, HOUR_MS
from millrace.basics.errors import SchemaError
from millrace.basics.hashing import U64, column_hash, combine, mix, value_hash
from millrace.basics.number_kernels import BlockForm, fill_block, whole_steps
from millrace.contracts.field_values import numbers_of, parts_of
from millrace.contracts.schema import DERIVED, EXPOSURE_AGE, ITEM_AGES, Field, Schema, Side
from millrace.windows import among_kernels
from millrace.windows.tile_memory import UNIT

_POSITIONS = 1024
_MOST_STEPS = (1 << 24) - 1

F32 = NDArray[np.float32]


@compiled(error_model="numpy")
def _whole(ages: NDArray[Any], steps: np.float32, out: NDArray[Any]) -> None:
    for i in range(len(ages)):
        out[i] = whole_steps(ages[i], steps)


@compiled(error_model="numpy")
def _fill(form: BlockForm, order: NDArray[Any], counts: NDArray[Any], fade: NDArray[Any], out: NDArray[Any]) -> None:
    """The blocks of n rows, ``out`` (n, K, E), from ``counts`` (n, K, S, C). ``order`` (K, 2): keys and their parents
    (-1: none), parents first; ``fade`` (n, H), or (1, H) for all rows."""
    for i in range(len(counts)):
        for k, parent in order:
            above = out[i, parent] if parent >= 0 else form.prior
            fill_block(form, counts[i, k], fade[min(i, len(fade) - 1)], above, out[i, k])


class FeatureBuilder:
    """Builds the arrays of one schema's :class:`~millrace.contracts.schema.Layout`. Stateless after construction.

    Raises:
        SchemaError: hour, weekday or position is declared numeric, or the parents of the window keys form a ring.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.layout = schema.layout
        for field in self.layout.plain_fields:
            if field.name in DERIVED and field.name not in ITEM_AGES:
                raise SchemaError(f"field '{field.name}' is numeric", f"make it categorical: '{field.name}' is derived")
        self.user_column, self.item_column = schema.ids
        self._fields = {f.name: f for f in schema.fields}
        self._cat_salts = np.array(
            [
                self.layout.field_salt(f)
                for f, width in zip(self.layout.cat_fields, self._widths(), strict=True)
                for _ in range(width)
            ],
            np.uint64,
        )
        self._key_salts = [self.layout.key_salt(name) for name in self.layout.key_names]
        windows = schema.windows
        self.order = windows.order
        """(key, parent key) as indices, each parent before its children."""
        self._order = np.array([(k, -1 if parent is None else parent) for k, parent in self.order]).reshape(-1, 2)
        prior = np.zeros((len(windows.spans), 2 * len(windows.actions) - 1 + len(windows.means)), np.float32)
        prior[:, len(windows.actions) : 2 * len(windows.actions) - 1] = windows.priors
        self.block = BlockForm(
            windows=len(windows.durations),
            actions=len(windows.actions),
            mean_of=np.array([windows.actions.index(mean.action) for mean in windows.means], np.int64),
            step=np.array([mean.step for mean in windows.means], np.float64),
            weight=np.float32(windows.prior_weight),
            prior=prior.ravel(),
        )
        self._unit_ms = schema.windows.unit_ms
        self.age_steps = np.float32(DAY_MIN / schema.age_minutes)
        """Parts of a day in which ages of items are."""
        names, forms = self.layout.num_names, among_kernels.FORMS
        self.exposed: tuple[int, int] | None = None
        """The column of num that is the age since an item's first exposure, and the window key that tells it."""
        if EXPOSURE_AGE in names:
            keys = [key.columns for key in schema.windows.keys]
            self.exposed = names.index(EXPOSURE_AGE), keys.index((self.item_column,))
        self.compared = np.array([names.index(one.number) for one in schema.among], np.int64)
        """(G,) columns of num that are compared among candidates."""
        made = [(g, forms[form]) for g, one in enumerate(schema.among) for form in one.forms]
        self.comparisons = np.array(made, np.int64).reshape(-1, 2)
        """(C, 2) which of the G, and the form, of each number among candidates."""
        self._hours = column_hash(np.arange(24))
        self._weekdays = column_hash(np.arange(7))
        self._positions = column_hash(np.arange(_POSITIONS))
        sides: tuple[Side, ...] = ("user", "item", "context")
        self._needed = {side: schema.columns_of(side) for side in sides}

    def _widths(self) -> list[int]:
        return [f.slots for f in self.layout.cat_fields]

    def needs(self, side: Side) -> tuple[str, ...]:
        return self._needed[side]

    def is_numeric(self, name: str) -> bool:
        """Whether ``name`` is a numeric field or a vector, which belong in ``plain`` and not in ``columns``."""
        field = self._fields.get(name)
        return field is not None and bool(field.numbers)

    def cat(self, columns: Mapping[str, U64], n: int) -> NDArray[np.int64]:
        """``cat[i, c] = mix(field_salt, column[i])``: feature ids, 0 = missing. (n, F)"""
        out = np.zeros((n, len(self._cat_salts)), np.uint64)
        once = np.zeros((1, len(self._cat_salts)), np.uint64)  # values equal for all rows are mixed a single time
        shared = np.ones(len(self._cat_salts), np.bool_)
        for field, start in zip(self.layout.cat_fields, self.layout.cat_starts, strict=True):
            column = columns.get(field.name)
            if column is None:
                continue
            if column.ndim == 1:
                column = column[:, None]
            end = start + min(field.slots, column.shape[1])
            if len(column) == 1:
                once[:, start:end] = column[:, : field.slots]
            else:
                shared[start:end] = False
                out[:, start:end] = column[:, : field.slots]
        own = np.flatnonzero(~shared)
        if len(own):
            out[:, own] = mix(self._cat_salts[own], out[:, own])  # type: ignore[arg-type]
        rest = np.flatnonzero(shared)
        out[:, rest] = mix(self._cat_salts[rest], once[:, rest])  # type: ignore[arg-type]
        return out.view(np.int64)

    def keys(self, columns: Mapping[str, U64], n: int) -> U64:
        """Window keys: ``combine(key_salt, *columns)``, 0 when any column is missing. (n, K). A multi field's first
        value counts."""
        out = np.zeros((n, self.layout.K), np.uint64)
        for k, key in enumerate(self.schema.windows.keys):
            parts = [columns.get(name) for name in key.columns]
            if any(p is None for p in parts):
                continue
            out[:, k] = combine(self._key_salts[k], *(p if p.ndim == 1 else p[:, 0] for p in parts if p is not None))
        return out

    def num(
        self,
        plain: Mapping[str, NDArray[Any]],
        counts: NDArray[np.integer[Any]],
        n: int,
        ts_ms: NDArray[np.int64] | int = 0,
    ) -> F32:
        """Plain numbers, then counts, smoothed rates and means in the order of ``layout.num_names``; numbers among
        candidates are 0 (:meth:`compare`). (n, N) float32

        Args:
            plain: numeric field -> (n,) or (1,) numbers.
            counts: (n, K, W + H, A + M) as :class:`millrace.windows.tiles.TileStore` gives them; with the row of first
                exposures where :attr:`exposed` is not None.
            ts_ms: the time at which they were read, (n,) or one for all; only half-lives and ages need it.
        """
        layout = self.layout
        out = np.zeros((n, layout.N), np.float32)
        for i, field in enumerate(layout.plain_fields):
            values = plain.get(field.name)
            if values is not None:
                out[:, i] = self._aged(finite32(values)) if field.name == "age_days" else finite32(values)
        if not layout.K:
            return out
        if self.exposed is not None:
            column, k = self.exposed
            first_ms = counts[:, k, -1, 0].astype(np.int64) * self._unit_ms
            out[:, column] = self.age_days(np.asarray(ts_ms, np.int64), first_ms)
        block = out[:, layout.window_start : layout.among_start]
        block = block.reshape(n, layout.K, len(self.block.prior), copy=False)
        _fill(self.block, self._order, counts, self.fade(ts_ms), block)
        return out

    def compare(self, num: F32, *sets: NDArray[np.integer[Any]]) -> None:
        """Fills in the numbers among candidates of ``num`` (n, N). ``sets``: integers, (n,) each; rows that are equal
        in all of them are one set (:mod:`millrace.windows.among_kernels`), and all rows of a set are here."""
        if not len(self.compared) or not len(num):
            return
        order = np.lexsort(sets)
        new = np.ones(len(num) + 1, np.bool_)
        new[1:-1] = np.any([np.diff(of[order]) != 0 for of in sets], axis=0)
        made = np.empty((len(num), len(self.comparisons)), np.float32)
        values = np.ascontiguousarray(num[order[:, None], self.compared])
        among_kernels.among(values, np.flatnonzero(new), self.comparisons, made)
        num[order, self.layout.among_start :] = made

    def measured(self, num: F32, among: F32) -> F32:
        """``num`` (n, N) with its numbers among candidates measured against the set ``among`` (G, m). (n, N)"""
        made = np.empty((len(num), len(self.comparisons)), np.float32)
        among_kernels.measure(np.ascontiguousarray(num[:, self.compared]), among, self.comparisons, made)
        return np.concatenate([num[:, : self.layout.among_start], made], axis=1)

    def fade(self, ts_ms: NDArray[np.int64] | int) -> NDArray[np.float64]:
        """The factor that decays counts from the full unit of the tiles (an hour, or 15 or 5 minutes) before ``ts_ms``
        to ``ts_ms``. (n, H) or (1, H)"""
        rest = np.atleast_1d(np.asarray(ts_ms, np.int64)) % self._unit_ms / np.float64(DAY_MS)
        fade: NDArray[np.float64] = np.exp2(-(rest[:, None] / np.array(self.schema.windows.half_lives))) / UNIT
        return fade

    def context(self, ts_ms: NDArray[np.int64]) -> dict[str, U64]:
        """Columns ``hour`` (0-23) and ``weekday`` (Monday 0) of the local time by the schema's offset. (n,) each"""
        local = np.asarray(ts_ms, np.int64) + self.schema.utc_offset_ms
        # 1 January 1970 was a Thursday
        return {"hour": self._hours[local // HOUR_MS % 24], "weekday": self._weekdays[(local // DAY_MS + 3) % 7]}

    def position(self, positions: NDArray[np.integer[Any]]) -> U64:
        """The column ``position`` of slots on a page; negative ones are missing. (n,)"""
        positions = np.asarray(positions)
        if len(positions) and positions.max() >= _POSITIONS:
            hashed = column_hash(positions)
        else:
            hashed = self._positions[np.maximum(positions, 0)]
        return np.where(positions < 0, np.uint64(0), hashed)

    def age_days(self, ts_ms: NDArray[np.int64], born_ms: NDArray[np.int64]) -> F32:
        """Days from an item's birth (or first exposure) to the exposure, in whole hours or the schema's ``age``
        (:func:`millrace.basics.number_kernels.whole_steps`); 0 for an unknown (0) or future birth. Broadcast, float32
        """
        born_ms = np.asarray(born_ms, np.int64)
        age = (np.asarray(ts_ms, np.int64) - born_ms) / np.float64(DAY_MS)
        return self._aged(np.where(born_ms > 0, np.maximum(age, 0.0), 0.0))

    def _aged(self, age_days: NDArray[Any]) -> F32:
        ages = np.asarray(age_days, np.float32)
        out = np.empty(ages.shape, np.float32)
        _whole(ages.ravel(), self.age_steps, out.reshape(-1))
        return out

    def numbers(self, name: str, values: Any) -> dict[str, NDArray[Any]]:
        """The plain numbers of a log's whole column, a pyarrow ``ChunkedArray`` of n rows, of a numeric field or a
        vector. (n,) each"""
        field = self._fields[name]
        if field.kind == "numeric":
            return {name: values.to_numpy()}
        made = np.array([vector_read(field, value) for value in values.to_numpy()], np.float32)
        return dict(zip(field.numbers, made.reshape(-1, len(field.numbers)).T.copy(), strict=True))

    def column(self, name: str, values: Any) -> U64:
        """Value hashes of a whole column: (n,), or (n, slots) for a multi field, whose entries are as
        :func:`millrace.contracts.field_values.parts_of` takes them."""
        field = self._fields.get(name)
        if field is None or field.slots == 1:
            return column_hash(values)
        known: dict[object, list[int]] = {}
        out = np.zeros((len(values), field.slots), np.uint64)
        for i, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
            key = tuple(value) if isinstance(value, list | tuple | np.ndarray) else value
            row = known.get(key)
            if row is None:
                row = known[key] = _slots(field, value)
            out[i, : len(row)] = row
        return out

    def attributes(self, side: Side, mapping: Mapping[str, Any]) -> tuple[dict[str, U64], dict[str, float]]:
        """The columns ((1,) or (1, slots)) and plain numbers of one user, item or request.

        ``mapping`` may hold more than the schema asks for; the id has the log's column name (``user_column``,
        ``item_column``). A value of an unfitting type reads as missing, never as an error.
        """
        columns: dict[str, U64] = {}
        plain: dict[str, float] = {}
        for name in self._needed[side]:
            value = mapping.get(name)
            if value is None:
                continue
            field = self._fields.get(name)
            if field is not None and field.kind == "numeric":
                plain[name] = _number(value)
            elif field is not None and field.kind == "vector":
                plain |= zip(field.numbers, vector_read(field, value).tolist(), strict=True)
            elif field is not None and field.slots > 1:
                row = _slots(field, value)
                columns[name] = np.array([row + [0] * (field.slots - len(row))], np.uint64)
            else:
                columns[name] = np.array([value_hash(value)], np.uint64)
        return columns, plain


def finite32(values: Any) -> F32:
    """As float32, with NaN, infinities and what does not fit into a float32 as 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.asarray(values).astype(np.float32)
    out[~np.isfinite(out)] = 0
    return out


def steps(values: Any, step: float) -> tuple[NDArray[np.uint32], int]:
    """What events add to the sum of a mean, ``round(value / step)``, and how many values are unfit.

    A negative or infinite number or NaN adds 0. A number beyond 2^24 - 1 steps adds 2^24 - 1.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.rint(np.asarray(values).astype(np.float32).astype(np.float64) / step)
        fit = (exact >= 0) & (exact <= _MOST_STEPS)
    exact[~np.isfinite(exact)] = 0
    return np.clip(exact, 0, _MOST_STEPS).astype(np.uint32), int(len(fit) - np.count_nonzero(fit))


def vector_read(field: Field, value: Any) -> F32:
    """As :func:`millrace.contracts.field_values.numbers_of`; all 0 where an attribute is no vector."""
    try:
        return numbers_of(field, value)
    except ValueError:
        return np.zeros(len(field.numbers), np.float32)


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _slots(field: Field, value: Any) -> list[int]:
    hashes = dict.fromkeys(map(value_hash, parts_of(field, value)))
    hashes.pop(0, None)
    return list(hashes)[: field.slots]
