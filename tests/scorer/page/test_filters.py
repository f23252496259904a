"""Filters of a page, held against plain Python over random catalogues, users and requests
(tests/scenes/filter_world.py)."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from millrace.basics.durations import DAY_MS
from millrace.basics.errors import SchemaError
from millrace.contracts.events import BadEventError, Item, to_json
from millrace.contracts.profile_reader import Intake
from millrace.contracts.schema import parse_schema
from millrace.evidence.rerank import Rerank
from scorer.page import candidates as page_candidates
from scorer.page.candidates import Sources
from scorer.recall.candidate_lists import Allowed
from scorer.recall.nearest import Retrieval
from scorer.users.userrecord import KnownUser
from tests.scenes.exploring import examples
from tests.scenes.filter_world import FILTERS, SCHEMA, SEEN, SHOP, Shop, greedy, most_possible, passes
from tests.scenes.recall_sources import Along, Near
from tests.scenes.scorer_shop import NOW_MS, item

STOCK = st.sampled_from([True, False, "true", "False", 1, None])
REGION = st.sampled_from([None, "eu", "us", 7, "7", ["eu", 7], ["us", "eu", "asia"], [], ""])
TAGS = st.sampled_from([None, "red", "red, new", ["a", "b", "new"], ["new"]])
PRICE = st.sampled_from([5.0, 0, 2.5, 59.9, None])
ASKED = {
    "price": st.sampled_from([{"min": 2.5}, {"max": 59.9}, {"min": 1, "max": 5}, {"min": 5.0001}, {"max": -1e300}]),
    "in_stock": st.sampled_from([True, False, "true", 1, 0, [True, "x"]]),
    "region": st.sampled_from(["eu", 7, 7.0, "7", ["us", "asia"], "mars"]),
    "tags": st.sampled_from(["red", "new", ["b", "a"]]),
    "category": st.sampled_from(["c0", ["c1", "c2"], "c9"]),
    "item_id": st.sampled_from([[0, 1, 2, 3], "5", [7, "8"]]),
}


@st.composite
def catalogues(draw: st.DrawFn) -> list[Item]:
    """Up to 40 items; one in four is gone."""
    n = draw(st.integers(1, 40))
    categories = draw(st.integers(1, 5))
    rows = draw(st.lists(st.tuples(STOCK, REGION, TAGS, PRICE, st.integers(0, 3)), min_size=n, max_size=n))
    return [
        item(
            i if i % 3 else f"{i}",
            f"c{i % categories}",
            gone=life == 0,
            attributes={"in_stock": stock, "region": region, "tags": tags, "price": price}
            | ({"category": None} if i % 11 == 10 else {}),
        )
        for i, (stock, region, tags, price, life) in enumerate(rows)
    ]


IDS = st.lists(st.integers(0, 44), max_size=12, unique=True)
CLAUSE = st.fixed_dictionaries({}, optional=ASKED)
REQUESTS = st.fixed_dictionaries(
    {"size": st.integers(1, 30)},
    optional={
        "exclude": IDS,
        "only": CLAUSE,
        "without": st.fixed_dictionaries({}, optional={k: ASKED[k] for k in ("in_stock", "region", "tags", "price")}),
        "caps": st.sampled_from([{"category": 1}, {"category": 3}, {"region": 2}, {"tags": 1}, {"in_stock": 4}]),
        "hide": st.lists(st.sampled_from(["bought", "clicked", "seen"]), unique=True),
    },
)
HISTORY = st.fixed_dictionaries({"clicked": IDS, "bought": IDS, "seen": IDS})


def ids(answer: Any) -> list[str]:
    return [str(i["item_id"]) for i in answer["items"]]


def filtered(body: dict[str, Any]) -> bool:
    return any(body.get(name) for name in ("exclude", "only", "without", "caps", "hide"))


@pytest.fixture(autouse=True)
def retrieval_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is used, however little it has learnt from."""
    monkeypatch.setattr(page_candidates, "LEAST_CLICKS", 1)


