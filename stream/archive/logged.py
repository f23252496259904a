# core
"""The features of settled exposures as the scorer logged them: the archive's table ``features``. Pure.

::

    request_id, position   the exposure, as in ``exposures``
    user_id                as text
    slot                   where the page had it as it was answered: the position, and the offset of a list's later part
    page_ms, served_ms     event time that the page was asked for; wall time at which it was made (0: not known)
    schema_id              what the two arrays mean: :attr:`Schema.id`
    cat                    F int64, little-endian, one after another
    num                    N float32, little-endian
    among                  with [[among]]: of one page in 100, in one of its rows, the numbers of the candidates that it
                           was measured against, (G, m) float32; else null

The bytes are those that samples carry to the learner. A row is written with the same cut as that of ``exposures``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from millrace.contracts.events import BadEventError
from millrace.contracts.page_logs import PageView, decode_served
from millrace.contracts.schema import Schema
from stream.archive.archive_columns import SettledRow


class LoggedTable:
    def __init__(self, schema: Schema) -> None:
        layout = schema.layout
        self._id = schema.id
        self._widths = 8 * layout.F, 4 * layout.N
        self.schema = pa.schema(
            [
                ("request_id", pa.string()),
                ("position", pa.int32()),
                ("user_id", pa.string()),
                ("slot", pa.int32()),
                ("page_ms", pa.int64()),
                ("served_ms", pa.int64()),
                ("schema_id", pa.string()),
                ("cat", pa.binary(max(1, self._widths[0]))),
                ("num", pa.binary(max(1, self._widths[1]))),
                *([("among", pa.binary())] if schema.among else []),
            ]
        )

    def table(self, rows: Sequence[SettledRow]) -> tuple[pa.Table, int]:
        """The features of rows whose page's log was kept whole, and the number of rows without features."""
        pages: dict[bytes, PageView | None] = {}  # by the message: two users' clients may give their pages one name
        made: list[list[object]] = []
        cat_width, num_width = self._widths
        lacking = 0
        for row in rows:
            if not row.log:
                continue
            raw, n = row.log, row.position
            first = raw not in pages
            if first:
                pages[raw] = self._read(raw)
            page = pages[raw]
            if page is None or n >= len(page.items):
                lacking += 1
                continue
            cat = bytes(page.cat[n * cat_width : (n + 1) * cat_width]) or b"\0"
            num = bytes(page.num[n * num_width : (n + 1) * num_width]) or b"\0"
            slot = page.offset + n
            one = [row.request, n, row.user, slot, page.ts_ms, page.served_ms, page.schema_id, cat, num]
            made.append([*one, (page.among or None) if first else None][: len(self.schema)])
        columns = list(zip(*made, strict=True)) if made else [()] * len(self.schema)
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, self.schema, strict=True)], self.schema), lacking

    def _read(self, raw: bytes) -> PageView | None:
        """The page; None where it is damaged or its arrays have another shape or meaning."""
        try:
            page = decode_served(raw)
        except BadEventError:
            return None
        n, (cat_width, num_width) = len(page.items), self._widths
        fits = len(page.cat) == n * cat_width and len(page.num) == n * num_width
        return page if fits and page.schema_id == self._id else None


def arrays(table: pa.Table, schema: Schema) -> tuple[np.ndarray, np.ndarray]:
    """(cat (n, F) int64, num (n, N) float32) of rows of the table ``features`` that are of ``schema``."""
    layout, n = schema.layout, table.num_rows
    out = []
    for name, dtype, width in (("cat", "<i8", layout.F), ("num", "<f4", layout.N)):
        raw = b"".join(table[name].to_pylist()) if width else b""
        out.append(np.frombuffer(raw, dtype).reshape(n, width))
    return out[0], out[1]
