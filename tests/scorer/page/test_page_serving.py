"""Requests through the ASGI application, with a real index and a real model, a store in memory and a recorder."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from learner.serving.serving_model import ServingModel
from millrace.contracts.events import NOT_READ, PROFILE_MISSING, WINDOWS_MISSING, PageLog
from millrace.contracts.online_layout import PROFILE, RECENT, window_fields
from millrace.contracts.page_logs import decode_page_log, page_log_bytes
from millrace.evidence.user_arms import ArmDraw
from millrace.versions.clicks import ClickHistogram
from millrace.versions.versioning import VersionClicks
from scorer.page import page_service
from scorer.page.page_wire import MAX_BODY_BYTES
from tests.scenes.exploring import examples
from tests.scenes.scorer_shop import (
    BUILDER,
    ITEM,
    ITEMS,
    LAYOUT,
    NOW_MS,
    SCHEMA,
    SLOT,
    TASTE,
    USER,
    OneWorker,
    arrays,
    call,
    item,
    record,
    stock,
    tiles,
    window_keys,
)

POSITION = LAYOUT.cat_names.index("position")


class Shop(OneWorker):
    """A scorer that is ready."""

    def __init__(self, folder: Path, **others: Any) -> None:
        super().__init__(folder, **others)
        self.index = stock(self.scorer, ITEMS)
        self.model = self.follow()
        keys = np.unique(window_keys("ann", ITEMS)[:, [USER, TASTE]])
        self.users.records["ann"] = record(keys, tiles(keys, 10, 4))


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_service, "PAGE_LIMIT", 20)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Shop]:
    return lambda **chosen: Shop(tmp_path, **chosen)


def list_pages() -> float:
    return REGISTRY.get_sample_value("millrace_list_pages_total") or 0.0


def scored_as_missing_position(model: ServingModel, page_log: PageLog) -> Any:
    """The model's scores of the features in a page log, as they were when it was ranked."""
    features, _ = arrays(page_log)
    cat = features.cat.copy()
    cat[:, POSITION] = 0
    return model.score(cat, features.num)


def test_a_page_is_ranked_by_score_and_logged_as_it_was_scored(shop: Shop) -> None:
    page = shop.ask(size=10, request_id="r1", context={"tab": "home"})
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
    page_log = decode_page_log(page_log_bytes(sent))
    assert page_log.items == [i["item_id"] for i in page["items"]]
    assert (page_log.request_id, page_log.user_id, page_log.arm) == ("r1", "ann", "model")
    assert (page_log.model_version, page_log.schema_id) == (0, SCHEMA.id)
    features, logged = arrays(page_log)
    np.testing.assert_allclose(logged, scores, rtol=1e-6)
    np.testing.assert_allclose(scored_as_missing_position(shop.model, page_log), scores, rtol=1e-5)
    expected = BUILDER.cat({"position": BUILDER.position(np.arange(10))}, 10)[:, POSITION]
    assert features.cat[:, POSITION].tolist() == expected.tolist()
    assert features.keys[:, SLOT].all()
    assert features.keys[:, USER].tolist() == [window_keys("ann", ITEMS)[0, USER]] * 10
    assert features.cat[:, LAYOUT.cat_names.index("tab")].all()


def test_the_page_holds_the_best_of_its_candidates(make: Callable[..., Shop]) -> None:
    shop = make(candidates=200)  # all of them
    page = shop.ask(size=5)
    all_scores = shop.ask(path="/score", items=[i.item_id for i in ITEMS])
    best = sorted(all_scores["scores"], reverse=True)[:5]
    np.testing.assert_allclose([i["score"] for i in page["items"]], best, rtol=1e-5)


def test_a_size_not_given_is_the_page_limit_and_a_retry_is_the_same_page(shop: Shop) -> None:
    first = shop.ask(request_id="again")
    second = shop.ask(request_id="again")
    assert len(first["items"]) == 20
    assert first == second