# -- against the oracle ------------------------------------------------------------------------------------------------


@given(
    items=catalogues(),
    body=REQUESTS,
    did=HISTORY,
    candidates=st.sampled_from([3, 10, 100]),
    control=st.sampled_from([0, 1]),
    vectors=st.booleans(),
)
@example(  # a page of 3 candidates, all of one category, that has to be filled up
    items=[item(i, f"c{i // 20}") for i in range(40)],
    body={"size": 2, "caps": {"category": 1}},
    did={"clicked": [], "bought": [], "seen": []},
    candidates=3,
    control=0,
    vectors=False,
)
@examples(150, suppress_health_check=[HealthCheck.too_slow])
def test_no_item_breaks_a_filter_the_page_is_full_where_it_can_be_and_its_order_is_that_of_the_scores(
    items: list[Item], body: dict[str, Any], did: dict[str, Any], candidates: int, control: int, vectors: bool
) -> None:
    if all(i.gone for i in items):
        return
    shop = Shop(items, **did, candidates=candidates, control_share=control)
    if vectors:
        shop.scorer.retrieval, shop.scorer.neighbours = Nearest(), Along()
    answer = shop.ask(**body)
    page, by_id = ids(answer), {str(i.item_id): i for i in items}
    allowed = [i for i in items if passes(i, body, did)]
    names = {str(i.item_id) for i in allowed}
    size, caps = body["size"], body.get("caps", {})

    assert len(set(page)) == len(page)
    assert set(page) <= names, "no item breaks a filter"
    assert len(page) == min(size, most_possible(allowed, caps)), "the page is full where the catalogue allows"
    assert greedy(page, by_id.__getitem__, caps, size) == page, "the caps hold"
    scores = [i["score"] for i in answer["items"]]
    if not control:
        assert scores == sorted(scores, reverse=True)
    last = names & {
        str(i) for i in did["bought"]
    }  # what was bought comes where nothing else is left, whatever its score
    if not control and filtered(body) and candidates >= len(items) and allowed and not last:
        by_score = shop.scores([i.item_id for i in allowed])
        best = sorted(by_score, key=lambda i: -by_score[i])
        assert page == greedy(best, by_id.__getitem__, caps, size), "the best that fit, in the order of their scores"
    if page:
        assert [list(map(str, i.items)) for i in shop.sent] == [page], "what is logged is what was shown"
    elif filtered(body):
        assert (answer["request_id"], shop.sent) == (None, [])
        assert "passes the filters" in answer["notes"][-1]


class Nearest(Retrieval):
    """A retrieval version in which the first rows are nearest, whatever is asked for; none that is not allowed."""

    def __init__(self) -> None:
        self.clicks, self.version = 5000, (2, 41)

    def query(self, user_ids: Any, recent_rows: Any, age_ms: Any) -> Any:
        return np.ones(4, np.float32)

    def nearest(self, query: Any, k: int, allowed: Any = None) -> Any:
        rows = np.arange(44) if allowed is None else np.flatnonzero(allowed)
        return rows[:k].astype(np.intp)


@given(items=catalogues(), caps=st.permutations(["category", "region", "tags", "in_stock"]), size=st.integers(1, 30),
       most=st.integers(1, 2), candidates=st.sampled_from([4, 100]))  # fmt: skip
@examples(60, suppress_health_check=[HealthCheck.too_slow])
def test_under_several_caps_nothing_else_fits_on_a_page_that_is_not_full(
    items: list[Item], caps: list[str], size: int, most: int, candidates: int
) -> None:
    if all(i.gone for i in items):
        return
    shop = Shop(items, candidates=candidates)
    limits = dict.fromkeys(caps[:2], most)
    page = ids(shop.ask(size=size, caps=limits))
    by_id = {str(i.item_id): i for i in items}
    assert greedy(page, by_id.__getitem__, limits, size) == page
    if len(page) < size:
        others = [i for i, one in by_id.items() if not one.gone and i not in page]
        assert greedy([*page, *others], by_id.__getitem__, limits, size) == page


