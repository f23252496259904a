"""Recall in closed loop: all arms have the same luck, differ by recall alone, and the figures are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from experiments.experiment_recall import (
    ARMS,
    FIRST_DAY,
    NEW,
    PERFECT,
    POPULAR,
    STARTS,
    experiment_recall,
    make_report,
    over_worlds,
)
from experiments.recall.recallloop import (
    DayLoop,
    Pupil,
    Recall,
    learn_days,
    new_recall,
    perfect_recall,
    popular_recall,
    start_shop,
)
from experiments.recall.recallshop import params_of
from learner.ranker.model import OnlineModel
from millrace.basics.durations import DAY_MS
from millrace.basics.errors import SettingError
from millrace.contracts.events import CLICK, EXPOSURE
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from scorer.page import candidates
from simulator.daylog import day_table
from simulator.world import World, start_of

SEED, USERS, ITEMS, DAYS = 101, 12, 400, 1
STEP_MS = 600_000
SPEC: dict[str, Any] = {"width": 4, "hidden": [8], "blocks": 1}
SETTINGS = structs.replace(Settings(), candidates=60)
NUMBER = FIRST_DAY + DAYS


@pytest.fixture(autouse=True)
def retrieval_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head is used from its first click on."""
    monkeypatch.setattr(candidates, "LEAST_CLICKS", 0)


@pytest.fixture(scope="module")
def world() -> World:
    return World(SEED, USERS, params_of(ITEMS))


class Diary(Pupil):
    """A learner that writes down what it learns."""

    def __init__(self, model: OnlineModel) -> None:
        super().__init__(model, 64)
        self.learnt: list[SampleBatch] = []

    def learn(self, batch: SampleBatch) -> None:
        self.learnt.append(batch)
        super().learn(batch)


def played(world: World, how: Any = new_recall, head: bool = False) -> tuple[dict[str, int], DayLoop, Diary]:
    shop = start_shop(world, SETTINGS, NUMBER, [day_table(world, FIRST_DAY)])
    model = OnlineModel(shop_schema(), {**SPEC, "retrieval_width": 8 if head else 0}, 0)
    pupil = Diary(model)
    pupil.renew(shop)
    loop = DayLoop(world, shop, NUMBER, SETTINGS, how(shop), pupil, STEP_MS)
    return loop.play(), loop, pupil


@pytest.fixture(scope="module")
def once(world: World) -> tuple[dict[str, int], DayLoop, Diary]:
    return played(world)


# -- the loop ------------------------------------------------------------------------------------------------


def test_equal_arms_have_equal_days(world: World, once: tuple[dict[str, int], DayLoop, Diary]) -> None:
    found, loop, _ = once
    again, other, _ = played(world)
    assert found["clicks"] > 0
    assert again == found
    assert np.array_equal(loop.clicks, other.clicks)


def test_arms_differ_by_recall_alone(world: World, once: tuple[dict[str, int], DayLoop, Diary]) -> None:
    """Another recall shows other items to the same shoppers, on as many pages of the same lengths."""

    def oldest(shop: Any) -> Recall:
        return lambda _, user, ts_ms, size, seed: np.flatnonzero(shop.index.alive)[:size]

    found, loop, _ = once
    other, theirs, _ = played(world, oldest)
    assert other["clicks"] != found["clicks"]
    assert np.array_equal(loop.exposures, theirs.exposures)
    visits = world.visits(NUMBER)
    assert found["exposures"] == visits.size.sum()
    assert np.array_equal(loop.exposures, np.bincount(visits.user, visits.size, world.shoppers.n))