def test_a_user_stays_in_an_arm_and_shares_are_kept(make: Callable[..., Shop]) -> None:
    def arm_of(user: str, share: float) -> str:
        return ArmDraw(share, {}).of(user)

    ids = [f"user {i}" for i in range(4000)]
    control = [arm_of(i, 0.25) == "control" for i in ids]
    assert abs(np.mean(control) - 0.25) < 0.03
    assert all(arm_of(i, 0.5) == "control" for i, c in zip(ids, control, strict=True) if c), (
        "a greater share keeps them"
    )
    assert not any(arm_of(i, 0) == "control" for i in ids)
    assert all(arm_of(i, 1) == "control" for i in ids)
    shop = make(control_share=0.5)
    for name in ids[:6]:
        pages = [shop.ask(user_id=name) for _ in range(3)]
        assert [page["arm"] for page in pages] == [arm_of(name, 0.5)] * 3


def test_a_control_page_is_in_random_order_but_scored_and_logged(make: Callable[..., Shop]) -> None:
    shop = make(control_share=1)
    shown: set[int] = set()
    ordered = 0
    for i in range(40):
        page = shop.ask(request_id=f"r{i}")
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


def test_pages_drawn_by_chance_log_the_odds_of_each_item_and_others_are_as_before(make: Callable[..., Shop]) -> None:
    plain, explores = make(), make(explore="0.5,softmax,2")
    moved = 0
    for i in range(60):
        body: Any = {"user_id": "ann", "request_id": f"r{i}", "size": 5, "list": 12}
        before = plain.ask(**body)
        page = explores.ask(**body)
        assert plain.sent[-1].odds == b""
        scores = [item["score"] for item in page["items"]]
        odds = [np.frombuffer(explores.sent[-1].odds, np.float32)]
        moved += scores != sorted(scores, reverse=True)
        if page["items"] == before["items"]:
            assert odds[0].prod() > 0.4999, "the coin is part of the odds"
        while page.get("cursor"):
            page = explores.ask(cursor=page["cursor"], size=5)
            odds.append(np.frombuffer(explores.sent[-1].odds, np.float32))
        assert [len(part) for part in odds] == [5, 5, 2]
        assert all(((part > 0) & (part <= 1)).all() for part in odds)
        assert (decode_page_log(page_log_bytes(explores.sent[-1]))).odds == explores.sent[-1].odds
    assert 15 < moved < 45
    assert explores.ask(request_id="r0") == explores.ask(request_id="r0"), "a retry is the same page"


def test_a_random_page_has_the_odds_of_a_uniform_draw_and_a_page_under_caps_says_none(
    make: Callable[..., Shop],
) -> None:
    control = make(control_share=1, explore="0.05")
    control.ask(size=3)
    np.testing.assert_allclose(np.frombuffer(control.sent[-1].odds, np.float32), [1 / 200, 1 / 199, 1 / 198])
    capped = make(explore="1")
    capped.ask(size=3, caps={"category": 1})
    assert capped.sent[-1].odds == b""


def test_an_item_that_is_gone_is_not_shown_though_the_lists_still_have_it(
    make: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_service, "PAGE_LIMIT", 200)
    shop = make(candidates=200)
    lists = shop.scorer.lists
    stock(shop.scorer, [item(7, gone=True)], shop.index)
    shop.scorer.lists = lists
    for request in "ab":
        page = shop.ask(request_id=request)
        assert 7 not in [i["item_id"] for i in page["items"]]
        assert len(page["items"]) == 199
    scored = shop.ask(path="/score", items=[7])
    assert scored["scores"][0] is not None, "it may still be scored"


def test_score_answers_in_the_order_asked_with_null_for_unknown_items(shop: Shop) -> None:
    answer = shop.ask(path="/score", items=[3, "nobody", 5, 3])
    assert answer["unknown_items"] == ["nobody"]
    assert answer["scores"][1] is None
    assert answer["scores"][0] == answer["scores"][3] != answer["scores"][2]
    assert shop.sent == []
    assert answer["notes"] == ["1 of 4 items are not in the catalogue"]
    answer = shop.ask(path="/score", items=["x", "y"])
    assert (answer["scores"], answer["unknown_items"]) == ([None, None], ["x", "y"])


