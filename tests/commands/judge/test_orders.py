"""What a model's order would have earned, from pages that were drawn by chance."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from millrace.basics.errors import LogError, SettingError, SnapshotError
from millrace.commands.cli.cli import app
from millrace.commands.judge.modelrun import judge_model
from millrace.commands.judge.orders import ASSUMES, SLOTS, Shown, drawn, numbers_of
from millrace.evidence.exploration import Exploration, Rule
from tests.scenes.judged_archive import EXAMINED, MINUTE, T0, TRUE, archive_of, store_of
from tests.scenes.long_archives import peak_of, prolong

SCORES = np.array([0.5, 0.4, 0.3, 0.2, 0.1], np.float32)  # what items 0 to 4 were ranked by
SCORES_ALONE = np.array([0.2, 0.4, 0.1, 0.3, 0.2, 0.9], np.float32)  # before they were re-ranked
WORTH = np.array([0.1, 0.6, 0.2, 0.9, 0.4, 0.3])
JUDGED = np.array([0.3, 0.7, 0.2, 0.7, 0.1, 0.5])  # with a tie


def odds_of(page: tuple[int, ...], share: float, rule: Rule) -> np.ndarray:
    """Of each item in its slot, given those above: of the mixture, as millrace.evidence.exploration has it."""
    strength = (SCORES / (1 - SCORES)).astype(float) ** (1 / 0.7) if rule == "softmax" else np.ones(5)
    chance, before, odds = 1.0, 1.0, []
    for k, item in enumerate(page):
        chance *= strength[item] / strength[[i for i in range(5) if i not in page[:k]]].sum()
        now = (1 - share) * (page[: k + 1] == tuple(range(k + 1))) + share * chance
        odds.append(now / before)
        before = now
    return np.array(odds)


def shown_pages(pages: list[tuple[int, ...]], odds: list[np.ndarray], rewards: np.ndarray, control: bool) -> Shown:
    """The item 5 is pinned. What was ranked by is not the score, but what chance draws by."""
    n, k = len(pages), len(pages[0])
    page, item = np.repeat(np.arange(n), k), np.array(pages).ravel()
    position = np.tile(np.arange(k), n)
    ranked = np.append(SCORES, np.float32(np.nan))[item]
    return Shown(page, page, page, np.full(n * k, control), position, position, item, np.concatenate(odds),
                 SCORES_ALONE[item], ranked, rewards.ravel())  # fmt: skip


def alone(page: tuple[int, ...]) -> list[float]:
    return [WORTH[item] / (1 + k) for k, item in enumerate(page)]


def by_those_above(page: tuple[int, ...]) -> list[float]:
    return [WORTH[item] / (1 + k + WORTH[list(page[:k])].sum()) for k, item in enumerate(page)]


def by_all(page: tuple[int, ...]) -> list[float]:
    return [WORTH[item] / (1 + k) * (2 if 3 in page[k + 1 : k + 2] else 1) for k, item in enumerate(page)]


@pytest.mark.parametrize(
    ("world", "right"),
    [
        (alone, {"ips", "iips", "rips", "cascade_dr"}),
        (by_those_above, {"ips", "rips", "cascade_dr"}),
        (by_all, {"ips"}),
    ],
)
@pytest.mark.parametrize(("share", "rule"), [(0.3, "softmax"), (0.8, "softmax"), (0.3, "uniform"), (1.0, "control")])
@pytest.mark.parametrize("pin", [None, 0, 1])
def test_over_all_pages_the_mean_is_the_value_where_its_assumption_holds(
    world: Callable[[tuple[int, ...]], list[float]], right: set[str], share: float, rule: Any, pin: int | None
) -> None:
    """Every page that can come, weighted by its chance: no luck is in it. Re-ranked, and with an item in the slot
    ``pin`` that was not drawn."""
    pages = list(itertools.permutations(range(5)))
    odds = [odds_of(page, share, "uniform" if rule == "control" else rule) for page in pages]
    if pin is not None:
        pages = [(*page[:pin], 5, *page[pin:]) for page in pages]
        odds = [np.insert(of_page, pin, 1.0) for of_page in odds]
    shown = shown_pages(pages, odds, np.array([world(page) for page in pages]), rule == "control")
    where = drawn(shown)
    items = shown.item[where]
    numbers = numbers_of(shown, where, JUDGED[items])
    chance = np.array([odds[page].prod() for page in shown.page[where[:, 0]]])
    assert 0.1 < chance.sum() < 1 + 1e-9
    assert 5 not in items, "a pinned item is in no row"
    truth = []
    for first, row in zip(where[:, 0], items, strict=True):
        page, since = list(pages[shown.page[first]]), shown.position[first]
        page[since : since + SLOTS] = sorted(row, key=lambda item: (-JUDGED[item], item))
        truth.append(sum(world(tuple(page))[since : since + SLOTS]))
    value = chance @ np.array(truth)
    for name in ("ips", "iips", "rips", "cascade_dr"):
        assert (abs(chance @ numbers[name][0] - value) < 1e-9) == (name in right), name


@pytest.mark.parametrize("rule", ["softmax", "uniform", "swap"])
def test_rows_begin_behind_what_chance_has_moved(rule: Rule) -> None:
    """With drawn pages: the slots of a row have the odds of the rule alone, whatever the coin's share."""
    found = 0
    for seed in range(400):
        page = Exploration(0.6, rule, 0.7).draw(SCORES, 5, 5, np.random.default_rng(seed))
        shown = shown_pages([tuple(page.order)], [page.odds.astype(float)], np.zeros(5), False)
        where = drawn(shown)
        found += len(where)
        if len(where):
            assert page.explored
            since = where[0, 0]
            assert shown.ranked[since - 1] > shown.ranked[since - 2], "an item came before a better one by then"
            rule_alone = odds_of(tuple(page.order), 1.0, rule)
            np.testing.assert_allclose(shown.odds[since:], rule_alone[since:], rtol=1e-5)
    assert found == 0 if rule == "swap" else found > 50, "behind a swap nothing is left to chance"


