"""Pages of items like one item, and of popular items: held against plain sorting of cosines, counts and rates."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from millrace.basics.hashing import column_hash
from millrace.contracts.coclick_message import DAYS, MOST, WEIGHTS, Lists
from millrace.contracts.events import Id, Item
from millrace.contracts.online_layout import GUESTS, RECENT, Past, Recent, pack_recent
from millrace.windows.tiles import TileStore
from scorer.recall.neighbours import CoClickFeed, Neighbours
from tests.scenes.filter_world import SCHEMA, Shop, greedy, passes
from tests.scenes.nearest_items import W, retrieval, rounded
from tests.scenes.recall_sources import Near
from tests.scenes.scorer_shop import NOW_MS, call, item, record

TODAY = NOW_MS // 86_400_000
N = 40
A_DAY = (1 + 1 / 3) / 2  # what an event of today counts: the mean over windows of one and three days
Counts = dict[int, dict[int, int]]
"""Row -> row of a neighbour -> common clicks of today."""


def items(rng: np.random.Generator) -> list[Item]:
    return [
        item(
            i,
            f"c{i % 4}",
            gone=bool(rng.random() < 0.1),
            born_ms=NOW_MS - 1000 * int(rng.integers(N)) - i,
            attributes={"price": float(i), "in_stock": bool(rng.random() < 0.8)},
        )
        for i in range(N)
    ]


def coclicked(counts: Counts, n: int = N) -> Neighbours:
    feed = CoClickFeed()
    feed.know(list(range(n)))
    near = [(other, c) for some in counts.values() for other, c in some.items()]
    lists = Lists(
        TODAY,
        column_hash(list(counts)),
        np.array([len(some) for some in counts.values()], np.uint8),
        column_hash([other for other, _ in near]),
        np.array([[c, *[0] * (DAYS - 1)] for _, c in near], np.uint16).reshape(-1, DAYS),
    )
    feed.take(0, lists)
    return Neighbours.of_arrays(feed.arrays(TODAY))


def count(shop: Shop, exposures: Mapping[int, int], clicks: Mapping[int, int]) -> None:
    """Of today, by item."""
    store = TileStore.of(shop.schema.windows)
    for action, of in enumerate((exposures, clicks)):
        keys = shop.builder.keys({"item_id": column_hash(list(of))}, len(of))[:, 2]
        store.add(keys, np.full(len(of), NOW_MS - 1000), np.full(len(of), action), np.array(list(of.values())))
    shop.index.put_store(0, store)
    while shop.index.refresh_hot(NOW_MS):
        pass
    shop.stock([])


def ask(shop: Shop, path: str, status: int = 200, **body: Any) -> Any:
    if "without" in body:
        body["not"] = body.pop("without")
    found, answer = asyncio.run(call(shop.app, "POST", path, body))
    assert found == status, answer
    return answer


def ids(answer: Any) -> list[Any]:
    return [one["item_id"] for one in answer["items"]]


def reasons(one: Any) -> dict[str, float]:
    return {reason["input"]: reason["effect"] for reason in one["reasons"]}


# -- against plain sorting -----------------------------------------------------------------------------------------


def plain_like(
    i: int, allowed: Sequence[int], counts: Counts, clicks: Sequence[int], vectors: Mapping[int, Any]
) -> list[tuple[int, float | None, float | None]]:
    """Items like the i-th, best first, with the two cosines of each."""
    along = sorted(counts.get(i, {}), key=lambda other: (-counts[i][other], other))[:MOST]
    coclicked: dict[int, float] = {}
    for other in along:
        if other in allowed:
            own, theirs = clicks[i] * A_DAY, clicks[other] * A_DAY
            coclicked[other] = counts[i][other] * WEIGHTS[0] / 420 / (math.sqrt(own * theirs) + 10)
    cosine: dict[int, float] = {}
    if i in vectors:
        mine = vectors[i][:-1].astype(float)
        for other in set(allowed) & set(vectors):
            its = vectors[other][:-1].astype(float)
            cosine[other] = float(mine @ its / np.linalg.norm(mine) / np.linalg.norm(its))
    similarity = {j: coclicked.get(j, 0.0) + cosine.get(j, 0.0) for j in [*coclicked, *cosine]}
    return [(j, coclicked.get(j), cosine.get(j)) for j in sorted(similarity, key=lambda j: -similarity[j])]


REQUESTS: list[dict[str, Any]] = [
    {},
    {"only": {"in_stock": True}},
    {"without": {"category": ["c1", "c2"]}, "exclude": [0, 4, 8]},
    {"only": {"price": {"min": 3, "max": 21.5}}},
    {"caps": {"category": 2}},
    {"only": {"in_stock": True}, "caps": {"category": 1}},
]


@pytest.mark.parametrize("body", REQUESTS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_items_like_one_are_those_that_plain_sorting_gives(seed: int, body: dict[str, Any]) -> None:
    rng = np.random.default_rng(seed)
    shop = Shop(items(rng))
    made = {int(i.item_id): i for i in items(np.random.default_rng(seed))}
    counts: Counts = {
        i: {int(j): int(rng.integers(1, 9)) for j in rng.choice(N, 6, replace=False) if j != i} for i in range(0, N, 2)
    }
    shop.scorer.neighbours = coclicked(counts)
    clicks = rng.integers(1, 50, N).tolist()
    count(shop, dict.fromkeys(range(N), 100), dict(enumerate(clicks)))
    vectors = rounded(rng.standard_normal((N, W)))
    shop.scorer.retrieval = held = retrieval(vectors)
    held.clicks = 1000
    changed, gone = np.array([3, 9], np.int32), np.array([i for i in made if made[i].gone], np.int32)
    vectors[changed] = rounded(rng.standard_normal((2, W)))
    held.take(changed, vectors[changed], gone)
    known = {i: vectors[i] for i in made if not made[i].gone}
    for i in (0, 1, 3, 10):
        allowed = [j for j in made if passes(made[j], body, {}) and j != i]
        caps, size = body.get("caps", {}), 7
        expected = plain_like(i, allowed, counts, clicks, known)
        kept = greedy([str(j) for j, *_ in expected], lambda name: made[int(name)], caps, size)
        answer = ask(shop, "/similar", item_id=i, size=size, **body)
        found = [one for one in answer["items"] if one["source"] != "hot"]
        assert [str(one["item_id"]) for one in found] == kept
        assert i not in ids(answer)
        measures = {str(j): terms for j, *terms in expected}
        for one in found:
            terms = dict(zip(("coclicked", "vectors"), measures[str(one["item_id"])], strict=True))
            plainly = {name: term for name, term in terms.items() if term is not None}
            assert reasons(one) == pytest.approx(plainly, abs=1e-5)
            assert one["source"] == next(iter(reasons(one))) == max(plainly, key=lambda name: plainly[name])


def plain_popular(
    made: Sequence[int], born_ms: Mapping[int, int], exposures: Mapping[int, int], clicks: Mapping[int, int]
) -> tuple[list[int], dict[int, float]]:
    """By smoothed clicks over exposures, then those without a click, born last first. All events are of today."""
    total = sum(exposures.values())
    rate = sum(clicks.values()) / total if total else 0.0
    heat = {i: (clicks.get(i, 0) * A_DAY + 100 * A_DAY * rate) / ((exposures.get(i, 0) + 100) * A_DAY) for i in born_ms}
    clicked = sorted((i for i in made if clicks.get(i)), key=lambda i: -heat[i])
    return clicked + sorted((i for i in made if not clicks.get(i)), key=lambda i: -born_ms[i]), heat


@pytest.mark.parametrize("body", REQUESTS, ids=str)
@pytest.mark.parametrize("depth", [3, 2000])
def test_popular_items_are_those_that_counting_gives(
    body: dict[str, Any], depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``depth``: the shop's hot list has enough items that pass, or too few."""
    monkeypatch.setattr("scorer.recall.candidate_lists.make_lists.__defaults__", (100, depth))
    rng = np.random.default_rng(5)
    shop, made = Shop(items(rng)), {int(i.item_id): i for i in items(np.random.default_rng(5))}
    exposures = {i: int(rng.integers(1, 300)) for i in range(N)}
    clicks = {i: int(rng.integers(1, 1 + exposures[i])) for i in range(0, N, 3)}
    living = [i for i in made if not made[i].gone]
    count(shop, exposures, clicks)
    of = [{i: n for i, n in some.items() if i in living} for some in (exposures, clicks)]
    allowed = [i for i in made if passes(made[i], body, {})]
    order, heat = plain_popular(allowed, {i: made[i].born_ms for i in made}, *of)
    for size in (2, 7, 100):
        if body or size < depth:
            answer = ask(shop, "/popular", size=size, **body)
            kept = greedy([str(i) for i in order], lambda name: made[int(name)], body.get("caps", {}), size)
            assert list(map(str, ids(answer))) == kept
            for one in answer["items"]:
                assert one["source"] == "hot"
                assert reasons(one) == {"click_rate": pytest.approx(heat[one["item_id"]], rel=1e-5)}


