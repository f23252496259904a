# core
"""Rows of the item index as arrays: one from an item message, many from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64
from millrace.contracts.events import Id

REMOVED_MS = -1
"""Time of birth of an item that a tombstone removed. Its row stays, but no id leads to it."""

_KINDS = (("keys", np.uint64, 2), ("born_ms", np.int64, 1), ("expires_ms", np.int64, 1), ("alive", np.bool_, 1))
_PREFIXES = (("column/", np.uint64), ("plain/", np.float32), ("filter/", np.uint64))


class ItemImage(NamedTuple):
    """n items::

    column/NAME   (n,) or (n, slots) u64    value hashes, by schema column
    plain/NAME    (n,) f32                  numbers
    filter/NAME   (n, values) u64           value hashes of attributes that pages are filtered by
    keys          (n, J) u64                window keys of the item alone
    born_ms, expires_ms, alive (n,)         expires_ms: 0: never
    """

    ids: list[Id]
    arrays: Mapping[str, NDArray[Any]]

    @classmethod
    def checked(cls, ids: list[Id], arrays: Mapping[str, NDArray[Any]]) -> ItemImage:
        """Raises KeyError or ValueError when arrays from a file do not fit ``ids``."""
        kinds = list(_KINDS)
        for name in arrays:
            kinds += [(name, dtype, 2 if p == "filter/" else 0) for p, dtype in _PREFIXES if name.startswith(p)]
        for name, dtype, axes in kinds:
            array = arrays[name]
            if len(array) != len(ids) or array.dtype != dtype or (axes and array.ndim != axes):
                raise ValueError(f"array '{name}' is not of {len(ids)} items")
        return cls(ids, {name: arrays[name] for name, *_ in kinds})

    def slice(self, start: int, stop: int) -> ItemImage:
        """The rows [start, stop), as views."""
        return ItemImage(self.ids[start:stop], {name: a[start:stop] for name, a in self.arrays.items()})

    @classmethod
    def joined(cls, parts: Sequence[ItemImage]) -> ItemImage:
        """Concatenates parts. Filter values get the width of the widest part."""
        if len(parts) == 1:
            return parts[0]
        flat = {}
        for name in parts[0].arrays:
            each = [part.arrays[name] for part in parts]
            if name.startswith("filter/"):
                most = max(a.shape[1] for a in each)
                each = [wider(a, most) for a in each]
            flat[name] = np.concatenate(each)
        return cls([i for part in parts for i in part.ids], flat)


def wider(values: U64, most: int) -> U64:
    """``values`` (n, v) padded with 0 to ``most`` values a row."""
    missing = most - values.shape[1]
    return values if missing <= 0 else np.concatenate([values, np.zeros((len(values), missing), np.uint64)], axis=1)
