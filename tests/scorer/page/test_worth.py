"""Pages ordered by what clicks and outcomes are worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from millrace.basics.errors import SettingError
from millrace.contracts.clock import EventClock
from millrace.contracts.events import Item
from millrace.contracts.schema import parse_schema
from millrace.contracts.settings import Settings
from millrace.evidence.rerank import Rerank
from millrace.evidence.user_arms import Arm
from scorer.feeder.primary import Primary
from tests.scenes import scorer_vectors
from tests.scenes.filter_world import FILTERS, SEEN, SHOP, Model, Shop
from tests.scenes.scorer_shop import NOW_MS

OUTCOMES = """
[[outcome]]
name = "purchase"
on = "click"
event = "purchase"
within = "30d"
value = "price"
[[outcome]]
name = "cart"
event = "cart"
within = "1d"
"""
SCHEMA = parse_schema(FILTERS + SHOP + SEEN + OUTCOMES)
N = 30
PRICE = np.array([5.0 + 40 * (i % 7) for i in range(N)])
PRICE[3] = np.nan  # its sender gave none
ITEMS = [
    Item(i, {"category": f"c{i % 4}"} | ({} if np.isnan(PRICE[i]) else {"price": PRICE[i]}), NOW_MS - 1000 * (i + 1))
    for i in range(N)
]


class Predicting(Model):
    """With a purchase and a cart that follow from the click's probability."""

    def predict(self, cat: Any, num: Any) -> Any:
        p = self.score(cat, num)
        return np.stack([p, 0.02 + 0.5 * (1 - p), p * p], axis=1)


def shop(**chosen: Any) -> Shop:
    made = Shop(ITEMS, schema=SCHEMA, **chosen)
    made.scorer.install(scorer_vectors.note(7), Predicting())
    return made


def expected(made: Shop, click: float = 0, purchase: float = 0, cart: float = 0) -> np.ndarray:
    p = np.array([made.scores(range(N))[str(i)] for i in range(N)], np.float64)
    bought = p * (0.02 + 0.5 * (1 - p)) * np.nan_to_num(PRICE)
    worth: np.ndarray = click * p + purchase * bought + cart * p * p
    return worth


def ids(page: Any) -> list[int]:
    return [item["item_id"] for item in page["items"]]


@pytest.mark.parametrize("weights", [{"purchase": 2.0}, {"click": 1.0, "purchase": 0.1, "cart": 3.0}, {"cart": 1.0}])
@pytest.mark.parametrize("where", ["settings", "request"])
def test_a_page_is_ordered_by_what_its_items_are_worth(weights: dict[str, float], where: str) -> None:
    made = shop(**({"rerank": Rerank(weights=weights)} if where == "settings" else {}))
    asked: dict[str, Any] = {"rerank": {"weights": weights}} if where == "request" else {}
    page = made.ask(size=20, **asked)
    worth = expected(made, **weights)
    assert ids(page) == np.argsort(-worth, kind="stable")[:20].tolist()
    scores = [item["score"] for item in page["items"]]
    assert scores == [made.scores([i])[str(i)] for i in ids(page)], "scores stay the click's"


def test_weights_of_the_settings_change_between_two_pages_and_an_arm_keeps_its_own() -> None:
    made, after = shop(), shop(rerank=Rerank(weights={"purchase": 2.0}))
    before = made.ask(size=20)
    made.scorer.rerank_by(Rerank(weights={"purchase": 2.0}))
    assert ids(made.ask(size=20)) == ids(after.ask(size=20)) != ids(before)
    made.scorer.rerank_by(Rerank())
    assert made.ask(size=20)["items"] == before["items"]
    own = shop(arms={"b": Arm("model", 1.0, rerank=Rerank(weights={"cart": 1.0}))})
    before = own.ask(size=20)
    own.scorer.rerank_by(Rerank(weights={"purchase": 2.0}))
    assert own.ask(size=20)["items"] == before["items"]


def test_without_weights_the_page_is_as_before() -> None:
    plain = Shop(ITEMS, schema=SCHEMA)
    assert shop().ask(size=20, explain=True) == plain.ask(size=20, explain=True)
    assert shop().ask(size=20, rerank={"weights": {}})["items"] == plain.ask(size=20)["items"]


def test_each_item_says_what_made_its_worth() -> None:
    made = shop()
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
    made = shop()
    page = made.ask(size=20, rerank={"weights": {"purchase": 1.0}, "boosts": {"category": {"c1": 3.0}}})
    worth = expected(made, purchase=1) * np.where(np.arange(N) % 4 == 1, 3, 1)
    assert ids(page) == np.argsort(-worth, kind="stable")[:20].tolist()


def test_a_model_without_outcomes_orders_by_clicks_and_says_so() -> None:
    made = Shop(ITEMS, schema=SCHEMA)
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
    error = shop().ask(400, size=5, rerank={"weights": weights})["error"]
    assert words in error.replace("\n", " ")


def test_a_weight_of_an_unknown_outcome_ends_the_scorer_at_its_start() -> None:
    with pytest.raises(SettingError, match=r"^rerank: weights name 'order'"):
        Primary(Settings(rerank=Rerank(weights={"order": 1.0})), SCHEMA, EventClock(), lambda: NOW_MS)
