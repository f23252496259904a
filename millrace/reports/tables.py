# core
"""Tables of a page that need no scrolling: headings wrap, and a table that is too wide is cut into several.

Each of these has the columns that name a row; the decisive figures come first. Widths are estimates, by characters: a
page must be readable in any font.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from rich.console import Console
from rich.text import Text

from millrace.reports.names import name_of, weight

Row = Mapping[str, Any]

WIDTH = 1160  # pixels that a table may take: a window of 1,300, less margins

_CHARACTER, _HEADING, _PADDING = 9.4, 8.6, 25
"""Pixels of a character of a cell and of a heading, and of a cell's two sides."""

_LONGEST = 34
"""Characters of a text that stand in one line of a cell. Longer ones wrap."""


def table_of(name: str, rows: Sequence[Row], total: Row | None = None) -> str:
    """A heading, and one table or several, as HTML. ``rows`` have the same keys; ``x_ci`` beside ``x`` is half of its
    interval. ``total`` is a last row."""
    columns = [c for c in rows[0] if not (c.endswith("_ci") and c.removesuffix("_ci") in rows[0])]
    lines: list[tuple[str, Row]] = [("<tr>", row) for row in rows]
    if total is not None:
        lines.append(('<tr class="total">', {columns[0]: "all days"} | dict(total)))
    texts = {c: [figure_of(row, c) for _, row in lines] for c in columns}
    words = {c for c in columns if all(isinstance(row.get(c), str | None) for _, row in lines)}
    widths = {c: column_width(name_of(c), texts[c]) for c in columns}
    out = [f"<h2>{html.escape(capital(name_of(name)))}</h2>"]
    for piece in pieces(columns, widths, keys_of(columns, words)):
        head = "".join(f"<th{_side(c in words)}>{html.escape(name_of(c))}</th>" for c in piece)
        body = "".join(
            start + "".join(f"<td{_side(c in words)}>{html.escape(texts[c][i])}</td>" for c in piece) + "</tr>"
            for i, (start, _) in enumerate(lines)
        )
        out.append(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
    return "".join(out)


def keys_of(columns: Sequence[str], words: set[str]) -> list[str]:
    """The columns that name a row: the first, and the texts that follow it without a figure between."""
    keys = [columns[0]]
    for column in columns[1:]:
        if column not in words:
            break
        keys.append(column)
    return keys


def pieces(
    columns: Sequence[str], widths: Mapping[str, float], keys: Sequence[str], width: float = WIDTH
) -> list[list[str]]:
    """The columns of each table: one with all of them unchanged if they fit; otherwise the important ones first, each
    table with the keys. A column too wide for any page stands alone with the keys."""
    if sum(widths[c] for c in columns) <= width:
        return [list(columns)]
    taken = sum(widths[c] for c in keys)
    out: list[list[str]] = []
    left = 0.0
    for column in sorted((c for c in columns if c not in keys), key=weight):  # stable
        if not out or widths[column] > left:
            out.append(list(keys))
            left = width - taken
        out[-1].append(column)
        left -= widths[column]
    return out or [list(keys)]


def column_width(heading: str, texts: Sequence[str]) -> float:
    """Pixels of a column. A heading wraps between words, and so does a long text."""
    widest = max((min(len(text), _LONGEST) for text in texts), default=0)
    return max(widest * _CHARACTER, max(len(word) for word in heading.split(" ")) * _HEADING) + _PADDING


def figure_of(row: Row, column: str) -> str:
    """A cell's value, and half its 95% interval where the row has one (``column_ci``)."""
    half = row.get(f"{column}_ci")
    return cell(row.get(column)) + ("" if half is None else f" ± {cell(half)}")


def cell(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(cell(v) for v in value)
    if isinstance(value, float):
        return f"{value:,.{4 if abs(value) < 10 else 2 if abs(value) < 100 else 1}f}"
    return str(value)


def capital(text: str) -> str:
    """The text with a capital at its start; the rest stays, since names such as AUC are written so."""
    return text[:1].upper() + text[1:]


def _side(is_text: bool) -> str:
    return ' class="text"' if is_text else ""


_GAP = "  "


def say(verdict: str, console: Console | None = None) -> None:
    if verdict:
        (console or Console()).print(Text(verdict, style="bold"), soft_wrap=False)


def show(title: str, rows: Sequence[Row], columns: Sequence[str] | None = None, console: Console | None = None) -> None:
    """Prints some columns (default: all) of a table's rows; the first names a row. Headings wrap and no figure is cut
    off: a table wider than the terminal is printed in several, each with the first column."""
    console, columns = console or Console(), columns or list(rows[0])
    lines = [title] if title else []
    texts = {c: [figure_of(row, c) for row in rows] for c in columns}
    widths: dict[str, float] = {
        c: max(map(len, [*texts[c], *name_of(c).split(" ")]), default=0) + len(_GAP) for c in columns
    }
    for piece in pieces(columns, widths, columns[:1], console.width + len(_GAP)):
        lines += ["", *_lines(piece, texts, {c: round(widths[c]) - len(_GAP) for c in piece})]
    console.print(Text("\n".join([*lines, ""])), soft_wrap=True)


def _lines(piece: Sequence[str], texts: Mapping[str, Sequence[str]], widths: Mapping[str, int]) -> list[str]:
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
