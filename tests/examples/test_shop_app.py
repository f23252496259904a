"""The example shop and its visitors, in process, over a fake Millrace; the README of the client, as code."""

from __future__ import annotations

import asyncio
import doctest
import re
from importlib import import_module
from typing import Any

import httpx
import pytest

from millrace.contracts.schema import load_schema
from millrace_client import AsyncFakeMillrace, Exposure, FakeMillrace, Item
from tests.architecture import ROOT

FOLDER = ROOT / "examples" / "shop-app"
NAMES = ("catalogue", "app", "visitors")


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The example's modules, as its own folder sees them."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return {name: import_module(name) for name in NAMES}


class Visitor:
    """A browser without a page."""

    def __init__(self, app: Any) -> None:
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop")

    async def listed(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get("/products")).json()
        return found

    async def post(self, path: str, **body: Any) -> int:
        return (await self.http.post(path, json=body)).status_code


async def test_the_page_is_millraces_and_what_is_seen_and_clicked_goes_back(files: dict[str, Any]) -> None:
    products = files["catalogue"].make(40)
    async with AsyncFakeMillrace() as millrace:
        app = files["app"].make_app(millrace, products)
        await millrace.put_items(one.item for one in products.values())
        ann, bob = Visitor(app), Visitor(app)
        async with ann.http, bob.http:
            assert (await ann.http.get("/products")).status_code == 400  # no cookie yet
            for visitor in (ann, bob):
                assert "Odds &amp; Ends" in (await visitor.http.get("/")).text
            listed = await ann.listed()
            assert [one["position"] for one in listed["products"]] == list(range(24))
            assert all(one["in_stock"] for one in listed["products"])
            page, last = listed["request_id"], listed["products"][-1]["item_id"]
            assert await ann.post("/seen", request_id=page, positions=[0, 1, 2]) == 204
            assert await ann.post("/click", request_id=page, item_id=last) == 204
            # What a browser says is checked: another's page, no such page, item or position, no JSON.
            assert await bob.post("/click", request_id=page, item_id=last) == 204
            assert await ann.post("/click", request_id="elsewhere", item_id=last) == 204
            assert await ann.post("/click", request_id=page, item_id="elsewhere") == 204
            assert await ann.post("/seen", request_id=page, positions=[99]) == 204
            assert (await ann.http.post("/click", content=b"{")).status_code == 400
            assert await ann.post("/seen", request_id=page, positions=[]) == 400
            await millrace.flush()
            exposure, click = millrace.server.events
            assert isinstance(exposure, Exposure)
            assert exposure.items == [one["item_id"] for one in listed["products"][:3]]
            assert (click.user_id, getattr(click, "position", None)) == (exposure.user_id, 23)
            assert (await ann.listed())["products"][0]["item_id"] == last  # its page changes as one clicks


async def test_the_shop_is_open_without_millrace(files: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    async with AsyncFakeMillrace() as millrace:
        app = files["app"].make_app(millrace, files["catalogue"].make(40))
        visitor = Visitor(app)
        async with visitor.http:
            await visitor.http.get("/")
            millrace.server.fail(401, times=10)
            listed = await visitor.listed()
            assert (listed["request_id"], len(listed["products"])) == ("", 24)
            assert await visitor.post("/seen", request_id="", positions=[0]) == 204
        assert millrace.waiting == 0
    assert "shown in the shop's own order" in capsys.readouterr().out


def test_the_schema_names_what_the_products_have(files: dict[str, Any]) -> None:
    schema = load_schema(FOLDER / "schema.toml")
    known = {field.name for field in schema.fields} | set(schema.filters)
    (one, *_), other = files["catalogue"].make(3).values(), files["catalogue"].make(3)
    assert set(one.item.attributes) <= known
    assert files["catalogue"].make(3) == other, "the same products every time"
    page = (FOLDER / "index.html").read_text()
    assert set(re.findall(r'<symbol id="(\w+)"', page)) == set(files["catalogue"].CATEGORIES)
    assert not re.search(r'(src|href)="(https?:)?//', page), "nothing from elsewhere"


def test_visitors_click_what_they_like(files: dict[str, Any]) -> None:
    visitors = files["visitors"]

    async def day() -> Any:
        async with AsyncFakeMillrace() as shop:
            asked = visitors.parsed(
                ["--send", "--users", "4", "--likes", "shoes", "--likes", "plants", "--seconds", "0"]
            )
            await visitors.run(asked, shop)
            assert len(shop.server.users) == 4
            tastes = [visitors.Taste("shoes", below=60.0), visitors.Taste("plants")]
            crowd = visitors.Crowd(shop, files["catalogue"].make(), tastes, users=4, size=100)
            for user in [0, 1] * 5:
                await crowd.visit(user)
            await shop.flush()
            products = crowd.products
            clicks: dict[str, list[Any]] = {"visitor-0": [], "visitor-1": []}
            for event in shop.server.events:
                if not isinstance(event, Exposure):
                    clicks[str(event.user_id)].append(products[str(event.item_id)])
            return crowd.tally, clicks

    tally, clicks = asyncio.run(day())
    assert (tally.pages, tally.exposures, tally.clicks) == (10, 1000, sum(map(len, clicks.values())))
    liked = [one.category == "shoes" and one.price < 60 for one in clicks["visitor-0"]]
    assert sum(liked) > len(liked) / 2
    assert sum(one.category == "plants" for one in clicks["visitor-1"]) > len(clicks["visitor-1"]) / 2
    assert 0 < tally.chance < 0.2


def test_the_clients_readme_is_true() -> None:
    """Its first piece runs against a fake; its test is one."""
    pieces = re.findall(r"^```python\n(.*?)^```$", (ROOT / "client" / "README.md").read_text(), re.M | re.S)
    use, positions, own_test = pieces
    with FakeMillrace() as shop:
        shop.put_items(Item(str(n), {"in_stock": True}) for n in range(30))
        piece = use.replace("with Millrace() as shop:", "if True:")
        names: dict[str, Any] = {"shop": shop}
        exec(piece, names)
        exec(positions, names)
        assert len(shop.exposures) == 5
        assert len(shop.clicks) == 1
    exec(own_test, names)
    names["test_a_click_is_reported"]()


@pytest.mark.parametrize("name", ["millrace_client.calls", "millrace_client.fake"])
def test_the_clients_examples_are_true(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed, tried = doctest.testmod(import_module(name))
    assert failed == 0, capsys.readouterr().out
    assert tried > 0
