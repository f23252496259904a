"""The sparse table: one row an id, with its embedding, its wide weight, and the state of their optimisers.

::

    id ──► row   embedding (D,)  wide ()   |  square ()      z ()  n ()      |  seen_min ()     dirty ()
                 what a scorer needs          Adagrad's sum    FTRL's          event time, min    since changes()

A batch goes through :meth:`SparseTable.read` (nothing is written: new ids get a row's *values*, not a row) and, once
the learner has found its gradients sound, :meth:`SparseTable.write`. So a batch that is refused leaves no trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learner import kernels
from learner.admission import Admission
from learner.index import Ids, Index, RowNumbers
from learner.kernels import EMPTY
from millrace.modelstore import Rows

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rates:
    """Step sizes of the sparse side. ``alpha``, ``beta``, ``l1``, ``l2``: FTRL's; ``embedding``: Adagrad's."""

    embedding: float
    epsilon: float
    alpha: float
    beta: float
    l1: float
    l2: float


@dataclass(slots=True)
class Block:
    """The distinct ids of a batch in one table. U ids, C columns."""

    ids: Ids  # (U,)
    counts: NDArray[np.int32]  # (U,) occurrences in the batch
    inverse: NDArray[np.int32]  # (B, C) place in ids, EMPTY where missing
    rows: RowNumbers  # (U,) EMPTY: no row (yet)
    new: NDArray[np.bool_]  # (U,) will get a row
    embedding: Floats  # (U, D)
    wide: Floats  # (U,)


def distinct(columns: Ids) -> tuple[Ids, NDArray[np.int32], NDArray[np.int32]]:
    """Distinct nonzero ids of ``columns`` (B, C), their counts, and each id's place among them."""
    columns = np.ascontiguousarray(columns)
    bits = max(4, int(columns.size).bit_length() + 1)
    unique = np.empty(columns.size, np.int64)
    counts = np.empty(columns.size, np.int32)
    inverse = np.empty(columns.shape, np.int32)
    scratch = np.full(1 << bits, EMPTY, np.int32)
    u = kernels.distinct(columns, scratch, 64 - bits, unique, inverse, counts)
    return unique[:u], counts[:u], inverse


