"""Requests through the ASGI application, with a real index and a real model, a store in memory and a recorder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from learner.model import ServingModel
from millrace.contracts.events import Impression
from millrace.contracts.impressions import decode_impression, impression_bytes
from millrace.contracts.online import window_fields
from millrace.contracts.settings import Settings
from scorer.app import make_app, sender
from scorer.meters import ScorerMeters
from scorer.serving import arm_of
from scorer.wire import MAX_BODY_BYTES
from tests.scorer_shop import (
    BUILDER,
    ITEMS,
    LAYOUT,
    NOW_MS,
    SCHEMA,
    SLOT,
    TASTE,
    USER,
    Learner,
    Users,
    arrays,
    call,
    item,
    record,
    serving,
    stock,
    tiles,
    window_keys,
)

POSITION = LAYOUT.cat_names.index("position")


class Shop:
    """A scorer that is ready, and what it did."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        chosen = Settings(**{"control_share": 0, "candidates": 50, "page_limit": 20, **settings})
        self.users = Users()
        self.scorer, self.sent, self.meters = serving(self.users, chosen)
        stock(self.scorer, ITEMS)
        learner = Learner(folder)
        note = learner.snapshot()
        self.model = ServingModel.of(SCHEMA, note.spec, learner.store.read(note))
        self.scorer.install(note, self.model, 0, [])
        self.app = make_app(self.scorer, self.meters)
        keys = np.unique(window_keys("ann", ITEMS)[:, [USER, TASTE]])
        self.users.records["ann"] = record(keys, tiles(keys, 10, 4))

    def ask(self, path: str, body: Any) -> tuple[int, Any]:
        return asyncio.run(call(self.app, "POST", path, body))

    def get(self, path: str) -> tuple[int, Any]:
        return asyncio.run(call(self.app, "GET", path))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Shop]:
    return lambda **settings: Shop(tmp_path, **settings)


def list_pages() -> float:
    return REGISTRY.get_sample_value("millrace_list_pages_total") or 0.0


def scored_as_missing_position(model: ServingModel, impression: Impression) -> Any:
    """The model's scores of the features in an impression, as they were when it was ranked."""
    features, _ = arrays(impression)
    cat = features.cat.copy()
    cat[:, POSITION] = 0
    return model.score(cat, features.num)


def test_a_page_is_ranked_by_score_and_logged_as_it_was_scored(shop: Shop) -> None:
    status, page = shop.ask(
        "/recommend", {"user_id": "ann", "size": 10, "request_id": "r1", "context": {"tab": "home"}}
    )
    assert status == 200
    assert page["request_id"] == "r1"
    assert page["arm"] == "model"
    assert page["ts_ms"] == NOW_MS
    assert page["model_version"] == 0
    assert page["notes"] == []
    assert [i["position"] for i in page["items"]] == list(range(10))
    scores = [i["score"] for i in page["items"]]
    assert scores == sorted(scores, reverse=True)
    assert len({i["item_id"] for i in page["items"]}) == 10

    (sent,) = shop.sent
    impression = decode_impression(impression_bytes(sent))
    assert impression.items == [i["item_id"] for i in page["items"]]
    assert (impression.request_id, impression.user_id, impression.arm) == ("r1", "ann", "model")
    assert (impression.model_version, impression.schema_id) == (0, SCHEMA.id)
    features, logged = arrays(impression)
    np.testing.assert_allclose(logged, scores, rtol=1e-6)
    np.testing.assert_allclose(scored_as_missing_position(shop.model, impression), scores, rtol=1e-5)
    expected = BUILDER.cat({"position": BUILDER.position(np.arange(10))}, 10)[:, POSITION]
    assert features.cat[:, POSITION].tolist() == expected.tolist()
    assert features.keys[:, SLOT].all()
    assert features.keys[:, USER].tolist() == [window_keys("ann", ITEMS)[0, USER]] * 10
    assert features.cat[:, LAYOUT.cat_names.index("tab")].all()


