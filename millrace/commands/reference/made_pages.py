# core
"""Writes the pages that are made from types: ``millrace dev reference --out docs/``. A test finds those that differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from cyclopts import App

from millrace.basics.atomic_files import write_whole
from millrace.commands.reference import commandpage as commands
from millrace.commands.reference import message_pages, reasonpage, settings_page


def pages(app: App) -> dict[str, bytes]:
    """Every page by its path below ``docs/``. ``app``: the command line."""
    found = {
        "reference/settings.md": settings_page.page().encode(),
        "reference/dead-letters.md": reasonpage.page().encode(),
        "reference/commands.md": commands.page(app).encode(),
        "reference/asyncapi.json": _json(message_pages.asyncapi()),
    }
    return found | {f"reference/schemas/{name}": _json(schema) for name, schema in message_pages.schemas().items()}


def write(out: Path, made: Mapping[str, bytes]) -> list[Path]:
    """Writes pages below ``out``; returns those that were other before."""
    changed = []
    for name, content in made.items():
        path = out / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content, durable=False)
            changed.append(path)
    return changed


def _json(document: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