class SparseTable:
    """A table of one embedding width.

    Args:
        width: D; 0 for a table of wide weights alone.
        max_rows: bound of the memory; beyond it the rows unseen for longest make room.
        max_age_min: rows unseen for this many minutes of event time are removed (0: never).
        admit: occurrences that earn an id its row.
        scale: first embeddings are uniform in ``[-scale, scale)``.
        salt: what first embeddings depend on besides the id.
    """

    def __init__(self, width: int, max_rows: int, max_age_min: int, admit: int, scale: float, salt: int) -> None:
        self.width = width
        self.max_age_min = max_age_min
        self.scale, self.salt = np.float32(scale), np.uint64(salt)
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {}
        if width:
            shapes |= {"embedding": ((width,), np.float32), "square": ((), np.float32)}
        shapes |= {"wide": ((), np.float32), "z": ((), np.float32), "n": ((), np.float32)}
        shapes |= {"seen_min": ((), np.int32), "dirty": ((), np.bool_)}
        self.index = Index(shapes, max_rows)
        self.admission = Admission(admit)
        self.refused = 0  # occurrences without a row because the table was full
        self._removed: list[Ids] = []

    def __len__(self) -> int:
        return len(self.index)

    @property
    def nbytes(self) -> int:
        return self.index.nbytes + self.admission.counts.nbytes

    @property
    def serving_columns(self) -> tuple[str, ...]:
        return ("embedding", "wide") if self.width else ("wide",)

    # -- a batch ---------------------------------------------------------------------------------------------

    def read(self, columns: Ids, learning: bool) -> Block:
        """The values of a batch's ids (B, C). Writes nothing.

        Ids without a row read as zero; when ``learning``, those that are to get one read as its first values.
        """
        ids, counts, inverse = distinct(columns)
        rows = self.index.find(ids)
        source = self.index.columns
        embedding = np.empty((len(ids), self.width), np.float32)
        wide = np.empty((len(ids), 1), np.float32)
        if self.width:
            kernels.gather(source["embedding"], rows, embedding)
        kernels.gather(source["wide"][:, None], rows, wide)
        new = np.zeros(len(ids), np.bool_)
        if learning:
            absent = np.flatnonzero(rows == EMPTY)
            new[absent] = self.admission.passes(ids[absent], counts[absent])
            if self.width and new.any():
                first = np.empty((int(new.sum()), self.width), np.float32)
                kernels.initial(ids[new], self.salt, self.scale, first)
                embedding[new] = first
        return Block(ids, counts, inverse, rows, new, embedding, wide[:, 0])

    def write(self, block: Block, grad_embedding: Floats, grad_wide: Floats, rates: Rates, now_min: int) -> None:
        """One optimiser step on the rows of ``block``, which :meth:`read` gave. Gradients (U, D) and (U,) are sums
        over the batch; ``now_min`` is event time in minutes."""
        columns = self.index.columns
        columns["seen_min"][block.rows[block.rows != EMPTY]] = now_min  # first: what is in use is not what goes
        wanted = np.flatnonzero(block.new)
        if len(wanted):
            room = self.index.max_rows - len(self.index)
            if len(wanted) > room:
                self._make_room(len(wanted) - room, now_min)
                # Rows of this very batch may have gone with the oldest: look again.
                block.rows = self.index.find(block.ids)
            added = self.index.add(block.ids[wanted])
            self.refused += int(block.counts[wanted[len(added) :]].sum())
            block.rows[wanted[: len(added)]] = added
            if self.width:
                columns["embedding"][added] = block.embedding[wanted[: len(added)]]
        outside = (block.rows == EMPTY) & ~block.new
        self.admission.count(block.ids[outside], block.counts[outside])
        rows = block.rows
        if self.width:
            kernels.adagrad(
                columns["embedding"],
                columns["square"],
                rows,
                grad_embedding,
                np.float32(rates.embedding),
                np.float32(rates.epsilon),
            )
        alpha, beta, l1, l2 = (np.float32(v) for v in (rates.alpha, rates.beta, rates.l1, rates.l2))
        kernels.ftrl(columns["wide"], columns["z"], columns["n"], rows, grad_wide, alpha, beta, l1, l2)
        live = rows[rows != EMPTY]
        columns["seen_min"][live] = now_min
        columns["dirty"][live] = True

    # -- eviction --------------------------------------------------------------------------------------------

    def expire(self, now_min: int) -> int:
        """Removes the rows unseen for ``max_age_min``; how many. For the owner to call every so often."""
        if not self.max_age_min:
            return 0
        seen = self.index.columns["seen_min"]
        old = (self.index.ids != 0) & (seen < now_min - self.max_age_min)
        return self._remove(self.index.ids[old])

    def _make_room(self, least: int, now_min: int) -> None:
        """Removes the rows unseen for longest: ``least`` of them, or a sixteenth of the table so that it is rare."""
        rows = self.index.rows()  # in order of id, so that which of equally old rows go is reproducible
        count = min(len(rows), max(least, self.index.max_rows // 16))
        oldest = np.argsort(self.index.columns["seen_min"][rows], kind="stable")[:count]
        self._remove(self.index.ids[rows[oldest]])

    def _remove(self, ids: Ids) -> int:
        if len(ids):
            ids = ids.copy()
            self._removed.append(ids)
            self.index.remove(ids)
        return len(ids)

    # -- versions --------------------------------------------------------------------------------------------

    def changes(self) -> Rows:
        """Rows touched since the last call (or :meth:`state`), and ids removed since then. Forgets both."""
        columns = self.index.columns
        rows = np.flatnonzero(columns["dirty"] & (self.index.ids != 0))
        ids = self.index.ids[rows]
        removed = np.unique(np.concatenate(self._removed)) if self._removed else np.empty(0, np.int64)
        removed = removed[self.index.find(removed) == EMPTY]  # an id that came back is a row, not a tombstone
        change = Rows(ids, {name: columns[name][rows] for name in self.serving_columns}, removed).sorted()
        columns["dirty"][:] = False
        self._removed = []
        return change

    def state(self) -> tuple[Rows, dict[str, NDArray[Any]]]:
        """All rows in order of id as (serving columns, private columns); touched rows count as published."""
        columns = self.index.columns
        rows = self.index.rows()
        serving = Rows(self.index.ids[rows].copy(), {name: columns[name][rows] for name in self.serving_columns})
        private = {n: c[rows] for n, c in columns.items() if n not in (*self.serving_columns, "dirty")}
        private["admission"] = self.admission.counts.copy()
        private["counters"] = np.array([self.admission.since, self.refused], np.int64)
        columns["dirty"][:] = False
        self._removed = []
        return serving, private

    def resume(self, serving: Rows, private: dict[str, NDArray[Any]]) -> None:
        """The inverse of :meth:`state`, on a table that is empty."""
        rows = self.index.add(serving.ids)
        for name, column in self.index.columns.items():
            source = serving.columns.get(name, private.get(name))
            if source is not None:
                column[rows] = source
        if private["admission"].shape == self.admission.counts.shape:
            self.admission.counts = private["admission"].copy()
        self.admission.since, self.refused = (int(v) for v in private["counters"])
        self.index.columns["dirty"][:] = False


class ServingTable:
    """The same rows as a scorer holds them: ids, embeddings, wide weights; patched in place, read without writing."""

    def __init__(self, width: int) -> None:
        self.width = width
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {"wide": ((), np.float32)}
        if width:
            shapes["embedding"] = ((width,), np.float32)
        self.index = Index(shapes, 2**31 - 1)

    def __len__(self) -> int:
        return len(self.index)

    def patch(self, change: Rows) -> None:
        """Applies a snapshot's or delta's rows: tombstones first, then new and changed rows."""
        if len(change.removed):
            self.index.remove(change.removed)
        rows = self.index.find(change.ids)
        absent = rows == EMPTY
        if absent.any():
            rows[absent] = self.index.add(change.ids[absent])
        for name, column in self.index.columns.items():
            column[rows] = change.columns[name]

    def read(self, columns: Ids) -> Block:
        """The values of a batch's ids (B, C); unknown ids are zero."""
        ids, counts, inverse = distinct(columns)
        rows = self.index.find(ids)
        embedding = np.empty((len(ids), self.width), np.float32)
        wide = np.empty((len(ids), 1), np.float32)
        if self.width:
            kernels.gather(self.index.columns["embedding"], rows, embedding)
        kernels.gather(self.index.columns["wide"][:, None], rows, wide)
        return Block(ids, counts, inverse, rows, np.zeros(len(ids), np.bool_), embedding, wide[:, 0])

    def rows(self) -> Rows:
        """All rows in order of id."""
        at = self.index.rows()
        return Rows(self.index.ids[at].copy(), {n: c[at] for n, c in self.index.columns.items()})