def test_the_page_holds_the_best_of_its_candidates(make: Callable[..., Shop]) -> None:
    shop = make(candidates=200)  # all of them
    _, page = shop.ask("/recommend", {"user_id": "ann", "size": 5})
    _, all_scores = shop.ask("/score", {"user_id": "ann", "items": [i.item_id for i in ITEMS]})
    best = sorted(all_scores["scores"], reverse=True)[:5]
    np.testing.assert_allclose([i["score"] for i in page["items"]], best, rtol=1e-5)


def test_a_size_not_given_is_the_page_limit_and_a_retry_is_the_same_page(shop: Shop) -> None:
    _, first = shop.ask("/recommend", {"user_id": "ann", "request_id": "again"})
    _, second = shop.ask("/recommend", {"user_id": "ann", "request_id": "again"})
    assert len(first["items"]) == 20
    assert first == second


def test_the_arm_depends_on_the_request_id_alone_and_shares_are_kept(make: Callable[..., Shop]) -> None:
    ids = [f"request {i}" for i in range(4000)]
    control = [arm_of(i, 0.25) == "control" for i in ids]
    assert abs(np.mean(control) - 0.25) < 0.03
    assert all(arm_of(i, 0.5) == "control" for i, c in zip(ids, control, strict=True) if c), (
        "a greater share keeps them"
    )
    assert not any(arm_of(i, 0) == "control" for i in ids)
    assert all(arm_of(i, 1) == "control" for i in ids)
    shop = make(control_share=0.5)
    for name in ids[:6]:
        _, page = shop.ask("/recommend", {"user_id": "ann", "request_id": name})
        assert page["arm"] == arm_of(name, 0.5)


def test_a_control_page_is_in_random_order_but_scored_and_logged(make: Callable[..., Shop]) -> None:
    shop = make(control_share=1)
    shown: set[int] = set()
    ordered = 0
    for i in range(40):
        _, page = shop.ask("/recommend", {"user_id": "ann", "request_id": f"r{i}"})
        assert page["arm"] == "control"
        scores = [i["score"] for i in page["items"]]
        ordered += scores == sorted(scores, reverse=True)
        shown |= {i["item_id"] for i in page["items"]}
    assert ordered == 0
    assert len(shown) > 190, "all items have the same chance"
    features, logged = arrays(shop.sent[-1])
    assert shop.sent[-1].arm == "control"
    np.testing.assert_allclose(scored_as_missing_position(shop.model, shop.sent[-1]), logged, rtol=1e-5)
    assert features.num.any()


def test_an_item_that_is_gone_is_not_shown_though_the_lists_still_have_it(make: Callable[..., Shop]) -> None:
    shop = make(candidates=200, page_limit=200)
    shop.scorer.index.put([shop.scorer.index.prepare(item(7, gone=True))])
    for share in ({"request_id": "a"}, {"request_id": "b"}):
        _, page = shop.ask("/recommend", {"user_id": "ann", **share})
        assert 7 not in [i["item_id"] for i in page["items"]]
        assert len(page["items"]) == 199
    _, scored = shop.ask("/score", {"user_id": "ann", "items": [7]})
    assert scored["scores"][0] is not None, "it may still be scored"


def test_score_answers_in_the_order_asked_with_null_for_unknown_items(shop: Shop) -> None:
    status, answer = shop.ask("/score", {"user_id": "ann", "items": [3, "nobody", 5, 3]})
    assert status == 200
    assert answer["unknown_items"] == ["nobody"]
    assert answer["scores"][1] is None
    assert answer["scores"][0] == answer["scores"][3] != answer["scores"][2]
    assert shop.sent == []
    status, answer = shop.ask("/score", {"user_id": "ann", "items": ["x", "y"]})
    assert status == 404
    assert "['x', 'y']" in answer["error"]


def test_score_can_log_a_page_made_elsewhere(shop: Shop) -> None:
    body = {"user_id": "ann", "items": [9, 4], "request_id": "theirs", "log": True, "offset": 12}
    _, answer = shop.ask("/score", body)
    (impression,) = shop.sent
    assert impression.items == [9, 4]
    features, logged = arrays(impression)
    assert logged.tolist() == pytest.approx(answer["scores"])
    expected = BUILDER.cat({"position": BUILDER.position(np.array([12, 13]))}, 2)[:, POSITION]
    assert features.cat[:, POSITION].tolist() == expected.tolist()


