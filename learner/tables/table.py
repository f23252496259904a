# core
"""The sparse table: one row an id, with its embedding, its wide weight, and the state of their optimisers.

::

    record:   id | embedding (D,) | G            | z, n                      | mark
                   published        Adagrad's sum  FTRL's: the wide weight     event minute last seen, and what it was
                                                   (published) follows from it touched since (kernels.stamp)

Where a table has words, the last of the D columns is no part of the embedding: it counts the items that have the word.

A batch goes through :meth:`SparseTable.read`, which writes nothing (new ids get a row's *values*, not a row), and after
the learner's check of its gradients through :meth:`SparseTable.write`. So a refused batch leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner.tables import table_kernels
from learner.tables.admission import Admission
from learner.tables.row_index import Ids, Index, RowNumbers, first_of_each
from learner.tables.rowcopy import RowCopy
from learner.tables.table_kernels import ONE_ITEM, TOUCHED, Ftrl
from millrace.basics.probing import EMPTY
from millrace.versions.image import TableRows

Floats = NDArray[np.float32]

_NEVER = 2**31 - 1  # minutes: later than any row was seen


@dataclass(frozen=True, slots=True)
class StepSizes:
    """Step sizes of the sparse side: row-wise Adagrad's on embeddings, FTRL's on wide weights."""

    embedding: float
    epsilon: float
    alpha: float
    beta: float
    l1: float
    l2: float

    @property
    def ftrl(self) -> Ftrl:
        return Ftrl(np.float32(self.alpha), np.float32(self.beta), np.float32(self.l1), np.float32(self.l2))


@dataclass(slots=True)
class BatchIds:
    """The distinct ids of a batch in one table. U ids, C columns."""

    ids: Ids  # (U,)
    counts: NDArray[np.int32]  # (U,) occurrences in the batch
    inverse: NDArray[np.int32]  # (B, C) place in ids, EMPTY where missing
    rows: RowNumbers  # (U,) EMPTY: no row (yet)
    new: NDArray[np.bool_]  # (U,) will get a row
    embedding: Floats  # (U, D)
    wide: Floats  # (U,)
    items: NDArray[np.int64] | None = None  # (U,) to be counted: in how many more items each id is a word


def distinct(columns: Ids) -> tuple[Ids, NDArray[np.int32], NDArray[np.int32]]:
    """Distinct nonzero ids of ``columns`` (B, C), their counts, and each id's place among them."""
    columns = np.ascontiguousarray(columns)
    bits = max(4, int(columns.size).bit_length() + 1)
    unique = np.empty(columns.size, np.int64)
    counts = np.empty(columns.size, np.int32)
    inverse = np.empty(columns.shape, np.int32)
    scratch = np.zeros(1 << bits, np.int32)
    u = table_kernels.distinct(columns, scratch, 64 - bits, unique, inverse, counts)
    return unique[:u], counts[:u], inverse


