# core
"""Faults of a log, gathered: one error reports them all, or their rows are left out.

A fault of *rows* (a label of 2) marks them bad; a fault of a *whole* column or file (a column of lists) cannot be
skipped. A :class:`Decision` is no fault: the rows stay, and a count of them is reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.errors import LogError, MillraceError

_SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True, slots=True)
class Fault:
    problem: str  # with the file, the column and the first wrong value in it
    remedy: str
    column: str | None = None
    row: int | None = None
    """The first row with it, from 1 on, in the order of reading; None: no row in particular."""
    value: str | None = None
    rows: int = 0  # number of rows with it; 0 for a whole column or file

    def __str__(self) -> str:
        return f"{self.problem}{f' ({self.rows:,} rows)' if self.rows > 1 else ''}; {self.remedy}"


@dataclass(frozen=True, slots=True)
class Decision:
    """Rows that were ambiguous or left out, and the reader's treatment of them."""

    what: str
    column: str | None
    rows: int
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.rows:,} rows ({self.remedy})"


class LogFaults(LogError):
    """All faults of a log: a line a fault."""

    def __init__(self, faults: Sequence[Fault], log: str) -> None:
        self.faults, self.log = tuple(faults), log
        first = self.faults[0]
        if len(self.faults) == 1:
            super().__init__(f"{first.problem}{f' ({first.rows:,} rows)' if first.rows > 1 else ''}", first.remedy)
            return
        super().__init__(f"log '{log}' has {len(self.faults)} faults", "correct them all, or see --skip-bad")
        lines = [f"{self.problem}:", *(f"  - {fault}" for fault in self.faults)]
        if any(not fault.rows for fault in self.faults):
            lines.append("Those without a count of rows must be corrected.")
        if any(fault.rows for fault in self.faults):
            lines.append("--skip-bad leaves the rows that have a count out, and tells it.")
        self.args = ("\n".join(lines),)

    def __reduce__(self) -> tuple[type[LogFaults], tuple[Any, ...]]:
        return type(self), (self.faults, self.log)


class Faults:
    """Gathers the faults of one log over all its stretches.

    Call :meth:`begin` for a stretch, then :meth:`mark` its bad rows; the others are :attr:`good`. Each problem of a
    column is reported one time, with the first row and the count of all.
    """

    def __init__(self, log: str, skip_bad: bool) -> None:
        self.log, self.skip_bad = log, skip_bad
        self._found: dict[tuple[str | None, str], Fault] = {}
        self._decided: dict[tuple[str | None, str], Decision] = {}
        self._origin: NDArray[np.intp] = np.zeros(0, np.intp)
        self.bad: NDArray[np.bool_] = np.zeros(0, bool)
        self.skipped = 0

    def begin(self, origin: NDArray[np.intp]) -> None:
        """Begins a stretch. ``origin``: the row of the log, from 0 on, of each of its rows."""
        self._origin, self.bad = origin, np.zeros(len(origin), bool)

    @property
    def good(self) -> NDArray[np.bool_]:
        """(n,) rows of the stretch without a fault so far."""
        return ~self.bad

    def mark(self, kind: str, column: str | None, rows: NDArray[np.bool_], value: str, problem: str, rem: str) -> None:
        """Marks rows as bad.

        Args:
            kind: with the column, identifies the fault: its rows are counted together.
            rows: (n,) of the stretch; at least one.
            value: the first of the bad values.
            problem: with ``{row}`` in the place of the first row's number.
        """
        first = int(self._origin[int(np.argmax(rows))]) + 1
        self.bad |= rows
        self._report(kind, column, int(rows.sum()), first, value, problem, rem)

    def count(self, kind: str, column: str | None, rows: int, row: int, value: str, problem: str, rem: str) -> None:
        """Counts lines that could not be read as rows. A lost end counts as one."""
        self.leave_out(rows)
        self._report(kind, column, rows, row, value, problem, rem)

    def _report(self, kind: str, column: str | None, rows: int, row: int, value: str, problem: str, rem: str) -> None:
        known = self._found.get((column, kind))
        if known is not None:
            self._found[column, kind] = replace(known, rows=known.rows + rows)
            return
        problem = problem.replace("{row}", f"{row:,}" if row > 9999 else str(row))
        self._found[column, kind] = Fault(problem, rem, column, row, value[:_SHOWN], rows)

    @contextmanager
    def whole(self, column: str | None = None) -> Iterator[None]:
        """Makes an error within it a fault of a whole column or file; the next check goes on. Schema errors pass: they
        are not the log's."""
        try:
            yield
        except LogFaults as error:
            for fault in error.faults:
                self._found.setdefault((fault.column, fault.problem), fault)
        except LogError as error:
            self.fault(column, error)

    def fault(self, column: str | None, error: MillraceError) -> None:
        self._found.setdefault((column, error.problem), Fault(error.problem, error.remedy, column))

    def decide(self, what: str, column: str | None, rows: int, remedy: str) -> None:
        """Counts rows that are kept."""
        if rows:
            known = self._decided.get((column, what))
            self._decided[column, what] = Decision(what, column, rows + (known.rows if known else 0), remedy)

    def leave_out(self, rows: int) -> None:
        self.skipped += rows

    def broken(self) -> bool:
        """Whether a fault was found that cannot be skipped with rows."""
        return any(not fault.rows for fault in self._found.values())

    def verdict(self) -> None:
        """Raises LogFaults if the log cannot be used."""
        found = list(self._found.values())
        if found and (not self.skip_bad or self.broken()):
            raise LogFaults(found, self.log)

    def decisions(self) -> tuple[Decision, ...]:
        """The reader's decisions, and under ``skip_bad`` the rows left out."""
        left_out = [Decision(f"left out: {f.problem}", f.column, f.rows, f.remedy) for f in self._found.values()]
        return (*left_out, *self._decided.values())
