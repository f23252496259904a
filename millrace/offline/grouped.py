# core
"""Which rows of a log grouped AUC compares, and by which scores: only rows that were scored in one state.

A progressive score depends on what model and windows had learnt by then, so on the labels of earlier rows. A user who
has clicked less often than expected so far is scored lower, and has more clicks still to come. Compared over time, his
rows are therefore in the wrong order, though nobody knows anything about the next label: with labels drawn
independently at a rate for each user, the figure was .15 where the truth is .5. (Pooled leave-one-out estimates of the
AUC have the same bias: Airola et al. 2011, "An experimental comparison of cross-validation techniques for estimating
the area under the ROC curve".) So

::

    the log has                     scores                                  rows are compared within
    pages, each of one time         progressive                             a page (and time)
    pages of several times          frozen at the start of the local day    a page and day
    no pages                        frozen at the start of the local day    a user and day

Rows of one time are scored by one state of model and windows. *Frozen*: when the first row of a day is about to be
scored, all rows of that day are scored once more, by the model as it is then, with windows that hold only what happened
before that row. A log counts as one with pages of several times if most of its rows are in such pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.contracts.schema import Schema
from millrace.logs import TS, LogTable, local_days
from millrace.offline.logfeatures import LogFeatures

Score = Callable[[NDArray[np.int64], NDArray[np.float32]], NDArray[np.float32]]

_SCORED_AT_ONCE = 4096

_PAGES = "within pages"
_PAGE_DAYS = "within pages, model and windows frozen at the start of the day: rows of most pages differ in time"
_USER_DAYS = "within users and days, model and windows frozen at the start of the day: the log has no pages"


class Groups:
    """Groups of one log's n rows, filled while the log is run.

    Whoever runs the log gives :attr:`cuts` to its :class:`~millrace.offline.logfeatures.LogFeatures` and calls
    :meth:`before` each time it is about to score rows that no sample has made known, with a model that learns nothing
    in between. After the run, :meth:`compared` gives what to compare.
    """

    how: str
    """The groups in words."""

    cuts: NDArray[np.intp]
    """The rows before which the windows must be read, ascending; none if nothing is frozen."""

    group: NDArray[np.intp]
    """(n,) a number for each group."""

    def __init__(self, log: LogTable, schema: Schema) -> None:
        assert schema.log is not None
        ts_ms: NDArray[np.int64] = log.table[TS].to_numpy()
        day = np.unique(np.array(local_days(log, schema)), return_inverse=True)[1]
        page = None if schema.log.request is None else _codes(log.table[schema.log.request])
        self._frozen: NDArray[np.float32] | None = None
        self._days: list[NDArray[np.intp]] = []
        if page is not None and not _mostly_of_several_times(page, ts_ms):
            self.how, self.group = _PAGES, joint(page, ts_ms)
            self._first = self.cuts = np.empty(0, np.intp)
            return
        self.how = _USER_DAYS if page is None else _PAGE_DAYS
        self.group = joint(_codes(log.table[log.user]) if page is None else page, day)
        self._frozen = np.empty(len(day), np.float32)
        self._days = [np.flatnonzero(day == d) for d in range(int(day.max(initial=-1)) + 1)]
        # Rows of one time are scored together, so the windows are not read between them.
        first = [int(np.searchsorted(ts_ms, ts_ms[rows[0]], side="left")) for rows in self._days]
        self._first = np.array(first, np.intp)
        self.cuts = np.unique(self._first)

    def before(self, rows: slice, features: LogFeatures, score: Score, hidden: Sequence[int]) -> None:
        """The rows are about to be scored by one state of the model.

        Args:
            rows: consecutive ones, all after those of the call before; rows of one time are in one call.
            score: of the model; it reads only.
            hidden: columns of ``cat`` that read as missing.
        """
        if self._frozen is None:
            return
        for first, own in self.starting(rows):
            cat, num = features.frozen(first, own)
            cat[:, hidden] = 0
            self._frozen[own] = score(cat, num)

    def starting(self, rows: slice, day: int = 0) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """The days that begin in some rows, from day number ``day`` on, as pairs in the order of the first: (a cut, at
        most 4,096 rows of its day). None where nothing is frozen."""
        for d in np.argsort(self._first, kind="stable").tolist():  # a log's own day column may run backwards
            if d >= day and rows.start <= self._first[d] < rows.stop:
                for at in range(0, len(self._days[d]), _SCORED_AT_ONCE):
                    yield int(self._first[d]), self._days[d][at : at + _SCORED_AT_ONCE]

    def compared(self, p: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """(scores (n,), group of each row (n,)), for the progressive scores ``p`` (n,) of the run."""
        return p if self._frozen is None else self._frozen, self.group


def joint(*codes: NDArray[Any]) -> NDArray[np.intp]:
    """A number for each distinct combination of integers, (n,) each. (n,)"""
    group: NDArray[np.intp] = np.zeros(len(codes[0]), np.intp)
    for code in codes:
        distinct, own = np.unique(code, return_inverse=True)
        _, group = np.unique(group * (len(distinct) + 1) + own, return_inverse=True)
    return group


def _codes(column: Any) -> NDArray[np.intp]:
    """A number for each distinct value of a table's column. (n,)"""
    coded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    codes: NDArray[np.intp] = coded.indices.to_numpy().astype(np.intp)
    return codes


def _mostly_of_several_times(page: NDArray[np.intp], ts_ms: NDArray[np.int64]) -> bool:
    """Whether most rows are in pages whose rows differ in time."""
    order = np.lexsort((ts_ms, page))
    same_page = page[order][1:] == page[order][:-1]
    several = np.zeros(int(page.max(initial=0)) + 1, np.bool_)
    several[page[order][1:][same_page & (np.diff(ts_ms[order]) > 0)]] = True
    return bool(several[page].mean() > 0.5)
