# core
"""Rows of the item index as they lie in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64
from millrace.contracts.events import Id
from millrace.versions.image import below

REMOVED_MS = -1
"""Time of birth of an item that a tombstone took out of the catalogue. Its row stays, and nobody finds it by its id."""


@dataclass(frozen=True, slots=True)
class ItemImage:
    """Rows of the index as they lie in a checkpoint: what :class:`scorer.catalog.index.Prepared` is of one item,
    of many."""

    ids: list[Id]
    columns: dict[str, U64]  # (n,) or (n, slots)
    plain: dict[str, NDArray[np.float32]]  # (n,)
    keys: U64  # (n, J)
    born_ms: NDArray[np.int64]  # (n,)
    alive: NDArray[np.bool_]  # (n,)
    filters: dict[str, U64] = field(default_factory=dict)  # (n, values) of attributes that pages are filtered by

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Flat names for a file."""
        columns = {f"column/{name}": a for name, a in self.columns.items()}
        plain = {f"plain/{name}": a for name, a in self.plain.items()}
        filters = {f"filter/{name}": a for name, a in self.filters.items()}
        return {**columns, **plain, **filters, "keys": self.keys, "born_ms": self.born_ms, "alive": self.alive}

    def slice(self, start: int, stop: int) -> ItemImage:
        """The rows [start, stop). Views."""
        cut = {name: a[start:stop] for name, a in self.arrays().items()}
        return ItemImage.of_arrays(self.ids[start:stop], cut)

    @classmethod
    def of_arrays(cls, ids: list[Id], flat: Mapping[str, NDArray[Any]]) -> ItemImage:
        """The inverse of :meth:`arrays`.

        Raises:
            KeyError, ValueError: the arrays are not those of ``ids``.
        """

        def columns(prefix: str, dtype: type) -> dict[str, NDArray[Any]]:
            found = below(prefix, flat)
            if any(len(a) != len(ids) or a.dtype != dtype for a in found.values()):
                raise ValueError(f"arrays '{prefix}' are not of {len(ids)} items")
            return found

        keys, born_ms, alive = flat["keys"], flat["born_ms"], flat["alive"]
        kinds = ((keys, np.uint64, 2), (born_ms, np.int64, 1), (alive, np.bool_, 1))
        if any(a.dtype != dtype or a.ndim != axes or len(a) != len(ids) for a, dtype, axes in kinds):
            raise ValueError(f"keys, births and lives are not of {len(ids)} items")
        filters = columns("filter/", np.uint64)
        if any(a.ndim != 2 for a in filters.values()):
            raise ValueError("values that pages are filtered by are no table")
        return cls(ids, columns("column/", np.uint64), columns("plain/", np.float32), keys, born_ms, alive, filters)

    @classmethod
    def joined(cls, parts: Sequence[ItemImage]) -> ItemImage:
        """Slices as one."""
        each = [part.arrays() for part in parts]
        for name in (f"filter/{name}" for name in parts[0].filters):  # a later slice may have more values an item
            most = max(arrays[name].shape[1] for arrays in each)
            for arrays in each:
                arrays[name] = wider(arrays[name], most)
        flat = {name: np.concatenate([arrays[name] for arrays in each]) for name in each[0]}
        return cls.of_arrays([i for part in parts for i in part.ids], flat)


def wider(values: U64, most: int) -> U64:
    """``values`` (n, v) with room for ``most`` values a row; missing ones are 0."""
    missing = most - values.shape[1]
    return values if missing <= 0 else np.concatenate([values, np.zeros((len(values), missing), np.uint64)], axis=1)