# -- what is missing, aloud ----------------------------------------------------------------------------------------


def test_an_item_of_which_nothing_is_known_gets_the_popular_ones_of_its_group() -> None:
    shop = Shop([item(i, f"c{i % 4}") for i in range(N)])
    count(shop, dict.fromkeys(range(N), 100), {i: 1 + i for i in range(N)})
    shop.scorer.retrieval = Near(clicks=999)  # has learnt too little
    shop.scorer.neighbours = coclicked({})
    answer = ask(shop, "/similar", item_id=5, size=13)
    same = [i for i in range(N - 1, -1, -1) if i % 4 == 1 and i != 5]
    assert ids(answer) == [*same, 39, 38, 36, 35]
    assert [list(reasons(one)) for one in answer["items"]] == [["category"]] * 9 + [["click_rate"]] * 4
    assert any("popular items of the same category, then of the shop" in note for note in answer["notes"])
    answer = ask(shop, "/similar", item_id=5, size=3, exclude=same[:2], caps={"category": 2})
    assert ids(answer) == [*same[2:4], 39]
    for unknown in ("nobody", 10**18):
        answer = ask(shop, "/similar", item_id=unknown, size=3)
        assert ids(answer) == [39, 38, 37]
        assert any("not in the catalogue; popular items of the shop" in note for note in answer["notes"])


