# core
"""Decides which rows of a log grouped AUC compares, and by which scores: only rows that were scored in one state.

A progressive score depends on what model and windows had learnt by then, and so on the labels of earlier rows. A user
who has clicked less often than expected so far is scored lower, and has more clicks still to come. Compared over time,
such rows are in the wrong order: with independent labels at a rate for each user, the figure was .15 where the truth
is .5. (Pooled leave-one-out estimates of the AUC have the same bias: Airola et al. 2011, "An experimental comparison
of cross-validation techniques for estimating the area under the ROC curve".) Therefore::

    the log has                     scores                                  rows are compared within
    pages, each of one time         progressive                             a page (and time)
    pages of several times          frozen at the start of the local day    a page and day
    no pages                        frozen at the start of the local day    a user and day

Rows of one time are scored by one state of model and windows. *Frozen*: before the first row of a day is scored, all
rows of that day are scored a second time, by the model at that time, with windows of what happened before that row. A
log has pages of several times if most of its rows are in such pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from millrace.basics.durations import DAY_MS
from millrace.basics.ranking_metrics import WITHIN
from millrace.contracts.schema import Schema
from millrace.logs import TS, LogTable, local_days

Score = Callable[[NDArray[np.int64], NDArray[np.float32]], NDArray[np.float32]]

_SCORED_AT_ONCE = 4096

_PAGES = "within pages"
_PAGE_DAYS = "within pages, model and windows frozen at the start of the day: rows of most pages differ in time"
_USER_DAYS = "within users and days, model and windows frozen at the start of the day: the log has no pages"


class GroupedRows:
    """Groups of one log's n rows, filled while the log is run.

    The run gives :attr:`cuts` to its :class:`~millrace.commands.replay.stretches.Stretches`, scores the rows of
    :meth:`starting` at each cut, and gives the scores to :meth:`put`. Afterwards :meth:`compared` gives scores and
    groups.
    """

    how: str

    figures: tuple[str, ...]
    """The keys of :data:`~millrace.basics.ranking_metrics.WITHIN` that the groups allow: where they are no pages,
    there is no figure of a page."""

    cuts: NDArray[np.intp]
    """The rows before which the windows must be read, ascending; none if nothing is frozen."""

    group: NDArray[np.int32]
    """(n,) a number for each group."""

    days: tuple[str, ...]
    """The local days, ascending."""

    day: NDArray[np.int32]
    """(n,) place of each row's local day among them."""

    page: NDArray[np.int32] | None
    """(n,) a number for each page, as they first appear; None where the log has no pages."""

    def __init__(self, log: LogTable, schema: Schema) -> None:
        assert schema.log is not None
        ts_ms: NDArray[np.int64]
        self._ts_ms = ts_ms = log.table[TS].to_numpy()
        self.days, self.day = day_codes(log, schema)
        self.page = page = page_codes(log, schema)
        self.figures = ("grouped_auc",) if page is None else WITHIN
        self._frozen: NDArray[np.float32] | None = None
        self._watched: NDArray[np.float32] | None = None
        self._column = 0
        if page is not None and not _mostly_of_several_times(page, ts_ms):
            self.how, self.group = _PAGES, joint(page, ts_ms)
            self._first = self.cuts = np.empty(0, np.intp)
            return
        self.how = _USER_DAYS if page is None else _PAGE_DAYS
        self.group = joint(_codes(log.table[log.user]) if page is None else page, self.day)
        self._frozen = np.empty(len(self.day), np.float32)
        # Rows of one time are scored together, so the windows are not read between them.
        _, row = np.unique(self.day, return_index=True)
        self._first = np.searchsorted(ts_ms, ts_ms[row], side="left").astype(np.intp)
        self.cuts = np.unique(self._first)

    def lie_in(self, array: Callable[[str, tuple[int, ...]], NDArray[np.float32]]) -> None:
        """Frozen scores lie in an array of a name and shape, which may have those of an earlier run."""
        if self._frozen is not None:
            self._frozen = array("frozen", self._frozen.shape)

    def put(self, rows: NDArray[np.intp], num: NDArray[np.float32], p: NDArray[np.float32] | None = None) -> None:
        """Takes scores ``p`` (b,) of rows that :meth:`starting` gave, from frozen ``num`` (b, N), by the model at the
        cut; None: they are there."""
        assert self._frozen is not None
        if p is not None:
            self._frozen[rows] = p
        if self._watched is not None:
            self._watched[rows] = num[:, self._column]

    def watch(self, column: int) -> None:
        """Keeps a column of the frozen ``num`` too, to be compared like the model's scores. Call it before the run."""
        self._column = column
        if self._frozen is not None:
            self._watched = np.zeros(len(self._frozen), np.float32)

    def starting(self, rows: slice, day: int = 0) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """The days that begin in some rows, from day number ``day`` on, in the order of their first rows, as pairs: (a
        cut, some 4,096 rows of its day, with all of a time). None where nothing is frozen."""
        for d in np.argsort(self._first, kind="stable").tolist():  # a log's own day column may run backwards
            if d >= day and rows.start <= self._first[d] < rows.stop:
                mine = np.flatnonzero(self.day == d)
                times = self._ts_ms[mine]
                ends = np.searchsorted(times, times[_SCORED_AT_ONCE - 1 :: _SCORED_AT_ONCE], side="right")
                for some in np.split(mine, np.unique(ends[ends < len(mine)])):
                    yield int(self._first[d]), some

    def compared(self, p: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """(scores (n,), group of each row (n,)), for the progressive scores ``p`` (n,) of the run."""
        return p if self._frozen is None else self._frozen, self.group

    def watched(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The watched column's values to compare, (n,): frozen ones, or its progressive ones ``scores`` (n,) where
        nothing is frozen."""
        return scores if self._watched is None else self._watched


def joint(*codes: NDArray[Any]) -> NDArray[np.int32]:
    """A number for each distinct combination of integers, (n,) each; combinations count upwards. (n,)"""
    group = np.zeros(len(codes[0]), np.int32)
    for code in codes:
        order = _order(group, code)
        new = np.zeros(len(group), np.bool_)
        for column in (group, code):
            ordered = column if order is None else column[order]
            new[1:] |= ordered[1:] != ordered[:-1]
        numbers = np.cumsum(new, dtype=np.int32)
        if order is None:
            group = numbers
        else:
            group[order] = numbers
    return group


def _order(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.intp] | None:
    """The order by first, then second, (n,); None where they are in it, as the pages of most logs are."""
    less = (first[1:] < first[:-1]).any() or ((first[1:] == first[:-1]) & (second[1:] < second[:-1])).any()
    return np.lexsort((second, first)) if less else None


def day_codes(log: LogTable, schema: Schema) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """(the local days as ``YYYY-MM-DD``, ascending; the place of each row's day among them, (n,)). As
    :func:`~millrace.logs.local_days`, without a text a row."""
    assert schema.log is not None
    if schema.log.day is None:
        local = (log.table[TS].to_numpy() + schema.utc_offset_ms) // DAY_MS
        numbers = np.unique(local)
        code = np.searchsorted(numbers, local).astype(np.int32)
        return tuple(str(np.datetime64(int(d), "D")) for d in numbers), code
    column = log.table[schema.log.day]
    codes, first = _codes(column), []
    _, rows = np.unique(codes, return_index=True)
    for row in rows.tolist():
        first += local_days(replace(log, table=log.table.slice(row, 1)), schema)
    names, place = np.unique(np.array(first), return_inverse=True)
    return tuple(names.tolist()), place.astype(np.int32)[codes]


def page_codes(log: LogTable, schema: Schema) -> NDArray[np.int32] | None:
    """A number for each page, as they first appear, (n,); None without pages. A page is a request, or a request of one
    user where an exposure's identity has the user too, since two users may give their pages one name."""
    assert schema.log is not None
    if schema.log.request is None:
        return None
    page = _codes(log.table[schema.log.request])
    if schema.log.user not in schema.log.identity:
        return page
    both = page.astype(np.int64) * (1 << 32) + _codes(log.table[schema.log.user])
    return _codes(pa.chunked_array([pa.array(both)]))


def _codes(column: Any) -> NDArray[np.int32]:
    """A number for each distinct value of a table's column, as they first appear. (n,)"""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    coded = column.dictionary_encode(null_encoding="encode")  # chunks share one dictionary
    out = np.empty(len(column), np.int32)
    at = 0
    for chunk in coded.chunks:
        out[at : at + len(chunk)] = chunk.indices.to_numpy()
        at += len(chunk)
    return out


def _mostly_of_several_times(page: NDArray[np.int32], ts_ms: NDArray[np.int64]) -> bool:
    order = _order(page, ts_ms)
    pages, times = (page, ts_ms) if order is None else (page[order], ts_ms[order])
    several = np.zeros(int(page.max(initial=0)) + 1, np.bool_)
    several[pages[1:][(pages[1:] == pages[:-1]) & (times[1:] > times[:-1])]] = True
    return bool(several[page].mean() > 0.5)
