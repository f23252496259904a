"""Pages of arms that the settings name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from millrace.basics.errors import SettingError
from millrace.contracts.clock import EventClock
from millrace.contracts.events import Item
from millrace.contracts.online_layout import HOT, NEW
from millrace.contracts.page_logs import decode_page_log, page_log_bytes
from millrace.contracts.settings import Settings, load_settings
from millrace.evidence.learners import NamedLearner
from millrace.evidence.rerank import Rerank
from millrace.evidence.user_arms import Arm, ArmDraw
from scorer.feeder.primary import Primary
from tests.scenes import scorer_vectors
from tests.scenes.filter_world import SCHEMA, Model, Shop
from tests.scenes.scorer_shop import NOW_MS

N = 300
ITEMS = [
    Item(i, {"category": f"c{i % 3}", "in_stock": i % 2 == 0, "price": 1.0}, NOW_MS - 1000 * (i + 1)) for i in range(N)
]
HITS = Arm("popular", 0.3)


def shop(**chosen: Any) -> Shop:
    return Shop(ITEMS, **chosen)


def ids(page: Any) -> list[int]:
    return [item["item_id"] for item in page["items"]]


def user_of(name: str, control_share: float, arms: dict[str, Arm]) -> str:
    draw = ArmDraw(control_share, arms)
    return next(user for user in map(str, range(1000)) if draw.of(user) == name)


def test_an_arm_changes_nothing_for_the_others() -> None:
    """Nor does re-ranking that moves nothing."""
    plain, with_arms = shop(control_share=0.2), shop(control_share=0.2, arms={"hits": HITS, "b": Arm("model", 0.1)})
    still = shop(control_share=0.2, rerank=Rerank(0.0, {}, {}))
    draw, before = ArmDraw(0.2, {"hits": HITS, "b": Arm("model", 0.1)}), ArmDraw(0.2, {})
    seen = set()
    for n in range(60):
        asked: dict[str, Any] = {"user_id": n, "request_id": f"r{n}", "size": 10, "list": 25}
        one, other = plain.ask(**asked), with_arms.ask(**asked)
        for same in (still.ask(**asked), still.ask(**asked, rerank={"diversity": 0, "boosts": {}, "pins": {}})):
            assert one | {"cursor": ""} == same | {"cursor": ""}
            assert page_log_bytes(plain.sent[-1]) == page_log_bytes(still.sent[-1])
        arm = draw.of(n)
        seen.add(arm)
        if arm in ("model", "control"):
            assert arm == before.of(n)
            assert one | {"cursor": ""} == other | {"cursor": ""}
            assert page_log_bytes(plain.sent[-1]) == page_log_bytes(with_arms.sent[-1])
            assert plain.sent[-1].arm_name == ""
        elif arm == "b":  # an arm of the model without settings of its own: the same pages by another name
            assert one | {"cursor": "", "arm": "b"} == other | {"cursor": ""}
            assert with_arms.sent[-1].arm_name == "b"
            assert with_arms.sent[-1].arm == "model"
        else:
            assert arm == other["arm"] == "hits"
    assert seen == {"model", "control", "hits", "b"}


def test_a_popular_page_is_the_hottest_items_for_everybody_scored_and_logged() -> None:
    scene = shop(control_share=0, arms={"hits": Arm("popular", 1)})
    hottest = [scene.scorer.items.ids[row] for row in scene.scorer.lists.hot[:30].tolist()]
    for user in ("ann", "bob"):
        page = scene.ask(user_id=user, size=30, explain=True)
        assert ids(page) == hottest
        assert page["arm"] == "hits"
        assert {item["source"] for item in page["items"]} == {"hot"}
    scores = [item["score"] for item in page["items"]]
    assert scores != sorted(scores, reverse=True), "the model did not order them"
    assert len(set(scores)) == 30
    log = decode_page_log(page_log_bytes(scene.sent[-1]))
    assert (log.arm, log.arm_name, log.odds) == ("other", "hits", b"")
    assert len(np.frombuffer(log.scores, np.float32)) == 30


def test_a_newest_page_is_what_was_born_last() -> None:
    scene = shop(control_share=0, arms={"fresh": Arm("newest", 1)})
    now = [Item(900 + i, ITEMS[0].attributes, NOW_MS - 900 + i) for i in range(5)]
    scene.stock(now)
    page = scene.ask(size=4, explain=True)
    assert (ids(page), page["arm"]) == ([904, 903, 902, 901], "fresh")
    assert {item["source"] for item in page["items"]} == {"new"}
    scene.stock([Item(903, {}, now[3].born_ms, gone=True)], lists=False)
    assert ids(scene.ask(size=3, exclude=[904])) == [902, 901, 900]


def test_a_popular_list_goes_on_where_it_stopped_in_the_same_arm() -> None:
    scene = shop(control_share=0, arms={"hits": Arm("popular", 1)}, explore="0.5")
    hottest = [scene.scorer.items.ids[row] for row in scene.scorer.lists.hot[:25].tolist()]
    page = scene.ask(size=10, list=25)
    found = ids(page)
    while page["cursor"]:
        page = scene.ask(size=10, cursor=page["cursor"])
        assert page["arm"] == "hits"
        assert (scene.sent[-1].arm, scene.sent[-1].arm_name) == ("other", "hits")
        found += ids(page)
    assert found == hottest
    assert set(np.frombuffer(scene.sent[-1].odds, np.float32).tolist()) == {1.0}, "chance had no part"


def test_filters_and_caps_hold_on_popular_pages() -> None:
    scene = shop(control_share=0, arms={"hits": Arm("popular", 1)})
    order = [scene.scorer.items.ids[row] for row in scene.scorer.lists.hot.tolist()]
    stocked = [i for i in order if int(i) % 2 == 0]
    assert ids(scene.ask(size=20, only={"in_stock": True})) == stocked[:20]
    page = ids(scene.ask(size=6, only={"in_stock": True}, caps={"category": 2}))
    expected: list[Any] = []
    for i in stocked:
        if sum(int(j) % 3 == int(i) % 3 for j in expected) < 2:
            expected.append(i)
    assert page == expected[:6]


def test_a_gone_item_is_on_no_popular_page() -> None:
    scene = shop(control_share=0, arms={"hits": Arm("popular", 1)})
    first = ids(scene.ask(size=5))[0]
    scene.stock([Item(first, ITEMS[int(first)].attributes, gone=True)], lists=False)
    assert first not in ids(scene.ask(size=5))


def test_an_arm_of_the_model_has_recall_and_chance_of_its_own() -> None:
    arms = {
        "hot": Arm("model", 0.3, recall={"hot": 1.0}, candidates=20),
        "drawn": Arm("model", 0.3, explore="1,uniform"),
    }
    scene = shop(control_share=0, candidates=40, recall={"random": 1.0}, arms=arms)
    sources = {}
    for name in ("model", "hot", "drawn"):
        page = scene.ask(user_id=user_of(name, 0, arms), size=15, explain=True)
        scores = [item["score"] for item in page["items"]]
        sources[name] = {item["source"] for item in page["items"]}
        assert page["arm"] == name
        assert scene.sent[-1].arm == "model"
        assert (scores == sorted(scores, reverse=True)) == (name != "drawn")
        assert bool(scene.sent[-1].odds) == (name == "drawn")
        if name == "hot":
            hottest = {scene.scorer.items.ids[row] for row in scene.scorer.lists.hot[:20].tolist()}
            assert set(ids(page)) <= hottest
    assert sources == {"model": {"random"}, "hot": {"hot"}, "drawn": {"random"}}
    assert scene.scorer.arms.candidates == 40


def test_a_list_of_an_arm_that_is_gone_goes_on_as_the_models() -> None:
    scene = shop(control_share=0, arms={"hits": Arm("popular", 1)})
    cursor = scene.ask(size=5, list=20)["cursor"]
    later = shop(control_share=0)
    later.scorer.ranked = scene.scorer.ranked
    page = later.ask(size=5, cursor=cursor)
    assert (page["arm"], len(page["items"])) == ("model", 5)


# -- whose model -------------------------------------------------------------------------------------------------------

BESIDE: dict[str, Any] = {
    "control_share": 0,
    "learners": {"x": NamedLearner("deepfm")},
    "arms": {"b": Arm("model", 0.5, learner="x", explore="1,uniform")},
}


class Opposite(Model):
    """Ranks as the first model does, from the end."""

    def score(self, cat: NDArray[np.int64], num: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = 1 - super().score(cat, num)
        return found


def test_pages_of_an_arm_are_scored_by_the_model_of_its_learner_and_named_so() -> None:
    scene = shop(**(BESIDE | {"arms": {"b": Arm("model", 0.5, learner="x")}, "candidates": N}))
    alone = shop(control_share=0, candidates=N)
    scene.scorer.of("x").install(scorer_vectors.note(3), Opposite())
    seen = set()
    for n in range(40):
        asked: dict[str, Any] = {"user_id": n, "request_id": f"r{n}", "size": 300}
        page, plain = scene.ask(**asked), alone.ask(**asked)
        log = decode_page_log(page_log_bytes(scene.sent[-1]))
        seen.add(page["arm"])
        if page["arm"] == "model":
            assert page == plain
            assert page_log_bytes(scene.sent[-1]) == page_log_bytes(alone.sent[-1])
        else:
            assert (page["arm"], page["model_version"]) == ("b", 3)
            assert (log.arm, log.arm_name, log.model_version) == ("other", "b", 3)
            assert ids(page) == ids(plain)[::-1]
            assert np.frombuffer(log.scores, np.float32).tolist() == [item["score"] for item in page["items"]]
    assert seen == {"model", "b"}


def test_an_arm_whose_model_is_not_there_gets_the_shops_lists_and_says_so() -> None:
    scene = shop(**BESIDE)
    scene.users.shop_lists = {HOT: ["7", "8"], NEW: []}
    mine, others = user_of("b", 0, BESIDE["arms"]), user_of("model", 0, BESIDE["arms"])
    assert scene.ask(user_id=others)["arm"] == "model"
    assert scene.scorer.not_ready() == "", "the scorer serves the others"
    page = scene.ask(user_id=mine, size=2)
    assert (page["arm"], page["request_id"], list(map(str, ids(page)))) == ("lists", None, ["7", "8"])
    assert "no model of the learner 'x' yet" in page["notes"][0]
    scene.users.shop_lists = {}
    answer = scene.ask(503, user_id=mine)
    assert "millrace run learn --name x" in answer["error"]
    scene.scorer.of("x").install(scorer_vectors.note(3), Model())
    assert scene.ask(user_id=mine)["arm"] == "b"


def test_where_the_first_model_is_not_there_the_other_arm_is_served() -> None:
    scene = shop(**BESIDE)
    scene.scorer.model = None
    scene.scorer.of("x").install(scorer_vectors.note(3), Model())
    assert scene.ask(user_id=user_of("b", 0, BESIDE["arms"]))["arm"] == "b"
    assert "no model yet" in scene.ask(503, user_id=user_of("model", 0, BESIDE["arms"]))["error"]


def test_a_list_goes_on_with_the_model_that_began_it() -> None:
    scene = shop(**(BESIDE | {"arms": {"b": Arm("model", 1, learner="x")}}))
    scene.scorer.of("x").install(scorer_vectors.note(3), Opposite())
    page = scene.ask(size=5, list=20)
    page = scene.ask(size=5, cursor=page["cursor"])
    assert (page["arm"], page["model_version"], scene.sent[-1].arm_name) == ("b", 3, "b")
    scene.scorer.of("x").model = None  # as in a scorer that was started again
    assert "no model of the learner 'x'" in scene.ask(503, size=5, cursor=page["cursor"])["error"]


def test_what_is_no_learner_is_one_line() -> None:
    for arms, learners, why in (
        ('{"b": {"kind": "model", "share": 0.5, "learner": "y"}}', "", "'b' names a learner 'y'.*there is none yet"),
        ('{"b": {"kind": "model", "share": 0.5, "learner": "y"}}', '{"x": {"model": "deepfm"}}', "learners are x"),
        ('{"b": {"kind": "popular", "share": 0.5, "learner": "x"}}', '{"x": {"model": "deepfm"}}', "have no 'learner'"),
    ):
        with pytest.raises(SettingError, match=why):
            load_settings({}, {"MILLRACE_ARMS": arms, "MILLRACE_LEARNERS": learners})


def test_what_is_no_arm_ends_the_scorer_at_its_start() -> None:
    for arms, problem in (
        ({"a": Arm("model", 0.1, recall={"near": 1.0})}, "'near', which is no source"),
        ({"a": Arm("model", 0.1, recall={"hot": 0.5})}, "adds up to 0.5"),
    ):
        with pytest.raises(SettingError, match=problem):
            Primary(Settings(arms=arms), SCHEMA, EventClock(), lambda: NOW_MS)
    with pytest.raises(SettingError, match=r"add up to 1.2 \(control 0.6, a 0.6\)"):
        shop(control_share=0.6, arms={"a": Arm("random", 0.6)})