@given(items=catalogues(), did=HISTORY, size=st.integers(1, 20), candidates=st.sampled_from([5, 12, 100]))
@examples(40, suppress_health_check=[HealthCheck.too_slow])
def test_a_filter_that_takes_nothing_away_changes_nothing(
    items: list[Item], did: dict[str, Any], size: int, candidates: int
) -> None:
    """Recall with a mask of all that lives is recall without one, draw by draw."""
    if all(i.gone for i in items):
        return
    shop = Shop(items, **did, candidates=candidates)
    plain = shop.ask(size=size, request_id="r", explain=True)
    again = shop.ask(size=size, request_id="r", explain=True, exclude=["nobody has this"])
    assert again == plain
    assert shop.sent[0] == shop.sent[1]


def test_recall_with_a_mask_of_everything_is_recall_without_one() -> None:
    shop = Shop([item(i, f"c{i % 5}") for i in range(400)], clicked=[3, 8], bought=[9])
    scorer = shop.scorer
    user = KnownUser.of(scorer.builder, "ann", shop.users.records["ann"])
    sources = Sources(scorer.lists, Near(), Along())
    everything = Allowed(scorer.items.alive.copy(), scorer.lists.living)
    for seed in range(5):
        one = scorer.arms.named("model").recaller.page(sources, user, NOW_MS, 60, 60, seed)
        two = scorer.arms.named("model").recaller.page(sources, user, NOW_MS, 60, 60, seed, everything)
        assert (one.rows.tolist(), one.sources.tolist()) == (two.rows.tolist(), two.sources.tolist())


# -- what changes -----------------------------------------------------------------------------------------------------


def some_items(n: int = 60, **more: Any) -> list[Item]:
    return [item(i, f"c{i % 6}", attributes={"in_stock": True, "region": "eu", **more}) for i in range(n)]


def test_what_is_sold_out_is_gone_from_the_next_page_and_comes_back() -> None:
    shop = Shop(some_items())
    first = ids(shop.ask(size=5, only={"in_stock": True}))
    (best,) = [i for i in some_items() if str(i.item_id) == first[0]]
    shop.stock([item(best.item_id, "c0", attributes={"in_stock": False})], lists=False)
    assert ids(shop.ask(size=4, only={"in_stock": True})) == first[1:5]
    shop.stock([best], lists=False)
    assert ids(shop.ask(size=5, only={"in_stock": True})) == first, "without waiting for new lists"


def test_values_of_a_list_widen_the_item_table_and_narrow_again() -> None:
    shop = Shop(some_items(4))
    many = [f"r{i}" for i in range(16)]
    shop.stock([item(1, attributes={"region": many})])
    assert ids(shop.ask(size=9, only={"region": "r15"})) == ["1"]
    assert set(ids(shop.ask(size=9, only={"region": "eu"}))) == {"0", "2", "3"}
    shop.stock([item(1, attributes={"region": "r3"})])
    assert ids(shop.ask(size=9, only={"region": "r15"})) == []
    assert ids(shop.ask(size=9, only={"region": ["r3", "r15"]})) == ["1"]
    shop.stock([item(1, attributes={"region": None})])
    assert "1" not in ids(shop.ask(size=9, only={"region": ["r3", "eu"]})), "a missing attribute has none of the values"
    assert "1" in ids(shop.ask(size=9, without={"region": "eu"}))


def test_an_item_of_too_many_values_is_a_bad_value_and_no_other_item_is() -> None:
    intake = Intake(SCHEMA)
    with pytest.raises(BadEventError, match="region has 17 values where pages can be filtered by 16") as caught:
        intake.item(to_json(item(1, attributes={"region": [f"r{i}" for i in range(17)]})))
    assert caught.value.reason == "bad-value"
    intake.item(to_json(item(1, attributes={"region": [f"r{i % 16}" for i in range(40)], "sizes": list(range(99))})))


