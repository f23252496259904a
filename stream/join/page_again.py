# core
"""A page that is sent again, with final labels, for a loss within it: when, and which rows.

::

    page log ──────── attribution ────────► due         the page is sent once, when the watermark is there
        an exposure before that ──── attribution ────► due, later

Its clicked rows are sent, and some of the others: what is compared is a clicked row with one that was not. A page
without a click, or without another row, is not sent. What was exposed later than this is not, either. Sets of positions
are bit masks.
"""

from __future__ import annotations

from zlib import crc32

from stream.join.joined_pages import PageState

OTHERS = 5
"""Rows without a click that are sent of a page, at most."""


def final_labels(page: PageState, attribution_ms: int) -> tuple[int, int]:
    """(the watermark at which the labels of a page are final that has its page log, the positions exposed till then)"""
    assert page.page_log is not None
    due_ms, exposed = page.page_log.ts_ms + attribution_ms, 0
    for part in sorted(page.parts, key=lambda part: part.ts_ms):  # the events' times decide, not the order of coming
        if part.ts_ms >= due_ms:
            break
        due_ms = max(due_ms, part.ts_ms + attribution_ms)
        exposed |= part.mask
    return due_ms, exposed


def rows_again(page: PageState, exposed: int) -> tuple[int, int]:
    """(clicked, some others) among the positions ``exposed``; both empty where the page teaches nothing."""
    clicked = exposed & page.in_time
    places = _places(exposed & ~clicked)
    if not clicked or not places:
        return 0, 0
    return clicked, sum(1 << places[k] for k in drawn(page.request, len(places)))


def _places(mask: int) -> list[int]:
    places = []
    while mask:
        places.append((mask & -mask).bit_length() - 1)
        mask &= mask - 1
    return places


def drawn(request: str, n: int, most: int = OTHERS) -> list[int]:
    """At most so many of n rows of a page, ascending: evenly spread from a start that a hash of the request id chooses,
    so that each is drawn as often as another.

    >>> drawn("page-1", 3), drawn("page-1", 20), drawn("page-2", 20)
    ([0, 1, 2], [3, 7, 11, 15, 19], [1, 5, 9, 13, 17])
    """
    if n <= most:
        return list(range(n))
    start = crc32(request.encode()) % n
    return sorted((start + k * n // most) % n for k in range(most))