def test_an_unknown_user_is_served_as_a_new_one_and_leaves_nothing_behind(shop: Shop) -> None:
    index, model = shop.scorer.index, shop.model

    def held() -> Any:
        return len(index), index.keys, [t.nbytes for t in index.tiles.values()], model.rows, len(shop.users.records)

    before = held()
    for i in range(50):
        status, page = shop.ask("/recommend", {"user_id": f"stranger {i}", "size": 3})
        assert status == 200
        assert page["notes"] == [f"user 'stranger {i}' is unknown: served as a new user"]
        shop.ask("/score", {"user_id": f"stranger {i}", "items": [1, f"unheard {i}"]})
    assert held() == before


def test_without_the_store_users_are_new_ones(shop: Shop) -> None:
    shop.users.away = True
    status, page = shop.ask("/recommend", {"user_id": "ann", "size": 3})
    assert status == 200
    assert page["notes"] == ["the online store is away: served as a new user"]


def test_a_damaged_profile_is_survived_and_counted(shop: Shop) -> None:
    shop.users.records["ann"][b"profile"] = b"{"
    status, page = shop.ask("/recommend", {"user_id": "ann"})
    assert status == 200
    assert "damaged" in page["notes"][0]
    assert shop.meters.errors == {"profile": 1}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/recommend", b"{nonsense", ["{nonsense", "JSON"]),
        ("/recommend", b"\xff\xfe", ["JSON"]),
        ("/recommend", b"", ["JSON"]),
        ("/recommend", [], ["object", "array"]),
        ("/recommend", {}, ["user_id"]),
        ("/recommend", {"user_id": 1.5}, ["user_id", "float"]),
        ("/recommend", {"user_id": ""}, ["user_id", "length"]),
        ("/recommend", {"user_id": None}, ["user_id", "null"]),
        ("/recommend", {"user_id": "x" * 201}, ["user_id", "200"]),
        ("/recommend", b'{"user_id": 99999999999999999999999}', ["user_id"]),
        ("/recommend", {"user_id": 1, "sise": 3}, ["sise", "size"]),
        ("/recommend", {"user_id": 1, "size": 0}, ["size", ">= 1"]),
        ("/recommend", {"user_id": 1, "size": "ten"}, ["size", "str"]),
        ("/recommend", {"user_id": 1, "size": 21}, ["21", "20"]),
        ("/recommend", {"user_id": 1, "ts_ms": -4}, ["ts_ms"]),
        ("/recommend", {"user_id": 1, "ts_ms": 1}, ["ts_ms 1 ", "behind", "leave it out"]),
        ("/score", {"user_id": 1, "items": [1], "ts_ms": 1, "log": True}, ["ts_ms 1 ", "behind"]),
        ("/recommend", {"user_id": 1, "ts_ms": NOW_MS + 7_200_000}, [str(NOW_MS + 7_200_000), "120 minutes", "60"]),
        ("/recommend", {"user_id": 1, "context": {"mood": "good"}}, ["mood", "tab"]),
        ("/recommend", {"user_id": 1, "context": {"position": 3}}, ["position", "derived"]),
        ("/recommend", {"user_id": 1, "context": {"tab": {"a": 1}}}, ["context", "object"]),
        ("/score", {"user_id": 1, "items": []}, ["items []", "at least one"]),
        ("/score", {"user_id": 1, "items": "all"}, ["items", "str"]),
        ("/score", {"user_id": 1, "items": list(range(1001))}, ["1001", "1000"]),
        ("/score", {"user_id": 1, "items": [1], "offset": -1}, ["offset"]),
    ],
)
def test_a_bad_request_is_one_line_that_names_value_and_remedy(
    shop: Shop, path: str, body: Any, words: list[str]
) -> None:
    status, answer = shop.ask(path, body)
    assert status == 400
    assert list(answer) == ["error"]
    assert "\n" not in answer["error"]
    for word in words:
        assert word in answer["error"]
    assert shop.sent == []
    assert sum(shop.meters.errors.values()) == 0, "a client's mistake is no error of ours"