def test_an_item_taken_out_of_the_catalogue_is_unknown_until_it_is_sent_again(shop: Shop) -> None:
    shop.index.remove(3)
    stock(shop.scorer, [], shop.index)
    answer = shop.ask(path="/score", items=[3, 5])
    assert (answer["unknown_items"], answer["scores"][0]) == ([3], None)
    stock(shop.scorer, [item(3)], shop.index)
    answer = shop.ask(path="/score", items=[3, 5])
    assert (answer["unknown_items"], answer["scores"][0] is None) == ([], False)


def test_a_page_with_an_unknown_item_is_scored_and_not_logged(shop: Shop) -> None:
    for items in ([3, "nobody"], ["nobody"]):
        answer = shop.ask(path="/score", items=items, log=True, request_id="mine")
        assert answer["request_id"] is None, "events about it would find nothing to join"
        assert "send no events" in answer["notes"][0]
        assert shop.sent == []


def test_score_can_log_a_page_made_elsewhere(shop: Shop) -> None:
    theirs: Any = {"items": [9, 4], "request_id": "theirs", "log": True, "offset": 12, "arm": "editors"}
    answer = shop.ask(path="/score", user_id="ann", **theirs)
    (page_log,) = shop.sent
    assert (page_log.arm, page_log.arm_name) == ("logged", "editors")
    assert page_log.items == [9, 4]
    features, logged = arrays(page_log)
    assert logged.tolist() == pytest.approx(answer["scores"])
    expected = BUILDER.cat({"position": BUILDER.position(np.array([12, 13]))}, 2)[:, POSITION]
    assert features.cat[:, POSITION].tolist() == expected.tolist()
    assert page_log.offset == 12


def test_an_unknown_user_is_served_as_a_new_one_and_leaves_nothing_behind(shop: Shop) -> None:
    scorer, table = shop.scorer, shop.scorer.items

    def held() -> Any:
        sizes = len(table), len(table.ids), table.slots.counts.nbytes
        return sizes, len(shop.users.records), len(shop.users.ranked), len(scorer.ranked), scorer.ranked.bytes

    before = held()
    for i in range(50):
        page = shop.ask(user_id=f"stranger {i}", size=3)
        assert page["notes"] == [f"user 'stranger {i}' is unknown: served as a new user"]
        shop.ask(path="/score", user_id=f"stranger {i}", items=[1, f"unheard {i}"])
        shop.ask(path="/score", user_id=f"stranger {i}", items=[f"unheard {i}"], log=True)
        shop.ask(user_id=f"stranger {i}", size=3, cursor=f"unheard{i}.3.3.10")
    assert (held()[0], held()[1]) == (before[0], before[1])
    assert held()[2:] == (50, 50, scorer.ranked.bytes), "the lists made again, bounded by size and time"


def test_without_the_store_users_are_new_ones(shop: Shop) -> None:
    shop.users.away = True
    page = shop.ask(size=3)
    assert page["notes"] == ["the online store is away: served as a new user"]


def test_a_page_log_says_what_was_not_there_of_its_user(shop: Shop) -> None:
    """And whether the store has none of it or was not read. A damaged profile is there: that is no honest absence."""
    whole = shop.users.records["ann"]
    windows = {field: value for field, value in whole.items() if len(field) == 8}
    assert windows
    assert len(whole) > len(windows)
    records = {"profile": PROFILE_MISSING, "windows": WINDOWS_MISSING, "whole": 0, "damaged": 0}
    shop.users.records |= {
        "profile": windows,  # an emptied Redis, and new counts
        "windows": {PROFILE: whole[PROFILE], RECENT: b""},
        "whole": whole,
        "damaged": whole | {PROFILE: b"{"},
    }
    for user, missing in [*records.items(), ("stranger", PROFILE_MISSING | WINDOWS_MISSING)]:
        shop.ask(user_id=user, size=3)
        shop.ask(path="/score", user_id=user, items=[1, 2], log=True)
        assert [page.user_missing for page in shop.sent[-2:]] == [missing, missing], user
    shop.users.away = True
    shop.ask(user_id="whole", size=3)
    assert shop.sent[-1].user_missing == PROFILE_MISSING | WINDOWS_MISSING | NOT_READ


