# core
"""One message of each kind, as types: what the reference shows, and what tests send through the decoders.

::

    page-1   answered   0: lamp   1: 7   2: vase        user ann
             shown      0: vase   1: lamp                         (exposure: items, slots)
             clicked    vase, put into the cart, bought            (position 2: as answered)
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from millrace.contracts.events import (
    Cart,
    Click,
    Collect,
    DeadLetter,
    Exposure,
    Item,
    ItemChange,
    Order,
    Purchase,
    Refund,
    User,
)

PAGE, TS_MS = "5b1c0e7a", 1_772_414_000_500

EXAMPLES: Mapping[str, Struct] = {
    "exposure": Exposure("e1", PAGE, TS_MS, "ann", ["vase", "lamp"], slots=[2, 0]),
    "click": Click("c1", PAGE, TS_MS + 3_000, "ann", "vase", 2),
    "collect": Collect("f1", PAGE, TS_MS + 9_000, "ann", "vase", 2),
    "cart": Cart("k1", PAGE, TS_MS + 12_000, "ann", "vase", 2),
    "purchase": Purchase("b1", PAGE, TS_MS + 60_000, "ann", "vase", 2),
    "order": Order("b1", TS_MS + 86_400_000, "ann", "vase"),
    "refund": Refund("r1", TS_MS + 864_000_000, "ann", "vase"),
    "user": User("ann", {"kind": "business", "age": 34, "tags": ["garden", "kitchen"]}),
    "item-change": ItemChange(7, {"price": 9.5}),
    "item": Item(7, {"category": "shoes", "price": 12.5, "tags": ["red", "new"]}, born_ms=TS_MS - 86_400_000),
    "dead-letter": DeadLetter.of(
        "wrong-type",
        "Expected `int`, got `str` - at `$.ts_ms`; send milliseconds since 1970 as a whole number",
        "events",
        3,
        41,
        b'{"ts":1}',
    ),
}
"""By the name of the schema."""
