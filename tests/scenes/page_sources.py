"""Where recall found the items of a page, by its log."""

from __future__ import annotations

from millrace.contracts.events import SOURCES, PageLog


def source_names(page: PageLog) -> list[str]:
    """``none`` where that was not recorded, or by a code of a later version."""
    codes = page.sources if len(page.sources) == len(page.items) else bytes(len(page.items))
    return [SOURCES[code] if code < len(SOURCES) else SOURCES[0] for code in codes]
