"""docs/tutorials/first-shop.md, done as it says, from an empty folder: a page of one's own items, a model that learnt
from one's own clicks, a shop in a browser whose page follows what is clicked; after a restart it still does.
"""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from millrace.commands.loop.monitor import fetch
from millrace_client import Millrace, Options, Page
from tests.architecture import ROOT
from tests.docs.walk import Block, Walker, answers, blocks
from tests.scenes.browser import CHROMIUM, Browser, browser
from tests.scenes.client_contract import CHECKS, run
from tests.scenes.waiting import LONG, until

PAGE = ROOT / "docs" / "tutorials" / "first-shop.md"
WALK = blocks(PAGE.read_text())
KINDS = ["novels", "comics", "maps"]
CLICKS = 2
"""Products of a kind that somebody opens of one page."""


@pytest.fixture
def walker(tmp_path: Path) -> Iterator[Walker]:
    found = Walker(tmp_path, cwd=ROOT, data=tmp_path / "my-shop")
    yield found
    found.kill()


def test_the_page_has_commands_for_each_step_and_nothing_is_left_out() -> None:
    text = PAGE.read_text()
    assert len(WALK) == len(re.findall(r"^```bash", text, re.M)) == text.count("\n```\n")
    assert [block.where for block in WALK if block.where] == ["install", "terminal=1", "terminal=2", "terminal=1"]
    assert len(re.findall(r"^## \d+\. ", text, re.M)) == 10


def test_blocks_are_found_as_they_stand() -> None:
    page = "a\n```bash\none\n\ntwo\n```\nb\n```json\nno\n```\n```bash terminal=1\nthree\n```\n"
    assert blocks(page) == [Block("one\n\ntwo\n", ""), Block("three\n", "terminal=1")]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found, so the walk sees no shop: install chromium")
def test_there_is_a_browser_for_the_shop_of_the_walk(tmp_path: Path) -> None:
    with browser(tmp_path) as tab:
        assert tab.evaluate("1 + 1") == 2


@pytest.mark.services
@pytest.mark.timeout(LONG)
@pytest.mark.slow
def test_the_walk_reaches_a_page_of_ones_own_that_follows_ones_clicks(walker: Walker, tmp_path: Path) -> None:
    again = max(n for n, block in enumerate(WALK) if block.where == "terminal=1")
    for block in WALK[:again]:
        walker.do(block)

    # The steps said what they should have said.
    _, sent, page, reported, *rest = walker.printed
    assert [verdict["status"] for verdict in answers(sent)[0]["verdicts"]] == ["kept", "kept", "refused"]
    assert {item["item_id"] for item in answers(page)[0]["items"]} == {"mug", "lamp"}
    assert answers(reported)[0]["kept"] == 2
    assert any(re.search(r"novels among the first ten; model version \d+, model", text) for text in rest)
    assert answers(walker.printed[-1])[-1]["pages"] > 0, "visitors came"

    with Millrace(walker.where["intake"], walker.where["scorer"], options=Options(page_s=30.0)) as shop:
        model = json.loads(fetch(f"{walker.where['scorer']}/model"))
        assert model["trained"] > 0
        assert model["click_to_served_ms"]["count"] > 0
        mine_is_on_top(shop)
        for check in CHECKS:
            run(check, shop, f"{check.__name__[:8]}-")
        if CHROMIUM:
            with browser(tmp_path) as tab:
                the_page_follows(tab, walker.shop, shop)

    walker.stop("terminal=2")
    for block in WALK[again:]:
        walker.do(block)
    assert len(answers(walker.printed[-1])[0]["items"]) == 5
    with Millrace(walker.where["intake"], walker.where["scorer"], options=Options(page_s=30.0)) as shop:
        mine_is_on_top(shop)
        assert json.loads(fetch(f"{walker.where['scorer']}/model"))["trained"] >= model["trained"]
    walker.stop("terminal=1")


def mine_is_on_top(shop: Millrace) -> None:
    """What was clicked in step 6 stands high on that user's page; labels that still come only help."""

    def place() -> float:
        return rank(model_page(shop, "me", category=KINDS), lambda i: int(i.removeprefix("own-")) % 3 == 0)

    until(lambda: place() < 0.3, "novels are near the top of my page", every=0.5, more=lambda: f"{place():.2f}")