def test_how_old_a_page_may_be_follows_the_newest_event_not_the_clock_alone(shop: Shop) -> None:
    """A log that is played slower than the event clock runs is hours behind it and in time all the same."""
    minute = 60_000
    life = (5 + 120 + 1) * minute  # attribution, lateness, disorder
    for ts_ms, status in ((NOW_MS - life, 400), (NOW_MS - life + 1, 200)):
        assert shop.ask("/recommend", {"user_id": 1, "ts_ms": ts_ms})[0] == status
    shop.scorer.heard_ms = NOW_MS - 600 * minute
    for ts_ms, status in ((NOW_MS - life, 200), (NOW_MS - 600 * minute - life, 400), (NOW_MS - 726 * minute + 1, 200)):
        assert shop.ask("/score", {"user_id": 1, "items": [1], "ts_ms": ts_ms, "log": True})[0] == status
    assert shop.ask("/score", {"user_id": 1, "items": [1], "ts_ms": 1})[0] == 200, (
        "what is not logged may be of any time"
    )


def test_a_page_too_large_for_a_message_is_served_and_says_that_nothing_is_learnt(shop: Shop) -> None:
    handed: list[bytes] = []

    class Producer:
        def send(self, topic: str, value: bytes, key: bytes) -> Any:
            handed.append(value)
            return SimpleNamespace(add_errback=lambda _: None)

    assert shop.ask("/recommend", {"user_id": "ann", "size": 5})[0] == 200
    small = len(impression_bytes(shop.sent[0]))
    shop.scorer._send = sender(Producer(), shop.meters, small + 100)
    status, page = shop.ask("/recommend", {"user_id": "ann", "size": 20})
    assert status == 200
    assert len(page["items"]) == 20
    assert any("an impression of 20 items has" in note and "ask for fewer items" in note for note in page["notes"])
    assert shop.meters.errors == {"impressions": 1}
    assert handed == []
    assert shop.ask("/recommend", {"user_id": "ann", "size": 5})[1]["notes"] == []
    assert len(handed) == 1


def test_a_body_that_never_ends_is_refused(shop: Shop) -> None:
    status, answer = shop.ask("/recommend", b" " * (MAX_BODY_BYTES + 1))
    assert status == 413
    assert str(MAX_BODY_BYTES) in answer["error"]


def test_other_paths_and_methods_are_named(shop: Shop) -> None:
    for method, path in (("GET", "/recommend"), ("POST", "/model"), ("GET", "/nowhere")):
        status, answer = asyncio.run(call(shop.app, method, path))
        assert status == 404
        assert f"{method} {path}" in answer["error"]


def test_a_failure_within_is_one_line_to_the_client_and_counted(shop: Shop) -> None:
    def explode(*_: Any) -> Any:
        raise ZeroDivisionError("secret detail")

    shop.model.score = explode  # type: ignore[assignment]
    status, answer = shop.ask("/recommend", {"user_id": "ann"})
    assert status == 500
    assert "ZeroDivisionError" in answer["error"]
    assert "secret" not in answer["error"]
    assert shop.meters.errors == {"request": 1}


def test_a_producer_that_refuses_costs_the_log_not_the_page(shop: Shop) -> None:
    def refuse(_: Impression) -> None:
        raise TimeoutError

    shop.scorer._send = refuse
    status, page = shop.ask("/recommend", {"user_id": "ann"})
    assert status == 200
    assert len(page["items"]) == 20
    assert shop.meters.errors == {"impressions": 1}


