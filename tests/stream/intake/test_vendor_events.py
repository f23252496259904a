"""Events of other tools, against the examples that their vendors publish (facts of them: names, ids and places)."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from typing import Any

import msgspec
import pytest

from millrace.contracts.events import BadEventError, Exposure, decode_event
from stream.intake.vendor_events import TABLES, mapped
from tests.scenes.intake_desk import Intake

SEGMENT = "https://github.com/segmentio/segment-docs/blob/develop/src/connections/spec/ecommerce/v2.md"
MONOPOLY, UNO = "507f1f77bcf86cd799439011", "505bd76785ebb509fc183733"
TRACKED = {"type": "track", "userId": "019mr8mf4r", "timestamp": "2026-11-30T06:00:00.500Z", "messageId": "m1"}
ORDERED = [{"product_id": MONOPOLY, "sku": "45790-32", "price": 19, "quantity": 1, "category": "Games"},
           {"product_id": UNO, "sku": "46493-32", "price": 3, "quantity": 2, "category": "Games"}]  # fmt: skip
LISTED = [{**one, "position": n} for n, one in enumerate(ORDERED, 1)]
CLICKED = {"product_id": MONOPOLY, "sku": "G-32", "brand": "Hasbro", "price": 18.99, "quantity": 1, "position": 3}

SNOWPLOW = "https://docs.snowplow.io/accelerators/ecommerce/tracking_web/product_list/ and …/transactions"
NAMES = "com_snowplowanalytics_snowplow_ecommerce_"
ACTION, PRODUCT = f"unstruct_event_{NAMES}snowplow_ecommerce_action_1", f"contexts_{NAMES}product_1"
FASHION = [{"id": f"P12{n + 2}", "brand": "Snowplow", "category": "Mens/Apparel", "currency": "USD", "position": n}
           for n in (1, 2, 3)]  # fmt: skip
ENRICHED = {"event_name": "snowplow_ecommerce_action", "user_id": None, "domain_userid": "bc2e92ec6c204a14",
            "collector_tstamp": "2026-11-30T06:00:01.000Z", "derived_tstamp": "2026-11-30T06:00:00.500Z"}  # fmt: skip

TRANSACTION = {f"contexts_{NAMES}transaction_1": [{"transaction_id": "T12345", "revenue": 230, "currency": "USD"}]}

GA4 = "https://developers.google.com/analytics/devguides/collection/ga4/ecommerce"
TEES = [{"item_id": f"SKU_1234{5 + n}", "affiliation": "Google Merchandise Store", "index": n, "item_brand": "Google",
         "item_list_id": "related_products", "price": price, "quantity": 1}
        for n, price in enumerate((9.99, 20.99))]  # fmt: skip
SENT = {"client_id": "123456.7654321", "timestamp_micros": 1_795_989_600_500_000}
LIST = "related_products"


def ga4(name: str, **params: Any) -> dict[str, Any]:
    return {**SENT, "events": [{"name": name, "params": params}]}


def snowplow(action: str, products: list[dict[str, Any]], name: str | None = None) -> dict[str, Any]:
    return {**ENRICHED, ACTION: {"type": action, "name": name}, PRODUCT: products}


def segment(event: str, **properties: Any) -> dict[str, Any]:
    return {**TRACKED, "event": event, "properties": properties}


def events(source: str, message: Any) -> list[Any]:
    """Events made, or the lines of refusals."""
    made = mapped(source, msgspec.json.encode(message))
    return [str(one) if isinstance(one, BadEventError) else decode_event(one) for one in made]


MADE: dict[str, tuple[str, dict[str, Any], list[tuple[str, str, list[Any], list[int]]]]] = {
    "a list (Segment)": (
        "segment",
        segment("Product List Viewed", list_id="hot_deals_1", category="Deals", products=LISTED),
        [("exposure", "hot_deals_1", [MONOPOLY, UNO], [0, 1])],
    ),
    "a click, with its list (Segment)": (
        "segment",
        segment("Product Clicked", list_id="hot_deals_1", **CLICKED),
        [("click", "hot_deals_1", [MONOPOLY], [2])],
    ),
    "an order, with lists (Segment)": (
        "segment",
        segment(
            "Order Completed",
            order_id="50314b8e9bcf000000000000",
            products=[LISTED[0] | {"list_id": "r1"}, LISTED[1] | {"list_id": "r2"}],
        ),
        [("purchase", "r1", [MONOPOLY], [0]), ("purchase", "r2", [UNO], [1])],
    ),
    "a list (Snowplow)": (
        "snowplow",
        snowplow("list_view", FASHION, "Recommended Products"),
        [("exposure", "Recommended Products", ["P123", "P124", "P125"], [0, 1, 2])],
    ),
    "a click (Snowplow)": (
        "snowplow",
        snowplow("list_click", FASHION[1:2], "Recommended Products"),
        [("click", "Recommended Products", ["P124"], [1])],
    ),
    "a transaction, with its list (Snowplow)": (
        "snowplow",
        snowplow("transaction", FASHION[2:], "r1"),
        [("purchase", "r1", ["P125"], [2])],
    ),
    "a list (GA4)": (
        "ga4",
        ga4("view_item_list", item_list_id=LIST, items=TEES),
        [("exposure", LIST, ["SKU_12345", "SKU_12346"], [0, 1])],
    ),
    "a click (GA4)": (
        "ga4",
        ga4("select_item", item_list_id=LIST, items=TEES[:1]),
        [("click", LIST, ["SKU_12345"], [0])],
    ),
    "a cart (GA4)": ("ga4", ga4("add_to_cart", value=9.99, items=TEES[:1]), [("cart", LIST, ["SKU_12345"], [0])]),
    "a purchase (GA4)": (
        "ga4",
        ga4("purchase", transaction_id="T_12345", value=30.98, items=TEES),
        [("purchase", LIST, ["SKU_12345"], [0]), ("purchase", LIST, ["SKU_12346"], [1])],
    ),
}


def test_orders_as_published_need_no_page() -> None:
    """Two orders of one item are two, and the same one twice is one."""
    order = segment("Order Completed", order_id="50314b8e9bcf000000000000", products=ORDERED)
    first = events("segment", order)
    assert [(e.__struct_config__.tag, e.item_id) for e in first] == [("order", MONOPOLY), ("order", UNO)]
    assert events("segment", order | {"timestamp": "2026-11-30T06:00:09Z"})[0].event_id == first[0].event_id
    again = events("segment", segment("Order Completed", order_id="2", products=ORDERED))
    assert len({e.event_id for e in (*first, *again)}) == 4
    (bought,) = events("snowplow", snowplow("transaction", FASHION[2:]) | TRANSACTION)
    (back,) = events("snowplow", snowplow("refund", FASHION[2:]) | TRANSACTION)
    assert [(e.__struct_config__.tag, e.item_id) for e in (bought, back)] == [("order", "P125"), ("refund", "P125")]
    assert bought.event_id != events("snowplow", snowplow("transaction", FASHION[2:]))[0].event_id
    (back,) = events("ga4", ga4("refund", transaction_id="T_12345", items=TEES[:1]))
    assert (back.__struct_config__.tag, back.item_id) == ("refund", "SKU_12345")


def places(event: Any) -> tuple[Any, Any]:
    return (event.items, event.slots) if isinstance(event, Exposure) else ([event.item_id], [event.position])


@pytest.mark.parametrize("name", MADE)
def test_published_examples_become_events(name: str) -> None:
    source, message, expected = MADE[name]
    found = events(source, message)
    brief = [(e.__struct_config__.tag, e.request_id, *places(e)) for e in found]
    assert brief == expected
    people = {"segment": "019mr8mf4r", "snowplow": "bc2e92ec6c204a14", "ga4": "123456.7654321"}
    assert {(e.user_id, e.ts_ms) for e in found} == {(people[source], 1_795_989_600_500 if source == "ga4" else TS_MS)}
    assert found == events(source, deepcopy(message)), "an event that comes again has the same id"
    assert len({e.event_id for e in found}) == len(found)


TS_MS = 1_796_018_400_500  # 2026-11-30 06:00:00.5 UTC


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a click as published names no list": (
        "segment",
        segment("Product Clicked", **CLICKED),
        "put its request_id into 'properties.list_id'",
    ),
    "an event that says nothing of pages": (
        "segment",
        segment("Products Searched", query="blue roses"),
        "'Products Searched' is none of 'Product List Viewed'",
    ),
    "no event": ("segment", {**TRACKED, "type": "identify"}, "'None' is none of"),
    "nobody": ("segment", {"event": "Product Clicked", "properties": CLICKED}, "'userId' is missing"),
    "a page ping": ("snowplow", {**ENRICHED, "event_name": "page_ping"}, "'None' is none of 'list_view'"),
    "a list without events": ("ga4", SENT, "without a list at 'events'"),
    "half of the places": (
        "ga4",
        ga4("view_item_list", item_list_id=LIST, items=[TEES[0], {"item_id": "x"}]),
        "give all one, or none",
    ),
    "a place in words": (
        "ga4",
        ga4("select_item", item_list_id=LIST, items=[{"item_id": "x", "index": "first"}]),
        "position 'first' of item 'x'",
    ),
    "no items": ("ga4", ga4("select_item", item_list_id=LIST, items=[]), "select_item without products"),
    "no time": (
        "segment",
        segment("Product Clicked", **CLICKED) | {"timestamp": "yesterday"},
        "'yesterday' is no time",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_mapped_is_one_line(name: str) -> None:
    source, message, why = REFUSED[name]
    (line,) = events(source, message)
    assert why in line
    assert "\n" not in line


@pytest.mark.parametrize("raw", [b"7", b"{", b'{"events": 7}', b'{"event": {"a": 1}}', b'{"events": [7, null]}', b"[]"])
def test_any_json_is_events_or_lines(raw: bytes) -> None:
    for source in TABLES:
        assert all(isinstance(one, BadEventError) for one in mapped(source, raw))


def test_the_intake_keeps_what_is_mapped_and_says_what_is_not() -> None:
    intake = Intake()
    both = {**SENT, "timestamp_micros": None, "events": [{"name": "scroll"}, *ga4("purchase", items=TEES)["events"]]}
    for kept, duplicates in ((2, 0), (0, 2)):
        status, answer, _ = asyncio.run(intake.ask("POST", "/events/ga4", both))
        assert (status, answer["kept"], answer["duplicates"], answer["refused"]) == (200, kept, duplicates, 1)
        assert answer["verdicts"][0]["reason"] == "unmapped"
    assert [value["item_id"] for value in intake.outlet.values] == ["SKU_12345", "SKU_12346"]
    assert (
        asyncio.run(intake.ask("POST", "/events/segment", segment("Products Searched", query="blue roses")))[0] == 422
    )
