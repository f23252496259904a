"""Recall in closed loop: all arms have the same luck, differ by recall alone, and the figures are right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from experiments import experiment_recall as experiment
from experiments.experiment_recall import FIRST_DAY, STARTS, Scale, experiment_recall
from experiments.recall.recallfigures import ARMS, BASE, NEW, POPULAR, PREVIOUS, Tally, make_report, over_worlds
from experiments.recall.recallhistory import learn_days, log_of, samples_of
from experiments.recall.recallloop import DayLoop, Pupil, Recall, new_recall, perfect_recall, start_shop
from experiments.recall.recallshop import params_of
from learner.ranker.model import OnlineModel
from millrace.basics.durations import DAY_MS
from millrace.basics.errors import SettingError
from millrace.contracts.events import EXPOSURE
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.contracts.settings import Settings
from scorer.page import candidates
from simulator.daylog import day_table
from simulator.params import PAGE
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


def played(world: World, how: Any = new_recall, head: bool = False) -> tuple[dict[str, Any], DayLoop, Diary]:
    shop = start_shop(world, SETTINGS, NUMBER, [day_table(world, FIRST_DAY)])
    model = OnlineModel(shop_schema(), {**SPEC, "retrieval_width": 8 if head else 0}, 0)
    pupil = Diary(model)
    pupil.renew(shop)
    loop = DayLoop(world, shop, NUMBER, SETTINGS, how(shop), pupil, STEP_MS)
    return loop.play(), loop, pupil


@pytest.fixture(scope="module")
def once(world: World) -> tuple[dict[str, Any], DayLoop, Diary]:
    return played(world)


# -- the loop ------------------------------------------------------------------------------------------------


def test_equal_arms_have_equal_days(world: World, once: tuple[dict[str, Any], DayLoop, Diary]) -> None:
    found, _, _ = once
    again, _, _ = played(world)
    assert found["clicks"] > 0
    assert again == found


def test_arms_differ_by_recall_alone(world: World, once: tuple[dict[str, Any], DayLoop, Diary]) -> None:
    """Another recall shows other items to the same shoppers, on as many pages of the same lengths."""

    def oldest(shop: Any) -> Recall:
        def page(shopper: int, user: Any, ts_ms: int, size: int, seed: int) -> tuple[Any, Any]:
            return np.flatnonzero(shop.index.alive)[:size], np.zeros(size, np.uint8)

        return Recall(page, ("old",))

    found, _, _ = once
    other, _, _ = played(world, oldest)
    assert other["sources"].keys() == {"old"}
    assert other["clicks"] != found["clicks"]
    users, others = np.array(found["by_user"]), np.array(other["by_user"])
    assert np.array_equal(users[[0, 1, 3]], others[[0, 1, 3]])
    visits = world.visits(NUMBER)
    assert found["exposures"] == visits.size.sum()
    assert np.array_equal(users[1], np.bincount(visits.user, visits.size)[users[0]])


def test_the_same_items_get_the_same_clicks_in_any_arm(world: World) -> None:
    """Luck depends on shopper, page and position: an arm that shows the previous recommender's pages has its clicks."""
    shop = start_shop(world, SETTINGS, NUMBER, [])
    table = day_table(world, NUMBER)
    ids, views = table["item_id"].to_numpy(), table["request_id"].to_pylist()
    pages: dict[str, list[int]] = {}
    for request, item in zip(views, ids.tolist(), strict=True):
        pages.setdefault(request, []).append(item)

    class Shown(DayLoop):
        def _popular(self, size: int, seed: int) -> Any:
            shop.births_and_deaths(int(self._visits.start_ms[self.view]))  # the log knows what is born within a minute
            rows = shop.rows_of(np.array(pages[f"{NUMBER}-{self.view}"]))
            self.view += 1
            return rows

        view = 0

    found = Shown(world, shop, NUMBER, SETTINGS, None, None, STEP_MS).play()
    previous = experiment._previous(world, Scale(USERS, ITEMS, DAYS))
    assert found["clicks"] == previous["clicks"] == int(table["click"].to_numpy().sum()) > 0
    assert found["by_user"] == previous["by_user"]
    assert found["purchases"] == previous["purchases"]