def test_a_page_that_was_shown_otherwise_than_answered_has_no_row() -> None:
    page = (3, 1, 4, 0, 2)
    shown = shown_pages([page], [odds_of(page, 1.0, "uniform")], np.zeros(5), True)
    assert drawn(shown).tolist() == [[0, 1, 2]], "of a random page the first slots are drawn, too"
    for other in (
        shown._replace(slot=np.array([0, 2, 1, 3, 4])),
        shown._replace(position=shown.position + 1),  # the first item was not seen
        shown._replace(slot=shown.slot + 20),  # a list's later part: its order is older than its scores
        shown._replace(odds=np.full(5, np.nan)),
        Shown(*(column[:2] for column in shown)),  # type: ignore[arg-type]
        Shown(*(column[:0] for column in shown)),  # type: ignore[arg-type]
    ):
        assert drawn(other).shape == (0, SLOTS)
    seen = shown._replace(position=np.array([0, 1, 2, 4, 5]), slot=np.array([0, 1, 2, 4, 5]))
    assert len(drawn(seen)) == 1, "what is missing below the row does not count"
    pinned = shown._replace(ranked=np.where(np.arange(5) == 2, np.nan, shown.ranked))
    assert drawn(pinned).shape == (0, SLOTS), "no three drawn items stand next to each other"


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("loop")
    return archive_of(folder / "archive", 6000), store_of(folder / "models")