def test_a_damaged_profile_is_survived_and_counted(shop: Shop) -> None:
    shop.users.records["ann"][b"profile"] = b"{"
    page = shop.ask()
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
        ("/recommend", {"user_id": 1, "size": 21}, ["size 21", "20"]),
        ("/recommend", {"user_id": 1, "size": 5, "list": 21}, ["list 21", "20"]),
        ("/recommend", {"user_id": 1, "size": 5, "list": 5}, ["list 5", "size"]),
        ("/recommend", {"user_id": 1, "list": 5}, ["list 5", "size"]),
        ("/recommend", {"user_id": 1, "size": 2, "list": 5, "request_id": "x" * 181}, ["request_id", "181", "180"]),
        ("/recommend", {"user_id": 1, "cursor": "nonsense"}, ["cursor", "nonsense"]),
        ("/recommend", {"user_id": 1, "cursor": "a.1.2.5"}, ["cursor", "a.1.2.5"]),
        ("/recommend", {"user_id": 1, "cursor": "a.1.1.21"}, ["cursor", "a.1.1.21"]),
        ("/recommend", {"user_id": 1, "cursor": "a.1.1.5", "list": 5}, ["list", "cursor"]),
        ("/recommend", {"user_id": 1, "cursor": "a.1.1.5", "request_id": "r"}, ["request_id", "cursor"]),
        ("/recommend", {"user_id": 1, "cursor": 7}, ["cursor", "int"]),
        ("/recommend", b'{"user_id": 1, "context": {"tab": NaN}}', ["context", "JSON"]),
        ("/recommend", b'{"user_id": 1, "context": {"tab": 1e999}}', ["context", "range"]),
        ("/recommend", b'{"user_id": 1, "context": {"tab": ' + b"[" * 10_000, ["context", "array"]),
        ("/score", b'{"user_id": 1, "items": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ["items", "array"]),
        ("/score", b"[" * 1_000_000, ["object", "array"]),
        ("/recommend", {"user_id": 1, "context": {"tab": "x" * 1001}}, ["context", "1000"]),
        ("/recommend", {"user_id": 1, "context": {"tab": ["home"]}}, ["tab", "list", "one value"]),
        ("/score", {"user_id": 1, "items": list(range(100_000))}, ["items", "100000", "1000"]),
        ("/recommend", {"user_id": 1, "ts_ms": -4}, ["ts_ms"]),
        ("/recommend", {"user_id": 1, "ts_ms": 1}, ["ts_ms 1 ", "behind", "leave it out"]),
        ("/score", {"user_id": 1, "items": [1], "ts_ms": 1, "log": True}, ["ts_ms 1 ", "behind"]),
        ("/score", {"user_id": 1, "items": [1], "ts_ms": 1}, ["ts_ms 1 ", "behind", "3 days"]),
        ("/recommend", {"user_id": 1, "ts_ms": NOW_MS + 7_200_000}, [str(NOW_MS + 7_200_000), "120 minutes", "60"]),
        ("/recommend", {"user_id": 1, "context": {"mood": "good"}}, ["mood", "tab"]),
        ("/recommend", {"user_id": 1, "context": {"position": 3}}, ["position", "derived"]),
        ("/recommend", {"user_id": 1, "context": {"tab": {"a": 1}}}, ["context", "object"]),
        ("/score", {"user_id": 1, "items": []}, ["items []", "at least one"]),
        ("/score", {"user_id": 1, "items": "all"}, ["items", "str"]),
        ("/score", {"user_id": 1, "items": list(range(1001))}, ["1001", "1000"]),
        ("/score", {"user_id": 1, "items": [1], "offset": -1}, ["offset"]),
        ("/score", {"user_id": 1, "items": [1], "log": True, "arm": "model"}, ["arm", "'model'", "Millrace's own"]),
        ("/score", {"user_id": 1, "items": [1], "log": True, "arm": "a b"}, ["arm", "'a b'", "A-Z"]),
        ("/score", {"user_id": 1, "items": [1], "arm": "editors"}, ["arm", "log"]),
    ],
)
def test_a_bad_request_is_one_line_that_names_value_and_remedy(
    shop: Shop, path: str, body: Any, words: list[str]
) -> None:
    status, answer = shop.call("POST", path, body)
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
        shop.ask(status, ts_ms=ts_ms)
    shop.scorer.newest_counted_ms = NOW_MS - 600 * minute
    for ts_ms, status in ((NOW_MS - life, 200), (NOW_MS - 600 * minute - life, 400), (NOW_MS - 726 * minute + 1, 200)):
        shop.ask(status, "/score", items=[1], ts_ms=ts_ms, log=True)
    longest = 3 * 24 * 60 * minute
    for ts_ms, status in ((NOW_MS - 600 * minute - longest, 400), (NOW_MS - 600 * minute - longest + 1, 200)):
        shop.ask(status, "/score", items=[1], ts_ms=ts_ms)  # what is not logged