def test_each_exposure_is_learnt_once_and_each_click_when_it_happened(
    once: tuple[dict[str, Any], DayLoop, Diary],
) -> None:
    found, loop, pupil = once
    kinds: dict[tuple[str, int], list[int]] = {}
    for batch in pupil.learnt:
        for of, kind in zip(batch.ids(), batch.kind.tolist(), strict=True):
            kinds.setdefault(of, []).append(kind)
    waiting = {(page.request, int(slot)) for _, _, page, slots, *_ in loop._labels for slot in slots}
    assert len(kinds.keys() | waiting) == found["exposures"]
    assert all(own in ([NEGATIVE], [POSITIVE], [NEGATIVE, CORRECTION]) for own in kinds.values())
    clicks = sum(own[-1] != NEGATIVE for own in kinds.values())
    late = sum(kind == CORRECTION for *_, kind, _ in loop._labels)
    assert clicks + late + sum(kind == POSITIVE for *_, kind, _ in loop._labels) == found["clicks"]
    assert any(CORRECTION in own for own in kinds.values()), "no click was late: the test sees less than it should"


def test_all_that_happened_is_counted(world: World, once: tuple[dict[str, Any], DayLoop, Diary]) -> None:
    found, loop, _ = once
    shop, end_ms = loop._shop, start_of(NUMBER) + DAY_MS
    users = np.array(found["by_user"])[0]
    keys = np.array([shop.builder.keys(shop.user(u).columns, 1)[0] for u in users.tolist()])
    name = shop.schema.layout.key_names.index("user_id")
    counts = shop.windows.counts(np.ascontiguousarray(keys[:, name]), end_ms)
    log = day_table(world, FIRST_DAY)
    both = np.isin(log["user_id"].to_numpy() - 1, users).sum()
    unread = sum(len(page.items) for page in loop._shown)
    week = shop.schema.windows.days.index(7)
    assert counts[:, week, EXPOSURE].sum() == found["exposures"] + both - unread
    before = np.isin(log["user_id"].to_numpy()[log["click"].to_numpy() == 1] - 1, users).sum()
    waiting = sum(action == 1 for *_, action in loop._acts)
    assert counts[:, week, 1].sum() == found["clicks"] + before - waiting


def test_pages_are_full_of_what_is_on_sale_and_each_candidate_has_a_source(world: World) -> None:
    found, loop, pupil = played(world, new_recall, head=True)
    assert sum(n for n, _ in found["sources"].values()) == found["exposures"]
    assert sum(n for _, n in found["sources"].values()) == found["clicks"]
    assert {"vectors", "new"} <= found["sources"].keys()
    assert loop._shop.retrieval is not None
    assert pupil.model.head is not None
    assert loop._shop.retrieval.clicks == pupil.model.head.clicks > 0


def test_perfect_candidates_are_what_the_shopper_truly_likes_best(world: World) -> None:
    shop, ts_ms, user = start_shop(world, SETTINGS, NUMBER, []), start_of(NUMBER), 3
    rows, _ = perfect_recall(shop).page(user, shop.user(user), ts_ms, 30, 0)
    day, on_sale = world.day(NUMBER), np.flatnonzero(shop.index.alive)
    liking = dict(zip(on_sale.tolist(), day.liking(user, day.rows(shop.item_ids(on_sale))).tolist(), strict=True))
    assert sorted(liking, key=liking.__getitem__, reverse=True)[:30] == rows.tolist()


