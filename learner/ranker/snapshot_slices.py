# core
"""A snapshot that is made beside learning: in slices, each copied between two steps.

Such a copy is fuzzy: rows change while it goes on. The changed rows are copied again, and those changed meanwhile,
until few are left; these are copied at one moment, the boundary of a version. (Live migration of virtual machines works
so: Clark et al., "Live migration of virtual machines", NSDI 2005, section 3.) ::

    rows of a table   [ copied | copied | copied | not yet ........ ]      next(): one slice more
                          ▲ touched again, or removed: kept track of          ▲ touched: will be copied anyway
    parts             1 ─ 2 ─ 3 ─ ... ─ k │ touched since, again and again │ finish(): the last few + dense tensors

Each part has rows and removed ids. Applied in order (``Image.apply``), the parts are the snapshot at the moment of
:meth:`Slices.finish`, bit for bit. After each part they are a subset of the rows of some moment, so a reader never
needs more memory. The learner holds one part, and a number for each row touched behind the copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from learner.network.dense import DenseState
from learner.tables.row_index import first_of_each
from learner.tables.table import SparseTable
from millrace.basics.errors import SnapshotError
from millrace.versions.image import Array, Image, TableRows

Part = tuple[Image, dict[str, Array]]
"""What serves, and what only training needs: for the rows of this part, in the order of its ids."""

_ALL = 2**31 - 1
_FEW = 8  # the last part may have an eighth of a slice's rows, and what is touched until it is due
_OVERTIME = 4  # rounds of corrections, each as long as the copy at most: rows may change faster than they are copied
_NOT_ROWS = ("admission", "counters")


class Sliced(Protocol):
    """What slices need of a model: :class:`~learner.ranker.model.OnlineModel`."""

    tables: dict[str, SparseTable]
    dense: DenseState

    def small_state(self) -> dict[str, Array]: ...


class Slices:
    """A snapshot of a model in the making. The model learns between any two calls.

    Call :meth:`next` until it gives None, each time between two steps of learning; then at once
    :meth:`OnlineModel.changes`, which makes the boundary of a version, and :meth:`finish`. The likely mistake is to
    learn between the version and ``finish``: the snapshot would have what no delta had.

    Every call raises SnapshotError after another snapshot has begun, or the model has resumed one. ``rows``: of a
    slice. 100,000 take some 10 ms and, with D = 16, 10 MB.
    """

    def __init__(self, model: Sliced, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"slices of {rows} rows; give 1 or more")
        self._model, self._rows = model, rows
        self._tables = model.tables
        self._copies = {name: table.begin_copy() for name, table in model.tables.items()}
        self._overtime = 0

    @property
    def behind(self) -> int:
        """Rows that were touched, and ids that were removed, since a part had them."""
        return sum(c.behind for c in self._copies.values())

    @property
    def whole(self) -> bool:
        """Whether every row has been copied. From then on rows change fast: call :meth:`next` after each step."""
        return all(c.whole for c in self._copies.values())

    def next(self) -> Part | None:
        """The next part; None when the rest is small enough to be copied at once."""
        self._check()
        if not self.whole:
            return self._part(again=False)
        bound = sum(map(len, self._tables.values())) * _OVERTIME
        if self.behind <= self._rows // _FEW or self._overtime > bound:
            return None
        self._overtime += self._rows
        return self._part(again=True)

    def finish(self) -> Part:
        """The last part: what was touched and removed since, dense tensors, and the small state of training. Raises
        SnapshotError where rows have not been copied yet."""
        self._check()
        if not self.whole:
            raise SnapshotError("a snapshot was finished before all its rows were copied", "call next() until None")
        image, training = self._part(again=True, most=_ALL)
        image.dense, own = self._model.dense.snapshot()
        training |= {f"dense/{n}": a for n, a in own.items()}
        for name, table in self._tables.items():
            training |= {f"table/{name}/{n}": a for n, a in table.rest().items()}
        training |= self._model.small_state()
        self.abandon()
        return image, training

    def abandon(self) -> None:
        """Stops tracking changes: the copy will not be used."""
        for copy in self._copies.values():
            copy.end()

    def _check(self) -> None:
        if self._model.tables is not self._tables or any(copy.ended for copy in self._copies.values()):
            raise SnapshotError(
                "a snapshot in slices was given up: another one has begun, or nobody took its parts", "begin again"
            )

    def _part(self, again: bool, most: int | None = None) -> Part:
        """A part of every table, without rows for those whose turn it is not."""
        left = self._rows if most is None else most
        tables: dict[str, TableRows] = {}
        training: dict[str, Array] = {}
        for name, copy in self._copies.items():
            turn = left > 0 and (again or not copy.whole)
            rows, gone = copy.take(left if turn else 0, again or copy.whole)
            tables[name], own = self._tables[name].part(rows)
            tables[name].removed = gone
            training |= {f"table/{name}/{n}": a for n, a in own.items()}
            left -= len(gone) + len(rows)
        return Image({}, tables), training


def merge(parts: Iterable[tuple[Image, Mapping[str, Array]]]) -> Part:
    """The parts of a snapshot as one pair. Raises KeyError where a part lacks a column."""
    dense: dict[str, Array] = {}
    rest: dict[str, Array] = {}
    found: dict[str, list[TableRows]] = {}
    for image, training in parts:
        dense.update(image.dense)
        rest.update({n: a for n, a in training.items() if not _of_rows(n)})
        for name, rows in image.tables.items():
            own = {n: a for n, a in training.items() if _of_rows(n) and n.startswith(f"table/{name}/")}
            found.setdefault(name, []).append(TableRows(rows.ids, {**rows.columns, **own}, rows.removed))
    tables: dict[str, TableRows] = {}
    columns: dict[str, Array] = {}
    for name, changes in found.items():
        rows = _newest(changes)
        columns |= {n: rows.columns.pop(n) for n in list(rows.columns) if _of_rows(n)}
        tables[name] = rows
    return Image(dense, tables), {**columns, **rest}


def _of_rows(name: str) -> bool:
    return name.startswith("table/") and name.rsplit("/", 1)[-1] not in _NOT_ROWS


def _newest(changes: list[TableRows]) -> TableRows:
    ids = np.concatenate([c.ids for c in changes])
    when = np.repeat(np.arange(len(changes)), [len(c.ids) for c in changes])
    order = np.argsort(ids, kind="stable")
    rows = order[::-1][first_of_each(ids[order][::-1])][::-1]  # of the rows of an id, the newest
    gone, first = np.unique(np.concatenate([c.removed for c in changes][::-1]), return_index=True)
    went = np.repeat(np.arange(len(changes)), [len(c.removed) for c in changes])[::-1]
    if len(gone):  # a part's ids go before its rows come
        at = np.minimum(np.searchsorted(gone, ids[rows]), len(gone) - 1)
        rows = rows[(gone[at] != ids[rows]) | (went[first][at] <= when[rows])]
    return TableRows(ids[rows], {n: np.concatenate([c.columns[n] for c in changes])[rows] for n in changes[0].columns})
