# core
"""Writes the pages that are made from types: ``millrace reference --out docs/``. A test finds those that differ."""

from __future__ import annotations

from pathlib import Path

import msgspec

from commands.reference import messages, settings
from millrace.basics.files import write_whole


def pages() -> dict[str, bytes]:
    """Every page by its path below ``docs/``."""
    found = {"settings.md": settings.page().encode(), "reference/asyncapi.json": _json(messages.asyncapi())}
    return found | {f"reference/schemas/{name}": _json(schema) for name, schema in messages.schemas().items()}


def write(out: Path) -> list[Path]:
    """Writes the pages below ``out``; returns those that were other before."""
    changed = []
    for name, content in pages().items():
        path = out / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content, durable=False)
            changed.append(path)
    return changed


def _json(document: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"
