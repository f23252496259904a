# core
"""Decisions about clean rows: ambiguous rows are kept, counted and reported.

They come after copies are merged, so a click in one copy counts as the exposure's own.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from millrace.basics.durations import DAY_MS, MINUTE_MS
from millrace.contracts.logforms import LogColumns
from millrace.contracts.schema import Schema
from millrace.logs.faults import Faults
from millrace.logs.sorting import TS
from millrace.logs.values import flat, is_text, mask

_SAMPLE = 1000
_MOSTLY = 0.9  # a text column with at least this share of numbers is one of numbers with some texts in it
_NUMBER = r"^-?\d+(\.\d+)?$"


class Plausibility:
    """Counts implausible rows over the stretches of one log."""

    def __init__(self, schema: Schema, faults: Faults, now_ms: int | None) -> None:
        assert schema.log is not None
        self._schema, self._log, self._faults, self._now_ms = schema, schema.log, faults, now_ms
        self._rows = self._ones = 0
        self._numbers: dict[str, tuple[int, int]] = {}

    def look(self, table: pa.Table) -> None:
        """Takes clean rows; call it with each row one time."""
        log, decide = self._log, self._faults.decide
        label, ts_ms = table[log.label].to_numpy(), table[TS].to_numpy()
        self._rows += len(label)
        self._ones += int(label.sum())
        if self._now_ms is not None:
            late = int((ts_ms > self._now_ms + DAY_MS).sum())
            decide(f"times in '{log.time}' are more than a day in the future, and kept", log.time, late,
                   "correct the clock or log.time_unit; a simulated log may be of the future")  # fmt: skip
        for action, name in log.action_times.items():
            before = mask(pc.less(table[name], table[TS]))
            decide(f"'{name}' is before its exposure: the {action} counts at the exposure", name, int(before.sum()),
                   "correct the times, if they are of different clocks")  # fmt: skip
        clicks = log.action_times.get(self._schema.windows.labelling)
        if clicks is not None and log.label_action is None:
            done = pc.is_valid(table[clicks]).to_numpy()
            wait_ms = round(log.attribution_minutes * MINUTE_MS)
            beyond = mask(pc.greater_equal(pc.subtract(flat(table[clicks]), flat(table[TS])), wait_ms))
            corrects = (beyond | (log.events is not None)) & (wait_ms > 0)
            zero = done & (label == 0) & ~corrects
            decide(f"'{clicks}' has a time where '{log.label}' is 0: it counts in windows, and is learnt as a 0",
                   clicks, int(zero.sum()), "correct the label, or leave the column out")  # fmt: skip
            decide(f"'{clicks}' has no time where '{log.label}' is 1: it is learnt as a 1 and counts in no window",
                   clicks, int((~done & (label == 1)).sum()), "fill in the times, or leave the column out")  # fmt: skip
        self._mixed(table, log)

    def alike(self, rows: int) -> None:
        """So many rows have the time, user and item of a row before."""
        self._faults.decide("rows have the time, user and item of a row before, and are kept", self._log.item, rows,
                            "where they are copies, name log.identity")  # fmt: skip

    def _mixed(self, table: pa.Table, log: LogColumns) -> None:
        for name in table.column_names:
            column = table[name]
            if not is_text(column.type):
                continue
            first = mask(pc.match_substring_regex(column.slice(0, _SAMPLE), _NUMBER))
            numbers, texts = self._numbers.get(name, (0, 0))
            if not len(first) or first.mean() < _MOSTLY / 2:
                texts += len(column)
            else:
                like = pc.match_substring_regex(column, _NUMBER)
                numbers += pc.sum(like).as_py() or 0
                texts += (pc.sum(pc.invert(like)).as_py() or 0) - (pc.sum(pc.equal(column, "")).as_py() or 0)
            self._numbers[name] = numbers, texts

    def end(self) -> None:
        if self._rows and self._ones in (0, self._rows):
            value = int(self._ones > 0)
            self._faults.decide(f"the label '{self._log.label}' is {value} in all rows: there is nothing to tell apart",
                                self._log.label, self._rows, "name another label, or a longer log")  # fmt: skip
        for name, (numbers, texts) in self._numbers.items():
            if texts and numbers >= _MOSTLY * (numbers + texts):
                self._faults.decide(f"'{name}' has texts among numbers: all are read as text", name, texts,
                                    "correct them, if they should be numbers")  # fmt: skip


def out_of_order(ts_ms: np.ndarray, newest_ms: int, bound_ms: int, future_ms: int) -> tuple[np.ndarray, int]:
    """((n,) rows that are more than the bound earlier than a row before them, newest time so far). A time from
    ``future_ms`` on makes no other row late."""
    newest = np.maximum.accumulate(np.r_[newest_ms, np.where(ts_ms < future_ms, ts_ms, 0)])
    return ts_ms < newest[:-1] - bound_ms, int(newest[-1])