def test_an_item_that_is_sold_out_or_deleted_is_on_no_page_and_still_has_others_like_it() -> None:
    shop = Shop([item(i, f"c{i % 4}") for i in range(N)])
    shop.scorer.neighbours = coclicked({0: {1: 3, 2: 2, 3: 1}, 1: {0: 5, 2: 2}})
    shop.stock([item(1, "c1", gone=True)])
    shop.index.remove(2)
    shop.stock([])
    assert ids(ask(shop, "/similar", item_id=0, size=1)) == [3]
    assert ids(ask(shop, "/similar", item_id=1, size=1)) == [0], "of a sold-out item"
    assert not {1, 2} & set(ids(ask(shop, "/similar", item_id=0)) + ids(ask(shop, "/popular")))
    assert any("not in the catalogue" in note for note in ask(shop, "/similar", item_id=2)["notes"])


def test_before_any_click_and_any_model() -> None:
    shop = Shop([item(i, f"c{i % 4}", born_ms=1000 + i) for i in range(N)])
    shop.scorer.model, shop.scorer.note = None, None
    for path, body in (("/popular", {}), ("/similar", {"item_id": 5})):
        answer = ask(shop, path, size=3, **body)
        assert (answer["request_id"], answer["arm"], answer["model_version"]) == (None, "lists", -1)
        assert len(answer["items"]) == 3
        answer = ask(shop, path, size=3, user_id="ann", **body)
        assert answer["request_id"] is None
        assert any("not logged, since there is no model yet" in note for note in answer["notes"])
    assert ids(ask(shop, "/popular", size=3)) == [39, 38, 37]
    shop.scorer.to_read = {"items": 7}
    assert "messages to read: items (7)" in ask(shop, "/popular", 503)["error"]
    empty = Shop([])
    for path, body in (("/popular", {}), ("/similar", {"item_id": 5})):
        assert "no items yet; send the catalogue: POST /items" in ask(empty, path, 503, **body)["error"]