def test_a_page_is_counted_by_how_full_it_was() -> None:
    def counted() -> Counter[str]:
        name = "millrace_filtered_pages_total"
        return Counter({f: REGISTRY.get_sample_value(name, {"filled": f}) or 0 for f in ("full", "short", "empty")})

    shop, before = Shop(some_items(8)), counted()
    shop.ask(size=8)
    shop.ask(size=8, only={"region": "eu"})
    shop.ask(size=8, exclude=[1])
    shop.ask(size=8, only={"region": "us"})
    assert counted() - before == Counter(full=1, short=1, empty=1)


def test_a_filter_that_removes_everything_is_an_empty_page_that_names_it() -> None:
    shop = Shop(some_items(200), candidates=20)
    answer = shop.ask(size=5, only={"region": ["us", "asia"]}, hide=["bought"], list=20, explain=True)
    assert (answer["items"], answer["request_id"], answer["cursor"]) == ([], None, None)
    assert "only region=us|asia" in answer["notes"][0]
    assert "bought" in answer["notes"][0]
    assert shop.sent == [], "a page log without items would be a page that nobody saw"


def test_what_was_bought_comes_last_unless_it_is_hidden() -> None:
    shop = Shop(some_items(3), bought=[1])
    assert set(ids(shop.ask(size=3))) == {"0", "1", "2"}
    assert set(ids(shop.ask(size=3, hide=["bought"]))) == {"0", "2"}
    assert set(ids(shop.ask(size=3, hide=["bought"], ts_ms=NOW_MS - 60_000))) == {"0", "1", "2"}, "before the purchase"


