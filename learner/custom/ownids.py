# core
"""The users and items that a model of one's own has learnt from, for it has no tables to ask.

There are two generations of ids, and the newer one is filled. When that is full the older one is dropped, so ids that
were not learnt from for long become unknown again, and memory has a bound.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from learner.tables.row_index import Index
from millrace.basics.probing import EMPTY
from millrace.contracts.schema import Schema
from millrace.versions.image import Array

Ids = NDArray[np.int64]

GENERATION_IDS = 1_000_000


def id_columns(schema: Schema) -> dict[str, int]:
    """The fields that name users and items, and their (first) column of cat."""
    layout = schema.layout
    starts = {f.name: start for f, start in zip(layout.cat_fields, layout.cat_starts, strict=True)}
    return {name: starts[name] for name in schema.ids if name in starts}


class KnownIds:
    """Ids that were learnt from lately: at least the newest ``size``, at most twice as many.

    >>> known = KnownIds(2)
    >>> known.add(np.array([11, 12])); known.add(np.array([13, 11])); known.add(np.array([14]))
    >>> known.has(np.array([11, 12, 13, 14, 15, 0])).tolist()
    [True, False, True, True, False, False]
    """

    def __init__(self, size: int = GENERATION_IDS) -> None:
        self.size = size
        self._newer, self._older = Index({}, size), Index({}, 1)

    @property
    def nbytes(self) -> int:
        return self._newer.nbytes + self._older.nbytes

    def add(self, ids: Ids) -> None:
        """Adds ids (n,) that were learnt from; 0, a missing value, is none."""
        new = np.unique(ids[ids != 0])
        new = new[self._newer.find(new) == EMPTY]
        while len(new):
            took = len(self._newer.add(new))
            new = new[took:]
            if len(self._newer) == self.size:
                self._older, self._newer = self._newer, Index({}, self.size)

    def has(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether each id is known. (n,)"""
        ids = np.ascontiguousarray(ids)
        held = (self._newer.find(ids) != EMPTY) | (self._older.find(ids) != EMPTY)
        found: NDArray[np.bool_] = held & (ids != 0)
        return found

    def snapshot(self) -> dict[str, Array]:
        return {name: self._ids(index) for name, index in (("newer", self._newer), ("older", self._older))}

    def resume(self, arrays: Mapping[str, Array]) -> None:
        """The inverse of :meth:`snapshot`. Raises KeyError where an array is missing."""
        newer, older = arrays["newer"], arrays["older"]
        self._newer, self._older = Index({}, self.size), Index({}, max(1, len(older)))
        self._newer.add(newer)
        self._older.add(older)

    @staticmethod
    def _ids(index: Index) -> Ids:
        return index.ids_of(np.arange(index.used, dtype=np.int32))
