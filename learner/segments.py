# core
"""Rolling metrics by segment of the traffic, grouped AUC, and drift of the loss.

A segment is a value of a categorical field ("kind=business"), or whether the learner knows the user or the item: it has
a row for the id ("user=known") or has none ("user=new"). An id that was unseen for so long that its row was removed is
new again.

A ring of the newest rows is all that is kept. Metrics are made from it when asked for (a few milliseconds for 10,000
rows), not at each sample. Symbols: B rows of a batch, S segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import drift

from learner.model import OnlineModel
from learner.progressive import Numbers, auc, calibration, grouped_auc, log_loss, log_losses
from millrace.contracts.errors import SettingError
from millrace.contracts.hashing import mix, value_hash
from millrace.contracts.samples import SampleBatch
from millrace.contracts.schema import Schema

_DRIFT_DELTA = 0.002


@dataclass(frozen=True, slots=True)
class SegmentMetrics:
    """Metrics of the newest rows of one segment; NaN where a class has no row."""

    auc: float
    log_loss: float
    calibration: float
    rows: int


def parse_segments(text: str) -> dict[str, tuple[str, ...]]:
    """Fields and their values from ``field:value|value;field:value``.

    Raises:
        SettingError: the text is not of this form, or names more than 50 values.
    """
    found: dict[str, tuple[str, ...]] = {}
    for part in filter(None, (p.strip() for p in text.split(";"))):
        name, colon, values = part.partition(":")
        named = tuple(filter(None, (v.strip() for v in values.split("|"))))
        if not colon or not named:
            raise SettingError(f"segments '{part}' names no values", "write it like kind:business|consumer;seller:1")
        found[name.strip()] = named
    if sum(len(v) for v in found.values()) > 50:
        raise SettingError("segments names more than 50 values", "name fewer: each is a set of metrics")
    return found


class Segments:
    """Rolling metrics by segment. A field that the schema lacks, or that is not categorical, makes no segment.

    Not kept in snapshots: they begin anew with a process.

    Args:
        named: fields and their values, as :func:`parse_segments` gives them.
        window_rows: how many of the newest rows count.
    """

    def __init__(self, schema: Schema, named: dict[str, tuple[str, ...]], window_rows: int) -> None:
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
        self.rows = 0
        self._p = np.zeros(window_rows)
        self._y = np.zeros(window_rows)
        self._user = np.zeros(window_rows, np.uint64)
        self._in = np.zeros((window_rows, len(self.names)), np.bool_)

    def members(self, batch: SampleBatch, model: OnlineModel) -> NDArray[np.bool_]:
        """Which segments the rows are in. (B, S). Call it before they are learnt from: learning makes ids known."""
        columns = [(batch.cat[:, at] == value).any(1) for at, value in self._values]
        for _, field in self._sides:
            known = model.knows(field, batch.cat)
            columns += [known, ~known]
        return np.stack(columns, 1) if columns else np.zeros((len(batch), 0), np.bool_)

    def update(self, p: Numbers, label: Numbers, user: NDArray[np.uint64], members: NDArray[np.bool_]) -> None:
        """Takes predictions made before learning (B,), with labels, users (B,) and segments (B, S)."""
        size = len(self._p)
        new = slice(max(0, len(p) - size), None)
        at = (self.rows + np.arange(len(p))[new]) % size
        self._p[at], self._y[at], self._user[at], self._in[at] = p[new], label[new], user[new], members[new]
        self.rows += len(p)

    def metrics(self) -> dict[str, SegmentMetrics]:
        """The metrics of each segment by name."""
        held = min(self.rows, len(self._p))
        found = {}
        for column, name in enumerate(self.names):
            own = np.flatnonzero(self._in[:held, column])
            p, y = self._p[own], self._y[own]
            found[name] = SegmentMetrics(auc(p, y), log_loss(p, y), calibration(p, y), len(own))
        return found

    @property
    def grouped_auc(self) -> float:
        """Grouped AUC (by user) over the newest rows."""
        held = min(self.rows, len(self._p))
        return grouped_auc(self._p[:held], self._y[:held], self._user[:held])


class Drift:
    """Whether the mean log loss has changed: ADWIN (Bifet and Gavalda 2007) on each prediction's loss."""

    def __init__(self, delta: float = _DRIFT_DELTA) -> None:
        self._adwin: Any = drift.ADWIN(delta=delta)  # type: ignore[no-untyped-call]
        self.found: list[tuple[float, float]] = []  # mean loss before and after each change; its reader clears it

    def update(self, p: Numbers, label: Numbers) -> None:
        """Takes predictions and labels, (n,)."""
        for loss in log_losses(p, label).tolist():
            before = float(self._adwin.estimation)
            self._adwin.update(loss)
            if self._adwin.drift_detected:
                self.found.append((before, float(self._adwin.estimation)))