def test_scores_that_are_no_numbers_are_counted_and_rank_last(shop: Shop) -> None:
    honest = shop.model.score

    def half(cat: Any, num: Any) -> Any:
        scores = honest(cat, num)
        scores[::2] = np.nan
        return scores

    shop.model.score = half  # type: ignore[method-assign]
    status, page = shop.ask("/recommend", {"user_id": "ann", "size": 20})
    assert status == 200
    assert all(i["score"] > 0 for i in page["items"])
    assert shop.meters.errors == {"scores": 1}
    asked = {"user_id": "ann", "items": [i.item_id for i in ITEMS], "log": True, "request_id": "log"}
    status, answer = shop.ask("/score", asked)
    assert (status, answer["scores"][0], answer["scores"][1] > 0) == (200, 0, True)
    impression = shop.sent[-1]
    assert (impression.request_id, impression.arm) == ("log", "logged")
    logged = np.frombuffer(impression.scores, np.float32)
    assert np.isnan(logged[::2]).all(), "they count as wrong"
    assert np.isfinite(logged[1::2]).all()


def test_readiness_says_what_is_missing(tmp_path: Path) -> None:
    scorer, _, meters = serving()
    app = make_app(scorer, meters)

    def ready() -> tuple[int, Any]:
        return asyncio.run(call(app, "GET", "/readyz"))

    status, answer = ready()
    assert status == 503
    assert "no model" in answer["error"]
    assert asyncio.run(call(app, "POST", "/recommend", {"user_id": 1})) == (503, {"error": answer["error"]})
    assert asyncio.run(call(app, "GET", "/healthz")) == (200, {"alive": True})
    learner = Learner(tmp_path)
    note = learner.snapshot()
    scorer.install(note, ServingModel.of(SCHEMA, note.spec, learner.store.read(note)), 0, [])
    status, answer = ready()
    assert status == 503
    assert "no items" in answer["error"]
    stock(scorer, ITEMS[:1])
    assert ready() == (200, {"ready": True})
    assert asyncio.run(call(app, "POST", "/recommend", {"user_id": 1}))[0] == 200


def test_until_it_is_ready_pages_come_from_the_shops_lists(tmp_path: Path) -> None:
    users = Users()
    scorer, sent, meters = serving(users)
    app = make_app(scorer, meters)

    def ask(body: Any) -> tuple[int, Any]:
        return asyncio.run(call(app, "POST", "/recommend", body))

    assert ask({"user_id": "ann"})[0] == 503, "there are no lists"
    users.shop_lists = {"hot": [f"h{i}" for i in range(30)], "new": ["h0", "n1", "n2", "n3"]}
    pages = list_pages()
    status, page = ask({"user_id": "ann", "size": 10, "request_id": "mine"})
    assert status == 200
    ids = [i["item_id"] for i in page["items"]]
    assert ids == [*(f"h{i}" for i in range(9)), "h9"], "the newest is a hot one, and stands there once"
    assert [i["position"] for i in page["items"]] == list(range(10))
    assert {i["score"] for i in page["items"]} == {None}
    assert (page["request_id"], page["arm"], page["model_version"], page["ts_ms"]) == (None, "lists", -1, NOW_MS)
    assert page["notes"] == [
        "made of the shop's lists, since there is no model yet: report no events of this page",
        "user 'ann' is unknown: served as a new user",
    ]
    ids = [i["item_id"] for i in ask({"user_id": "ann", "size": 20})[1]["items"]]
    assert ids == [*(f"h{i}" for i in range(18)), "n1", "h18"]
    assert len(ask({"user_id": "ann"})[1]["items"]) == 20, "the page limit"
    assert list_pages() - pages == 3
    assert sent == [], "nothing is learnt from them"
    assert sum(meters.errors.values()) == 0

    assert asyncio.run(call(app, "GET", "/readyz"))[0] == 503
    assert asyncio.run(call(app, "POST", "/score", {"user_id": 1, "items": [1]}))[0] == 503
    assert ask({"user_id": "ann", "size": 21})[0] == 400
    users.away = True
    status, answer = ask({"user_id": "ann"})
    assert (status, "no model" in answer["error"]) == (503, True)
    users.away = False

    learner = Learner(tmp_path)
    note = learner.snapshot()
    scorer.install(note, ServingModel.of(SCHEMA, note.spec, learner.store.read(note)), 0, [])
    assert "no items yet" in ask({"user_id": "ann"})[1]["notes"][0]
    stock(scorer, ITEMS)
    status, page = ask({"user_id": "ann", "request_id": "mine"})
    assert (status, page["request_id"], page["arm"], len(sent)) == (200, "mine", "model", 1)