def test_a_page_is_filled_up_from_lists_that_came_while_counts_were_waited_for() -> None:
    shop = Shop([item(i, f"c{i // 20}") for i in range(40)], candidates=3)
    asked: list[Any] = []

    async def counts(rows: Any, ts_ms: int) -> None:
        if not asked:
            shop.stock([item(i, f"c{i // 20}", born_ms=NOW_MS - 1000) for i in range(40, 3000)])
        asked.append(rows)

    shop.scorer.maker.ask_counts = counts
    answer = shop.ask(size=2, caps={"category": 1}, ts_ms=NOW_MS - 2 * 3_600_000)
    assert len(asked) == 2, "the candidates are all of one category"
    assert len({int(i) // 20 for i in ids(answer)}) == 2


def test_what_is_sold_out_while_counts_are_waited_for_is_not_shown() -> None:
    shop = Shop(some_items(9))
    ask = partial(shop.ask, size=9, only={"in_stock": True}, ts_ms=NOW_MS - 2 * 3_600_000)
    best = ids(ask())

    async def counts(rows: Any, ts_ms: int) -> None:
        shop.stock([item(int(best[0]), "c0", attributes={"in_stock": False})], lists=False)

    shop.scorer.maker.ask_counts = counts
    assert ids(ask()) == best[1:]


def test_masks_of_a_small_shop_are_bounded_by_what_their_filters_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorer.page.page_filters.MASK_BYTES", 100_000)
    shop = Shop(some_items(3))
    for n in range(60):
        shop.ask(only={"region": [f"r{n}.{i}" for i in range(100)]})
    assert 1 < len(shop.scorer.filters._masks) < 25, "each names 100 values of 48 bytes"
    assert shop.scorer.filters._bytes <= 100_000


# -- lists ------------------------------------------------------------------------------------------------------------


def parts(shop: Shop, size: int, length: int, **body: Any) -> list[list[str]]:
    answers = [shop.ask(size=size, list=length, **body)]
    while answers[-1]["cursor"]:
        answers.append(shop.ask(size=size, cursor=answers[-1]["cursor"]))
    assert [a["offset"] for a in answers] == np.cumsum([0, *(len(a["items"]) for a in answers[:-1])]).tolist()
    return [ids(a) for a in answers]


def joined(found: list[list[str]]) -> list[str]:
    return list(itertools.chain(*found))


def test_filters_hold_for_later_parts_of_a_list() -> None:
    shop = Shop(some_items())
    whole = ids(shop.ask(size=40, without={"category": "c1"}))
    assert joined(parts(shop, 10, 30, without={"category": "c1"})) == whole[:30]
    first = shop.ask(size=10, list=40, only={"in_stock": True}, hide=["bought"])
    best = ids(shop.ask(size=40, only={"in_stock": True}))
    shop.stock([item(int(best[10]), attributes={"in_stock": False})])
    shop.know(bought=[best[11]])
    assert ids(shop.ask(size=10, cursor=first["cursor"])) == best[12:22], "as the items and the user are by now"


def test_caps_hold_for_each_part_and_what_did_not_fit_comes_later() -> None:
    shop = Shop([item(i, f"c{min(i, 20) // 10}") for i in range(60)])  # two categories of 10, one of 40
    found = parts(shop, 6, 36, caps={"category": 3})
    category = {str(i): min(i, 20) // 10 for i in range(60)}
    assert all(max(Counter(category[i] for i in part).values()) <= 3 for part in found)
    assert [len(part) for part in found[:3]] == [6, 6, 6]
    everything = joined(found)
    assert len(everything) == len(set(everything)) == 36
    assert set(everything) <= set(category)


def test_caps_hold_on_a_part_whose_items_change_while_counts_are_waited_for() -> None:
    shop = Shop([item(i, f"c{i % 4}") for i in range(60)])
    cursor = shop.ask(size=8, list=40, caps={"category": 2})["cursor"]

    async def counts(rows: Any, ts_ms: int) -> None:
        shop.stock([item(i, "c0") for i in range(60)])

    shop.scorer.maker.ask_counts = counts
    assert len(shop.ask(size=8, cursor=cursor, ts_ms=NOW_MS - 2 * 3_600_000)["items"]) == 2


def test_a_list_with_filters_that_is_no_longer_kept_is_gone_and_not_shown_without_them() -> None:
    shop = Shop(some_items())
    cursor = shop.ask(size=5, list=20, only={"in_stock": True})["cursor"]
    shop.scorer.ranked._wall = lambda: NOW_MS + 10**9
    assert "ask for a new list with the filters" in shop.ask(410, size=5, cursor=cursor)["error"]
    plain = Shop(some_items())
    cursor = plain.ask(size=5, list=20)["cursor"]
    plain.scorer.ranked._wall = lambda: NOW_MS + 10**9
    assert len(plain.ask(size=5, cursor=cursor)["items"]) == 5


def test_a_control_page_under_caps_is_full_and_in_random_order() -> None:
    shop = Shop(some_items(), control_share=1)
    pages = [ids(shop.ask(size=12, caps={"category": 2}, exclude=[0])) for _ in range(30)]
    assert all(Counter(int(i) % 6 for i in page) == dict.fromkeys(range(6), 2) for page in pages)
    assert len({i for page in pages for i in page}) == 59, "every item has its chance"
    assert {i["source"] for i in shop.ask(size=12, caps={"category": 2}, explain=True)["items"]} == {"control"}


# -- before the scorer is ready ---------------------------------------------------------------------------------------


def test_the_shops_lists_leave_out_ids_and_refuse_attributes() -> None:
    shop = Shop(some_items(10), bought=[2], seen=[3], clicked=[4])
    shop.scorer.note = shop.scorer.model = None
    shop.users.shop_lists = {"hot": [str(i) for i in range(8)], "new": ["8", "9"]}
    answer = shop.ask(size=9, exclude=[1, "5"], hide=["bought", "seen", "clicked"])
    assert set(ids(answer)) == {"0", "6", "7", "8", "9"}
    shop.know(clicked=[9], seen=[6], user="s1")
    answer = shop.ask(size=9, exclude=[1, "5"], hide=["bought", "seen", "clicked"], session="s1")
    assert set(ids(answer)) == {"0", "7", "8"}, "nor what the guest saw"
    for body in ({"only": {"region": "eu"}}, {"without": {"region": "eu"}}, {"caps": {"region": 1}}):
        assert "no filters by attributes yet" in shop.ask(503, size=3, **body)["error"]
    shop.ask(503, size=3, exclude=list(range(10)))


def test_a_part_of_a_list_with_filters_waits_for_the_scorer_and_is_not_made_without_them() -> None:
    shop = Shop(some_items())
    with_filters = shop.ask(size=5, list=20, only={"category": "c1"})["cursor"]
    without = shop.ask(size=5, list=20)["cursor"]
    shop.users.shop_lists = {"hot": [str(i) for i in range(60)]}
    shop.scorer.note = shop.scorer.model = None
    assert "no part of a list with filters yet" in shop.ask(503, size=5, cursor=with_filters)["error"]
    assert len(shop.ask(size=5, cursor=without)["items"]) == 5


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"only": {"colour": "red"}}, ["only 'colour'", "in_stock, region, tags", 'filters = ["colour"]']),
        ({"not": {"price": 5}}, ["not 'price'", "no attribute", 'a number needs a range, as {"min": 5}']),
        ({"caps": {"kind": 1}}, ["caps 'kind'"]),
        ({"caps": {"region": 0}}, ["caps 'region' is 0", "1 or more"]),
        ({"caps": {"region": "two"}}, ["$.caps"]),
        ({"exclude": list(range(1001))}, ["1001 ids", "at most 1000", "hide"]),
        ({"exclude": 7}, ["$.exclude"]),
        ({"only": {"region": []}}, ["only 'region' is []"]),
        ({"only": {"region": ""}}, ["only 'region' is ''", "missing"]),
        ({"only": {"region": None}}, ["$.only"]),
        ({"only": {"region": ["r"] * 101}}, ["101 values", "at most 100"]),
        ({"only": {f"a{i}": 1 for i in range(17)}}, ["17 attributes", "at most 16"]),
        ({"only": {"price": {}}}, ["only 'price': no number is in ..", "give min, or max"]),
        ({"not": {"price": {"min": 3, "max": 2.5}}}, ["not 'price': no number is in 3..2.5"]),
        ({"only": {"price": {"min": "3"}}}, ["min", "float"]),
        ({"only": {"price": {"from": 3}}}, ["from"]),
        ({"only": {"region": {"min": 3}}}, ["only 'region' is no number", "a numeric field of items: price, age_days"]),
        ({"only": {"age_days": 3}}, ["only 'age_days' changes with time", "a range of age_days in days"]),
        ({"caps": {"age_days": 3}}, ["caps 'age_days' changes with time"]),
        ({"only": {"exposure_age_days": {"max": 3}}}, ["'exposure_age_days' changes with time", "age_days in days"]),
        ({"only": {"age_days": {"min": 3, "max": 2}}}, ["no number is in 3..2"]),
        ({"rerank": {"boosts": {"age_days": {"new": 2.0}}}}, ["boosts 'age_days' has 'new'", "such as 0.25"]),
        ({"rerank": {"boosts": {"age_days": {"-1": 2.0}}}}, ["boosts 'age_days' has '-1'", "up to which"]),
        ({"hide": ["sold"]}, ["hide 'sold'", "bought, clicked, seen"]),
        ({"cursor": "a.1.1.5", "only": {"region": "eu"}}, ["'only' does not go with 'cursor'"]),
    ],
)  # fmt: skip
def test_a_bad_filter_is_one_line_that_names_value_and_remedy(body: dict[str, Any], words: list[str]) -> None:
    error = Shop(some_items(3)).ask(400, **body)["error"]
    assert "\n" not in error
    for word in words:
        assert word in error


