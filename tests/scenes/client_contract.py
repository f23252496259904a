"""What every Millrace does for a client, the fake as well as the real one: one suite, run against each.

A function here takes a client and a fresh prefix for its ids, so that all of them can share one running loop. Real
pages come some time after what they are made of, so each waits until a condition holds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from millrace_client import BadRequest, Item, Millrace, MillraceClientError, NotOnPage, Page, Refused, Unavailable, User
from tests.scenes.waiting import until

Check = Callable[[Millrace, str], None]
CHECKS: list[Check] = []
"""Found by themselves: whoever adds one adds it to both."""


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def catalogue(p: str) -> list[Item]:
    """Six items: shoes and hats of this check's own, cheap and dear."""
    kinds = (f"{p}shoes", f"{p}hats")
    return [Item(f"{p}{n}", {"category": kinds[n % 2], "price": 10.0 * (n + 1), "in_stock": n != 5}) for n in range(6)]


def page_of(shop: Millrace, user: str, wanted: set[str], **asked: object) -> Page:
    """The first page on which exactly the wanted items of this check are."""
    found: list[Page] = []

    def there() -> bool:
        try:
            found[:] = [shop.recommend(user, **asked)]  # type: ignore[arg-type]
        except Unavailable:
            return False
        return found[0].request_id is not None and {str(item.item_id) for item in found[0].items} >= wanted

    until(there, f"a page with {sorted(wanted)}", more=lambda: str(found))
    return found[0]


@check
def what_was_sent_comes_back_on_a_page(shop: Millrace, p: str) -> None:
    receipt = shop.put_items(catalogue(p))
    assert (receipt.kept, receipt.refused, len(receipt.verdicts)) == (6, 0, 6)
    assert shop.put_users([User(f"{p}u", {})]).kept == 1
    page = page_of(shop, f"{p}u", {f"{p}{n}" for n in range(6)})
    assert [item.position for item in page.items] == list(range(len(page.items)))
    assert page.find(f"{p}3") in page.items


@check
def events_are_kept_and_none_is_refused(shop: Millrace, p: str) -> None:
    shop.put_items(catalogue(p))
    page = page_of(shop, f"{p}u", {f"{p}{n}" for n in range(6)})
    refused = shop.refused_total
    assert shop.exposure(page)
    assert shop.click(page, f"{p}2")
    assert shop.purchase(page, page.items[0])
    shop.flush()
    assert (shop.waiting, shop.refused_total) == (0, refused)


@check
def one_bad_item_does_not_keep_the_others_out(shop: Millrace, p: str) -> None:
    bad = Item(f"{p}bad", {"price": "12,50"})
    with pytest.raises(Refused, match=r"1 messages were refused.*price") as caught:
        shop.put_items([*catalogue(p), bad])
    (refusal,) = caught.value.refusals
    assert refusal.reason
    assert f"{p}bad".encode() in refusal.message
    page_of(shop, f"{p}u", {f"{p}{n}" for n in range(6)})


@check
def filters_hold(shop: Millrace, p: str) -> None:
    shop.put_items(catalogue(p))
    own = {f"{p}{n}" for n in range(6)}
    page_of(shop, f"{p}u", own)

    def own_of(**asked: object) -> set[str]:
        page = shop.recommend(f"{p}u", **asked)  # type: ignore[arg-type]
        return {str(item.item_id) for item in page.items} & own

    assert own_of(only={"category": f"{p}shoes"}) == {f"{p}{n}" for n in (0, 2, 4)}
    assert own_of(without={"category": [f"{p}shoes"]}) == {f"{p}{n}" for n in (1, 3, 5)}
    assert own_of(only={"in_stock": True}) == own - {f"{p}5"}
    assert own_of(exclude=[f"{p}0", f"{p}1"]) == own - {f"{p}0", f"{p}1"}
    assert own_of(exclude=sorted(own), only={"category": (f"{p}shoes", f"{p}hats")}) == set()
    page = shop.recommend(f"{p}u", only={"category": {f"{p}shoes", f"{p}hats"}}, caps={"category": 1})
    assert len(page.items) == 2


@check
def a_pinned_item_stands_in_its_slot(shop: Millrace, p: str) -> None:
    shop.put_items(catalogue(p))
    page_of(shop, f"{p}u", {f"{p}{n}" for n in range(6)})
    pins = {f"{p}3": 0, f"{p}4": 2, f"{p}-no-such": 1}
    page = shop.recommend(f"{p}u", size=4, rerank={"pins": pins})
    assert [str(page.items[slot].item_id) for slot in (0, 2)] == [f"{p}3", f"{p}4"]
    assert len({item.item_id for item in page.items}) == 4


