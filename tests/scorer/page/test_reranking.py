"""Boosts, diversity and pins: what they move, and the odds of pages that they have moved. Pages ordered by what clicks
and outcomes are worth."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from pyversity import Strategy, diversify

from experiments.experiment_judge import SLOTS, cells, fit
from millrace.basics.errors import SettingError
from millrace.contracts.clock import EventClock
from millrace.contracts.events import Item
from millrace.contracts.page_logs import decode_page_log, page_log_bytes
from millrace.contracts.schema import parse_schema
from millrace.contracts.settings import Settings, load_settings
from millrace.evidence.exploration import logits
from millrace.evidence.rerank import Rerank
from millrace.evidence.user_arms import Arm
from scorer.feeder.primary import Primary
from scorer.page import candidates, filterkernels
from scorer.page.reranking import Pins
from tests.scenes import scorer_vectors
from tests.scenes.filter_world import FILTERS, SCHEMA, SEEN, SHOP, Model, Shop
from tests.scenes.nearest_items import retrieval, rounded
from tests.scenes.schemas import outcome
from tests.scenes.scorer_shop import NOW_MS

N = 40
ITEMS = [
    Item(i, {"category": f"c{i % 4}", "in_stock": i % 2 == 0, "tags": ["new", f"t{i % 3}"]}, NOW_MS - 1000 * (i + 1))
    for i in range(N)
]
VECTORS = rounded(np.random.default_rng(5).standard_normal((N, 8)) + np.eye(8)[np.arange(N) % 3] * 3)
VECTORS[7] = 0  # like nothing


@pytest.fixture(autouse=True)
def vectors_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "LEAST_CLICKS", 1)


def shop(items: list[Item] = ITEMS, **chosen: Any) -> Shop:
    made = Shop(items, **chosen)
    made.scorer.retrieval = retrieval(VECTORS[: len(items)])
    return made


def ids(page: Any) -> list[int]:
    return [item["item_id"] for item in page["items"]]


def ranked(made: Shop) -> np.ndarray:
    log = decode_page_log(page_log_bytes(made.sent[-1]))
    assert isinstance(log.ranked, bytes)
    return np.frombuffer(log.ranked, np.float32)


def scores(made: Shop) -> np.ndarray:
    return np.array([made.scores(range(N))[str(i)] for i in range(N)], np.float32)


# -- diversity ---------------------------------------------------------------------------------------------------------


def plain_order(z: np.ndarray, vectors: np.ndarray, weight: float) -> list[int]:
    """Maximal marginal relevance as the module's text has it, item by item."""
    taken: list[int] = []
    while len(taken) < len(z):
        near = [max([0.0, *(float(vectors[i] @ vectors[j]) for j in taken)]) for i in range(len(z))]
        left = [i for i in range(len(z)) if i not in taken]
        taken.append(max(left, key=lambda i: z[i] - weight * near[i]))
    return taken


def unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length == 0, 1, length)).astype(np.float32)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_order_is_that_of_the_plain_text_and_of_pyversity(weight: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = np.round(rng.normal(-3, 1, 60), 3)
    for vectors in (unit(rng.standard_normal((60, 8))), unit(np.abs(rng.standard_normal((60, 8))))):
        vectors[::9] = 0
        near = np.zeros(60, np.float32)
        filterkernels.marginal(z, vectors, weight, 60, near)
        order = np.argsort(-(z - weight * near), kind="stable").tolist()
        assert order == plain_order(z, vectors, weight)
    # Of these no cosine is below 0, where this counts 0 and pyversity does not.
    shares = {"diversity": weight / (1 + weight), "normalize": False}
    assert order == diversify(vectors, z, 60, Strategy.MMR, **shares).indices.tolist()
    few = np.zeros(60, np.float32)
    filterkernels.marginal(z, vectors, weight, 5, few)
    assert np.argsort(-(z - weight * few), kind="stable")[:5].tolist() == order[:5]


def test_a_page_is_less_alike_and_says_what_was_taken_of_each_item() -> None:
    made, plain = shop(rerank=Rerank(diversity=2.0)), shop()
    z, factors = logits(scores(plain)), unit(VECTORS[:, :-1])
    order = plain_order(z, factors, 2.0)[:10]
    page = made.ask(size=10, explain=True)
    assert ids(page) == order != ids(plain.ask(size=10))
    near = [max([0.0, *(float(factors[i] @ factors[j]) for j in order[:k])]) for k, i in enumerate(order)]
    told = [{r["input"]: r["effect"] for r in item["reasons"]}.get("diversity", 0.0) for item in page["items"]]
    np.testing.assert_allclose(told, [-2.0 * x for x in near], atol=1e-5)
    np.testing.assert_allclose([item["score"] for item in page["items"]], scores(plain)[order], rtol=1e-6)
    np.testing.assert_allclose(logits(ranked(made)), z[order] + told, atol=1e-4)


def test_without_vectors_the_order_is_that_of_the_scores_and_a_note_says_why() -> None:
    made, plain = shop(rerank=Rerank(diversity=2.0)), shop()
    made.scorer.retrieval = None
    page = made.ask(size=10)
    assert ids(page) == ids(plain.ask(size=10))
    assert page["notes"] == ["no vectors of items yet, so nothing is known of how alike they are"]
    assert plain.sent[-1].scores == made.sent[-1].ranked


# -- boosts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boosts", "of"),
    [
        ({"category": {"c1": 3.0}}, lambda i: 3.0 if i % 4 == 1 else 1),
        ({"item_id": {"7": 100.0, "8": 0.01}}, lambda i: {7: 100.0, 8: 0.01}.get(i, 1)),
        ({"in_stock": {"true": 2.0}}, lambda i: 2.0 if i % 2 == 0 else 1),
        ({"tags": {"new": 2.0, "t1": 5.0}, "category": {"c1": 0.5}},
         lambda i: 2 * (5 if i % 3 == 1 else 1) * (0.5 if i % 4 == 1 else 1)),
        ({"category": {}, "region": {"eu": 9.0}}, lambda _: 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by", ["settings", "arm", "request"])
def test_the_odds_of_a_click_count_as_many_times(boosts: Any, of: Any, by: str) -> None:
    how, body = Rerank(boosts=boosts), dict[str, Any]()
    if by == "request":
        made, body = shop(rerank=Rerank(boosts={"category": {"c3": 9.0}})), {"rerank": {"boosts": boosts}}
    elif by == "arm":
        made = shop(rerank=Rerank(diversity=1.0), arms={"a": Arm("model", 1.0, rerank=Rerank(0.0, boosts))})
    else:
        made = shop(rerank=how)
    z = logits(scores(made)) + [math.log(of(i)) for i in range(N)]
    page = made.ask(size=N, explain=True, **body)
    assert ids(page) == np.argsort(-z, kind="stable").tolist()
    for item in page["items"][:20]:
        told = {r["input"]: r["effect"] for r in item["reasons"]}.get("boost", 0.0)
        assert told == pytest.approx(math.log(of(item["item_id"])), abs=1e-6)
    np.testing.assert_allclose(logits(ranked(made)), np.sort(z)[::-1], atol=1e-3)


# -- pins --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["model", "random", "popular", "newest"])
def test_pinned_items_stand_in_their_slots_and_the_others_around_them(arm: Any) -> None:
    rest: dict[str, Any] = {"control_share": 0, "arms": {} if arm == "model" else {"a": Arm(arm, 1.0)}}
    made, plain = shop(rerank=Rerank(pins={"33": 0, "8": 4, "21": 2, "5": 90}), **rest), shop(**rest)
    for body in ({"size": 6}, {"size": 6, "list": 20}, {"size": 6, "caps": {"category": 9}}):
        page = made.ask(request_id="r", explain=True, **body)
        others = [i for i in ids(plain.ask(request_id="r", **body)) if i not in (33, 8, 21)]
        assert ids(page) == [33, others[0], 21, others[1], 8, others[2]]
        assert [item["source"] == "pinned" for item in page["items"]] == [True, False, True, False, True, False]
        assert [math.isnan(x) for x in ranked(made)] == [True, False, True, False, True, False]
        assert page["notes"] == []
        if page["cursor"]:
            more = made.ask(size=6, cursor=page["cursor"])
            assert not {33, 8, 21} & set(ids(more))
            assert len(set(ids(page) + ids(more))) == 12


def test_a_pinned_item_that_may_not_come_leaves_its_slot_to_the_others() -> None:
    made, plain = shop(), shop()
    made.stock([Item(9, {}, gone=True)])
    plain.stock([Item(9, {}, gone=True)])
    pins = {"9": 0, "3": 1, "4": 2, "77": 3}
    body: dict[str, Any] = {"size": 5, "only": {"in_stock": True}, "exclude": [6]}
    page = made.ask(**body, rerank={"pins": pins})
    others = [i for i in ids(plain.ask(**body)) if i != 4]
    assert ids(page) == [*others[:2], 4, *others[2:4]]
    assert page["notes"] == ["pinned, but filtered, capped or not in the catalogue: 9, 3, 77"]
    nothing = made.ask(size=5, only={"category": "c9"}, rerank={"pins": {"4": 0}})
    assert nothing["items"] == []


def test_a_short_page_has_its_pinned_items_at_its_end() -> None:
    made = shop()
    page = made.ask(size=10, only={"item_id": [1, 2, 3, 4]}, rerank={"pins": {"1": 7, "2": 9, "3": 0}})
    assert ids(page) == [3, 4, 1, 2]
    assert ids(made.ask(size=3, rerank={"pins": {"1": 2, "2": 0, "3": 1}})) == [2, 3, 1], "pins alone"
    assert ids(made.ask(size=1, list=3, rerank={"pins": {"1": 0}})) == [1]


def test_caps_count_pinned_items_first_and_the_page_is_filled_up_around_them() -> None:
    made = shop(candidates=3, recall={"hot": 1.0})
    page = made.ask(size=4, caps={"category": 1}, rerank={"pins": {"5": 3, "9": 2, "2": 1}})
    assert ids(page)[1] == 2
    assert ids(page)[-1] == 5 or ids(page)[2] == 9
    assert sorted(i % 4 for i in ids(page)) == [0, 1, 2, 3]
    assert page["notes"] in ([f"pinned, but filtered, capped or not in the catalogue: {i}"] for i in ("5", "9")), (
        "both are of one category"
    )


@pytest.mark.parametrize("length", [1, 3, 7])
def test_pins_are_put_into_any_order(length: int) -> None:
    for slots in itertools.combinations(range(6), 2):
        pins, rows = Pins(np.array(slots), np.array([50, 60])), np.array([60, *range(length), 50])
        found = rows[pins.put(rows)].tolist()
        assert [i for i in found if i < 50] == list(range(length))
        assert [found.index(50), found.index(60)] == [min(slots[0], length), min(slots[1], length + 1)]


# -- odds --------------------------------------------------------------------------------------------------------------

MOVED: dict[str, dict[str, Any]] = {
    "boosts": {"boosts": {"category": {"c1": 4.0}}},
    "diversity": {"diversity": 3.0},
    "pins": {"pins": {"5": 1}},
    "all": {"boosts": {"category": {"c1": 4.0}}, "diversity": 3.0, "pins": {"5": 1, "2": 0}},
}


@pytest.mark.parametrize(
    ("rule", "how"), [*(("softmax", how) for how in MOVED), ("uniform", "all"), ("swap", "all"), ("random", "all")]
)
def test_pages_come_as_often_as_their_logged_odds_say(rule: str, how: str) -> None:
    """With each re-ranking. A pinned item has the odds 1."""
    settings: dict[str, Any] = {"explore": "0.5" if rule == "random" else f"0.5,{rule},2"}
    made = shop(ITEMS[:7], control_share=rule == "random", rerank=Rerank(**MOVED[how]), **settings)
    pages = []
    for n in range(600):
        made.ask(size=SLOTS, request_id=f"r{n}")
        log = made.sent.pop()
        odds = np.frombuffer(log.odds, np.float32)
        assert len(odds) == SLOTS
        pinned = np.isin(log.items, [int(i) for i in MOVED[how].get("pins", ())])
        assert (odds[pinned] == 1).all()
        pages.append((tuple(log.items), odds.tolist()))
    assert len({items for items, _ in pages}) > 3, "chance has moved something"
    found = fit(cells(pages))
    assert found["p"] > 1e-3, found
    wrong = fit(cells([(items, [p if p == 1 else 0.7 * p for p in odds]) for items, odds in pages]))
    assert wrong["p"] < 1e-6, "odds that are too low are found"


def test_a_part_of_a_list_has_the_odds_and_the_order_of_its_list() -> None:
    made = shop(explore="1,softmax,2", rerank=Rerank(**MOVED["all"]))
    first = made.ask(size=4, list=12)
    start = made.sent[-1]
    made.ask(size=8, cursor=first["cursor"], explain=True)
    whole, log = np.frombuffer(start.odds, np.float32), made.sent[-1]
    assert len(whole) == 4
    assert len(np.frombuffer(log.odds, np.float32)) == 8
    assert np.isfinite(ranked(made)).all()
    boosted = np.array(log.items) % 4 == 1
    assert (ranked(made) != np.frombuffer(log.scores, np.float32))[boosted].all()


def test_under_caps_nobody_knows_the_odds() -> None:
    made = shop(explore="1", rerank=Rerank(**MOVED["all"]))
    made.ask(size=5, caps={"category": 2})
    assert made.sent[-1].odds == b""


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rerank", "words"),
    [
        ({"diversity": -1}, "diversity -1 is none; give logits from 0 to 10"),
        ({"diversity": 10.5}, "diversity 10.5 is none"),
        ({"boosts": {"category": {"c1": -2}}}, "the boost -2 of category 'c1' is none; give a factor from 0.001 to"),
        ({"boosts": {"category": {"c1": 0}}}, "the boost 0 of category"),
        ({"boosts": {"color": {"red": 2}}}, "boosts 'color' is no attribute that this shop filters by; use one of"),
        ({"boosts": {"category": {f"c{i}": 2 for i in range(1001)}}}, "1001 boosts are too many; give at most 1000"),
        ({"pins": {"1": 5}}, "item '1' is pinned to slot 5 of a page of 5; slots count from 0"),
        ({"pins": {"1": -1}}, "item '1' is pinned to slot -1; give one from 0 to 599"),
        ({"pins": {"1": 2, "3": 2}}, "slot 2 has two pins, '1' and '3'; leave one out"),
        ({"pins": {"1": "two"}}, "Expected `int`"),
        ({"divers": 1}, "unknown field `divers`"),
        ([], "rerank"),
    ],
)  # fmt: skip
def test_a_wrong_request_is_one_line(rerank: Any, words: str) -> None:
    error = shop().ask(400, size=5, rerank=rerank)["error"]
    assert words in error
    assert "\n" not in error


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_what_is_no_finite_number_above_0_is_refused(wrong: float) -> None:
    both: list[dict[str, Any]] = [{"diversity": wrong}, {"boosts": {"category": {"c1": wrong}}}]
    for given in both:
        with pytest.raises(ValueError, match=f"{wrong:g}.* is none; give"):
            Rerank(**given)
    for setting in (f'{{"diversity": {wrong}}}', f'{{"boosts": {{"category": {{"c1": {wrong}}}}}}}'):
        text = setting.replace("nan", "NaN").replace("inf", "Infinity")
        with pytest.raises(SettingError, match=r"MILLRACE_RERANK: rerank '.* is none; give .*"):
            load_settings(environ={"MILLRACE_CONFIG": "", "MILLRACE_RERANK": text})


def test_re_ranking_does_not_go_with_a_cursor() -> None:
    made = shop()
    cursor = made.ask(size=5, list=20)["cursor"]
    assert "'rerank' does not go with 'cursor'" in made.ask(400, size=5, cursor=cursor, rerank={})["error"]


def test_an_attribute_that_is_not_known_ends_the_scorer_at_its_start() -> None:
    how = Rerank(boosts={"color": {"red": 2.0}})
    for chosen in (Settings(rerank=how), Settings(arms={"a": Arm("model", 0.1, rerank=how)})):
        with pytest.raises(SettingError, match=r"^rerank: boosts 'color' is no attribute .*; use one of"):
            Primary(chosen, SCHEMA, EventClock(), lambda: NOW_MS)
    with pytest.raises(SettingError, match=r"^rerank: boosts 'age_days' has 'old'; name the days up to which"):
        Primary(Settings(rerank=Rerank(boosts={"age_days": {"old": 2.0}})), SCHEMA, EventClock(), lambda: NOW_MS)
    with pytest.raises(SettingError, match=r"^hide names 'seen', .* add \[\[windows.keys\]\] columns = "):
        Primary(Settings(hide="clicked,seen"), parse_schema(SHOP), EventClock(), lambda: NOW_MS)


# -- Pages ordered by what clicks and outcomes are worth ---------------------------------------------------------------


OUTCOMES = outcome("purchase", "purchase", "30d", value="price") + outcome("cart", "cart", "1d", on="page")
WITH_OUTCOMES = parse_schema(FILTERS + SHOP + SEEN + OUTCOMES)
PRICED = 30
PRICE = np.array([5.0 + 40 * (i % 7) for i in range(PRICED)])
PRICE[3] = np.nan  # its sender gave none
PRICED_ITEMS = [
    Item(i, {"category": f"c{i % 4}"} | ({} if np.isnan(PRICE[i]) else {"price": PRICE[i]}), NOW_MS - 1000 * (i + 1))
    for i in range(PRICED)
]


class Predicting(Model):
    """With a purchase and a cart that follow from the click's probability."""

    def predict(self, cat: Any, num: Any) -> Any:
        p = self.score(cat, num)
        return np.stack([p, 0.02 + 0.5 * (1 - p), p * p], axis=1)


def priced_shop(**chosen: Any) -> Shop:
    made = Shop(PRICED_ITEMS, schema=WITH_OUTCOMES, **chosen)
    made.scorer.install(scorer_vectors.note(7), Predicting())
    return made


def expected(made: Shop, click: float = 0, purchase: float = 0, cart: float = 0) -> np.ndarray:
    p = np.array([made.scores(range(PRICED))[str(i)] for i in range(PRICED)], np.float64)
    bought = p * (0.02 + 0.5 * (1 - p)) * np.nan_to_num(PRICE)
    worth: np.ndarray = click * p + purchase * bought + cart * p * p
    return worth


@pytest.mark.parametrize("weights", [{"purchase": 2.0}, {"click": 1.0, "purchase": 0.1, "cart": 3.0}, {"cart": 1.0}])
@pytest.mark.parametrize("where", ["settings", "request"])
def test_a_page_is_ordered_by_what_its_items_are_worth(weights: dict[str, float], where: str) -> None:
    made = priced_shop(**({"rerank": Rerank(weights=weights)} if where == "settings" else {}))
    asked: dict[str, Any] = {"rerank": {"weights": weights}} if where == "request" else {}
    page = made.ask(size=20, **asked)
    worth = expected(made, **weights)
    assert ids(page) == np.argsort(-worth, kind="stable")[:20].tolist()
    scores = [item["score"] for item in page["items"]]
    assert scores == [made.scores([i])[str(i)] for i in ids(page)], "scores stay the click's"


def test_weights_of_the_settings_change_between_two_pages_and_an_arm_keeps_its_own() -> None:
    made, after = priced_shop(), priced_shop(rerank=Rerank(weights={"purchase": 2.0}))
    before = made.ask(size=20)
    made.scorer.rerank_by(Rerank(weights={"purchase": 2.0}))
    assert ids(made.ask(size=20)) == ids(after.ask(size=20)) != ids(before)
    made.scorer.rerank_by(Rerank())
    assert made.ask(size=20)["items"] == before["items"]
    own = priced_shop(arms={"b": Arm("model", 1.0, rerank=Rerank(weights={"cart": 1.0}))})
    before = own.ask(size=20)
    own.scorer.rerank_by(Rerank(weights={"purchase": 2.0}))
    assert own.ask(size=20)["items"] == before["items"]


def test_without_weights_the_page_is_as_before() -> None:
    plain = Shop(PRICED_ITEMS, schema=WITH_OUTCOMES)
    assert priced_shop().ask(size=20, explain=True) == plain.ask(size=20, explain=True)
    assert priced_shop().ask(size=20, rerank={"weights": {}})["items"] == plain.ask(size=20)["items"]


def test_each_item_says_what_made_its_worth() -> None:
    made = priced_shop()
    page = made.ask(size=5, explain=True, rerank={"weights": {"click": 1.0, "purchase": 0.5}})
    whole = expected(made, click=1, purchase=0.5)
    for item in page["items"]:
        i, p = item["item_id"], item["score"]
        said = {reason["input"]: reason["effect"] for reason in item["reasons"]}
        assert said["worth"] == pytest.approx(np.log(whole[i]) - np.log(p / (1 - p)), abs=1e-4)
        assert said["worth click"] == pytest.approx(np.log(whole[i] / (whole[i] - p)), abs=1e-4)
        assert said["worth purchase"] == pytest.approx(np.log(whole[i] / p), abs=1e-4)
        assert "worth cart" not in said


def test_boosts_multiply_what_items_are_worth() -> None:
    made = priced_shop()
    page = made.ask(size=20, rerank={"weights": {"purchase": 1.0}, "boosts": {"category": {"c1": 3.0}}})
    worth = expected(made, purchase=1) * np.where(np.arange(PRICED) % 4 == 1, 3, 1)
    assert ids(page) == np.argsort(-worth, kind="stable")[:20].tolist()


def test_a_model_without_outcomes_orders_by_clicks_and_says_so() -> None:
    made = Shop(PRICED_ITEMS, schema=WITH_OUTCOMES)
    page = made.ask(size=20, rerank={"weights": {"purchase": 1.0}})
    assert ids(page) == ids(made.ask(size=20))
    assert "the model predicts no outcomes: ordered by clicks" in page["notes"]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"order": 1.0}, "weights name 'order'; the schema has click, purchase, cart"),
        ({"click": -1.0}, "the weight -1 of 'click' is none; give one from 0"),
        ({"click": 0.0}, "all weights are 0"),
    ],
)
def test_wrong_weights_are_one_line(weights: dict[str, float], words: str) -> None:
    error = priced_shop().ask(400, size=5, rerank={"weights": weights})["error"]
    assert words in error.replace("\n", " ")


def test_a_weight_of_an_unknown_outcome_ends_the_scorer_at_its_start() -> None:
    with pytest.raises(SettingError, match=r"^rerank: weights name 'order'"):
        Primary(Settings(rerank=Rerank(weights={"order": 1.0})), WITH_OUTCOMES, EventClock(), lambda: NOW_MS)
