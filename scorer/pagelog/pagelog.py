# core
"""The log of a page as it leaves a request: arrays as they were computed, neither packed nor copied."""

from __future__ import annotations

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from millrace.contracts.events import Id, Impression


class PageLog(Struct, frozen=True):
    """What the scorer knew and said when it made a page; the fields of :class:`Impression`.

    n rows in page order; K, F and N are those of the schema ``schema_id``. Whoever takes a page log copies its arrays
    before it returns: the caller may write to them afterwards.
    """

    request_id: str
    ts_ms: int
    user_id: Id
    arm: str
    model_version: int
    schema_id: str
    items: list[Id]
    scores: NDArray[np.float32]  # (n,)
    keys: NDArray[np.uint64]  # (n, K)
    cat: NDArray[np.int64]  # (n, F)
    num: NDArray[np.float32]  # (n, N)
    served_ms: int = 0  # wall time
    offset: int = 0  # slot of its first item in the list that it is a part of
    sources: bytes = b""  # (n,) codes of where recall found its items; empty: not recorded
    user_missing: int = 0  # what was not there of the user

    def impression(self) -> Impression:
        """The same with packed copies of the arrays."""
        return Impression(
            request_id=self.request_id,
            ts_ms=self.ts_ms,
            user_id=self.user_id,
            arm=self.arm,
            model_version=self.model_version,
            schema_id=self.schema_id,
            items=self.items,
            scores=self.scores.astype("<f4").tobytes(),
            keys=self.keys.astype("<u8").tobytes(),
            cat=self.cat.astype("<i8").tobytes(),
            num=self.num.astype("<f4").tobytes(),
            served_ms=self.served_ms,
            offset=self.offset,
            sources=self.sources,
            user_missing=self.user_missing,
        )