@check
def nothing_left_is_an_empty_page_with_a_note(shop: Millrace, p: str) -> None:
    shop.put_items(catalogue(p))
    page_of(shop, f"{p}u", {f"{p}0"})
    page = shop.recommend(f"{p}u", only={"category": f"{p}-no-such"})
    assert page.items == ()
    assert page.notes
    assert not shop.exposure(page)


@check
def ranges_hold(shop: Millrace, p: str) -> None:
    shop.put_items(catalogue(p))
    page_of(shop, f"{p}u", {f"{p}{n}" for n in range(6)})
    kinds = [f"{p}shoes", f"{p}hats"]
    for asked, wanted in (({"min": 20, "max": 50}, (1, 2, 3, 4)), ({"max": 10}, (0,)), ({"min": 60.5}, ())):
        page = shop.recommend(f"{p}u", only={"category": kinds, "price": asked})
        assert {str(item.item_id) for item in page.items} == {f"{p}{n}" for n in wanted}
    page = shop.popular(only={"category": kinds}, without={"price": {"max": 40}})
    assert {str(item.item_id) for item in page.items} == {f"{p}4", f"{p}5"}


@check
def items_like_one_are_others_that_pass(shop: Millrace, p: str) -> None:
    shop.put_items(catalogue(p))
    page_of(shop, f"{p}u", {f"{p}{n}" for n in range(6)})
    shoes = {"category": f"{p}shoes"}
    page = shop.similar(f"{p}0", 5, user_id=f"{p}u", only=shoes)
    assert {str(item.item_id) for item in page.items} == {f"{p}2", f"{p}4"}
    assert shop.exposure(page)
    assert shop.click(page, page.items[0])
    shop.flush()
    assert shop.similar(f"{p}-no-such", 2, only=shoes).items, "popular ones, in place of an unknown item's"
    assert len(shop.popular(2, user_id=f"{p}u", only=shoes, session=f"{p}s", hide=["bought"]).items) == 2
    for nobodys in (shop.popular(3), shop.similar(f"{p}0", 3)):
        assert (nobodys.request_id, nobodys.user_id, len(nobodys.items)) == (None, None, 3)
        assert not shop.exposure(nobodys)
    with pytest.raises(BadRequest, match="need a user"):
        shop.popular(hide=["bought"])
    with pytest.raises(BadRequest, match="400"):
        shop.similar(f"{p}0", 0)


@check
def an_item_is_known_until_it_is_deleted(shop: Millrace, p: str) -> None:
    shop.put_items([*catalogue(p), Item(f"{p}a/b", {"price": 3.5}, born_ms=1_700_000_000_000)])
    page_of(shop, f"{p}u", {f"{p}a/b"})
    found = shop.item(f"{p}a/b")
    assert (found.item_id, found.on_pages, found.born_ms) == (f"{p}a/b", True, 1_700_000_000_000)
    assert found.numbers["price"] == 3.5
    with pytest.raises(BadRequest, match="404"):
        shop.item(f"{p}-no-such")


@check
def an_item_that_was_deleted_comes_no_more(shop: Millrace, p: str) -> None:
    shop.put_items(catalogue(p))
    page_of(shop, f"{p}u", {f"{p}0", f"{p}1"})
    assert shop.delete_item(f"{p}0").kept == 1
    until(lambda: shop.recommend(f"{p}u").find(f"{p}0") is None, "it is gone from pages")


@check
def a_wrong_request_is_the_callers_mistake(shop: Millrace, p: str) -> None:
    shop.put_items(catalogue(p))
    page = page_of(shop, f"{p}u", {f"{p}0"})
    for asked in ({"size": 0}, {"size": -1}, {"hide": ["liked"]}, {"caps": {"category": 0}}):
        with pytest.raises(BadRequest, match="400"):
            shop.recommend(f"{p}u", **asked)
    with pytest.raises(NotOnPage, match="not on the page"):
        shop.click(page, f"{p}-elsewhere")


@check
def a_list_is_handed_out_in_parts(shop: Millrace, p: str) -> None:
    shop.put_items(catalogue(p))
    page_of(shop, f"{p}u", {f"{p}{n}" for n in range(6)})
    first = shop.recommend(f"{p}u", size=2, list_size=6)
    second = shop.recommend(f"{p}u", size=2, cursor=first.cursor)
    with pytest.raises(BadRequest, match="cursor"):
        shop.recommend(f"{p}u", size=2, cursor=first.cursor, exclude=["x"])
    assert (first.offset, second.offset) == (0, 2)
    assert [item.position for item in second.items] == [0, 1]
    assert first.request_id != second.request_id
    assert not {str(i.item_id) for i in first.items} & {str(i.item_id) for i in second.items}
    assert shop.exposure(second)
    shop.flush()


def run(function: Check, shop: Millrace, prefix: str) -> None:
    """One check; a client's error is a failure with its line."""
    try:
        function(shop, prefix)
    except MillraceClientError as error:
        raise AssertionError(f"{function.__name__}: {type(error).__name__}: {error}") from error
