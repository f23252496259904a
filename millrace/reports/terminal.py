# core
"""What a report says in the terminal: its verdict, and tables with the page's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from rich.console import Console
from rich.text import Text

from millrace.reports.names import name_of
from millrace.reports.tables import figure_of, pieces

_GAP = "  "


def say(verdict: str, console: Console | None = None) -> None:
    """Prints a verdict, wrapped at the terminal's width."""
    if verdict:
        (console or Console()).print(Text(verdict, style="bold"), soft_wrap=False)


def show(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], console: Console | None = None) -> None:
    """Prints some columns of a table's rows. The first names a row. Headings wrap; no figure is cut off: a table that
    is wider than the terminal is printed in several, each with the first column."""
    console = console or Console()
    lines = [title] if title else []
    texts = {c: [figure_of(row, c) for row in rows] for c in columns}
    widths: dict[str, float] = {
        c: max(map(len, [*texts[c], *name_of(c).split(" ")]), default=0) + len(_GAP) for c in columns
    }
    for piece in pieces(columns, widths, columns[:1], console.width + len(_GAP)):
        lines += ["", *_lines(piece, texts, {c: round(widths[c]) - len(_GAP) for c in piece})]
    console.print(Text("\n".join([*lines, ""])), soft_wrap=True)


def _lines(piece: Sequence[str], texts: Mapping[str, Sequence[str]], widths: Mapping[str, int]) -> list[str]:
    """Heading, rule and rows of one table."""
    heads = {c: wrap(name_of(c), widths[c], break_long_words=False, break_on_hyphens=False) for c in piece}
    most = max(map(len, heads.values()))
    table = [[([""] * (most - len(heads[c])) + heads[c])[k] for c in piece] for k in range(most)]
    table += [["─" * widths[c] for c in piece]]
    table += [[texts[c][i] for c in piece] for i in range(len(texts[piece[0]]))]
    left = piece[0]
    return [
        _GAP.join(
            text.ljust(widths[c]) if c == left else text.rjust(widths[c]) for c, text in zip(piece, line, strict=True)
        ).rstrip()
        for line in table
    ]
