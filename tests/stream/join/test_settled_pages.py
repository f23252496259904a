"""Settled pages: what comes out is what would come out if every page log had stayed in memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.contracts.samples import CORRECTION, NEGATIVE, POLICIES
from millrace.labels import Promise
from stream.join.joined_pages import GONE, PagePart, PageState, peek, plain, settle, unsettle, without_log
from stream.partition.partition import Partition
from tests.scenes.arrivals import SETTLED
from tests.scenes.stream_world import (
    HOUR,
    MINUTE,
    SCHEMA,
    T0,
    World,
    action,
    dead_of,
    exposure,
    page_log,
)

# ---------------------------------------------------------------------- one page


class Shop(World):
    """A partition that settles, with a page of three items, of which two are seen."""

    def __init__(self) -> None:
        super().__init__(SETTLED, settles=True)
        self.raw = page_log("a", T0, [1, 2, 3])
        self.page_logs(self.raw).events(exposure("a", T0, [1, 2]))

    def settled(self) -> Shop:
        self.until(T0 + SETTLED.attribution_ms + SETTLED.disorder_ms)
        assert len(self.partition.join.settled) == 1
        return self

    def returned(self, raw: bytes | None) -> None:
        self.total += self.partition.returned({"a": raw})

    def click(self, position: int, item: int) -> None:
        self.act("click", "a", T0 + 10 * MINUTE, position, item)

    @property
    def reported(self) -> list[tuple[int, int]]:
        return sorted(self.samples)


BOTH = [(0, NEGATIVE), (1, NEGATIVE)]


def test_a_page_is_settled_when_attribution_has_passed_and_not_before() -> None:
    shop = Shop()
    shop.until(T0 + SETTLED.attribution_ms + SETTLED.disorder_ms - 1)
    assert len(shop.partition.join.settled) == 0
    assert shop.settled().reported == BOTH


def test_a_page_that_nobody_saw_is_settled_too_and_counted_as_unseen_at_its_end() -> None:
    shop = Shop()
    shop.page_logs(page_log("b", T0, [1]))
    shop.until(T0 + SETTLED.attribution_ms + SETTLED.disorder_ms)
    assert len(shop.partition.join.settled) == 2
    assert shop.partition.pending == 0
    shop.until(T0 + SETTLED.life_ms + SETTLED.disorder_ms)
    assert len(shop.partition.join.settled) == 0
    assert shop.total.counts["unseen"] == 1


def test_a_late_click_asks_for_the_page_log_by_its_offset() -> None:
    shop = Shop().settled()
    shop.click(1, 2)
    assert shop.partition.wanted == {"a": 0}
    assert shop.reported == BOTH
    shop.returned(shop.raw)
    assert shop.reported == [(0, NEGATIVE), (1, NEGATIVE), (1, CORRECTION)]
    assert not shop.partition.wanted
    shop.click(0, 1)  # of the same visit: it is still here
    assert not shop.partition.wanted
    shop.until(T0 + 10 * MINUTE + SETTLED.attribution_ms)
    assert len(shop.partition.join.settled) == 1


def test_what_is_known_without_the_page_log_asks_for_nothing() -> None:
    shop = Shop().settled()
    shop.events(exposure("a", T0, [1, 2]))  # a duplicate
    shop.page_logs(shop.raw)
    shop.click(2, 3)  # not exposed
    assert not shop.partition.wanted
    assert shop.total.counts["duplicates"] == 1
    shop.until(T0 + 10 * MINUTE + SETTLED.lateness_ms + SETTLED.disorder_ms + 1)
    assert shop.dead == [("no-exposure", 0)]


@pytest.mark.parametrize("waits_ms", [0, SETTLED.attribution_ms, HOUR])
def test_a_late_exposure_of_other_positions_finds_the_page_log(waits_ms: int) -> None:
    """However long its page log is read: the page does not settle again before the exposure has its label."""
    shop = Shop().settled()
    shop.events(exposure("a", T0 + MINUTE, [3], 2))
    shop.until(T0 + MINUTE + SETTLED.attribution_ms + waits_ms)
    assert shop.partition.pending == 1
    shop.returned(shop.raw)
    shop.until(T0 + MINUTE + SETTLED.attribution_ms + SETTLED.disorder_ms + waits_ms)
    assert shop.reported == [*BOTH, (2, NEGATIVE)]
    assert shop.partition.pending == 0


@pytest.mark.parametrize("raw", [None, b"\xc1", page_log("other", T0, [1, 2, 3])], ids=["gone", "bytes", "another"])
def test_a_page_log_that_is_gone_is_counted_and_what_waits_becomes_dead_letters(raw: bytes | None) -> None:
    """Gone by retention, or in its place lies another message: the log is another one."""
    shop = Shop().settled()
    shop.click(1, 2)
    shop.events(exposure("a", T0 + MINUTE, [3], 2))
    shop.returned(raw)
    assert dead_of(shop.total.dead) == ({"page-log-gone": 1}, {"page-log-gone": 1})
    assert shop.total.counts["page_logs_gone"] == 1
    shop.click(0, 1)  # nobody reads in vain again
    assert not shop.partition.wanted
    assert dead_of(shop.total.dead)[1] == {"page-log-gone": 2}
    assert (shop.reported, shop.partition.pending) == (BOTH, 0)
    shop.until(T0 + 10 * HOUR)
    assert len(shop.partition.join.settled) == 0


def test_a_page_whose_time_ends_while_its_page_log_is_read_gives_its_sample_all_the_same() -> None:
    shop = Shop().settled()
    shop.click(1, 2)
    shop.until(T0 + 5 * HOUR)
    shop.click(1, 2)  # too late
    assert shop.dead == [("late", 0)]
    shop.crash()
    assert shop.partition.wanted == {"a": 0}
    shop.returned(shop.raw)
    assert shop.reported == [*BOTH, (1, CORRECTION)]


def test_a_page_of_the_same_request_that_comes_and_goes_meanwhile_takes_nothing_along() -> None:
    """An action on a position that was never exposed, for a page whose time is over while its page log is read."""
    shop = Shop().settled()
    shop.click(1, 2)
    shop.until(T0 + SETTLED.life_ms + SETTLED.disorder_ms)
    shop.events(action("click", "a", T0 + SETTLED.life_ms, 2, 3))
    shop.until(T0 + 5 * HOUR)
    assert shop.dead == [("no-exposure", 0)]
    shop.returned(shop.raw)
    assert shop.reported == [*BOTH, (1, CORRECTION)]


def test_an_answer_that_nobody_asked_for_does_nothing() -> None:
    shop = Shop().settled()
    before = shop.partition.join.snapshot()
    assert shop.partition.returned({"a": shop.raw, "x": None}).counts == {}
    assert shop.partition.join.snapshot() == before


# ---------------------------------------------------------------------- forms


@st.composite
def pages(draw: Any) -> PageState:
    """A page of which everything is said."""
    page, bits = PageState("r", sent_again=True), st.integers(0, 2**20 - 1)
    page.drop_ms, page.at = T0 + draw(st.integers(0, HOUR)), draw(st.sampled_from([0, 5, 1 << 40, GONE]))
    page.exposed = draw(bits)
    for _ in range(draw(st.integers(0, 3))):
        code = draw(st.integers(0, len(POLICIES) - 1))
        brought = draw(st.one_of(bits, st.just(page.exposed)))
        ts_ms, offset = page.drop_ms - draw(st.integers(-9, 9**9)), draw(st.integers(0, 600))
        part = PagePart(brought, ts_ms, offset, None, None, Promise(code, 0, 0, 0))
        part.mask = draw(bits) & part.brought
        page.labelled |= part.mask
        page.parts.append(part)
    page.acted = [0, *[draw(st.sampled_from([0, 1, 2**19])) for _ in range(4)]]
    return page


@given(pages())
def test_a_settled_page_says_all_that_was_said(page: PageState) -> None:
    assert page.can_settle
    raw = settle(page)
    assert plain(unsettle("r", raw)) == plain(page)
    assert peek(raw) == (page.drop_ms, page.exposed)
    page.at = GONE
    assert plain(unsettle("r", without_log(raw))) == plain(page)


def test_a_settled_page_takes_some_dozen_bytes() -> None:
    shop = Shop().settled()
    assert len(shop.partition.join.settled["a"]) < 40 < len(shop.raw)


def test_a_partition_that_does_not_settle_goes_on_with_one_that_did() -> None:
    """And the other way round: settled pages stay, and none is added."""
    shop = Shop().settled()
    other = Partition(0, SCHEMA, SETTLED)
    other.resume(shop.partition.snapshot().to_bytes())
    shop.partition = other
    shop.click(0, 1)
    shop.returned(shop.raw)
    assert (0, CORRECTION) in shop.reported
    shop.events(exposure("a", T0 + 20 * MINUTE, [3], 2))  # it lives longer than it would have
    shop.until(T0 + 10 * HOUR)
    assert (len(other.join.settled), len(other.join.pages)) == (0, 0)
