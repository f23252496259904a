# core
"""The page of a report: one self-contained HTML file, with its JSON and its plots as PNG files beside it."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from millrace.basics.errors import SettingError
from millrace.reports.names import meanings, name_of
from millrace.reports.plots import Plot
from millrace.reports.tables import cell, table_of

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #20303c; background: #f7f8f8; margin: 0 }
main { max-width: 74rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 1.6rem; margin: 0 0 .25rem } h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem }
.verdict { font-size: 1.15rem; line-height: 1.5; max-width: 56rem; margin: 1rem 0; padding: .75rem 1.1rem;
  background: #fff; border-left: 4px solid #1f6f8b }
.lead { color: #5b6b76; margin: 0 0 1.5rem; max-width: 56rem }
.scroll { overflow-x: auto; margin: 0 0 1.25rem }
table { border-collapse: collapse; min-width: 50%; background: #fff; font-variant-numeric: tabular-nums }
th, td { padding: .45rem .75rem; text-align: right; border-bottom: 1px solid #e4e8ea; white-space: nowrap }
th { font-weight: 600; color: #5b6b76; font-size: .85rem; white-space: normal; vertical-align: bottom }
th:first-child, td:first-child, .text { text-align: left } td.text { white-space: normal; max-width: 20rem }
tr:last-child td { border-bottom: 0 } tr.total td { font-weight: 600 }
figure { margin: 0 0 1.5rem } img { max-width: 100%; height: auto; background: #fff; display: block }
figcaption { color: #5b6b76; font-size: .9rem; margin-top: .35rem; max-width: 56rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; font-size: .9rem }
dt { color: #5b6b76 } dd { margin: 0; overflow-wrap: anywhere }
"""


def make_folder(out: Path, first: str) -> None:
    """Makes the folder of a report, and in it the empty file ``first``: a bad folder must show before any long work.
    Raises SettingError when it cannot be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / first).touch()
    except OSError as error:
        raise SettingError(f"folder '{out}' cannot be written ({error.strerror})", "name another with --out") from None


def surroundings() -> dict[str, Any]:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("millrace", "numpy", "torch")},
    }


def write_all(
    out: Path,
    report: Mapping[str, Any],
    run: Mapping[str, Any],
    plots: Sequence[Plot],
    title: str,
    page: Mapping[str, Any] | None = None,
) -> None:
    """Writes report.json, run.json, report.html and each plot's PNG to the folder ``out``.

    Args:
        report: on its page a list of dictionaries with the same keys becomes a table (a dictionary ``total`` beside
            ``days`` is its last row; ``x_ci`` beside ``x`` is half of its interval), a dictionary one of a single row.
            Plain values form the line under the title.
        run: values that differ from run to run; machine, libraries and the report's hash are added.
        page: the part of the report for its page (default: all but ``curves``, which are for the plots alone).
    """
    text = json.dumps(report, indent=1) + "\n"
    (out / "report.json").write_text(text, encoding="utf-8")
    run = {**run, "report_sha256": hashlib.sha256(text.encode()).hexdigest(), **surroundings()}
    (out / "run.json").write_text(json.dumps(run, indent=1, default=str) + "\n", encoding="utf-8")
    pictures = [(plot, png_of(plot)) for plot in plots]
    for plot, png in pictures:
        (out / f"{plot.name}.png").write_bytes(png)
    body = body_of(report if page is None else page, title, pictures)
    document = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><main>{body}<h2>This run</h2>{_facts(run)}</main></body></html>\n"
    )
    (out / "report.html").write_text(document, encoding="utf-8")


def body_of(report: Mapping[str, Any], title: str, pictures: Sequence[tuple[Plot, bytes]]) -> str:
    """What a page shows of a report, as HTML: verdict, tables, words, plots and their PNG. See :func:`write_all`."""
    shown = {k: v for k, v in report.items() if k != "curves"}
    parts = [f"<h1>{html.escape(title)}</h1>"]
    if shown.get("verdict"):
        parts.append(f'<p class="verdict">{html.escape(str(shown["verdict"]))}</p>')
    parts.append(f'<p class="lead">{html.escape(_lead(shown))}</p>')
    keys: list[str] = []
    for name, value in shown.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            total = shown.get("total") if name == "days" else None
            parts.append(table_of(name, value, total if isinstance(total, Mapping) else None))
            keys += value[0]
    words = meanings(keys)
    if words:
        parts.append(f"<h2>Words</h2>{_facts(words)}")
    if pictures:
        parts.append("<h2>Plots</h2>")
    for plot, png in pictures:
        image = base64.b64encode(png).decode()
        caption = html.escape(plot.caption)
        picture = f'<img alt="{caption}" src="data:image/png;base64,{image}">'
        parts.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    return "".join(parts)


def png_of(plot: Plot) -> bytes:
    buffer = io.BytesIO()
    plot.figure.savefig(buffer, format="png", metadata={"Software": "millrace"})
    return buffer.getvalue()


def _lead(report: Mapping[str, Any]) -> str:
    plain = [(k, v) for k, v in report.items() if isinstance(v, str | int | float) and k != "verdict"]
    return " · ".join(f"{name_of(k)} {cell(v)}" if isinstance(v, str) else f"{cell(v)} {name_of(k)}" for k, v in plain)


def _facts(run: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{k} {text(v)}" for k, v in value.items())
        if isinstance(value, list | tuple):
            return ", ".join(text(v) for v in value) or "–"
        return str(value)

    items = "".join(f"<dt>{html.escape(name_of(k))}</dt><dd>{html.escape(text(v))}</dd>" for k, v in run.items())
    return f"<dl>{items}</dl>"