class SparseTable:
    """A table of one embedding width.

    Args:
        width: D; 0 for a table of wide weights alone.
        counted: whether the last of the D columns counts.
        rates: the optimisers' step sizes.
        max_rows: bounds the memory; beyond it the rows unseen for longest make room.
        max_age_min: rows unseen for this many minutes of event time are removed (0: never).
        admit: occurrences that earn an id its row.
        scale: first embeddings are uniform in ``[-scale, scale)``.
        salt: what first embeddings depend on besides the id.
    """

    def __init__(
        self,
        width: int,
        rates: StepSizes,
        max_rows: int,
        max_age_min: int,
        admit: int,
        scale: float,
        salt: int,
        counted: bool = False,
    ) -> None:
        self.width, self.rates, self.counted = width, rates, counted
        self.max_age_min = max_age_min
        self.scale, self.salt = np.float32(scale), np.uint64(salt)
        parts = {"embedding": width, "square": 1} if width else {}
        self.index = Index({**parts, "z": 1, "n": 1, "mark": 1}, max_rows)
        self.admission = Admission(admit)
        self.refused = 0  # occurrences without a row because the table was full
        self._copy: RowCopy | None = None
        self._touched: list[RowNumbers] = []
        self._removed: list[Ids] = []

    def __len__(self) -> int:
        return len(self.index)

    @property
    def nbytes(self) -> int:
        return self.index.nbytes + self.admission.counts.nbytes

    @property
    def touched(self) -> RowNumbers:
        """Rows touched since the last :meth:`changes`, without repeats; some may be free, or another id's. (n,)"""
        return np.concatenate([np.empty(0, np.int32), *self._touched])

    # -- a batch ---------------------------------------------------------------------------------------------

    def read(self, columns: Ids, learning: bool = False) -> BatchIds:
        """The values of a batch's ids (B, C). Writes nothing. Ids without a row read as zero; when ``learning``, those
        that are to get one read as its first values."""
        ids, counts, inverse = distinct(columns)
        rows = self.index.find(ids)
        embedding, wide = self._values(rows)
        new = np.zeros(len(ids), np.bool_)
        if learning:
            absent = np.flatnonzero(rows == EMPTY)
            new[absent] = self.admission.admits(ids[absent], counts[absent])
            if self.width and new.any():
                first = np.empty((int(new.sum()), self.width), np.float32)
                table_kernels.initial(ids[new], self.salt, self.scale, first)
                if self.counted:
                    first[:, -1] = ONE_ITEM
                embedding[new] = first
        return BatchIds(ids, counts, inverse, rows, new, embedding, wide)

    def write(self, block: BatchIds, grad_embedding: Floats, grad_wide: Floats, now_min: int) -> None:
        """One optimiser step on the rows of ``block``. Gradients (U, D), or (U, D - 1) where the table counts, and (U,)
        are sums; ``now_min``: event time."""
        index, data = self.index, self.index.data
        self._stamp(block.rows, now_min)  # first: what is in use is not what makes room
        wanted = np.flatnonzero(block.new)
        if len(wanted):
            room = index.max_rows - len(index)
            if len(wanted) > room:
                self._make_room(len(wanted) - room)
                block.rows = index.find(block.ids)  # unless nothing else was left
            added = index.add(block.ids[wanted])
            self.refused += int(block.counts[wanted[len(added) :]].sum())
            block.rows[wanted[: len(added)]] = added
            if self.width:
                first = index.at["embedding"]
                data[added, first : first + self.width] = block.embedding[wanted[: len(added)]]
            self._stamp(added, now_min)
        if self.admission.threshold > 1:
            outside = (block.rows == EMPTY) & ~block.new
            self.admission.count(block.ids[outside], block.counts[outside])
        rates, at = self.rates, index.at
        rate, epsilon = np.float32(rates.embedding), np.float32(rates.epsilon)
        table_kernels.step(
            data,
            at.get("embedding", 0),
            at.get("square", 0),
            at["z"],
            block.rows,
            grad_embedding,
            grad_wide,
            rate,
            epsilon,
            rates.ftrl,
        )
        if block.items is not None:
            table_kernels.count(data, at["embedding"] + self.width - 1, block.rows, block.items)

    def _values(self, rows: RowNumbers) -> tuple[Floats, Floats]:
        """Embeddings (n, D) and wide weights (n,) of rows; zero where EMPTY."""
        embedding = np.empty((len(rows), self.width), np.float32)
        wide = np.empty(len(rows), np.float32)
        first, at = self.index.at.get("embedding", 0), self.index.at["z"]
        table_kernels.values(self.index.data, first, at, rows, embedding, wide, self.rates.ftrl)
        return embedding, wide

    def _stamp(self, rows: RowNumbers, now_min: int) -> None:
        copy = self._going_copy()
        touched, again = np.empty(len(rows), np.int32), np.empty(len(rows) if copy else 0, np.int32)
        copied = copy.copied if copy else 0
        found, late = table_kernels.stamp(
            self.index.marks, self.index.at["mark"], rows, now_min, copied, touched, again
        )
        if found:
            self._touched.append(touched[:found])
        if late and copy:
            copy.touched(again[:late])

    # -- eviction --------------------------------------------------------------------------------------------

    def _seen_before(self, minute: int) -> tuple[RowNumbers, NDArray[np.int32]]:
        """Rows last seen before a minute of event time, and when."""
        index = self.index
        rows, minutes = (np.empty(index.used, np.int32) for _ in range(2))
        found = table_kernels.seen(index.marks, index._words, index.at["mark"], index.used, minute, rows, minutes)
        return rows[:found], minutes[:found]

    def expire(self, now_min: int) -> int:
        """Removes the rows unseen for ``max_age_min``; returns how many. The owner calls it every so often."""
        if not self.max_age_min:
            return 0
        return self._remove(self._seen_before(now_min - self.max_age_min)[0])

    def _make_room(self, least: int) -> None:
        """Removes the rows unseen for longest: ``least`` of them, or a sixteenth of the table so that it is rare. Of
        equally old rows those with the smallest ids go, so that it is reproducible."""
        live, seen = self._seen_before(_NEVER)
        if not len(live):
            return
        count = min(len(live), max(least, self.index.max_rows // 16))
        edge = np.partition(seen, count - 1)[count - 1]
        older, equal = live[seen < edge], live[seen == edge]
        equal = equal[np.argsort(self.index.ids_of(equal), kind="stable")[: count - len(older)]]
        self._remove(np.concatenate([older, equal]))

    def _remove(self, rows: RowNumbers) -> int:
        if len(rows):
            ids = self.index.ids_of(rows)
            self._removed.append(ids)
            if copy := self._going_copy():
                copy.removed(ids)
            self.index.remove(ids)
        return len(rows)

    # -- versions --------------------------------------------------------------------------------------------

    def changes(self) -> TableRows:
        """Rows touched since the last call, whole, and the ids removed since then. Forgets both."""
        touched = np.concatenate(self._touched) if self._touched else np.empty(0, np.int32)
        ids = self.index.ids_of(touched)
        order = np.argsort(ids)  # the same id twice is the same row twice: freed and given out again
        # A touched row may have been freed since, and even given to another id: which then is touched itself.
        rows = touched[order[first_of_each(ids[order]) & (ids[order] != 0)]]
        removed = np.sort(np.concatenate(self._removed)) if self._removed else np.empty(0, np.int64)
        removed = removed[first_of_each(removed)]
        removed = removed[self.index.find(removed) == EMPTY]  # an id that came back is a row, not a tombstone
        change = self._published(rows)
        change.removed = removed
        self.index.marks[touched, self.index.at["mark"]] &= ~TOUCHED
        self._touched, self._removed = [], []
        return change

    def _going_copy(self) -> RowCopy | None:
        if self._copy and self._copy.ended:
            self._copy = None
        return self._copy

    def begin_copy(self) -> RowCopy:
        """Begins a copy in slices, beside which the table is written to. An earlier one ends."""
        if self._copy:
            self._copy.end()
        self._copy = RowCopy(self.index, self.index.at["mark"])
        return self._copy

    def part(self, rows: RowNumbers) -> tuple[TableRows, dict[str, NDArray[Any]]]:
        """These rows, in this order: the columns that serve, and those that only training needs."""
        index, at = self.index, self.index.at
        own, seen = np.empty((3, len(rows)), np.float32), np.empty(len(rows), np.int32)
        table_kernels.trained(index.data, index.marks, at.get("square", 0), at["z"], at["mark"], rows, own, seen)
        training: dict[str, NDArray[Any]] = {"square": own[0]} if self.width else {}
        return self._published(rows), training | {"z": own[1], "n": own[2], "seen_min": seen}

    def rest(self) -> dict[str, NDArray[Any]]:
        """The state that belongs to no row."""
        counters = np.array([self.admission.since, self.refused], np.int64)
        return {"admission": self.admission.counts.copy(), "counters": counters}

    def snapshot(self) -> tuple[TableRows, dict[str, NDArray[Any]]]:
        """All rows in order of id, in the form of :meth:`part`, and the :meth:`rest`. A table that resumes has no
        changes: a snapshot does not keep what was touched."""
        serving, training = self.part(self.index.rows())
        return serving, {**training, **self.rest()}

    def resume(self, serving: TableRows, training: dict[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`snapshot`, on an empty table. Keeps the first rows if ``max_rows`` is fewer now. A
        snapshot in parts is resumed part by part, in their order. Raises KeyError where a column is missing, and
        ValueError where a column has another width or number of rows."""
        self.index.remove(as_read(serving.removed))
        rows = self.index.find_or_add(as_read(serving.ids))
        if self.width:
            _fill(self.index, "embedding", rows, serving.columns["embedding"])
        for name in self.index.at.keys() - {"embedding", "mark"}:
            _fill(self.index, name, rows, training[name])
        _fill(self.index, "mark", rows, (training["seen_min"] << 2).astype(np.int32).view(np.float32))
        if "admission" in training and training["admission"].shape == self.admission.counts.shape:
            self.admission.counts = training["admission"].copy()
        if "counters" in training:
            self.admission.since, self.refused = (int(v) for v in training["counters"])

    def _published(self, rows: RowNumbers) -> TableRows:
        embedding, wide = self._values(rows)
        columns = {"embedding": embedding} if self.width else {}
        return TableRows(self.index.ids_of(rows), {**columns, "wide": wide})


def _fill(index: Index, name: str, rows: RowNumbers, values: NDArray[Any]) -> None:
    """Writes a column of rows; values (n,) or (n, D), else ValueError."""
    column = index.column(name)
    if values.shape != (len(rows), *column.shape[1:]):
        raise ValueError(f"column '{name}' has the shape {values.shape}")
    whole = np.ascontiguousarray(values, np.float32).reshape(len(rows), index.width(name))
    table_kernels.scatter(index.data, index.at[name], rows, as_read(whole))


def as_read(array: NDArray[Any]) -> NDArray[Any]:
    """The array as a read-only one, as arrays of files and messages are. Numba compiles a function separately for
    these, so without this it would do so in mid-run when the first of them came."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