def test_the_same_items_get_the_same_clicks_in_any_arm(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Luck depends on shopper, page and position: an arm that shows the previous recommender's pages has its clicks."""
    shop = start_shop(world, SETTINGS, NUMBER, [])
    table = day_table(world, NUMBER)
    ids, views = table["item_id"].to_numpy(), table["request_id"].to_pylist()
    pages: dict[str, list[int]] = {}
    for request, item in zip(views, ids.tolist(), strict=True):
        pages.setdefault(request, []).append(item)
    numbers = iter(range(world.visits(NUMBER).n))

    def shown(shopper: int, user: Any, ts_ms: int, size: int, seed: int) -> Any:
        shop.births_and_deaths(ts_ms)  # the log knows what is born within a minute
        shop.items.follow(lambda: shop.index.changes(ts_ms, 1 << 20, 1 << 20))
        return shop.rows_of(np.array(pages[f"{NUMBER}-{next(numbers)}"]))

    monkeypatch.setattr("experiments.recall.recallloop.largest", lambda scores, size: np.arange(len(scores))[:size])
    pupil = Pupil(OnlineModel(shop_schema(), {**SPEC, "retrieval_width": 0}, 0), 64)
    loop = DayLoop(world, shop, NUMBER, SETTINGS, shown, pupil, STEP_MS)
    found = loop.play()
    clicked = table["click"].to_numpy() == 1
    assert found["clicks"] == int(clicked.sum()) > 0
    assert np.array_equal(loop.clicks, np.bincount(table["user_id"].to_numpy()[clicked] - 1, None, world.shoppers.n))


def test_each_exposure_is_learnt_once_and_each_click_when_it_happened(
    once: tuple[dict[str, int], DayLoop, Diary],
) -> None:
    found, loop, pupil = once
    kinds: dict[tuple[str, int], list[int]] = {}
    for batch in pupil.learnt:
        for of, kind in zip(batch.ids(), batch.kind.tolist(), strict=True):
            kinds.setdefault(of, []).append(kind)
    left = loop._samples.due(1 << 62) or dict.fromkeys(("request", "slot", "kind"), np.empty(0))
    waiting = set(zip(left["request"].tolist(), left["slot"].tolist(), strict=True))
    assert len(kinds.keys() | waiting) == found["exposures"]
    assert all(own in ([NEGATIVE], [POSITIVE], [NEGATIVE, CORRECTION]) for own in kinds.values())
    clicks = sum(own[-1] != NEGATIVE for own in kinds.values())
    assert clicks + int((left["kind"] != NEGATIVE).sum()) == found["clicks"]
    assert any(CORRECTION in own for own in kinds.values()), "no click was late: the test sees less than it should"


def test_all_that_happened_is_counted(world: World, once: tuple[dict[str, int], DayLoop, Diary]) -> None:
    found, loop, _ = once
    shop, end_ms = loop._shop, start_of(NUMBER) + DAY_MS
    shop.live(end_ms)
    users = np.flatnonzero(loop.exposures)
    keys = np.array([shop.builder.keys(shop.user(u).columns, 1)[0] for u in users.tolist()])
    name = shop.schema.layout.key_names.index("user_id")
    counts = shop.windows.counts(np.ascontiguousarray(keys[:, name]), end_ms)
    log = day_table(world, FIRST_DAY)
    both = np.isin(log["user_id"].to_numpy() - 1, users).sum()
    week = shop.schema.windows.days.index(7)
    assert counts[:, week, EXPOSURE].sum() == found["exposures"] + both
    before = np.isin(log["user_id"].to_numpy()[log["click"].to_numpy() == 1] - 1, users).sum()
    waiting = int(np.sum(shop._events.due(1 << 62).get("action", np.empty(0)) == CLICK))
    assert counts[:, week, 1].sum() == found["clicks"] + before - waiting


def test_a_retrieval_version_follows_what_was_learnt(world: World) -> None:
    _, loop, pupil = played(world, new_recall, head=True)
    assert loop._shop.retrieval is not None
    assert pupil.model.head is not None
    assert loop._shop.retrieval.clicks == pupil.model.head.clicks > 0


def test_perfect_candidates_are_what_the_shopper_truly_likes_best(world: World) -> None:
    shop, ts_ms, user = start_shop(world, SETTINGS, NUMBER, []), start_of(NUMBER), 3
    rows = perfect_recall(shop)(user, shop.user(user), ts_ms, 30, 0)
    day, on_sale = world.day(NUMBER), np.flatnonzero(shop.index.alive)
    liking = day.affinity(user, day.rows(shop.item_ids(on_sale)), ts_ms)
    affinity = dict(zip(on_sale.tolist(), liking.tolist(), strict=True))
    assert sorted(affinity, key=affinity.__getitem__, reverse=True)[:30] == rows.tolist()


def test_popular_candidates_are_the_most_clicked_items(world: World) -> None:
    shop, at_ms = start_shop(world, SETTINGS, NUMBER, [day_table(world, FIRST_DAY)]), start_of(NUMBER)
    heat, page = shop.clicks_a_day(), popular_recall(shop)
    rows = page(0, shop.user(0), at_ms, 20, 0)
    rest = np.setdiff1d(np.flatnonzero(shop.index.alive), rows)
    assert len(set(rows.tolist())) == 20
    assert heat[rows].min() >= heat[rest].max() > 0
    empty = start_shop(world, SETTINGS, NUMBER, [])
    one, other = (popular_recall(empty)(0, empty.user(0), at_ms, 20, seed) for seed in (0, 1))
    assert len(set(one.tolist())) == 20
    assert not np.array_equal(one, other), "nobody knows anything: candidates are drawn"


# -- the history ----------------------------------------------------------------------------------------------


def test_history_is_learnt_in_order_with_the_labels_of_the_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, batches = [day_table(world, FIRST_DAY + k) for k in range(2)], list[SampleBatch]()
    learn = OnlineModel.learn

    def spy(model: OnlineModel, batch: SampleBatch) -> Any:
        batches.append(batch)
        return learn(model, batch)

    monkeypatch.setattr(OnlineModel, "learn", spy)
    model = learn_days(OnlineModel(shop_schema(), SPEC, 0), tables)
    whole = SampleBatch.concat(batches)
    assert np.array_equal(whole.ts_ms, np.concatenate([t["ts_ms"].to_numpy() for t in tables]))
    assert np.array_equal(whole.label, np.concatenate([t["click"].to_numpy() for t in tables]).astype(np.float32))
    assert len(set(map(len, batches[:-1]))) == 1
    assert model.newest_ms == whole.ts_ms.max()


# -- figures -----------------------------------------------------------------------------------------------


def runs_of(seed: int, new: int, popular: int, start: str = "history") -> list[dict[str, Any]]:
    """The runs of a world in which arms had so many clicks of 1,000 exposures."""
    clicks = {NEW: new, PERFECT: 2 * popular, POPULAR: popular}
    return [{"seed": seed, "start": start, "arm": a, "exposures": 1000, "clicks": n} for a, n in clicks.items()]


def test_only_arms_that_had_the_same_day_are_compared() -> None:
    runs = runs_of(0, 120, 200)
    rows = {row["arm"]: row for row in make_report(runs)["arms"]}
    assert (rows[NEW]["click_rate"], rows[NEW]["ratio"], rows[PERFECT]["ratio"]) == (0.12, 0.6, 2.0)
    with pytest.raises(ValueError, match="not the same"):
        make_report([runs[0] | {"exposures": 999}, *runs[1:]])


def test_over_worlds_is_a_mean_of_logarithms() -> None:
    found = over_worlds([0.5, 2.0])
    assert found["ratio"] == pytest.approx(1)
    assert found["ratio_low"] is not None
    assert found["ratio_low"] < 0.1
    assert over_worlds([1.1, 1.1, 1.1]) == pytest.approx({"ratio": 1.1, "ratio_low": 1.1, "ratio_high": 1.1})


@pytest.mark.parametrize(
    ("new", "said"), [([120, 240], "better"), ([50, 100], "worse"), ([200, 110], "no clear difference")]
)
def test_the_verdict_says_what_the_interval_says(new: list[int], said: str) -> None:
    runs = [run for seed, (a, b) in enumerate(zip(new, (100, 200), strict=True)) for run in runs_of(seed, a, b)]
    verdict = make_report(runs)["verdict"]
    assert f": {said})." in verdict
    assert "A perfect recall under the same ranker has 2.000 times" in verdict


def test_without_a_click_there_is_no_ratio_and_no_infinity() -> None:
    report = make_report([*runs_of(0, 6, 0), *runs_of(1, 6, 4)])
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["arms"][0]["ratio"] is None
    assert "no click" in report["verdict"]


# -- the experiment --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 0}, "0 worlds"),
        ({"seed": -1}, "seed -1"),
        ({"users": 0}, "0 users"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        experiment_recall(tmp_path, progress=False, workers=0, **given)


@pytest.mark.slow
def test_a_whole_small_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.recall.recallloop.STEP_MS", STEP_MS)
    scale = {"users": USERS, "items": ITEMS, "days": DAYS, "candidates": 40}
    report = experiment_recall(tmp_path, seeds=1, seed=101, **scale, spec=SPEC, workers=0, progress=False)
    assert {p.name for p in tmp_path.iterdir()} >= {"report.json", "run.json", "runs.jsonl", "report.html"}
    assert [(r["start"], r["arm"]) for r in report["arms"]] == [(s, a) for s in STARTS for a in ARMS]
    runs = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert len({r["exposures"] for r in runs}) == 1, "every arm fills every page"
    assert all(r["learnt"] > 0 for r in runs)
    assert len({r["clicks"] for r in runs}) > 3
