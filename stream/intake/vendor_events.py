# core
"""Events of Segment, Snowplow and GA4 as Millrace's: a table for each, and one mapper.

::

    message ──► its events ──► type by name ──► products ──► exposure: one event of all
                               └─ none: unmapped             click, collect, cart, purchase: one of each
                                              an order without a page, a refund: one of each

None of these tools knows pages. The shop puts a page's ``request_id`` where the tool has the list's id: of the
product, else of the event; only orders and refunds need none. Positions are those in the answer, counted from where the
tool counts. An exposure whose products have none was shown as answered. An ``event_id`` says what happened: an event
that comes again is a duplicate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from millrace.contracts.events import BadEventError, read_json

_SNOWPLOW = "com_snowplowanalytics_snowplow_ecommerce_"
Path = tuple[str, ...]


class EventTable(NamedTuple):
    """Where a tool has what. Paths lead from the message (``user``, ``time``), from one of its events, or from a
    product; where there are several, to the first that is there."""

    types: Mapping[str, str]  # our type, by the tool's name
    name: Path
    user: tuple[Path, ...]
    time: tuple[Path, ...]  # text as in ISO 8601, or microseconds
    products: tuple[Path, ...]  # a list, or one
    page: Path
    item: tuple[Path, ...]
    position: Path
    first: int  # position
    item_page: Path = ()  # of a product; empty: it has none
    order: Path = ()  # the order's id
    events: Path = ()  # of a message with several; empty: it is one


TABLES: Mapping[str, EventTable] = {
    "segment": EventTable(
        types={
            "Product List Viewed": "exposure",
            "Product Clicked": "click",
            "Product Added to Wishlist": "collect",
            "Product Added": "cart",
            "Order Completed": "purchase",
            "Order Refunded": "refund",
        },
        name=("event",),
        user=(("userId",), ("anonymousId",)),
        time=(("timestamp",),),
        products=(("properties", "products"), ("properties",)),
        page=("properties", "list_id"),
        item=(("product_id",), ("sku",)),
        position=("position",),
        first=1,
        item_page=("list_id",),
        order=("properties", "order_id"),
    ),
    "snowplow": EventTable(  # enriched events in JSON, as the analytics SDKs and loaders make them
        types={
            "list_view": "exposure",
            "list_click": "click",
            "add_to_cart": "cart",
            "transaction": "purchase",
            "refund": "refund",
        },
        name=(f"unstruct_event_{_SNOWPLOW}snowplow_ecommerce_action_1", "type"),
        user=(("user_id",), ("domain_userid",)),
        time=(("derived_tstamp",), ("collector_tstamp",)),
        products=((f"contexts_{_SNOWPLOW}product_1",),),
        page=(f"unstruct_event_{_SNOWPLOW}snowplow_ecommerce_action_1", "name"),
        item=(("id",),),
        position=("position",),
        first=1,
        order=(f"contexts_{_SNOWPLOW}transaction_1", "0", "transaction_id"),
    ),
    "ga4": EventTable(  # the body of a call of the Measurement Protocol
        types={
            "view_item_list": "exposure",
            "select_item": "click",
            "add_to_wishlist": "collect",
            "add_to_cart": "cart",
            "purchase": "purchase",
            "refund": "refund",
        },
        name=("name",),
        user=(("user_id",), ("client_id",)),
        time=(("timestamp_micros",),),
        products=(("params", "items"),),
        page=("params", "item_list_id"),
        item=(("item_id",),),
        position=("index",),
        first=0,
        item_page=("item_list_id",),
        order=("params", "transaction_id"),
        events=("events",),
    ),
}
"""By the last part of the route: POST /events/segment, for instance."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode


def mapped(source: str, raw: bytes) -> Iterator[bytes | BadEventError]:
    """Millrace's events in a message of a tool, as lines for POST /events; an error for each event that is none."""
    table = TABLES[source]
    try:
        message = read_json(_decode, raw)
        events = _at(message, table.events) if table.events else [message]
        if not isinstance(events, list):
            raise BadEventError("wrong-type", f"a message of {source} without a list at '{'.'.join(table.events)}'")
    except BadEventError as error:
        yield error
        return
    for event in events:
        try:
            yield from map(msgspec.json.encode, _events(source, table, message, event))
        except BadEventError as error:
            yield error


