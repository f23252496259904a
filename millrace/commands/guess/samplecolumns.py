# core
"""One column of a sample: its values, their counts and their numbers.

``n`` is the number of rows of the sample, and ``codes`` (n,) says which distinct value a row has (-1: none), so that
questions of who belongs to whom are sums over integers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from millrace.logs.values import as_numbers, flat, is_text, said

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

LEAST_DIFFERENT = 10
"""Pairs of one group that would have to differ by chance: a column that rarely changes shows nothing."""
MOST_WITHIN = 0.02
"""An attribute of a group differs within it at most this share of how often it differs between groups."""


@dataclass(frozen=True)
class Column:
    name: str
    data: pa.ChunkedArray

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The words of the name in lower case: ``isClick_2`` has ``is``, ``click``, ``2``."""
        parted = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", self.name)
        return tuple(t for t in re.split(r"[^a-z0-9]+", parted.lower()) if t)

    @property
    def kind(self) -> pa.DataType:
        return self.data.type

    @cached_property
    def is_list(self) -> bool:
        return bool(pa.types.is_list(self.kind) or pa.types.is_large_list(self.kind))

    @cached_property
    def is_text(self) -> bool:
        return is_text(self.kind)

    @cached_property
    def is_temporal(self) -> bool:
        return bool(pa.types.is_timestamp(self.kind) or pa.types.is_date(self.kind))

    @cached_property
    def numbers(self) -> F64:
        """(n,) values as numbers, NaN where there is none; all NaN if the column holds no numbers."""
        data = flat(self.data)
        if self.is_temporal:
            data = pc.cast(pc.cast(data, pa.timestamp("ms"), safe=False), pa.int64())
        return np.asarray(as_numbers(data)[0].to_numpy(zero_copy_only=False), np.float64)

    @cached_property
    def _encoded(self) -> tuple[I64, pa.Array]:
        data = self.data
        if self.is_list:
            data = pa.chunked_array([pa.array([None if v is None else repr(v) for v in data.to_pylist()], pa.string())])
        elif pa.types.is_nested(data.type):
            data = pa.chunked_array([pa.array([repr(v) for v in data.to_pylist()], pa.string())])
        whole = data.combine_chunks().dictionary_encode()
        if isinstance(whole, pa.ChunkedArray):
            whole = whole.combine_chunks()
        codes = pc.fill_null(whole.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        values = whole.dictionary
        if self.is_text:  # empty text is missing
            empty = pc.index(values, pa.scalar("", values.type)).as_py()
            if empty >= 0:
                codes = np.where(codes == empty, -1, codes)
        elif pa.types.is_floating(data.type):
            lost = np.isnan(values.to_numpy(zero_copy_only=False).astype(np.float64))
            codes = np.where(lost[codes] & (codes >= 0), -1, codes) if len(values) else codes
        return codes, values

    @cached_property
    def codes(self) -> I64:
        """(n,) which distinct value a row has; -1 where it has none."""
        return self._encoded[0]

    @cached_property
    def counts(self) -> I64:
        """(values,) how many rows have each distinct value, in the order of ``codes``."""
        return np.bincount(self.codes[self.codes >= 0], minlength=1).astype(np.int64)

    @cached_property
    def distinct(self) -> int:
        return int((self.counts > 0).sum())

    @cached_property
    def there(self) -> NDArray[np.bool_]:
        """(n,) the row has a value."""
        return self.codes >= 0

    @cached_property
    def filled(self) -> float:
        return float(self.there.mean())

    @property
    def values(self) -> pa.Array:
        """The distinct values, in the order of ``codes``."""
        return self._encoded[1]

    def value(self, code: int) -> Any:
        return self.values[code].as_py()

    def examples(self, most: int = 3) -> list[Any]:
        order = np.argsort(-self.counts, kind="stable")[:most]
        return [self.value(int(code)) for code in order if self.counts[code] > 0]

    @cached_property
    def is_whole(self) -> bool:
        """Whether all its values are whole numbers, as numbers or as text."""
        numbers = self.numbers[self.there]
        return bool(len(numbers) and not np.isnan(numbers).any() and (numbers == np.floor(numbers)).all())

    @cached_property
    def is_numeric(self) -> bool:
        """Whether all its values are numbers, as numbers or as text."""
        numbers = self.numbers[self.there]
        return bool(len(numbers) and not self.is_temporal and not np.isnan(numbers).any())

    @cached_property
    def is_binary(self) -> bool:
        """Whether it holds only 0 and 1 (or false and true, no and yes), and both, in nearly every row."""
        if self.is_list or self.is_temporal or self.distinct != 2 or self.filled < 0.99:
            return False
        return set(np.unique(self.flags[self.there])) == {0.0, 1.0}

    @cached_property
    def is_wordy(self) -> bool:
        """Whether many of its texts are several words, a list, or a number with a decimal comma."""
        parted = pc.match_substring_regex(self.values, r"[\s,;|]") if self.is_text and self.distinct else None
        return parted is not None and (pc.mean(parted).as_py() or 0) > 0.2

    @cached_property
    def has_commas(self) -> bool:
        """Whether its texts are numbers with a decimal comma."""
        if not self.is_text or self.is_numeric or not self.distinct:
            return False
        return bool(pc.all(pc.match_substring_regex(self.values, r"^\s*(-?\d+(\.\d{3})*(,\d{1,4})?)?\s*$")).as_py())

    @property
    def flags(self) -> F64:
        """(n,) its numbers, or 0 and 1 for words that say no and yes."""
        if not self.is_text or self.is_numeric:
            return self.numbers
        return np.asarray(said(self.data).to_numpy(), np.float64)


def columns_of(table: pa.Table) -> dict[str, Column]:
    return {name: Column(name, table[name]) for name in table.column_names}


@dataclass(frozen=True, slots=True)
class Held:
    pairs: int
    within: float
    """Share of pairs of one group that differ."""
    between: float
    """Share of pairs of any rows that would differ by chance."""

    @property
    def ratio(self) -> float:
        """0: constant in each group. 1: independent of the groups."""
        return self.within / self.between if self.between else 1.0

    @property
    def is_attribute(self) -> bool:
        return self.pairs * self.between >= LEAST_DIFFERENT and self.ratio <= MOST_WITHIN


def held(column: Column, groups: NDArray[np.int64]) -> Held:
    """How ``column`` changes within the groups (n,) of rows; rows without a group or a value are left out.

    The share of neighbouring pairs of one group that differ is compared with the share that differ between rows of any
    groups, ``1 - sum p_v^2``. An attribute of the group has next to none of the former. A nearly constant column has
    little of both, and so does not pass for an attribute.
    """
    rows = np.flatnonzero((groups >= 0) & column.there)
    if len(rows) < 2:
        return Held(0, 0.0, 0.0)
    order = rows[np.argsort(groups[rows], kind="stable")]
    same = groups[order][1:] == groups[order][:-1]
    pairs = int(same.sum())
    differ = column.codes[order][1:] != column.codes[order][:-1]
    share = column.counts / max(column.counts.sum(), 1)
    return Held(pairs, float((differ & same).sum() / max(pairs, 1)), float(1 - (share**2).sum()))