def test_a_better_order_is_found_and_told(
    there: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["judge", str(there[0]), "--out", str(tmp_path), "--model", there[1], "--every", "1d"]
    app(asked, result_action="return_value")
    report = json.loads((tmp_path / "report.json").read_text())
    assert "The model's pages: this model's order earns 0." in report["verdict"]
    assert "clicks a row more than the served order" in report["verdict"]
    assert report["verdict"] in " ".join(capsys.readouterr().out.split())
    rows = {(row["arm"], row["estimator"]): row for row in report["estimates"]}
    assert {name for _, name in rows} == set(ASSUMES)
    for arm in ("model", "control"):
        for name in ("ips", "iips", "rips", "cascade_dr"):
            assert rows[arm, name]["low"] < rows[arm, name]["difference"] < rows[arm, name]["high"]
        assert rows[arm, "dm"]["low"] is None, "what the direct method is wrong by is not known"
    assert rows["model", "cascade_dr"]["low"] > 0
    arms = {row["arm"]: row for row in report["arms"]}
    assert (arms["control"]["drawn_rows"], arms["control"]["slots_with_support"]) == (1200, 0.6)
    assert 0 < arms["model"]["drawn_rows"] < arms["model"]["pages"] == 4800
    assert arms["control"]["effective_rows"] == pytest.approx(200, rel=0.25), "one row in six"


def test_memory_does_not_grow_with_the_archive(
    there: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five times as many pages, more than are kept."""
    monkeypatch.setattr("millrace.commands.judge.archive_reader.PART_ROWS", 2000)
    monkeypatch.setattr("millrace.commands.judge.orders.MOST_ROWS", 300)
    long = archive_of(tmp_path / "long", 1000)
    asked: dict[str, Any] = {"model": there[1], "every_ms": 10**10}
    judge_model(long, tmp_path / "warm", **asked)
    found: list[Any] = []
    few = peak_of(lambda: found.append(judge_model(long, tmp_path / "few", **asked)))
    for kind in ("exposures", "features"):
        prolong(long / kind, 5)
    assert peak_of(lambda: found.append(judge_model(long, tmp_path / "many", **asked))) < 1.3 * few
    for one, five in zip(*(report["arms"] for report in found), strict=True):
        assert [five[name] for name in ("pages", "drawn_rows")] == [5 * one[name] for name in ("pages", "drawn_rows")]
        assert five["slots_with_support"] == one["slots_with_support"]


def test_the_truth_is_within_the_band(there: tuple[Path, str], tmp_path: Path) -> None:
    """Of random pages it is known: items by the true chance of a click against the other way round."""
    report = judge_model(*there[:1], tmp_path, model=there[1], every_ms=3000 * MINUTE)
    row = next(r for r in report["estimates"] if (r["arm"], r["estimator"]) == ("control", "cascade_dr"))
    sets = np.array(list(itertools.combinations(TRUE, SLOTS)))  # ascending
    gain = ((sets[:, ::-1] - sets) * EXAMINED[:SLOTS]).sum(1).mean()
    assert row["low"] < gain < row["high"]
    assert len({look["at_ms"] for look in report["curves"] if look["arm"] == "control"}) > 1


def test_what_the_model_has_learnt_from_is_never_judged(there: tuple[Path, str], tmp_path: Path) -> None:
    half = store_of(tmp_path / "half", T0 + 3000 * MINUTE)
    report = judge_model(there[0], tmp_path / "out", model=half, every_ms=10**9)
    assert report["exposures_before"] == 3000 * 5
    assert sum(row["pages"] for row in report["arms"]) == 3000
    whole = store_of(tmp_path / "whole", T0 + 6000 * MINUTE, version=9)
    with pytest.raises(
        LogError,
        match=r"version 9 was trained until .* has no later page; wait, or name an older version with --of, of 9",
    ):
        judge_model(there[0], tmp_path / "o", model=whole, every_ms=10**9)


def test_a_time_to_begin_at_holds_for_all_that_is_told(there: tuple[Path, str], tmp_path: Path) -> None:
    asked: dict[str, Any] = {"since_ms": T0 + 3001 * MINUTE, "every_ms": 10**9}
    report = judge_model(there[0], tmp_path, model=there[1], **asked)
    assert sum(row["pages"] for row in report["arms"]) == 3000
    assert report["exposures_before"] == 0, "the model has learnt from none of them"


def test_too_little_is_refused_with_what_it_would_take(there: tuple[Path, str], tmp_path: Path) -> None:
    little = archive_of(tmp_path / "little", 300)
    verdict = judge_model(little, tmp_path / "a", model=there[1], every_ms=10**9)["verdict"]
    assert "Random pages: this log cannot say. 60 of 60 pages have a randomised row" in verdict
    assert "and 100 are needed. It takes some" in verdict
    none = archive_of(tmp_path / "none", 300, "0")
    verdict = judge_model(none, tmp_path / "b", model=there[1], every_ms=10**9)["verdict"]
    assert "The model's pages: this log cannot say. 0 of 240 pages have a randomised row" in verdict
    assert "It takes some 600 such rows; MILLRACE_EXPLORE draws more." in verdict


def test_a_wrong_question_is_one_line(there: tuple[Path, str], tmp_path: Path) -> None:
    archive, model = there
    bare = archive_of(tmp_path / "bare", 60, features=False)
    other = tmp_path / "other"
    archive_of(other, 10)
    (other / "schema.toml").write_text((other / "schema.toml").read_text().replace('"price"', '"weight"'))
    empty: list[tuple[Path, dict[str, Any], type[Exception], str]] = [
        (tmp_path, {}, LogError, "holds no archived exposures"),
        (archive, {"every_ms": 0}, SettingError, "above 0"),
        (archive, {"value": "item_id"}, SettingError, "'item_id' is no number of an item; choose from price"),
        (archive, {"of": 4}, SnapshotError, "no snapshot of version 4; the store has versions 5"),
        (archive, {"model": str(tmp_path / "no")}, SnapshotError, "no model in"),
        (bare, {}, LogError, "no logged features of the pages to judge; run the loop with MILLRACE_ARCHIVE_FEATURES"),
        (other, {}, SnapshotError, "version 5 is of schema"),
    ]
    for place, asked, kind, words in empty:
        given: dict[str, Any] = {"model": model, "every_ms": 10**9} | asked
        with pytest.raises(kind, match=words) as caught:
            judge_model(place, tmp_path / "out", **given)
        assert "\n" not in str(caught.value)
    features = archive_of(tmp_path / "damaged", 60) / "features" / "0000000001.parquet"
    features.write_bytes(b"")
    with pytest.raises(LogError, match=r"features/0000000001\.parquet' cannot be read"):
        judge_model(tmp_path / "damaged", tmp_path / "out", model=model, every_ms=10**9)


def test_outcomes_count_a_number_of_the_item(there: tuple[Path, str], tmp_path: Path) -> None:
    clicks = judge_model(there[0], tmp_path / "a", model=there[1], every_ms=10**9)["estimates"]
    worth = judge_model(there[0], tmp_path / "b", model=there[1], value="price", every_ms=10**9)["estimates"]
    for one, other in zip(clicks, worth, strict=True):
        assert other["judged"] == pytest.approx(2 * one["judged"], rel=1e-4)


def test_an_archive_of_before_odds_has_none(there: tuple[Path, str], tmp_path: Path) -> None:
    old = archive_of(tmp_path / "old", 100)
    for file in (old / "exposures").glob("*.parquet"):
        pq.write_table(pq.read_table(file).drop_columns(["odds"]), file)
    verdict = judge_model(old, tmp_path / "out", model=there[1], every_ms=10**9)["verdict"]
    assert "0 of 80 pages" in verdict