def test_a_page_whose_log_has_no_room_is_served_and_says_that_nothing_is_learnt(shop: Shop) -> None:
    shop.scorer.maker.send = lambda page: False
    page = shop.ask(size=20)
    assert len(page["items"]) == 20
    assert page["notes"] == ["nothing is learnt from this page: its log is full"]
    assert not shop.meters.errors, "whoever had no room counts it"


def test_a_body_that_never_ends_is_refused(shop: Shop) -> None:
    status, answer = shop.call("POST", "/recommend", b" " * (MAX_BODY_BYTES + 1))
    assert status == 413
    assert str(MAX_BODY_BYTES) in answer["error"]


def test_other_paths_and_methods_are_named(shop: Shop) -> None:
    for method, path, expected in (("GET", "/recommend", 405), ("POST", "/model", 405), ("GET", "/nowhere", 404)):
        status, answer = shop.call(method, path)
        assert status == expected
        assert f"{method} {path}" in answer["error"]


def test_a_failure_within_is_one_line_to_the_client_and_counted(shop: Shop) -> None:
    class Broken:
        def score(self, *_: Any) -> Any:
            raise ZeroDivisionError("secret detail")

    assert shop.scorer.note
    shop.scorer.install(shop.scorer.note, Broken())
    answer = shop.ask(500)
    assert "ZeroDivisionError" in answer["error"]
    assert "secret" not in answer["error"]
    assert shop.meters.errors == {"request": 1}


def test_a_producer_that_refuses_costs_the_log_not_the_page(shop: Shop) -> None:
    def refuse(_: Any) -> None:
        raise TimeoutError

    shop.scorer.maker.send = refuse
    page = shop.ask()
    assert len(page["items"]) == 20
    assert shop.meters.errors == {"page_logs": 1}


def test_scores_that_are_no_numbers_are_counted_and_rank_last(shop: Shop) -> None:
    class Half:
        def score(self, cat: Any, num: Any) -> Any:
            scores = shop.model.score(cat, num)
            scores[::2] = np.nan
            return scores

    assert shop.scorer.note
    shop.scorer.install(shop.scorer.note, Half())
    page = shop.ask(size=20)
    assert all(i["score"] > 0 for i in page["items"])
    assert shop.meters.errors == {"scores": 1}
    asked: Any = {"user_id": "ann", "items": [i.item_id for i in ITEMS], "log": True, "request_id": "log"}
    answer = shop.ask(path="/score", **asked)
    assert (answer["scores"][0], answer["scores"][1] > 0) == (0, True)
    page_log = shop.sent[-1]
    assert (page_log.request_id, page_log.arm) == ("log", "logged")
    logged = np.frombuffer(page_log.scores, np.float32)
    assert np.isnan(logged[::2]).all(), "they count as wrong"
    assert np.isfinite(logged[1::2]).all()


def test_readiness_says_what_is_missing(tmp_path: Path) -> None:
    shop = OneWorker(tmp_path)
    status, answer = shop.call("GET", "/readyz")
    assert (status, "no model" in answer["error"]) == (503, True)
    assert shop.ask(503) == {"error": answer["error"]}
    assert shop.call("GET", "/healthz") == (200, {"alive": True})
    shop.follow()
    status, answer = shop.call("GET", "/readyz")
    assert (status, "no items" in answer["error"]) == (503, True)
    stock(shop.scorer, ITEMS[:1])
    assert shop.call("GET", "/readyz") == (200, {"ready": True})
    shop.ask()


