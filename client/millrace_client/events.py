# core
"""Events about a page, with the positions that the label join needs.

::

    answered   0: a   1: b   2: c   3: d   4: e
    shown=range(3)               items [a, b, c]                     as answered
    shown=[2, 3]                 items [c, d], offset 2              scrolled to: each in its slot of the page
    shown=[2, 0, 3]              items [c, a, d], slots [2, 0, 3]    moved and left out: each is named by its position
    shown=[1, 2], at=0           items [b, c], slots [1, 2]          a was left out, b moved up into its place

An event's time is the given one or the client's clock, but never before its page's: the machines' clocks differ.
"""

from __future__ import annotations

from collections.abc import Iterable

from millrace_client.errors import BadRequest, NotOnPage
from millrace_client.messages import Action, ActionName, Exposure, Id, Page, PlacedItem

CLOCKS_MS = 60_000
"""Tolerance for different clocks: a given event time may be so much before its page."""
Shown = Iterable[PlacedItem | int]
"""Items of a page or their positions, in the order shown."""


def exposure_of(
    page: Page, shown: Shown | None, at: int | None, event_id: str, now_ms: int, ts_ms: int | None = None
) -> Exposure | None:
    """The exposure of a page. None: nothing to report, because the page was made of lists or nothing of it was shown.

    Args:
        shown: None: all of the page, as answered.
        at: the slot of the first shown item. None: its slot on the page if the items are consecutive there, else 0.
        event_id: names the event; sent twice, it counts once.
        ts_ms: when it happened, in Unix ms of the event clock; None: now.

    Raises:
        NotOnPage: an item that the page does not have, or a repeated one.
        BadRequest: a time before the page was made.
    """
    placed = list(page.items) if shown is None else [_placed(page, one) for one in shown]
    places = [one.position for one in placed]
    if len(set(places)) < len(places):
        twice = next(place for n, place in enumerate(places) if place in places[:n])
        raise NotOnPage(f"position {twice} is named twice", "name each item that was shown once")
    if page.request_id is None or page.user_id is None or not placed:
        return None
    in_place = places == list(range(places[0], places[0] + len(places)))
    first = (places[0] if in_place else 0) if at is None else at
    as_answered = in_place and first == places[0]
    return Exposure(
        event_id,
        page.request_id,
        _time(page, now_ms, ts_ms),
        page.user_id,
        [one.item_id for one in placed],
        first,
        None if as_answered else places,
        now_ms,
    )


def action_of(
    name: ActionName, page: Page, item: PlacedItem | Id, event_id: str, now_ms: int, ts_ms: int | None = None
) -> Action | None:
    """An action on an item of a page, given by itself or its id. None: the page was made of lists, so there is nothing
    to report. Raises NotOnPage for another item, BadRequest for a time before the page was made."""
    found = page.find(item.item_id if isinstance(item, PlacedItem) else item)
    if found is None:
        raise NotOnPage(
            f"item {item!r} is not on the page {page.request_id}", "give an item of page.items, or the id of one"
        )
    if page.request_id is None or page.user_id is None:
        return None
    return Action(
        name,
        event_id,
        page.request_id,
        _time(page, now_ms, ts_ms),
        page.user_id,
        found.item_id,
        found.position,
        now_ms,
    )


def _time(page: Page, now_ms: int, ts_ms: int | None) -> int:
    if ts_ms is not None and ts_ms < page.ts_ms - CLOCKS_MS:
        raise BadRequest(
            f"ts_ms {ts_ms} is before its page, which was made at {page.ts_ms}",
            "give Unix milliseconds of the event clock, or leave it out",
        )
    return max(now_ms if ts_ms is None else ts_ms, page.ts_ms)


def _placed(page: Page, one: PlacedItem | int) -> PlacedItem:
    place = one.position if isinstance(one, PlacedItem) else one
    found = page.items[place] if 0 <= place < len(page.items) else None
    if found is None or (isinstance(one, PlacedItem) and str(found.item_id) != str(one.item_id)):
        raise NotOnPage(
            f"{one!r} is not on the page {page.request_id}, which has {len(page.items)} items",
            "give positions from 0, or items of page.items",
        )
    return found
