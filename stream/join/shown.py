# core
"""A page as its client showed it: with items left out, or in another order than answered.

The scorer fills in the positions of its answer. The exposure tells where an item was really shown
(``Exposure.slots``). So the features that depend on a position are made again here: ``position``, and window keys
that contain it::

    page log     row 0: a at 0    row 1: b at 1    row 2: c at 2         as answered
    exposure     items [c, a], slots [2, 0]
    page         row 0: a at 1    row 1: b at 1    row 2: c at 0         as shown; row 1 is no exposure

A window key hashes several columns. Those of categorical fields are recovered from the feature ids, which are the
hashes mixed with a salt (:func:`millrace.basics.hashing.unmix`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import U64, unmix
from millrace.contracts.schema import Schema
from millrace.windows.features import FeatureBuilder
from stream.join.page_rows import LoggedPage

_POSITION = "position"


class ShownPages:
    """Stateless."""

    def __init__(self, schema: Schema) -> None:
        self._builder = builder = FeatureBuilder(schema)
        layout = builder.layout
        self._fields = {
            field.name: (start, layout.field_salt(field))
            for field, start in zip(layout.cat_fields, layout.cat_starts, strict=True)
        }
        self._keys = [k for k, key in enumerate(schema.windows.keys) if _POSITION in key.columns]

    def page(
        self, page: LoggedPage, onto: LoggedPage | None, answered: Sequence[int], shown: Sequence[int]
    ) -> LoggedPage:
        """``page`` with the rows ``answered`` as they are in the slots ``shown``.

        Args:
            onto: an earlier result for other rows of the page, changed in place and returned; None: a copy is made.
        """
        out = self._copy(page) if onto is None else onto
        rows, position = np.array(answered), self._builder.position(page.offset + np.array(shown))
        cat = np.frombuffer(out.cat, "<i8").reshape(page.n, -1)
        if self._keys:
            keys = np.frombuffer(out.keys, "<u8").reshape(page.n, -1)
            columns = {**self._columns(page, cat[rows], rows), _POSITION: position}
            keys[rows[:, None], self._keys] = self._builder.keys(columns, len(rows))[:, self._keys]
        if _POSITION in self._fields:
            start, _ = self._fields[_POSITION]
            cat[rows, start] = self._builder.cat({_POSITION: position}, len(rows))[:, start]
        return out

    def _copy(self, page: LoggedPage) -> LoggedPage:
        """The page with its own copies of arrays that depend on positions."""
        out = copy.copy(page)
        if self._keys:
            out.keys = memoryview(bytearray(page.keys))
        if _POSITION in self._fields:
            out.cat = memoryview(bytearray(page.cat))
        return out

    def _columns(self, page: LoggedPage, cat: NDArray[np.int64], rows: NDArray[np.int64]) -> dict[str, U64]:
        builder = self._builder
        columns = {name: unmix(salt, cat[:, start].view(np.uint64)) for name, (start, salt) in self._fields.items()}
        return {
            **columns,
            **builder.context(np.array([page.ts_ms], np.int64)),
            builder.user_column: np.array([page.user], np.uint64),
            builder.item_column: np.frombuffer(page.item, "<u8")[rows],
        }