def test_until_it_is_ready_pages_come_from_the_shops_lists(tmp_path: Path) -> None:
    shop = OneWorker(tmp_path)
    users = shop.users
    shop.ask(503)  # there are no lists
    users.shop_lists = {"hot": [f"h{i}" for i in range(30)], "new": ["h0", "n1", "n2", "n3"]}
    pages = list_pages()
    page = shop.ask(size=10, request_id="mine")
    ids = [i["item_id"] for i in page["items"]]
    assert ids == [*(f"h{i}" for i in range(9)), "h9"], "the newest is a hot one, and stands there once"
    assert [i["position"] for i in page["items"]] == list(range(10))
    assert {i["score"] for i in page["items"]} == {None}
    assert (page["request_id"], page["arm"], page["model_version"], page["ts_ms"]) == (None, "lists", -1, NOW_MS)
    assert page["notes"] == [
        "made of the shop's lists, since there is no model yet: report no events of this page",
        "user 'ann' is unknown: served as a new user",
    ]
    ids = [i["item_id"] for i in shop.ask(size=20)["items"]]
    assert ids == [*(f"h{i}" for i in range(18)), "n1", "h18"]
    assert len(shop.ask()["items"]) == 20, "the page limit"
    assert list_pages() - pages == 3
    assert shop.sent == [], "nothing is learnt from them"
    assert sum(shop.meters.errors.values()) == 0

    assert shop.call("GET", "/readyz")[0] == 503
    shop.ask(503, "/score", items=[1])
    shop.ask(400, size=21)
    users.away = True
    assert "no model" in shop.ask(503)["error"]
    users.away = False

    shop.follow()
    assert "no items yet" in shop.ask()["notes"][0]
    stock(shop.scorer, ITEMS)
    page = shop.ask(request_id="mine")
    assert (page["request_id"], page["arm"], len(shop.sent)) == ("mine", "model", 1)


def test_a_page_of_lists_has_what_the_user_likes() -> None:
    shop = OneWorker(None)
    users = shop.users
    shown = [item(1, "shoes"), item(2, "hats"), item(3, "bags")]
    keys = window_keys("ann", shown)[:, TASTE]
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
        return [i["item_id"] for i in shop.ask(user_id=user, size=10)["items"]]

    assert page_of("ann") == ["h0", "h1", "h2", "h3", "h4", "t1", "s1", "s2", "n", "h5"]
    assert page_of("bob") == [*(f"h{i}" for i in range(9)), "n"], "of a stranger nothing is known"
    users.records["ann"][window_fields(keys)[0]] = b"\x01\x63damaged"
    assert page_of("ann") == page_of("bob"), "damaged tiles cost the affinities, not the page"
    assert shop.meters.errors == {"tiles": 1}