def test_a_popular_page_has_the_most_clicked_items(world: World) -> None:
    shop = start_shop(world, SETTINGS, NUMBER, [day_table(world, FIRST_DAY)])
    loop = DayLoop(world, shop, NUMBER, SETTINGS, None, None)
    heat = shop.clicks_a_day()
    rows = loop._popular(PAGE, 0)
    rest = np.setdiff1d(np.flatnonzero(shop.index.alive), rows)
    assert len(set(rows.tolist())) == PAGE
    assert heat[rows].min() >= heat[rest].max() > 0
    empty = start_shop(world, SETTINGS, NUMBER, [])
    loop = DayLoop(world, empty, NUMBER, SETTINGS, None, None)
    assert not np.array_equal(loop._popular(PAGE, 0), loop._popular(PAGE, 1)), "nobody knows anything: pages are drawn"


# -- the history ----------------------------------------------------------------------------------------------


def test_history_is_learnt_in_order_with_the_labels_of_the_log(world: World) -> None:
    schema, tables = shop_schema(), [day_table(world, FIRST_DAY + k) for k in range(2)]
    log = log_of(tables, schema)
    batches = list(samples_of(log, schema))
    whole = SampleBatch.concat(batches)
    assert np.array_equal(whole.ts_ms, log.table["ts_ms"].to_numpy())
    assert np.array_equal(whole.label, log.table["click"].to_numpy().astype(np.float32))
    assert len(set(map(len, batches[:-1]))) == 1
    told: list[int] = []
    model = learn_days(OnlineModel(schema, SPEC, 0), tables, told.append)
    assert (sum(told), model.newest_ms) == (len(whole), whole.ts_ms.max())


# -- figures -----------------------------------------------------------------------------------------------


def run(seed: int, arm: str, clicks: Any, start: str = "history", exposures: int = 10) -> dict[str, Any]:
    """A run of four pages of four shoppers."""
    tally = Tally(4)
    for view, own in enumerate(clicks):
        hit = np.arange(exposures) < own
        chance = np.full(exposures, 0.25)
        tally.page(view, view, hit, chance, int(own > 1), ["vectors"] * 6 + ["hot"] * (exposures - 6))
    return {"seed": seed, "start": start, "arm": arm} | tally.figures()


def test_figures_of_a_day() -> None:
    found = run(0, NEW, [8, 2, 1, 1])
    assert (found["exposures"], found["clicks"], found["purchases"]) == (40, 12, 2)
    assert (found["click_rate"], found["click_rate_late"], found["expected_rate"]) == (0.3, 0.1, 0.25)
    assert found["sources"] == {"hot": [16, 2], "vectors": [24, 10]}
    assert found["by_user"] == [[0, 1, 2, 3], [10] * 4, [8, 2, 1, 1], [0, 0, 10, 10], [0, 0, 1, 1]]


def test_only_arms_that_the_same_shoppers_met_are_compared() -> None:
    base, arm = run(0, BASE, [5, 5, 5, 5]), run(0, NEW, [8, 2, 1, 1])
    (row,) = make_report([base, arm])["over_popular"]
    assert (row["ratio"], row["ratio_late"]) == (0.6, 0.2)
    with pytest.raises(ValueError, match="not the same"):
        make_report([base, {**arm, "by_user": [row[:3] for row in arm["by_user"]]}])


def test_over_worlds_is_a_mean_of_logarithms() -> None:
    middle, low, high = over_worlds([0.5, 2.0])
    assert (middle, low * high) == pytest.approx((1, 1))
    assert low < 0.1
    assert over_worlds([1.1, 1.1, 1.1]) == pytest.approx((1.1, 1.1, 1.1))


@pytest.mark.parametrize(
    ("new", "said"), [([12, 24], "better"), ([5, 10], "worse"), ([20, 11], "no difference that can be told")]
)
def test_the_verdict_says_what_the_interval_says(new: list[int], said: str) -> None:
    runs = []
    for seed, (a, b) in enumerate(zip(new, (10, 20), strict=True)):
        runs += [run(seed, NEW, [a] * 4, exposures=60), run(seed, BASE, [b] * 4, exposures=60)]
        runs += [run(seed, PREVIOUS, [1] * 4, exposures=60)]
    report = make_report(runs)
    (verdict,) = report["verdicts"]
    assert f": {said}." in verdict
    assert {r["arm"] for r in report["over_popular"]} == {NEW, PREVIOUS}