def test_a_page_of_lists_has_what_the_user_likes() -> None:
    users = Users()
    scorer, _, meters = serving(users)
    app = make_app(scorer, meters)
    shelves = [item(1, "shoes"), item(2, "hats"), item(3, "bags")]
    keys = window_keys("ann", shelves)[:, TASTE]
    store = tiles(keys[:2], 10, 2)  # two clicks among shoes and hats, none among bags
    store.add(keys[1:2], np.full(1, NOW_MS - 1000), np.ones(1, np.int64), 5)  # hats are liked better
    users.records["ann"] = record(keys[:2], store)
    users.shop_lists = {
        "hot": [f"h{i}" for i in range(20)],
        "new": ["n"],
        "hot:category:shoes": ["s1", "s2"],
        "hot:category:hats": ["t1", "h0", "t2"],
        "hot:category:bags": ["b1"],
    }

    def page_of(user: str) -> list[str]:
        status, page = asyncio.run(call(app, "POST", "/recommend", {"user_id": user, "size": 10}))
        assert status == 200
        return [i["item_id"] for i in page["items"]]

    assert page_of("ann") == ["h0", "h1", "h2", "h3", "h4", "t1", "s1", "s2", "n", "h5"]
    assert page_of("bob") == [*(f"h{i}" for i in range(9)), "n"], "of a stranger nothing is known"
    users.records["ann"][window_fields(keys)[0]] = b"\x01\x63damaged"
    assert page_of("ann") == page_of("bob"), "damaged tiles cost the likings, not the page"
    assert meters.errors == {"tiles": 1}


def test_model_and_metrics_say_what_is_served(shop: Shop) -> None:
    shop.meters.served(3, 1, [NOW_MS - 400, NOW_MS - 600], NOW_MS)
    shop.ask("/recommend", {"user_id": "ann"})
    status, facts = shop.get("/model")
    assert status == 200
    assert facts["version"] == 0
    assert facts["schema_id"] == SCHEMA.id
    assert facts["spec"]["hidden"] == [8]
    assert facts["click_to_served_ms"] == {"p50": 500, "p99": pytest.approx(598), "count": 2}
    assert facts["versions_served"] == 2
    assert facts["errors"] == 0
    status, text = shop.get("/metrics")
    assert status == 200
    for name in (
        "millrace_requests_total{route=",
        "millrace_request_seconds_bucket{",
        "millrace_served_version",
        "millrace_deltas_applied_total",
        "millrace_delta_gaps_total",
        "millrace_click_to_served_seconds_bucket",
        "millrace_freshness_seconds",
        "millrace_items 200",
        "millrace_item_keys",
        "millrace_unknown_users_total",
    ):
        assert f"\n{name}" in text


def test_a_client_that_leaves_is_no_error(shop: Shop) -> None:
    async def leave() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def into_the_void(_: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/recommend", "headers": [], "query_string": b""}
    asyncio.run(shop.app(scope, leave, into_the_void))
    assert sum(shop.meters.errors.values()) == 0


def test_percentiles_are_over_the_newest_times_only() -> None:
    meters = ScorerMeters(reservoir=10)
    meters.served(1, 0, [1, 0] * 50, 9_000_000)  # 0: not known
    meters.served(2, 1, [100] * 10, 300)
    assert meters.click_to_served() == {"p50": 200, "p99": 200, "count": 60}


def test_concurrent_requests_do_not_mix(shop: Shop) -> None:
    async def all_at_once() -> list[tuple[int, Any]]:
        asks: list[Awaitable[tuple[int, Any]]] = [
            call(shop.app, "POST", "/recommend", {"user_id": "ann", "request_id": f"r{i}", "size": 5})
            for i in range(20)
        ]
        return await asyncio.gather(*asks)

    together = asyncio.run(all_at_once())
    alone = [shop.ask("/recommend", {"user_id": "ann", "request_id": f"r{i}", "size": 5}) for i in range(20)]
    assert together == alone