# -- a page of a user ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "own"), [("/popular", {}), ("/similar", {"item_id": 5})])
def test_a_page_of_a_user_is_scored_and_logged_in_its_order(path: str, own: dict[str, Any]) -> None:
    shop = Shop([item(i, f"c{i % 4}") for i in range(N)], bought=[39, 38])
    shop.scorer.neighbours = coclicked({5: {7: 3, 9: 2}})
    count(shop, dict.fromkeys(range(N), 100), {i: 1 + i for i in range(N)})
    nobody = ask(shop, path, size=6, **own)
    assert (nobody["request_id"], shop.sent) == (None, [])
    assert any("no user_id" in note for note in nobody["notes"])
    answer = ask(shop, path, size=6, user_id="ann", request_id="r1", **own)
    assert ids(answer) == ids(nobody)
    (log,) = shop.sent
    assert (log.request_id, log.arm, log.items, answer["arm"]) == ("r1", "logged", ids(answer), "logged")
    assert [one["score"] for one in answer["items"]] == [shop.scores([i])[str(i)] for i in ids(answer)]
    hidden = ask(shop, path, size=40, user_id="ann", hide=["bought"], **own)
    assert not {38, 39} & set(ids(hidden))


def test_what_a_guest_did_counts_for_the_user_that_the_guest_became() -> None:
    shop = Shop(
        [item(i, f"c{i % 4}") for i in range(N)], bought=[3], candidates=5, recall={"coclicked": 0.9, "hot": 0.1}
    )
    shop.scorer.neighbours = coclicked({5: {7: 3, 9: 2}, 3: {30: 1}})
    shop.users.records["s1"] = {
        RECENT: pack_recent(Recent([Past(5, NOW_MS - 5000)], [Past(8, NOW_MS - 4000)])),
    }
    alone = shop.ask(size=5, explain=True)
    both = shop.ask(size=5, explain=True, session="s1")
    assert {one["item_id"]: one["source"] for one in both["items"]}.items() >= {(7, "coclicked"), (9, "coclicked")}
    assert "coclicked" not in {one["source"] for one in alone["items"]}
    assert both["notes"] == []
    shown = {one["item_id"] for one in shop.ask(size=40, hide=["bought", "clicked"], session="s1")["items"]}
    assert shown == set(range(N)) - {3, 5, 8}
    shown = {one["item_id"] for one in ask(shop, "/popular", user_id="ann", hide=["bought"], session="s1")["items"]}
    assert shown == set(range(N)) - {3, 8}
    assert shop.ask(size=5, session="nobody", request_id="r1")["items"] == shop.ask(size=5, request_id="r1")["items"]


def test_what_a_guest_saw_and_clicked_is_counted_as_the_users_own() -> None:
    """Reference: the same counts under the user's own keys. Both were shown and clicked some of the same items."""
    items = [item(i, f"c{i % 4}", attributes={"price": float(i)}) for i in range(N)]
    did = {"ann": [(range(6), 5, 1)], "s1": [(range(4, 20), 3, 2)], "s2": [(range(5), 1, 1)]}

    def of(user: Id, parts: list[tuple[range, int, int]]) -> dict[bytes, bytes]:
        store = TileStore.of(SCHEMA.windows)
        found = np.zeros(0, np.uint64)
        for some, exposures, clicks in parts:
            rows = [items[i] for i in some]
            columns = {
                "user_id": column_hash([user]), "item_id": column_hash([i.item_id for i in rows]),
                "category": column_hash([i.attributes["category"] for i in rows]),
            }  # fmt: skip
            keys = shop.builder.keys(columns, len(rows))
            keys = keys[:, [SCHEMA.key_side(k) == "user" for k in SCHEMA.windows.keys]].ravel()
            keys = keys[keys != 0]
            for action, amount in ((0, exposures), (1, clicks)):
                for _ in range(amount):
                    store.add(keys, np.full(len(keys), NOW_MS - 3_600_000), np.full(len(keys), action))
            found = np.union1d(found, keys)
        return record(found, store)

    shop = Shop(items, candidates=40)
    pages = []
    for guests in (True, False):
        parts = {"ann": did["ann"] if guests else [p for all_ in did.values() for p in all_]}
        shop.users.records = {u: of(u, p) for u, p in ({**did, **parts} if guests else parts).items()}
        if guests:
            shop.users.records["ann"][GUESTS] = b'["s1", "ann", 7]'
        ask_of: dict[str, Any] = {"session": "s2"} if guests else {}
        shown = [one["item_id"] for one in shop.ask(size=40, hide=["seen"], **ask_of)["items"]]
        shop.ask(size=40, request_id="r", **ask_of)
        pages.append((shown, shop.sent[-1].items, shop.sent[-1].num, shop.sent[-1].scores, shop.sent[-1].keys))
    assert pages[0] == pages[1]
    assert set(pages[0][0]) == set(range(20, N))
    shop.users.records = {"ann": of("ann", did["ann"])}
    shop.ask(size=40, request_id="r")
    assert shop.sent[-1].num != pages[0][2], "guests were counted before"


