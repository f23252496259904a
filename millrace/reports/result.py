# core
"""What a question to a log or an archive found: the object that a function returns and that its command prints."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from rich.console import Console

from millrace.basics.arrow_rows import ArrowRows
from millrace.basics.errors import MillraceError, SettingError
from millrace.reports.page import STYLE, body_of, make_folder, png_of, write_all
from millrace.reports.plots import Plot


class ResultRows(ArrowRows):
    """One table of a result."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> ResultRows:
        names = dict.fromkeys(name for row in rows for name in row)
        return cls(pa.table({name: [row.get(name) for row in rows] for name in names}))

    def __repr__(self) -> str:
        return f"{len(self):,} rows of {', '.join(self.table.column_names)}"


class Result(Mapping[str, Any]):
    """The report by its keys: ``result["total"]["auc"]``. Each key is an attribute too, where a list of rows is a
    :class:`ResultRows`: ``result.days.to_pandas()``.

    Args:
        report: what ``report.json`` holds.
        run: what ``run.json`` holds, all that differs from run to run.
        plots: draws the plots, when they are first asked for.
        say: prints the result for people.
    """

    def __init__(
        self,
        report: dict[str, Any],
        run: dict[str, Any],
        title: str,
        plots: Callable[[], Sequence[Plot]],
        say: Callable[[], None],
    ) -> None:
        self.report, self.run, self.title = report, run, title
        self._draw, self._say = plots, say
        self.error: MillraceError | None = None  # what ends the command, once all is printed
        self._folder: Path | None = None

    @cached_property
    def plots(self) -> Sequence[Plot]:
        return self._draw()

    def plot(self, name: str = "") -> Any:
        """The matplotlib axes of a plot, by default of the first. Raises SettingError for a name that no plot has."""
        found = [plot for plot in self.plots if name in ("", plot.name)]
        if not found:
            raise SettingError(f"no plot '{name}'", f"use {', '.join(plot.name for plot in self.plots) or 'none'}")
        return found[0].figure.axes[0]

    def write(self, out: Path | str) -> None:
        """Writes report.json, run.json, report.html and the plots to the folder, as the command does. Raises
        SettingError when it cannot be written to."""
        self._folder = Path(out)
        make_folder(self._folder, "report.json")
        write_all(self._folder, self.report, self.run, self.plots, self.title)

    def written(self, out: Path | str | None) -> Self:
        """This result, written to the folder, if one is named."""
        if out is not None:
            self.write(out)
        return self

    def print(self) -> None:
        """Prints what the command prints."""
        self._say()
        if self._folder is not None:
            Console().print(f"report in {self._folder}", highlight=False, markup=False, soft_wrap=True)

    def __getitem__(self, key: str) -> Any:
        return self.report[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.report)

    def __len__(self) -> int:
        return len(self.report)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self.report:
            raise AttributeError(f"a result has no '{name}'; it has {', '.join(self.__dict__.get('report', ()))}")
        value = self.report[name]
        return ResultRows.of(value) if isinstance(value, list) else value

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.report]

    def __repr__(self) -> str:
        return f"<{self.title}: {self.report['verdict']}>"

    def _repr_html_(self) -> str:
        body = body_of(self.report, self.title, [(plot, png_of(plot)) for plot in self.plots])
        # In a frame of its own: the page's style must not reach the notebook's.
        page = html.escape(f"<style>{STYLE}</style><main>{body}</main>")
        return f'<iframe style="width:100%;height:32rem;border:0" srcdoc="{page}"></iframe>'