def test_without_a_click_there_is_no_ratio_and_no_infinity() -> None:
    runs = [run(0, NEW, [1, 2, 3, 0]), run(0, BASE, [0] * 4), run(1, NEW, [1, 2, 3, 0]), run(1, BASE, [1] * 4)]
    report = make_report(runs)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["over_popular"][0]["ratio"] is None
    assert "no click" in report["verdicts"][0]


# -- the experiment --------------------------------------------------------------------------------------------


@pytest.fixture
def lived(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, str]]:
    """Which runs were lived through; their days are made up."""
    runs: list[tuple[int, str, str]] = []

    def made_up(folder: Path, job: experiment.Job, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
        if job.start == "history" and job.arm in experiment.RECALLS:
            assert experiment._model_path(folder).exists()
        runs.append((job.seed, job.start, job.arm))
        clicks = [2 + ARMS.index(job.arm) + job.seed % 3] * 4
        return [experiment._facts(job) | {"seconds": 0.1} | run(job.seed, job.arm, clicks, job.start)]

    def prepare(folder: Path, seed: int, *rest: Any) -> None:
        experiment._model_path(folder).touch()
        runs.append((seed, "prepare", ""))

    monkeypatch.setattr(experiment, "_run", made_up)
    monkeypatch.setattr(experiment, "_prepare", prepare)
    return runs


def test_what_has_been_lived_through_is_not_lived_again(tmp_path: Path, lived: list[tuple[int, str, str]]) -> None:
    order = [(seed, start, arm) for seed in (101, 102) for start in STARTS for arm in ARMS]
    whole = experiment_recall(tmp_path, seeds=2, seed=101, workers=0, progress=False)
    assert sorted(lived) == sorted([*order, (101, "prepare", ""), (102, "prepare", "")])
    lines = {tuple(json.loads(line)[k] for k in ("seed", "start", "arm")): line for line in _lines(tmp_path)}
    missing = [(101, "history", NEW), (102, "nothing", BASE)]
    kept = [line for run, line in lines.items() if run not in missing]
    (tmp_path / "runs.jsonl").write_text("\n".join(kept) + "\n" + lines[missing[1]][:40] + "\n")
    lived.clear()
    assert experiment_recall(tmp_path, seeds=2, seed=101, workers=0, progress=False, resume=True) == whole
    assert sorted(lived) == sorted([*missing, (101, "prepare", "")]), "a history is learnt where a run begins with it"
    lived.clear()
    experiment_recall(tmp_path, seeds=1, seed=101, users=7, workers=0, progress=False, resume=True)
    assert len(lived) == len(STARTS) * len(ARMS) + 1, "runs of another scale are other runs"


def _lines(folder: Path) -> list[str]:
    return (folder / "runs.jsonl").read_text().splitlines()


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
    monkeypatch.setattr(experiment, "STEP_MS", STEP_MS)
    report = experiment_recall(
        tmp_path,
        seeds=1,
        seed=101,
        users=USERS,
        items=ITEMS,
        days=DAYS,
        candidates=40,
        spec=SPEC,
        workers=0,
        progress=False,
    )
    assert {p.name for p in tmp_path.iterdir()} >= {"report.json", "run.json", "runs.jsonl", "report.html"}
    assert len(report["verdicts"]) == len(STARTS)
    assert [(r["start"], r["arm"]) for r in report["click_rates"]] == [(s, a) for s in STARTS for a in ARMS]
    runs = {(r["start"], r["arm"]): r for r in map(json.loads, _lines(tmp_path))}
    assert runs["history", PREVIOUS]["by_user"] == runs["nothing", PREVIOUS]["by_user"]
    shown = {str(runs[start, arm]["by_user"][1]) for start in STARTS for arm in ARMS}
    assert len(shown) == 1, "every arm fills every page"
    assert runs["nothing", NEW]["learnt"] > 0
    assert "learnt" not in runs["nothing", POPULAR]
