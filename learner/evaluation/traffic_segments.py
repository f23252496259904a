# core
"""Segments of the traffic, and figures by segment.

A segment is a value of a categorical field ("kind=business"), or whether the learner has a row for the user or the item
("user=known", "user=new"). An id whose row was removed by age is new again. One bit mask holds the segments of a row,
so that rows that wait for their label can carry it. Symbols: B rows of a batch, S segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learner.ranker.interfaces import Learning
from millrace.basics.errors import SettingError
from millrace.basics.hashing import mix, value_hash
from millrace.basics.ranking_metrics import Numbers, figures_of
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema

Masks = NDArray[np.uint64]

_MOST_VALUES = 50  # with the four of known and new ids, a mask of 64 bits holds them


@dataclass(frozen=True, slots=True)
class SegmentMetrics:
    """Metrics of the newest rows of one segment; NaN where a class has no row."""

    auc: float
    log_loss: float
    calibration: float
    rows: int


class Segments:
    """The segments of a schema. A field that it lacks, or that is not categorical, makes no segment. ``named``: fields
    and their values, as the setting ``segments`` has them. Raises SettingError where it names more than 50 values."""

    def __init__(self, schema: Schema, named: Mapping[str, Sequence[str]]) -> None:
        if sum(len(values) for values in named.values()) > _MOST_VALUES:
            raise SettingError("segments names more than 50 values", "name fewer: each is a set of metrics")
        layout = schema.layout
        self.names: list[str] = []
        self._values: list[tuple[slice, np.int64]] = []  # columns of cat and the id looked for there
        for field, first in zip(layout.cat_fields, layout.cat_starts, strict=True):
            for value in named.get(field.name, ()):
                hashed = mix(layout.field_salt(field), np.array([value_hash(value)], np.uint64))
                self.names.append(f"{field.name}={value}")
                self._values.append((slice(first, first + field.slots), hashed.view(np.int64)[0]))
        cats = {f.name for f in layout.cat_fields}
        log = schema.log
        sides = (("user", log.user if log else "user_id"), ("item", log.item if log else "item_id"))
        self._sides = [(side, field) for side, field in sides if field in cats]
        for side, _ in self._sides:
            self.names += [f"{side}=known", f"{side}=new"]

    def members(self, batch: SampleBatch, model: Learning) -> Masks:
        """The segments of the rows, bit s for segment s. Call it before learning, which makes ids known. (B,)"""
        columns = [(batch.cat[:, at] == value).any(1) for at, value in self._values]
        for _, field in self._sides:
            known = model.knows(field, batch.cat)
            columns += [known, ~known]
        masks = np.zeros(len(batch), np.uint64)
        for bit, column in enumerate(columns):
            masks |= column.astype(np.uint64) << np.uint64(bit)
        return masks

    def metrics(self, p: Numbers, y: Numbers, masks: Masks) -> dict[str, SegmentMetrics]:
        """The metrics of each segment by name, over rows with predictions, labels and masks (n,)."""
        found = {}
        for bit, name in enumerate(self.names):
            own = np.flatnonzero((masks >> np.uint64(bit)) & np.uint64(1))
            found[name] = SegmentMetrics(**figures_of(p[own], y[own]), rows=len(own))
        return found