def _events(source: str, table: EventTable, message: Any, event: Any) -> list[dict[str, Any]]:
    name = _at(event, table.name)
    kind = table.types.get(name) if isinstance(name, str) else None
    if kind is None:
        known = ", ".join(f"'{one}'" for one in table.types)
        raise BadEventError("unmapped", f"{source}'s event {str(name)[:60]!r} is none of {known}")
    products = _first(event, table.products)
    common: dict[str, Any] = {"type": kind, "user_id": _needed(_first(message, table.user), name, table.user[0])}
    when = _first(message, table.time)
    if when is not None:
        common["ts_ms"] = _ms(when, name)
    made, shown = list[dict[str, Any]](), dict[str, list[tuple[Any, int | None]]]()
    for product in products if isinstance(products, list) else [products]:
        page = (_at(product, table.item_page) if table.item_page else None) or _at(event, table.page)
        item, place = _needed(_first(product, table.item), name, table.item[0]), _at(product, table.position)
        if kind == "refund" or (kind == "purchase" and (not page or place is None)):
            order = {"type": "order" if kind == "purchase" else kind, "item_id": item}
            made.append(_named({**common, **order}, _at(event, table.order) or common.get("ts_ms")))
            continue
        if not isinstance(page, str) or not page:
            raise BadEventError("unmapped", f"{name}: no page; put its request_id into '{'.'.join(table.page)}'")
        if place is not None and not isinstance(place, int):
            raise BadEventError("wrong-type", f"{name}: position {str(place)[:40]!r} of item {str(item)[:40]!r}")
        shown.setdefault(page, []).append((item, None if place is None else place - table.first))
    if not shown and not made:
        raise BadEventError("unmapped", f"{name} without products")
    for page, items in shown.items():
        places = [place for _, place in items]
        if kind == "exposure":
            if None not in places:
                slots: dict[str, Any] = {"slots": places}
            elif any(place is not None for place in places):
                raise BadEventError("unmapped", f"{name}: some of the products have a position; give all one, or none")
            else:
                slots = {}
            made.append(_named({**common, "request_id": page, "items": [item for item, _ in items], **slots}))
            continue
        for item, place in items:
            if place is None:
                where = ".".join(table.position)
                raise BadEventError(
                    "unmapped", f"{name}: item {str(item)[:40]!r} has no '{where}', its place on the page"
                )
            made.append(_named({**common, "request_id": page, "item_id": item, "position": place}))
    return made


def _named(event: dict[str, Any], order: Any = None) -> dict[str, Any]:
    """The event with an id of what it is, whenever it comes. ``order``: what tells one order from another."""
    what = [order, *(value for name, value in sorted(event.items()) if name != "ts_ms")]
    return {**event, "event_id": hashlib.blake2b(msgspec.json.encode(what), digest_size=16).hexdigest()}


def _ms(when: Any, name: str) -> int:
    try:
        return when // 1000 if isinstance(when, int) else round(datetime.fromisoformat(when).timestamp() * 1000)
    except (TypeError, ValueError):
        raise BadEventError("wrong-type", f"{name}: {str(when)[:40]!r} is no time") from None


def _at(value: Any, path: Path) -> Any:
    for name in path:
        if isinstance(value, list) and name.isdecimal():
            value = dict(enumerate(value)).get(int(name))
        else:
            value = value.get(name) if isinstance(value, dict) else None
    return value


def _first(value: Any, paths: tuple[Path, ...]) -> Any:
    return next((found for path in paths if (found := _at(value, path)) is not None), None)


def _needed(value: Any, name: Any, path: Path) -> Any:
    if value is None:
        raise BadEventError("wrong-type", f"{name}: '{'.'.join(path)}' is missing")
    return value
