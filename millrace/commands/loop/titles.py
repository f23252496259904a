# shell
"""What items are called, for a person who looks at them: read from the topic of items, since the scorer has hashes.
And users whose pages can be looked at: those of the newest page logs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from typing import Any

from millrace.basics.errors import MillraceError
from millrace.contracts.events import CHANGE_MARK, MODEL, BadEventError, Id, Item, decode_item, key_of
from millrace.contracts.settings import Settings
from millrace.contracts.topics import ITEMS, PAGE_LOGS
from millrace.processes.kafka import make_reader, read_all, read_up, told

SECONDS = 5.0
"""The longest read for one page. Where the topic has more than is read in it, titles may lack or be older ones."""
NAMES = ("title", "name")
"""Attributes that say what an item is called: no feature needs them, so a shop sends them for this."""
_MOST_WORDS, _MOST_LETTERS = 4, 80
_USERS, _LOOKED_AT = 6, 100
"""Users that are named, and the newest page logs of each partition among which they are looked for."""


class _TooLate(Exception):
    """The time for reading is over."""


def title_of(attributes: Mapping[str, Any]) -> str:
    """The title of an item, else its first attributes.

    >>> title_of({"price": 9.5, "title": "Blue mug"}), title_of({"category": "c12", "shop_id": 7, "price": 12.3456})
    ('Blue mug', 'category c12, shop id 7, price 12.35')
    """
    said = next((str(attributes[name]) for name in NAMES if attributes.get(name)), "")
    if not said:
        known = [(name, value) for name, value in attributes.items() if isinstance(value, str | int | float)]
        words = [f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}" for name, value in known]
        said = ", ".join(words[:_MOST_WORDS]).replace("_", " ")
    return said[:_MOST_LETTERS]


def titles(settings: Settings, items: Iterable[Id], seconds: float = SECONDS) -> dict[str, str]:
    """Titles of items by the text of their ids, as far as the topic tells within ``seconds``."""
    wanted, found = {key_of(item): str(item) for item in items}, dict[str, dict[str, Any]]()
    until_s = time.monotonic() + seconds

    def visit(record: Any) -> None:
        if time.monotonic() > until_s:
            raise _TooLate
        key, _, changed = bytes(record.key or b"").partition(CHANGE_MARK)
        if key not in wanted:
            return
        if record.value is None:
            if not changed:
                found.pop(wanted[key], None)
            return
        with suppress(BadEventError):
            one = decode_item(record.value)
            known = {} if isinstance(one, Item) else found.get(wanted[key], {})
            found[wanted[key]] = known | (one.attributes if isinstance(one, Item) else one.changes)

    if wanted and settings.kafka:
        with suppress(_TooLate, MillraceError):
            read_all(settings, ITEMS, visit)
    return {item: title_of(attributes) for item, attributes in found.items()}


def watchable(settings: Settings, seconds: float = SECONDS) -> list[Id]:
    """Users for whom the model made a page lately, and who have been silent since for longest: whoever is looking at
    pages now moves them alone. None where a token guards pages: who opens the live page need not have it."""
    found, until_s = dict[Id, int](), time.monotonic() + seconds
    if not settings.kafka or settings.tokens or settings.token_file:
        return []
    from millrace.contracts.page_logs import decode_page_log  # it compiles, half a second of imports

    with suppress(MillraceError), told("no page logs"), closing(make_reader(settings, PAGE_LOGS)) as reader:
        for partition, end in reader.end_offsets(reader.assignment()).items():
            reader.seek(partition, max(0, end - _LOOKED_AT))
        while not read_up(reader) and time.monotonic() < until_s:
            for record in (one for some in reader.poll(timeout_ms=100).values() for one in some):
                with suppress(BadEventError):
                    page = decode_page_log(record.value)
                    if page.arm == MODEL:
                        found[page.user_id] = max(page.ts_ms, found.get(page.user_id, 0))
    return sorted(found, key=lambda user: found[user])[:_USERS]
