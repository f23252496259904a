# core
"""A model's state as plain arrays. Snapshots hold it whole or in parts; deltas hold its changes.

The ranker's tables are in every delta. Those of the retrieval head are in some deltas and in every snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.errors import SnapshotError

Array = NDArray[Any]
RETRIEVAL_TABLES = ("retrieval_user", "retrieval_item")
"""The tables of the retrieval head. A ranker never sees them (:func:`split`)."""
HEAD = ":"
"""In the name of an outcome's table, between outcome and table."""
_REMEDY = "the next snapshot mends it"


@dataclass(slots=True)
class TableRows:
    """Rows of one table: ``ids`` (n,) int64, each column (n, ...), and ids that are ``removed`` (tombstones)."""

    ids: NDArray[np.int64]
    columns: dict[str, Array]
    removed: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def sorted(self) -> TableRows:
        """The same rows in ascending order of id, the form in which two tables are compared."""
        order = np.argsort(self.ids, kind="stable")
        return TableRows(self.ids[order], {n: c[order] for n, c in self.columns.items()}, np.sort(self.removed))


@dataclass(slots=True)
class Image:
    """A model's state, a part of it, or a delta: dense tensors whole, and the touched rows."""

    dense: dict[str, Array]
    tables: dict[str, TableRows]

    def apply(self, delta: Image) -> Image:
        """This state with ``delta`` applied: the plain version, for proofs. Scorers patch their arrays in place."""
        tables = dict(self.tables)
        for name, change in delta.tables.items():
            base = self.tables.get(name)
            if base is None:
                tables[name] = TableRows(change.ids, change.columns).sorted()
                continue
            stay = ~np.isin(base.ids, np.concatenate([change.ids, change.removed]))
            ids = np.concatenate([base.ids[stay], change.ids])
            columns = {n: np.concatenate([base.columns[n][stay], change.columns[n]]) for n in base.columns}
            tables[name] = TableRows(ids, columns).sorted()
        return Image({**self.dense, **delta.dense}, tables)

    def tensors(self) -> dict[str, Array]:
        """Flat names for a file or message."""
        flat = {f"dense/{n}": np.asarray(a, order="C") for n, a in self.dense.items()}
        for name, rows in self.tables.items():
            flat[f"table/{name}/ids"] = rows.ids
            flat[f"table/{name}/removed"] = rows.removed
            flat.update({f"table/{name}/column/{n}": np.asarray(c, order="C") for n, c in rows.columns.items()})
        return flat

    @classmethod
    def of_tensors(cls, flat: Mapping[str, Array]) -> Image:
        """The inverse of :meth:`tensors`. Raises SnapshotError where they are not those of an image."""
        dense = below("dense/", flat)
        tables: dict[str, TableRows] = {}
        for full, ids in flat.items():
            if not full.startswith("table/") or not full.endswith("/ids"):
                continue
            name = full[len("table/") : -len("/ids")]
            columns = below(f"table/{name}/column/", flat)
            removed = flat.get(f"table/{name}/removed")
            if not _are_ids(ids) or removed is None or not _are_ids(removed):
                raise SnapshotError(f"table '{name}' of an image has no usable ids", _REMEDY)
            for column, array in columns.items():
                if not array.ndim or len(array) != len(ids):
                    raise SnapshotError(
                        f"column '{column}' of table '{name}' has shape {array.shape} for {len(ids)} rows",
                        _REMEDY,
                    )
            tables[name] = TableRows(ids, columns, removed)
        return cls(dense, tables)

    def same_bits(self, other: Image) -> str:
        """Empty when both states are equal bit for bit, else the name of the first tensor that differs."""
        mine = Image(self.dense, {n: t.sorted() for n, t in self.tables.items()}).tensors()
        theirs = Image(other.dense, {n: t.sorted() for n, t in other.tables.items()}).tensors()
        for name in sorted(mine.keys() | theirs.keys()):
            a, b = mine.get(name), theirs.get(name)
            if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
                return name
        return ""


def split(image: Image) -> tuple[Image, Image]:
    """The ranker's part of an image, and the retrieval head's (no tables where the image carries no head)."""
    own = {name: rows for name, rows in image.tables.items() if name in RETRIEVAL_TABLES}
    rest = {name: rows for name, rows in image.tables.items() if name not in own}
    return Image(image.dense, rest), Image({}, own)


def check_head(head: Image, width: int) -> None:
    """Checks the retrieval head of an image: both tables or none, each with usable ids and its two columns. ``width``:
    of the head's factors; 0: the model has no head. Raises SnapshotError, which names what is wrong."""
    if not head.tables:
        return
    if not width:
        raise SnapshotError("an image carries a retrieval head, and its model has none", _REMEDY)
    if set(head.tables) != set(RETRIEVAL_TABLES):
        raise SnapshotError(f"an image carries half a retrieval head: {sorted(head.tables)}", _REMEDY)
    for name, rows in head.tables.items():
        if problem := problem_of(rows, width):
            raise SnapshotError(f"an image has in table '{name}' {problem}", _REMEDY)


def problem_of(rows: TableRows, width: int) -> str:
    """What is wrong with a table's rows of this width (0: wide weights alone); empty when nothing is."""
    n = len(rows.ids)
    for what, ids in (("ids", rows.ids), ("removed ids", rows.removed)):
        if not _are_ids(ids):
            return f"{what} that are {ids.dtype} {ids.shape}"
    names = {"embedding", "wide"} if width else {"wide"}
    if set(rows.columns) != names:
        return f"the columns {sorted(rows.columns)} in place of {sorted(names)}"
    for name, column in rows.columns.items():
        shape = (n, width) if name == "embedding" else (n,)
        if column.dtype != np.float32 or column.shape != shape:
            return f"a column '{name}' that is {column.dtype} {column.shape}, not float32 {shape}"
    ordered = np.sort(rows.ids)
    if not ordered.all() or not (ordered[1:] != ordered[:-1]).all():
        return "an id 0, or an id twice"
    return ""


def _are_ids(array: Array) -> bool:
    return array.ndim == 1 and array.dtype == np.int64


def below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays whose name begins with ``prefix``, without it."""
    return {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def state_of(one: object, names: Iterable[str]) -> dict[str, Array]:
    """Attributes of an object, under their names without a leading ``_``, as arrays that share no memory with it."""
    return {name.lstrip("_"): np.array(getattr(one, name)) for name in names}


def resume_state(one: object, names: Iterable[str], state: Mapping[str, Array]) -> None:
    """The inverse of :func:`state_of`, on an object of the same class. Raises KeyError where one is missing."""
    found = {name: state[name.lstrip("_")] for name in names}  # all are there before one is set
    for name, array in found.items():
        kind = type(getattr(one, name))
        setattr(one, name, array.copy() if kind is np.ndarray else kind(array.tolist()))
