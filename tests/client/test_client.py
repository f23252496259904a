"""The client: positions, batches, retries, errors; sync and async, against a server in memory."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from millrace.contracts.events import Exposure as RealExposure
from millrace.contracts.events import Item as RealItem
from millrace.contracts.events import ItemChange as RealChange
from millrace.contracts.events import decode_event, decode_item, decode_user
from millrace_client import (
    AsyncFakeMillrace,
    AsyncMillrace,
    BadAnswer,
    BadRequest,
    FakeMillrace,
    FakeServer,
    Item,
    ItemChange,
    Millrace,
    MillraceClientError,
    NotOnPage,
    Options,
    Page,
    PlacedItem,
    QueueFull,
    Refusal,
    Refused,
    TooMuch,
    Unauthorised,
    Unavailable,
    User,
)
from millrace_client.calls import MOST_LINES, Answer, Call, line_of, parts, read_receipt, retry_after_s
from millrace_client.events import action_of, exposure_of
from millrace_client.messages import Exposure
from millrace_client.waiting import Tries, Waiting
from tests.scenes.client_contract import CHECKS, Check, run
from tests.scenes.filter_world import Shop
from tests.scenes.intake_desk import Intake, Outlet
from tests.scenes.scorer_shop import item, own_app, serving
from tests.scenes.waiting import PATIENCE, in_loop, until

PAGE = Page("r1", "u1", tuple(PlacedItem(f"i{n}", n, 0.5) for n in range(5)), ts_ms=5_000)
LISTED = Page(None, "u1", PAGE.items)
SLOW = Options(patience_s=0.05, page_s=0.05)
"""Long enough for a request in memory, and then it gives up."""


@pytest.mark.parametrize("function", CHECKS, ids=lambda function: function.__name__)
def test_the_fake_does_what_every_millrace_does(function: Check) -> None:
    with FakeMillrace(server=FakeServer(numeric=("price",))) as shop:
        run(function, shop, "c-")


# -- positions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "at", "items", "offset", "slots"),
    [
        (None, None, "01234", 0, None),
        (range(3), None, "012", 0, None),
        ([2, 3], None, "23", 2, None),
        ([2, 0, 3], None, "203", 0, [2, 0, 3]),
        ([0, 2, 3], None, "023", 0, [0, 2, 3]),
        ([1, 2], 0, "12", 0, [1, 2]),
        ([4, 1], 7, "41", 7, [4, 1]),
        ([PAGE.items[3], PAGE.items[1]], None, "31", 0, [3, 1]),
    ],
)
def test_an_exposure_names_slots_where_the_page_was_shown_otherwise(
    shown: list[int] | None, at: int | None, items: str, offset: int, slots: list[int] | None
) -> None:
    event = exposure_of(PAGE, shown, at, "e1", 9_000)
    assert event is not None
    assert (event.items, event.offset, event.slots) == ([f"i{n}" for n in items], offset, slots)
    real = decode_event(line_of(event))  # as the label join reads it
    assert isinstance(real, RealExposure)
    assert list(real.places) == [int(n) for n in items]


def test_an_event_is_never_before_its_page() -> None:
    for event in (exposure_of(PAGE, None, None, "e", 1_000), action_of("click", PAGE, "i2", "e", 1_000)):
        assert event is not None
        assert (event.ts_ms, event.sent_ms) == (5_000, 1_000)
    late = action_of("click", PAGE, PAGE.items[2], "e", 9_000)
    assert late is not None
    assert (late.ts_ms, late.position, late.item_id) == (9_000, 2, "i2")


def test_an_event_of_an_earlier_time_has_it() -> None:
    seen, bought = (
        exposure_of(PAGE, None, None, "e", 9_000, 6_000),
        action_of("purchase", PAGE, "i2", "e", 9_000, 7_000),
    )
    assert seen is not None
    assert bought is not None
    assert (seen.ts_ms, seen.sent_ms, bought.ts_ms) == (6_000, 9_000, 7_000)
    made = 1_772_414_000_000
    for ts_ms in (made - 120_000, made // 1000):  # another page's, or in seconds
        with pytest.raises(BadRequest, match="before its page"):
            action_of("click", Page("r1", "u1", PAGE.items, ts_ms=made), "i2", "e", made, ts_ms)
    with FakeMillrace() as shop:
        shop.put_items([Item("a", {})])
        page = shop.recommend("u1")
        shop.exposure(page, ts_ms=page.ts_ms + 1)
        for n, report in enumerate((shop.click, shop.collect, shop.cart, shop.purchase)):
            report(page, "a", ts_ms=page.ts_ms + 2 + n)
        shop.flush()
        assert [event.ts_ms - page.ts_ms for event in shop.events] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("shown", [[5], [-1], [0, 0], [PlacedItem("other", 1)]])
def test_what_is_not_on_the_page_is_said_at_once(shown: list[int]) -> None:
    with pytest.raises(NotOnPage):
        exposure_of(PAGE, shown, None, "e", 1)


def test_a_page_of_lists_has_nothing_to_report() -> None:
    with FakeMillrace() as shop:
        shop.server.young = True
        shop.put_items([Item("a", {})])
        page = shop.recommend("u1")
        assert page.request_id is None
        assert not shop.exposure(page)
        assert not shop.click(page, page.items[0])
        assert not shop.exposure(PAGE, shown=[])
        assert shop.events == []
        with pytest.raises(NotOnPage):  # a mistake stays one
            shop.click(LISTED, "elsewhere")


def test_a_page_survives_as_text() -> None:
    assert Page.from_json(PAGE.to_json()) == PAGE


def test_messages_are_those_of_the_contract() -> None:
    item = decode_item(line_of(Item(7, {"price": 1.5, "tags": ["a"]}, 3, True)))
    assert isinstance(item, RealItem)
    assert (item.item_id, item.attributes, item.born_ms, item.gone) == (7, {"price": 1.5, "tags": ["a"]}, 3, True)
    assert decode_user(line_of(User("u", {"vip": True}))).attributes == {"vip": True}
    for gone in (None, True):
        change = decode_item(line_of(ItemChange(7, {"price": None}, gone)))
        assert change == RealChange(7, {"price": None}, *([] if gone is None else [gone]))


# -- batches -------------------------------------------------------------------------------------------------------


def test_a_batch_is_due_by_size_by_age_and_when_somebody_waits() -> None:
    waiting = Waiting(10, 3, 5.0)
    assert waiting.due_s(0.0) is None
    waiting.add(b"a", 0.0)
    waiting.add(b"b", 4.0)
    assert waiting.due_s(4.0) == 1.0
    assert waiting.due_s(6.0) == 0.0
    waiting.add(b"c", 4.0)
    waiting.add(b"d", 4.0)
    assert waiting.due_s(4.0) == 0.0
    assert waiting.take() == [b"a", b"b", b"c"]
    assert len(waiting) == 4
    waiting.settle()
    assert (waiting.due_s(4.0), len(waiting)) == (5.0, 1)
    assert waiting.hurry() == 4
    assert waiting.due_s(4.0) == 0.0


def test_requests_are_cut_by_messages_and_bytes() -> None:
    assert [len(part) for part in parts([b"{}"] * (2 * MOST_LINES + 1))] == [MOST_LINES, MOST_LINES, 1]
    assert [len(part) for part in parts([b"x" * 9] * 5, 100, 20)] == [2, 2, 1]
    assert [len(part) for part in parts([b"x" * 99, b"y"], 100, 20)] == [1, 1]
    assert list(parts([])) == []


def test_events_go_out_in_order_and_many_at_a_time() -> None:
    with FakeMillrace(Options(batch_size=100, batch_seconds=60.0)) as shop:
        for _ in range(250):
            shop.exposure(PAGE, shown=range(2))
        shop.click(PAGE, "i1")
        shop.flush()
        assert [type(event).__name__ for event in shop.events] == ["Exposure"] * 250 + ["Action"]
        assert len({event.event_id for event in shop.events}) == 251
        assert shop.server.requests == 3


def test_a_full_queue_raises_or_waits_and_never_drops() -> None:
    with FakeMillrace(Options(queue_size=2, when_full="raise", batch_seconds=60.0)) as shop:
        shop.click(PAGE, "i0")
        shop.click(PAGE, "i1")
        with pytest.raises(QueueFull, match="2 events wait"):
            shop.click(PAGE, "i2")
        assert [click.item_id for click in shop.clicks] == ["i0", "i1"]
    with FakeMillrace(Options(queue_size=2, batch_seconds=60.0)) as shop:
        reporter = threading.Thread(target=lambda: [shop.click(PAGE, f"i{n % 5}") for n in range(7)])
        reporter.start()
        until(lambda: shop.waiting == 2, "the queue is full")
        until(lambda: _flushed(shop) and not reporter.is_alive(), "the reporter comes through")
        reporter.join()
        assert len(shop.clicks) == 7


def _flushed(shop: Millrace) -> bool:
    shop.flush()
    return True


# -- trouble -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503, 500, 0])
def test_events_are_tried_again_until_they_are_kept_and_count_once(status: int) -> None:
    with FakeMillrace() as shop:
        shop.server.fail(status, times=3, path="/events", retry_after_s=0.001)
        shop.exposure(PAGE)
        shop.click(PAGE, "i0")
        shop.flush()
        assert [type(event).__name__ for event in shop.events] == ["Exposure", "Action"]
        assert shop.refused_total == 0


def test_an_answer_that_was_lost_counts_nothing_twice() -> None:
    server = FakeServer()
    lost = 2

    def handle(request: httpx.Request) -> httpx.Response:
        nonlocal lost
        answer = server.answer(Call(request.method, str(request.url), request.content))
        if lost:
            lost -= 1
            raise httpx.ReadError("connection reset", request=request)
        return httpx.Response(answer.status, content=answer.body)

    with Millrace(transport=httpx.MockTransport(handle), first_pause_s=0.001) as shop:
        shop.click(PAGE, "i0")
        shop.flush()
    assert len(server.events) == 1
    assert server.requests == 3


@pytest.mark.parametrize(("status", "kind"), [(429, TooMuch), (503, Unavailable), (0, Unavailable)])
def test_a_flush_that_finds_no_end_says_why_and_loses_nothing(status: int, kind: type[Exception]) -> None:
    with FakeMillrace() as shop:
        shop.server.fail(status, times=10**9, path="/events")
        shop.click(PAGE, "i0")
        with pytest.raises(kind, match="1 events are not kept yet"):
            until(lambda: _flushed_within(shop, 0.05), "never")
        assert shop.waiting == 1
        shop.server._failing.clear()
        assert [click.item_id for click in shop.clicks] == ["i0"]


def _flushed_within(shop: Millrace, seconds: float) -> bool:
    until(lambda: shop._troubles.latest is not None, "a first try has failed")
    shop.flush(seconds)
    return True


def test_closing_with_events_that_nobody_took_says_so() -> None:
    shop = FakeMillrace()
    shop.server.fail(503, times=10**9)
    shop.click(PAGE, "i0")
    with pytest.raises(Unavailable, match="1 events are not kept yet"):
        shop.close(0.05)
    assert shop.waiting == 1, "it was not sent"
    with pytest.raises(QueueFull, match="closed"):
        shop.click(PAGE, "i0")
    with pytest.raises(Unavailable, match="closed"):
        shop.recommend("u1")
    shop.close()  # a second time is nothing
    assert not [thread for thread in threading.enumerate() if thread.name == "millrace-client"]


def test_refused_events_are_reported_one_by_one() -> None:
    reported: list[Refusal] = []
    with FakeMillrace(Options(on_refused=reported.append, batch_seconds=60.0)) as shop:
        shop.click(PAGE, "i0")
        shop._report(Exposure("", "r1", 1, "u1", ["i0"]))  # an empty event id
        shop.click(PAGE, "i1")
        assert [click.item_id for click in shop.clicks] == ["i0", "i1"]
        assert (shop.refused, shop.refused_total) == (reported, 1)
        assert reported[0].reason == "wrong-type"
        assert json.loads(reported[0].message)["items"] == ["i0"]


def test_a_callback_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fails(refusal: Refusal) -> None:
        raise RuntimeError("a bug of the shop")

    with FakeMillrace(Options(on_refused=fails)) as shop:
        shop._report(Exposure("", "r1", 1, "u1", ["i0"]))
        shop.click(PAGE, "i1")
        assert len(shop.clicks) == 1
    assert "on_refused failed" in caplog.text


def test_a_callback_reports_events_and_cannot_wait_for_its_own_client() -> None:
    errors: list[str] = []

    def answer(refusal: Refusal) -> None:
        shop.click(PAGE, "i2")
        for act in (lambda: shop.click(PAGE, "i3"), shop.flush, lambda: shop.recommend("u1")):
            try:
                act()
            except MillraceClientError as error:
                errors.append(str(error))

    with FakeMillrace(Options(on_refused=answer, queue_size=2)) as shop:
        shop._report(Exposure("", "r1", 1, "u1", ["i0"]))
        until(lambda: [click.item_id for click in shop.clicks] == ["i2"], "what the callback reported")
    assert [error.partition(";")[0] for error in errors] == [
        "2 events wait to be sent",
        *["on_refused waits for its own client"] * 2,
    ]


def test_calls_that_run_when_the_client_is_closed_end_with_an_error() -> None:
    slow, errors = threading.Event(), list[str]()

    async def handle(request: httpx.Request) -> httpx.Response:
        slow.set()
        await asyncio.sleep(PATIENCE)
        raise AssertionError("it was closed before")

    def ask() -> None:
        try:
            shop.recommend("u1")
        except Unavailable as error:
            errors.append(str(error))

    shop = Millrace(transport=httpx.MockTransport(handle), options=Options(page_s=PATIENCE))
    asker = threading.Thread(target=ask)
    asker.start()
    slow.wait(PATIENCE)
    shop.close()
    asker.join()
    assert len(errors) == 1


@pytest.mark.parametrize(("status", "kind"), [(401, Unauthorised), (400, BadRequest), (404, BadRequest)])
def test_events_that_would_fail_for_ever_are_handed_back(status: int, kind: type[Exception]) -> None:
    with FakeMillrace(Options(batch_seconds=60.0)) as shop:
        shop.server.fail(status, path="/events")
        shop.click(PAGE, "i0")
        shop.click(PAGE, "i1")
        with pytest.raises(kind, match=str(status)):
            shop.flush()
        assert [refusal.reason for refusal in shop.refused] == [kind.__name__] * 2
        shop.click(PAGE, "i2")
        shop.flush()  # told once
        assert [click.item_id for click in shop.clicks] == ["i2"]


def test_an_answer_of_something_else_is_named() -> None:
    def proxy(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"<html>welcome</html>")

    with Millrace(transport=httpx.MockTransport(proxy)) as shop:
        with pytest.raises(BadAnswer, match="<html>"):
            shop.recommend("u1")
        with pytest.raises(BadAnswer, match="<html>"):
            shop.put_items([Item("a", {})])
        shop.click(PAGE, "i0")
        with pytest.raises(BadAnswer, match="<html>"):
            shop.flush()


def test_a_page_is_tried_again_within_its_time_only() -> None:
    with FakeMillrace() as shop:
        shop.put_items([Item("a", {})])
        shop.server.fail(503, times=2, path="/recommend")
        shop.server.fail(0, times=1, path="/recommend")
        assert len(shop.recommend("u1").items) == 1
        shop.server.fail(400, path="/recommend")
        with pytest.raises(BadRequest):
            shop.recommend("u1")  # not tried again
        assert shop.server.requests == 1 + 4 + 1
    with FakeMillrace(SLOW) as shop:
        shop.server.fail(503, times=10**9, path="/recommend", retry_after_s=60.0)
        with pytest.raises(Unavailable, match="503") as caught:
            shop.recommend("u1")
        assert caught.value.retry_after_s == 60.0
        assert shop.server.requests == 1  # it was asked to come later than there is time for


def test_a_page_may_not_hang_beyond_its_time() -> None:
    """A scorer that takes the request and says nothing: the transport is told how long to wait for it."""
    waits: list[float] = []

    def hangs(request: httpx.Request) -> httpx.Response:
        waits.append(request.extensions["timeout"]["read"])
        raise httpx.ReadTimeout("nothing came", request=request)

    options = Options(page_s=0.4, timeout_s=60.0)
    with (
        Millrace(options=options, transport=httpx.MockTransport(hangs), first_pause_s=0.2) as shop,
        pytest.raises(Unavailable),
    ):
        shop.recommend("u1")
    assert waits
    assert max(waits) <= 0.4


@pytest.mark.parametrize("given", [0, 1, 3])
def test_an_intake_that_gives_another_number_of_verdicts_is_named(given: int) -> None:
    """Else an event without a verdict would be taken for kept."""
    verdicts = ",".join(['{"status":"kept"}'] * given)
    body = f'{{"kept":{given},"duplicate":0,"refused":0,"verdicts":[{verdicts}]}}'.encode()
    call = Call("POST", "http://intake/items", b"")
    with pytest.raises(BadAnswer, match=f"gave {given} verdicts for 2 messages"):
        read_receipt(call, Answer(200, body, {}), [b"{}", b"{}"])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_items_are_tried_again_and_many_go_in_parts(status: int) -> None:
    with FakeMillrace() as shop:
        shop.server.fail(status, times=2, path="/items", retry_after_s=0.0)
        receipt = shop.put_items(Item(n, {}) for n in range(2500))
        assert (receipt.kept, len(shop.items)) == (2500, 2500)
        assert shop.server.requests == 2 + 3
    with FakeMillrace(SLOW) as shop:
        shop.server.fail(429, times=10**9)
        with pytest.raises(TooMuch, match="429"):
            shop.put_users([User("u", {})])


def test_refused_items_are_all_named_over_all_parts() -> None:
    with (
        FakeMillrace(server=FakeServer(numeric=("price",))) as shop,
        pytest.raises(Refused, match="3 messages were refused") as caught,
    ):
        shop.put_items(Item(n, {"price": "1" if n % 1000 == 7 else 1}) for n in range(2500))
    assert [json.loads(r.message)["item_id"] for r in caught.value.refusals] == [7, 1007, 2007]


def test_back_off_doubles_has_jitter_and_never_comes_before_it_was_asked_to() -> None:
    later, reported = Unavailable("p", "r"), TooMuch("p", "r", 30.0)
    for random, factor in ((0.0, 0.5), (0.5, 0.75)):
        tries = Tries(None, lambda random=random: random, 1.0)  # type: ignore[misc]
        assert [tries.pause_s(later, 0.0) for _ in range(5)] == [factor * n for n in (1, 2, 4, 8, 10)]
    asked = Tries(None, lambda: 0.9).pause_s(reported, 0.0)
    assert asked is not None
    assert asked > 30.0
    assert Tries(20.0, lambda: 0.0).pause_s(reported, 0.0) is None


@pytest.mark.parametrize(
    ("said", "seconds"), [("3", 3.0), ("0.5", 0.5), ("Fri, 31 Dec 1999", None), ("-1", None), ("inf", None)]
)
def test_retry_after_is_read_in_seconds(said: str, seconds: float | None) -> None:
    assert retry_after_s(Answer(429, b"", {"retry-after": said})) == seconds


def test_the_token_is_sent_and_never_shown() -> None:
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization", ""))
        return httpx.Response(401, json={"error": "no"})

    with Millrace(token="s3cret", transport=httpx.MockTransport(handle)) as shop:
        with pytest.raises(Unauthorised) as caught:
            shop.put_items([Item("a", {})])
        assert "s3cret" not in str(caught.value)
        assert "s3cret" not in repr(shop._addresses.post("items", [b"{}"]))
    assert seen == ["Bearer s3cret"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Millrace("localhost:8720"),
        lambda: Millrace(scorer="ftp://x"),
        lambda: Options(queue_size=0),
        lambda: Options(when_full="drop"),  # type: ignore[arg-type]
        lambda: Options(page_s=float("nan")),
    ],
)
def test_a_wrong_option_is_an_error_at_once(make: Callable[[], object]) -> None:
    with pytest.raises(BadRequest):
        make()


def test_an_attribute_that_is_no_json_is_named() -> None:
    with FakeMillrace() as shop, pytest.raises(BadRequest, match="no JSON"):
        shop.put_items([Item("a", {"made": object()})])  # type: ignore[dict-item]


# -- async ---------------------------------------------------------------------------------------------------------


@in_loop
async def test_the_async_client_does_the_same() -> None:
    async with AsyncFakeMillrace() as shop:
        shop.server.fail(503, times=2)
        assert (await shop.put_items([Item("a", {"category": "x"}), Item("b", {})])).kept == 2
        assert (await shop.put_users([User("u1", {})])).kept == 1
        assert await shop.ready()
        shop.server.fail(0, times=1, path="/recommend")
        page = await shop.recommend("u1", only={"category": "x"})
        assert [item.item_id for item in page.items] == ["a"]
        shop.server.fail(429, times=2, path="/events")
        assert await shop.exposure(page)
        for report in (shop.click, shop.collect, shop.cart, shop.purchase):
            assert await report(page, "a", ts_ms=page.ts_ms + 5)
        await shop.flush()
        assert [getattr(event, "type", "exposure") for event in shop.server.events] == [
            *("exposure", "click", "collect", "cart", "purchase")
        ]
        assert {event.ts_ms for event in shop.server.events[1:]} == {page.ts_ms + 5}
        with pytest.raises(NotOnPage):
            await shop.click(page, "b")
        assert (await shop.delete_item("a")).kept == (await shop.delete_user("u1")).kept == 1
        assert (shop.waiting, shop.refused, shop.refused_total) == (0, [], 0)


@in_loop
async def test_the_async_client_waits_raises_and_hands_back_as_well() -> None:
    async with AsyncFakeMillrace(Options(queue_size=2, batch_seconds=60.0)) as shop:
        reports = asyncio.create_task(_report(shop, 7))
        while not reports.done():
            await shop.flush()
            await asyncio.sleep(0)
        await reports
        await shop.flush()
        assert len(shop.server.events) == 7
        shop.server.fail(401, path="/events")
        await shop.click(PAGE, "i0")
        with pytest.raises(Unauthorised):
            await shop.flush()
        assert shop.refused_total == 1
    full = AsyncFakeMillrace(Options(queue_size=1, when_full="raise", batch_seconds=60.0))
    await full.click(PAGE, "i0")
    with pytest.raises(QueueFull):
        await full.click(PAGE, "i0")
    full.server.fail(503, times=10**9)
    with pytest.raises(Unavailable, match="1 events are not kept yet"):
        await full.close(0.05)
    with pytest.raises(Unavailable, match="closed"):
        await full.recommend("u1")
    await full.close()


async def _report(shop: AsyncFakeMillrace, n: int) -> None:
    for i in range(n):
        await shop.click(PAGE, f"i{i % 5}")


# -- against the real servers, in process ---------------------------------------------------------------------------


async def test_the_real_intake_understands_the_client() -> None:
    """What it keeps is what the client was told to send, and its verdicts come back to the right lines."""
    intake = Intake()
    async with AsyncMillrace(transport=httpx.ASGITransport(intake.app), first_pause_s=0.001) as shop:
        assert (await shop.put_items([Item("a", {"price": 2.5}), Item("b", {}, gone=True)])).kept == 2
        assert (await shop.put_items([ItemChange("b", {"price": 4}, gone=False)])).kept == 1
        assert (await shop.put_users([User("u1", {"kind": "business"})])).kept == 1
        with pytest.raises(Refused, match=r"bad-value.*12,50") as caught:
            await shop.put_items([Item("c", {"price": "12,50"}), Item("d", {"price": 1.0})])
        assert [json.loads(refusal.message)["item_id"] for refusal in caught.value.refusals] == ["c"]
        now = Page("r1", "u1", PAGE.items)
        await shop.exposure(now, shown=[2, 0])
        for report in (shop.click, shop.collect, shop.cart, shop.purchase):
            await report(now, "i2")
        await shop._report(Exposure("e9", "r1", 1_772_414_000, "u1", ["i0"]))  # a time in seconds
        await shop.flush()
        assert [refusal.reason for refusal in shop.refused] == ["seconds"]
        assert (await shop.delete_item("a/b é")).kept == (await shop.delete_user("u1")).kept == 1
    kept = [(lane[0], value) for (lane, _), value in zip(intake.outlet.log, intake.outlet.values, strict=True)]
    assert [value and value["item_id"] for topic, value in kept if topic == "items"][:5] == ["a", "b", "b", "b", "d"]
    events = [value for topic, value in kept if topic == "events"]
    assert [event["type"] for event in events] == ["exposure", "click", "collect", "cart", "purchase"]
    assert events[0]["slots"] == [2, 0]
    assert {event["position"] for event in events[1:]} == {2}
    assert [one.key for lane, one in intake.outlet.log if one.value is None and b"\xff" not in one.key] == [
        "a/b é".encode(),
        b"u1",
    ]


async def test_an_intake_that_is_full_is_waited_for() -> None:
    intake = Intake(Outlet(limit=3, at_once=False))
    async with AsyncMillrace(
        transport=httpx.ASGITransport(intake.app), options=Options(batch_size=2, page_s=0.05), first_pause_s=0.001
    ) as shop:
        for n in range(5):
            await shop.click(Page("r1", "u1", PAGE.items), f"i{n}")
        while len(intake.outlet.log) < 5:  # the broker takes what it gets, now and then
            intake.outlet.deliver()
            await asyncio.sleep(0.001)
        await shop.flush()
    assert [value["item_id"] for value in intake.outlet.values] == [f"i{n}" for n in range(5)]


WEAR: list[tuple[str, dict[str, Any]]] = [
    ("c1", {"in_stock": True, "region": "eu"}),
    ("c1", {"in_stock": False, "region": ["eu", "us"]}),
    ("c2", {"in_stock": "true", "region": 7}),
    ("c2", {"in_stock": 1, "region": "7"}),
    ("c3", {"region": ""}),
    ("c3", {}),
    ("c3", {"region": "us"}),
]
ASKED: list[dict[str, Any]] = [
    {},
    {"exclude": ["0", 1]},
    {"only": {"in_stock": True}},
    {"without": {"in_stock": False}},
    {"only": {"region": "eu", "in_stock": [True, False]}},
    {"only": {"region": 7.0}},
    {"without": {"region": ["us", "7"]}},
    {"only": {"category": {"c1", "c3"}}},
    {"hide": ["clicked"]},
    {"hide": ["bought", "seen"]},
    {"only": {"region": "nowhere"}},
    {"only": {"region": "us"}, "caps": {"region": 1}},  # of several values the first counts
]


def dressed() -> list[RealItem]:
    return [item(n, category, attributes=more) for n, (category, more) in enumerate(WEAR)]


@pytest.mark.parametrize("asked", ASKED, ids=range(len(ASKED)))
def test_the_fake_leaves_out_what_the_real_scorer_leaves_out(asked: dict[str, Any]) -> None:
    did = {"clicked": ["2"], "bought": ["3"], "seen": ["4", "3"]}
    real = Shop(dressed(), did["clicked"], did["bought"], did["seen"], redis_seconds=PATIENCE)
    fake = FakeServer()

    async def pages() -> list[Page]:
        async with (
            AsyncMillrace(transport=httpx.ASGITransport(real.app)) as scorer,
            AsyncFakeMillrace(server=fake) as shop,
        ):
            await shop.put_items(Item(i.item_id, dict(i.attributes)) for i in dressed())
            page = await shop.recommend("ann")
            for name, report in (("clicked", shop.click), ("bought", shop.purchase)):
                for i in did[name]:
                    await report(page, i)
            await shop.exposure(page, shown=[place for i in did["seen"] if (place := page.find(i))])
            await shop.flush()
            return [await one.recommend("ann", **asked) for one in (scorer, shop)]

    theirs, ours = asyncio.run(pages())
    assert {str(i.item_id) for i in ours.items} == {str(i.item_id) for i in theirs.items}
    assert bool(ours.items) or (ours.notes and theirs.notes)


@in_loop
async def test_the_real_scorer_understands_the_client() -> None:
    real = Shop([item(n, f"c{n % 5}") for n in range(50)])
    young, _, meters = serving()
    quick = Options(page_s=0.1)
    async with AsyncMillrace(transport=httpx.ASGITransport(own_app(young, meters)), options=quick) as shop:
        with pytest.raises(Unavailable, match="503"):
            await shop.recommend("ann", size=5)
    async with AsyncMillrace(transport=httpx.ASGITransport(real.app)) as shop:
        page = await shop.recommend("ann", size=5, explain=True)
        assert ([item.position for item in page.items], page.arm, page.user_id) == (list(range(5)), "model", "ann")
        assert all(one.score and one.source for one in page.items)
        assert all(reason.input for one in page.items for reason in one.reasons)
        capped = await shop.recommend("ann", size=5, caps={"category": 1})
        assert {int(one.item_id) % 5 for one in capped.items} == set(range(5))
        first = await shop.recommend("ann", size=5, list_size=12)
        part = await shop.recommend("ann", size=5, cursor=first.cursor)
        assert (part.offset, [one.position for one in part.items]) == (5, list(range(5)))
        for wrong in ({"size": 0}, {"context": {"no-such": 1}}, {"hide": ["liked"]}, {"caps": {"category": 0}}):
            with pytest.raises(BadRequest, match="400"):
                await shop.recommend("ann", **wrong)