AGES_MS = [0, 60_000, 1_727_999, 1_728_000, 1_728_001, DAY_MS, 40 * DAY_MS]
"""Around a limit of .02 days."""


def aged_shop(**settings: Any) -> Shop:
    """Items as old as that; then one that is yet to be born, and one of which nobody knows."""
    born = [*(NOW_MS - age for age in AGES_MS), NOW_MS + 5, 0]
    return Shop([Item(i, {"category": "c", "price": 1.0}, ms) for i, ms in enumerate(born)], **settings)


@pytest.mark.parametrize(
    ("body", "passing"),
    [
        ({"only": {"age_days": {"max": 0.02}}}, {0, 1, 2, 3, 7}),
        ({"only": {"age_days": {"min": 0.02}}}, {3, 4, 5, 6}),
        ({"only": {"age_days": {"min": 0.02, "max": 1}}}, {3, 4, 5}),
        ({"only": {"age_days": {"max": 1e300}}}, set(range(8))),
        ({"not": {"age_days": {"max": 1}}}, {6, 8}),
        ({"only": {"age_days": {"max": 1}}, "not": {"age_days": {"max": 0.02}, "item_id": 4}}, {5}),
    ],
)
def test_pages_are_filtered_by_ages_as_they_are_now(body: dict[str, Any], passing: set[int]) -> None:
    shop = aged_shop(control_share=0)
    assert set(map(int, ids(shop.ask(**body)))) == passing
    if body == {"only": {"age_days": {"max": 0.02}}}:  # a millisecond later one is too old: no mask is kept
        assert set(map(int, ids(shop.ask(**body, ts_ms=NOW_MS + 1)))) == passing - {3}


