"""Filters in plain Python: a shop whose items are dicts, and what a page of it must be. The reference of
``test_scorer_filters``; it shares nothing with the scorer but the items' attributes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millrace.basics.hashing import column_hash
from millrace.contracts.events import Item
from millrace.contracts.online_layout import RECENT, Past, Recent, pack_recent
from millrace.contracts.schema import Schema, parse_schema
from millrace.windows.tiles import TileStore
from scorer.catalog.item_index import ItemIndex
from tests.scenes import scorer_vectors
from tests.scenes.scorer_shop import NOW_MS, SCHEMA_TOML, OneWorker, record, stock

SHOP = SCHEMA_TOML.read_text(encoding="utf-8")
SEEN = '[[windows.keys]]\ncolumns = ["user_id", "item_id"]\n'
FILTERS = 'filters = ["in_stock", "region", "tags"]\n'
SCHEMA = parse_schema(FILTERS + SHOP + SEEN)


class Model:
    """Scores that are drawn for each item and user: no two are equal, and none depends on the rows beside it."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        mixed = cat[:, :4].view(np.uint64) * np.array([1, 3, 5, 7], np.uint64)
        drawn = (mixed.sum(axis=1) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        found: NDArray[np.float32] = (drawn.astype(np.float32) + np.float32(1)) / np.float32(2**24 + 2)
        return found


class Shop(OneWorker):
    """A worker over these items; user ``ann`` clicked, bought and saw some of them."""

    def __init__(
        self,
        items: Sequence[Item],
        clicked: Sequence[Any] = (),
        bought: Sequence[Any] = (),
        seen: Sequence[Any] = (),
        schema: Schema = SCHEMA,
        **others: Any,
    ) -> None:
        super().__init__(None, schema=schema, **{"candidates": 100, **others})
        self.builder = self.scorer.builder
        self.index = ItemIndex(self.builder)
        self.scorer.install(scorer_vectors.note(7), Model())
        self.stock(items)
        self.know(clicked, bought, seen)

    def stock(self, items: Sequence[Item], lists: bool = True) -> None:
        """The items as their feed brings them, in the item table; and new lists."""
        stock(self.scorer, items, self.index, lists)

    def know(
        self, clicked: Sequence[Any] = (), bought: Sequence[Any] = (), seen: Sequence[Any] = (), user: str = "ann"
    ) -> None:
        """What a user did, newest first."""
        pasts = [[Past(i, NOW_MS - 1000 * (n + 1)) for n, i in enumerate(some)] for some in (clicked, bought)]
        columns = {"user_id": column_hash([user]), "item_id": column_hash([str(i) for i in seen])}
        keys = self.builder.keys(columns, len(seen))[:, -1]
        store = TileStore.of(self.schema.windows)
        n = len(keys)
        store.add(keys, np.full(n, NOW_MS - 3_600_000), np.zeros(n, np.int64))
        self.users.records[user] = record(keys, store) | {RECENT: pack_recent(Recent(*pasts))}

    def scores(self, ids: Sequence[Any]) -> dict[str, float]:
        """The model's score of each item."""
        answer = self.ask(path="/score", items=list(ids))
        return dict(zip(map(str, ids), answer["scores"], strict=True))


# -- what a page must be ----------------------------------------------------------------------------------------------

TRUTH = {"true": "1", "True": "1", "TRUE": "1", "false": "0", "False": "0", "FALSE": "0"}


def plain(value: Any) -> str:
    """A value as text: whole numbers without a point, true as 1."""
    if isinstance(value, bool | float) and float(value).is_integer():
        value = int(value)
    return str(value)


def values(item: Item, attribute: str, most: int = 99) -> list[str]:
    """The distinct values that an item has of an attribute, as text, without missing ones."""
    found = item.attributes.get(attribute)
    if attribute == "tags" and isinstance(found, str):  # a field of several slots
        found = [part.strip() for part in found.split(",")]
    many = found if isinstance(found, list) else [] if found is None else [found]
    return list(dict.fromkeys(plain(v) for v in many if v != ""))[:most]


def holds(item: Item, attribute: str, asked: Any) -> bool:
    """Whether an item has one of the values: true means "true" as well; or a number in a range."""
    if isinstance(asked, dict):
        value: Any = item.attributes.get(attribute)
        number = np.float32(value or 0)
        low, high = (
            np.float32(np.clip(asked.get(name, end), -3e38, 3e38)) for name, end in (("min", -3e38), ("max", 3e38))
        )
        return bool(low <= number <= high)
    wanted = {plain(v) for v in (asked if isinstance(asked, list) else [asked])}
    if attribute == "item_id":
        return str(item.item_id) in wanted
    flags = {TRUTH[w] for w in wanted if w in TRUTH}
    flags |= {plain(v) for v in (asked if isinstance(asked, list) else [asked]) if isinstance(v, bool)}
    wanted |= flags | {text for text, flag in TRUTH.items() if flag in flags}
    return any(v in wanted for v in values(item, attribute))


def passes(item: Item, body: Mapping[str, Any], did: Mapping[str, Sequence[Any]]) -> bool:
    """Whether an item may come on the page that ``body`` asks for, of a user who ``did`` this."""
    out = {str(i) for i in body.get("exclude", [])}
    out |= {str(i) for what in body.get("hide", []) for i in did[what]}
    return (
        not item.gone
        and str(item.item_id) not in out
        and all(holds(item, name, asked) for name, asked in body.get("only", {}).items())
        and not any(holds(item, name, asked) for name, asked in body.get("without", {}).items())
    )


def most_possible(items: Sequence[Item], caps: Mapping[str, int]) -> int:
    """How many of the items fit on one page under at most one cap."""
    if not caps:
        return len(items)
    ((name, most),) = caps.items()
    first = Counter((values(i, name, 1) or [""])[0] for i in items)
    return sum(n if value == "" else min(n, most) for value, n in first.items())


def greedy(ids: Sequence[str], item: Callable[[str], Item], caps: Mapping[str, int], size: int) -> list[str]:
    """The first ``size`` that fit, each beside those before it."""
    page, taken = list[str](), Counter[tuple[str, str]]()
    for i in ids:
        of = [(name, value) for name in caps for value in values(item(i), name, 1)]
        if len(page) < size and all(taken[pair] < caps[pair[0]] for pair in of):
            page.append(i)
            taken.update(of)
    return page
