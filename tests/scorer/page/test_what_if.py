"""A what-if: the page as if the user had just clicked. It is the page that follows when the click has been counted, and
nobody is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from millrace.basics.hashing import column_hash
from millrace.contracts.events import Id, Item
from millrace.contracts.online_layout import PROFILE, RECENT, Past, Recent, pack_recent, unpack_recent, window_fields
from millrace.contracts.schema import parse_schema
from millrace.windows.tiles import TileStore
from scorer.catalog.item_index import ItemIndex
from tests.scenes import scorer_vectors
from tests.scenes.scorer_shop import NOW_MS, SCHEMA_TOML, OneWorker, item, stock

SCHEMA = parse_schema(
    SCHEMA_TOML.read_text(encoding="utf-8")
    + """
[[windows.keys]]
columns = ["user_id", "position"]
[[windows.means]]
of = "price"
step = 0.5
[[fields]]
name = "last_clicks"
of = "user"
slots = 2
"""
)
CATEGORIES = [f"c{n % 5}" for n in range(40)]
ITEMS = [
    item(n, category, attributes={"price": float(n + 1), "tags": ["red"]}) for n, category in enumerate(CATEGORIES)
]
CLICK, PRICES = SCHEMA.windows.actions.index("click"), len(SCHEMA.windows.actions)
KEYS = [key.columns for key in SCHEMA.windows.keys]


class Model:
    """A score of every number and feature id, so that none of them can be forgotten."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        weights = np.linspace(-1, 1, num.shape[1]) + 0.03
        drawn = (cat.view(np.uint64) >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5
        z = np.log1p(np.abs(num, dtype=np.float64)) @ weights + drawn.sum(axis=1) / 10
        found: NDArray[np.float32] = (1 / (1 + np.exp(-z / 10))).astype(np.float32)
        return found


class Shop(OneWorker):
    def __init__(self, items: Sequence[Item] = ITEMS) -> None:
        super().__init__(None, schema=SCHEMA)
        self.scorer.install(scorer_vectors.note(7), Model())
        stock(self.scorer, items, ItemIndex(self.scorer.builder))
        self.click([3, 7], NOW_MS - 7_200_000)

    def keys(self, clicked: Sequence[Id]) -> NDArray[np.uint64]:
        """The user's own window keys of these items, made by hand: of the user, and of user and category. (n, 2)"""
        columns = {
            "user_id": column_hash(["ann"]),
            "category": column_hash([CATEGORIES[int(i)] for i in clicked]),
        }
        made = self.scorer.builder.keys(columns, len(clicked))
        return made[:, [KEYS.index(("user_id",)), KEYS.index(("user_id", "category"))]]

    def click(self, clicked: Sequence[Id], ts_ms: int) -> None:
        """Ann's record after clicks, the newest first."""
        before = self.users.records.get("ann", {})
        keys, store = self.keys(clicked), TileStore.of(SCHEMA.windows)
        own = np.unique(self.keys(list(range(5))))
        store.put(own, [before.get(field, b"") for field in window_fields(own)])
        n = len(clicked)
        store.add(keys, np.full(n, ts_ms), np.full(n, CLICK))
        steps = [round((int(i) + 1) / 0.5) for i in clicked]
        store.add(keys, np.full(n, ts_ms), np.full(n, PRICES), np.array(steps, np.uint32))
        recent = [*(Past(i, ts_ms) for i in clicked), *unpack_recent(before.get(RECENT)).clicks]
        self.users.records["ann"] = {
            PROFILE: b'{"kind": "business"}',
            **dict(zip(window_fields(own), store.export(own), strict=True)),
            RECENT: pack_recent(Recent(recent, [])),
        }


@pytest.fixture
def shop() -> Shop:
    return Shop()


def placed(answer: Any) -> list[tuple[Any, float]]:
    return [(one["item_id"], one["score"]) for one in answer["items"]]


@pytest.mark.parametrize("clicked", [[11], ["11", 12]])
def test_it_is_the_page_that_follows_when_the_click_has_been_counted(shop: Shop, clicked: list[Id]) -> None:
    asked: dict[str, Any] = {"request_id": "p", "size": 12, "ts_ms": NOW_MS}
    before = placed(shop.ask(**asked))
    supposed = placed(shop.ask(**asked, if_clicked=clicked))
    assert supposed != before
    shop.click(clicked, NOW_MS - 1)
    assert placed(shop.ask(**asked)) == supposed


def test_as_if_nothing_had_been_clicked_it_is_the_page_of_now_and_has_reasons(shop: Shop) -> None:
    asked: dict[str, Any] = {"request_id": "p", "size": 12, "explain": True}
    page = shop.ask(**asked)
    supposed = shop.ask(**asked, if_clicked=[])
    assert supposed == page | {"request_id": None}
    assert all(one["reasons"] for one in supposed["items"])


def counted() -> dict[Any, float]:
    """What counts pages, in this process."""
    names = ("millrace_scorer_items_total", "millrace_filtered_pages_total", "millrace_list_pages_total")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name in names
    }


def test_nothing_is_logged_counted_or_changed(shop: Shop) -> None:
    asked: dict[str, Any] = {"request_id": "p", "size": 12, "only": {}}
    before, record, pages = shop.ask(**asked), dict(shop.users.records["ann"]), counted()
    assert len(shop.sent) == 1
    for _ in range(2):
        assert shop.ask(**asked, if_clicked=[11, 12, 11])["request_id"] is None
    assert shop.ask(**asked, exclude=[1], if_clicked=[11])["items"]
    assert shop.ask(**asked, exclude=list(range(40)), if_clicked=[11])["items"] == []
    assert (shop.users.records["ann"], shop.users.ranked, counted(), len(shop.sent)) == (record, {}, pages, 1)
    assert shop.ask(**asked) == before
    assert counted() != pages, "a real page is counted"


def test_what_was_just_clicked_can_be_hidden(shop: Shop) -> None:
    shown = {one for one, _ in placed(shop.ask(hide=["clicked"], if_clicked=[11]))}
    assert not shown & {3, 7, 11}


def test_a_damaged_count_of_the_user_begins_anew(shop: Shop) -> None:
    (field,) = window_fields(shop.keys([11])[0, 1:])
    shop.users.records["ann"][field] = b"damaged"
    assert shop.ask(if_clicked=[11])["items"]
    assert shop.users.records["ann"][field] == b"damaged"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"if_clicked": [11, "mug"]}, ["'mug'", "not in the catalogue", "leave it out"]),
        ({"if_clicked": list(range(17))}, ["17 items", "16"]),
        ({"if_clicked": 11}, ["if_clicked", "array"]),
        ({"if_clicked": [11], "size": 2, "list": 5}, ["'if_clicked'", "'list'"]),
        ({"if_clicked": [11], "cursor": "a.1.1.5"}, ["'if_clicked'", "'cursor'"]),
    ],
)
def test_a_bad_what_if_is_one_line(shop: Shop, body: dict[str, Any], words: list[str]) -> None:
    said = shop.ask(400, **body)["error"]
    assert "\n" not in said
    assert [word for word in words if word not in said] == []


def test_before_there_is_a_model_there_is_no_what_if() -> None:
    bare = OneWorker(None, schema=SCHEMA)
    assert "no model" in bare.ask(503, if_clicked=[11])["error"]