def test_an_item_is_boosted_by_the_next_longer_age() -> None:
    boosts = {"age_days": {"1": 3.0, "0.02": 0.5}}
    shop, plain = aged_shop(control_share=0), aged_shop(control_share=0)
    page = shop.ask(explain=True, rerank={"boosts": boosts})
    given = {int(one["item_id"]): {r["input"]: r["effect"] for r in one["reasons"]} for one in page["items"]}
    expected = dict.fromkeys([0, 1, 2, 3, 7], 0.5) | dict.fromkeys([4, 5], 3.0) | dict.fromkeys([6, 8], 1.0)
    for number, factor in expected.items():
        assert given[number].get("boost", 0.0) == pytest.approx(math.log(factor), abs=1e-6)
    by_settings = aged_shop(control_share=0, rerank=Rerank(boosts=boosts))
    assert ids(by_settings.ask()) == ids(page) != ids(plain.ask())


def test_the_settings_hide_what_a_request_does_not_say() -> None:
    did: dict[str, Any] = {"clicked": ["1"], "bought": ["2"], "seen": ["3"], "control_share": 0}
    shop = Shop(some_items(6), hide="seen,bought", **did)
    every = {str(i) for i in range(6)}
    assert set(ids(shop.ask())) == every - {"2", "3"}
    assert set(ids(shop.ask(hide=[]))) == every
    assert set(ids(shop.ask(hide=["clicked"], exclude=["5"]))) == every - {"1", "5"}
    assert set(joined(parts(shop, 2, 6))) == every - {"2", "3"}
    assert set(ids(shop.ask(path="/popular", user_id="ann"))) == every, "of pages that are made for a person"
    assert set(ids(Shop(some_items(6), **did).ask())) == every


def test_seen_needs_counts_of_user_and_item() -> None:
    shop = Shop([item(1)], schema=parse_schema(FILTERS + SHOP))
    error = shop.ask(400, hide=["seen"])["error"]
    assert 'columns = ["user_id", "item_id"]' in error
    assert ids(shop.ask(hide=["bought", "clicked"])) == ["1"]


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ('["a", "a"]', "'a' twice"),
        ('[""]', "empty name"),
        ('["price"]', "'price', which is a numeric field"),
        ('["kind"]', "'kind', which is of the user"),
        ('["tab"]', "'tab', which is of the context"),
        ('["item_id"]', "'item_id', which no item sends"),
        ('["age_days"]', "'age_days', which no item sends"),
        (str([f"a{i}" for i in range(17)]), "17 attributes"),
    ],
)
def test_filters_of_a_schema_are_checked(filters: str, words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        parse_schema(f"filters = {filters}\n" + SHOP + SEEN)


def test_filters_do_not_change_what_arrays_mean() -> None:
    assert parse_schema(SHOP + SEEN).id == SCHEMA.id