# -- one item ------------------------------------------------------------------------------------------------------


def get(shop: Shop, name: str) -> tuple[int, Any]:
    return asyncio.run(call(shop.app, "GET", f"/items/{name}"))


def test_an_item_is_what_pages_know_of_it() -> None:
    shop = Shop([item("a/b", attributes={"price": 2.5}), item(7, gone=True)])
    count(shop, {"a/b": 30, 7: 10}, {"a/b": 3})  # type: ignore[dict-item]
    shop.scorer.retrieval = held = retrieval(np.ones((1, W), np.float32))
    shop.scorer.neighbours = coclicked({0: {1: 1}}, 2)
    assert held.has(0)
    status, answer = get(shop, "a/b")
    rate = answer.pop("click_rate")
    assert status == 200
    assert answer == {
        "item_id": "a/b", "on_pages": True, "born_ms": NOW_MS - 86_400_000, "numbers": {"price": 2.5},
        "clicks": pytest.approx(3 * (1 + 1 / 3) / 2), "coclicked": 1, "vector": True,
    }  # fmt: skip
    assert rate == pytest.approx(0.1, rel=1e-5)
    status, answer = get(shop, "7")
    assert (status, answer["item_id"], answer["on_pages"], answer["vector"]) == (200, 7, False, False)
    status, answer = get(shop, "nobody")
    assert (status, "item 'nobody' is not in the catalogue" in answer["error"]) == (404, True)


# -- bad requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"size": 0}, ["size", ">= 1"]),
        ({"size": -1}, ["size", ">= 1"]),
        ({"size": 10**9}, ["size 1000000000", "page limit 600"]),
        ({"size": 10**30}, ["size"]),
        ({"only": {"colour": "red"}}, ["only 'colour' is no attribute"]),
        ({"list": 9, "size": 3}, ["list"]),
        ({"hide": ["bought"]}, ["need a user"]),
        ({"session": "s1"}, ["need a user"]),
        ({"ts_ms": 5}, ["ts_ms 5"]),
        ({"item_id": ""}, ["item_id"]),
    ],
)
def test_a_bad_request_is_one_line(body: dict[str, Any], words: list[str]) -> None:
    shop = Shop([item(i) for i in range(3)])
    for path in ("/popular", "/similar"):
        error = ask(shop, path, 400, **({"item_id": 1} if path == "/similar" else {}) | body)["error"]
        assert "\n" not in error
        for word in words:
            assert word in error


def test_a_group_that_does_not_exist_is_an_empty_page() -> None:
    shop = Shop([item(i) for i in range(3)])
    for path, own in (("/popular", {}), ("/similar", {"item_id": 1})):
        answer = ask(shop, path, user_id="ann", only={"category": "none such"}, **own)
        assert (answer["items"], answer["request_id"]) == ([], None)
        assert any("category=none such" in note for note in answer["notes"])
    assert shop.sent == []
    assert "item_id" in ask(shop, "/similar", 400)["error"]