def the_page_follows(tab: Browser, url: str, shop: Millrace) -> None:
    """Somebody opens products of one kind again and again, in a browser, and the page moves towards that kind.

    A young model's order moves by itself too, so it has to be this visitor's doing: a stranger opens another kind as
    often, and each has their own kind above the other's. One who opens nothing would not do: what all clicks of a shop
    are on rises for everybody, after some seconds as high as for the visitor.
    """
    cookie: dict[str, Any] = {}

    def visits() -> bool:
        tab.call("Network.clearBrowserCookies")
        tab.go(url)
        turned(tab, 0)
        cookie.update(tab.call("Network.getCookies", urls=[url])["cookies"][0])
        return shop.recommend(cookie["value"], only={"in_stock": True}).arm == "model"

    until(visits, "a visitor whose pages the model makes, as nine in ten are")
    products = catalogue()
    first = shown_kinds(tab)
    # Of the kinds on the first page that the made-up visitors do not like, the one that stands worst, and for the
    # stranger the one before it; of all such kinds, where the page has learnt to show fewer than two.
    liked = {"shoes", "plants"}
    shown, sold = ({*kinds} - liked for kinds in (first, (one.category for one in products.values())))
    kinds = sorted(shown if len(shown) > 1 else sold)

    def place(user: str, kind: str) -> float:
        page = model_page(shop, user, in_stock=True)
        return rank(page, lambda i: i in products and products[i].category == kind)

    other, kind = sorted(kinds, key=lambda one: place(cookie["value"], one))[-2:]
    before = place(cookie["value"], kind)
    found: list[list[tuple[float, float]]] = []

    def follows() -> bool:
        turn = int(tab.evaluate("Number(document.querySelector('#products').dataset.page)"))
        clicked = tab.evaluate(
            f"[...document.querySelectorAll('.tile[data-category={kind}]')].slice(0, {CLICKS})"
            ".map((one) => one.click()).length"
        )
        if clicked:
            turned(tab, turn)
        else:
            # A page without any, after which nothing would ever change: the visitor finds them in their category.
            opens(shop, cookie["value"], kind)
            tab.go(url)
            turned(tab, 0)
        opens(shop, "stranger", other)
        found.append([(place(user, kind), place(user, other)) for user in (cookie["value"], "stranger")])
        (mine, below), (strangers, above) = found[-1]
        climbed = mine < before - 0.2 and shown_kinds(tab)[:12].count(kind) > first[:12].count(kind)
        return climbed and mine < below and above < strangers

    until(follows, f"the page follows clicks on {kind}", every=0.2, more=lambda: f"{found[-20:]} {shown_kinds(tab)}")


def opens(shop: Millrace, user: str, kind: str) -> None:
    """Somebody opens some products of a kind in its category."""
    page = shop.recommend(user, size=CLICKS, only={"in_stock": True, "category": kind})
    shop.exposure(page)
    for item in page.items:
        shop.click(page, item)


def turned(tab: Browser, turn: int) -> None:
    until(
        lambda: bool(tab.evaluate(f"Number(document.querySelector('#products').dataset.page || 0) > {turn}")),
        "the page was asked for again",
    )


def shown_kinds(tab: Browser) -> list[str]:
    """Kinds of the products that the browser shows, in order."""
    found: list[str] = tab.evaluate("[...document.querySelectorAll('.tile')].map((one) => one.dataset.category)")
    return found


def catalogue() -> dict[str, Any]:
    """The example shop's products, from its own file."""
    products: dict[str, Any] = runpy.run_path(str(ROOT / "examples" / "shop-app" / "catalogue.py"))["make"]()
    return products


def model_page(shop: Millrace, user: str, **only: Any) -> Page:
    """All that there is for a user, as the model orders it. Before there is a model, lists answer."""
    found: list[Page] = []

    def made() -> bool:
        found[:] = [shop.recommend(user, only=only)]
        return found[0].arm == "model"

    until(made, "a page that the model made")
    return found[0]


def rank(page: Page, liked: Any) -> float:
    """Where the liked items stand on average: 0 is the top of the page, 1 its end, 0.5 chance."""
    places = [item.position for item in page.items if liked(str(item.item_id))]
    assert places, "none of them is on the page"
    return fmean(places) / (len(page.items) - 1)