def test_model_and_metrics_say_what_is_served(shop: Shop) -> None:
    clicks = VersionClicks(NOW_MS - 300, ClickHistogram.of([NOW_MS - 400, NOW_MS - 600]))
    shop.meters.served(3, 1, [clicks], NOW_MS)
    shop.ask(size=2, list=4)
    status, facts = shop.call("GET", "/model")
    assert status == 200
    assert facts["version"] == 0
    assert facts["schema_id"] == SCHEMA.id
    assert facts["spec"]["hidden"] == [8]
    assert facts["click_to_served_ms"]["count"] == 2
    assert facts["click_to_served_ms"]["p50"] == pytest.approx(400, abs=20)
    assert facts["versions_served"] == 1
    assert facts["errors"] == 0
    assert facts["retrieval"] is None
    status, text = shop.call("GET", "/metrics")
    assert status == 200
    for name in (
        "millrace_requests_total{route=",
        "millrace_request_seconds_bucket{",
        "millrace_served_version",
        "millrace_deltas_applied_total",
        "millrace_delta_gaps_total",
        "millrace_click_to_served_seconds_bucket",
        "millrace_freshness_seconds",
        "millrace_items",
        "millrace_item_keys",
        'millrace_user_reads_total{found="unknown"}',
        "millrace_list_parts_total",
        'millrace_scorer_items_total{source="random"}',
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


def test_concurrent_requests_do_not_mix(shop: Shop) -> None:
    async def all_at_once() -> list[tuple[int, Any]]:
        asks: list[Awaitable[tuple[int, Any]]] = [
            call(shop.app, "POST", "/recommend", {"user_id": "ann", "request_id": f"r{i}", "size": 5})
            for i in range(20)
        ]
        return await asyncio.gather(*asks)

    together = asyncio.run(all_at_once())
    alone = [(200, shop.ask(request_id=f"r{i}", size=5)) for i in range(20)]
    assert together == alone


def test_counts_of_another_hour_are_asked_of_the_whole_index(shop: Shop) -> None:
    """The item table has the counts of now; a page of two hours ago must not see what happened since."""
    keys = np.unique(window_keys("ann", ITEMS)[:, ITEM])
    shop.index.put_tiles(0, keys, tiles(keys, 20, 5).export(keys))
    shop.scorer.items.follow(lambda: shop.index.changes(NOW_MS))
    asked: list[int] = []

    async def ask(rows: Any, ts_ms: int) -> Any:
        await asyncio.sleep(0)
        asked.append(ts_ms)
        return None if is_away else shop.index.counts_at(rows, ts_ms)

    shop.scorer.maker.ask_counts = ask
    is_away = False
    start = LAYOUT.num_names.index("item_id.exposure.1d")

    def seen(ts_ms: int) -> tuple[set[float], list[str]]:
        page = shop.ask(user_id="ann", size=5, ts_ms=ts_ms)
        return set(arrays(shop.sent[-1])[0].num[:, start].tolist()), page["notes"]

    hour = 3_600_000
    assert seen(NOW_MS - hour) == ({20.0}, [])
    assert asked == [], "within an hour the table's counts serve"
    assert seen(NOW_MS - 2 * hour) == ({0.0}, [])
    assert asked == [NOW_MS - 2 * hour]
    is_away = True
    counts, notes = seen(NOW_MS - 2 * hour)
    assert counts == {20.0}
    assert notes == ["counts of items are as of now, not of ts_ms: the whole index did not answer"]


def test_counts_are_asked_for_sooner_where_tiles_are_finer(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    async def ask(rows: Any, ts_ms: int) -> Any:
        asked.append(ts_ms)

    minute = 60_000
    shop.scorer.maker.ask_counts = ask
    windows = msgspec.structs.replace(shop.scorer.schema.windows, lengths=("15min", "3d"))
    monkeypatch.setattr(shop.scorer, "schema", msgspec.structs.replace(shop.scorer.schema, windows=windows))
    for ago in (0, 5 * minute, 6 * minute):
        shop.ask(size=5, ts_ms=NOW_MS - ago)
    assert asked == [NOW_MS - 6 * minute]


numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.just(float(2**63)))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8), st.sampled_from(["ann", 1, "home", NOW_MS])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
names = ("user_id", "size", "request_id", "ts_ms", "context", "list", "cursor", "items", "log", "offset", "inputs")
good = {"user_id": "ann", "size": 3, "list": 9, "items": [1, 2], "context": {"tab": "home"}, "cursor": "a.3.3.9"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shared"))


@examples(200)
@given(
    st.sampled_from(["/recommend", "/score", "/v2/models/millrace/infer"]),
    st.dictionaries(st.sampled_from(names), values, max_size=3),
    st.sets(st.sampled_from(sorted(good))),
    st.integers(0, 2**16),
)
def test_no_request_is_a_failure_of_the_scorer(
    shared: Shop, path: str, odd: dict[str, Any], kept: set[str], flip: int
) -> None:
    """Some fields as they should be, some as they come, and a byte of it flipped now and then."""
    raw = bytearray(msgspec.json.encode({name: good[name] for name in kept} | {"user_id": "ann"} | odd))
    if flip % 3 == 0:
        raw[flip % len(raw)] ^= 1 << flip % 8
    shared.meters.errors.clear()
    status, answer = shared.call("POST", path, bytes(raw))
    assert status in (200, 400)
    assert (status == 200) != ("error" in answer)
    assert not shared.meters.errors
