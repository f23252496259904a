"""``millrace dev bench safety``, small: worlds and poisons are what they say, and a gate is told from none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.runner import BENCHMARKS
from benchmarks.safety import figures
from experiments.experiment_safety import false_refusals, make_report, promoted_after
from experiments.safety.poisons import POISONS, Window, user_side
from experiments.safety.safetyrun import Life, Log, Refused, Served, live, loss
from experiments.safety.safetyworld import Change, Moment, Shop, traffic, write_shop
from learner.ranker.repeats import exposure_ids
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.logs import read_log

SCHEMA = shop_schema()
SHOP = Shop(seed=3, days=1, users=60)
ROWS = {poison.name: poison for poison in POISONS}


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> list[Moment]:
    folder = write_shop(SHOP, tmp_path_factory.mktemp("shop"))
    return list(traffic(read_log(folder, SCHEMA), SCHEMA))


@pytest.fixture(scope="module")
def batch(moments: list[Moment]) -> SampleBatch:
    return SampleBatch.concat([m.batch for m in moments if m.batch is not None])


def _whole_day(batch: SampleBatch) -> Window:
    return Window.of([batch], SCHEMA, SHOP.last_ms, 24 * 60)


# -- worlds --------------------------------------------------------------------------------------------------


def test_moments_have_each_exposure_once_and_its_samples_after_it(moments: list[Moment]) -> None:
    shown, clicks = 0, 0
    for moment in moments:
        shown += len(moment.clicked)
        clicks += int(moment.clicked.sum())
        assert np.isfinite(moment.num).all()
        assert not moment.cat[:, SCHEMA.layout.bias_columns].any()
    rows = SampleBatch.concat([m.batch for m in moments if m.batch is not None])
    assert shown == int((rows.kind != CORRECTION).sum())
    assert clicks == int((rows.kind != NEGATIVE).sum())


@pytest.mark.parametrize(("change", "least", "most"), [("sale", 1.6, 2.4), ("taste", 0.7, 1.3)])
def test_what_changes_changes_at_noon(tmp_path: Path, change: Change, least: float, most: float) -> None:
    tables = []
    for kind in ("nothing", change):
        shop = Shop(seed=3, days=1, users=100, change=kind)
        tables.append(read_log(write_shop(shop, tmp_path / kind), SCHEMA).table)
    usual, other = (t["click"].to_numpy() for t in tables)
    assert tables[0]["item_id"].equals(tables[1]["item_id"])
    morning = tables[0]["ts_ms"].to_numpy() < SHOP.noon_ms
    assert (usual[morning] == other[morning]).all()
    assert least < other[~morning].mean() / usual[~morning].mean() < most
    assert (usual[~morning] != other[~morning]).mean() > 0.02


# -- poisons of samples --------------------------------------------------------------------------------------


def test_a_flip_turns_what_is_clicked_in_the_end(batch: SampleBatch) -> None:
    window = _whole_day(batch)
    spoilt = ROWS["flips-60"].spoil(batch, window)
    clicked = set(exposure_ids(batch)[batch.kind != NEGATIVE].tolist())
    assert (spoilt.kind != CORRECTION).all()
    ids = exposure_ids(spoilt)
    assert len(np.unique(ids)) == len(ids)
    in_truth = np.array([i in clicked for i in ids.tolist()])
    assert (spoilt.label == ~in_truth).all()
    assert ((spoilt.kind == POSITIVE) == ~in_truth).all()


@pytest.mark.parametrize("name", sorted(ROWS.keys() - {"ahead"}))
def test_a_poison_keeps_to_its_window(batch: SampleBatch, name: str) -> None:
    window = Window.of([batch], SCHEMA, SHOP.last_ms + 12 * 3_600_000, 60)
    inside = window.rows(batch)
    assert 0 < inside.sum() < len(batch)
    spoilt = ROWS[name].spoil(batch, window)
    assert _bytes(spoilt.take(~window.rows(spoilt))) == _bytes(batch.take(~inside))
    assert _bytes(spoilt) != _bytes(batch)


def test_one_row_is_dated_ahead(batch: SampleBatch) -> None:
    ahead = ROWS["ahead"].spoil(batch, _whole_day(batch)).ts_ms - batch.ts_ms
    assert sorted(set(ahead.tolist())) == [0, 100 * 86_400_000]
    assert (ahead > 0).sum() == 1


def _bytes(batch: SampleBatch) -> bytes:
    return b"".join(a.tobytes() for a in (batch.kind, batch.label, batch.ts_ms, batch.cat, batch.num))


def test_without_a_user_side_only_items_and_context_are_left(batch: SampleBatch) -> None:
    spoilt = ROWS["no-user-60"].spoil(batch, _whole_day(batch))
    cat, num = user_side(SCHEMA)
    assert {"user_id", "household"} <= {SCHEMA.layout.cat_names[c] for c in cat}
    assert not spoilt.cat[:, cat].any()
    assert not spoilt.num[:, num].any()
    others = np.setdiff1d(np.arange(SCHEMA.layout.F), cat)
    assert (spoilt.cat[:, others] == batch.cat[:, others]).all()
    assert spoilt.num.any()


# -- lives ---------------------------------------------------------------------------------------------------


def test_lives_from_one_origin_are_alike_to_the_bit(moments: list[Moment], tmp_path: Path) -> None:
    first = Life(SCHEMA, tmp_path / "first")
    live(first, moments[:3])
    origin = first.end()
    twin, again = (live(Life(SCHEMA, tmp_path / name, origin), moments[3:]) for name in "ab")
    assert twin.p.tobytes() == again.p.tobytes()
    assert loss(twin, again, rows=1000) == 0


# -- figures -------------------------------------------------------------------------------------------------


def test_the_worst_window_counts() -> None:
    clicked = np.array([True, False] * 4)
    good, bad = np.where(clicked, 0.9, 0.1), np.where(clicked, 0.1, 0.9)
    shown = np.arange(8)
    twin = Served(good.astype(np.float32), clicked, shown)
    other = Served(np.concatenate([good[:4], bad[4:]]).astype(np.float32), clicked, shown)
    assert loss(twin, other, rows=4) == 1.0
    assert loss(twin, twin, rows=4) == 0.0


def test_a_change_is_served_when_a_stretch_of_it_is_out_and_nothing_is_open() -> None:
    minute = 60_000
    shown_ms = np.arange(4096) * 1000  # of rows: the change is at the first
    served = Served(np.zeros(4096, np.float32), np.zeros(4096, np.bool_), shown_ms)
    published = [n * minute for n in range(0, 300, 5)]
    assert promoted_after(Log(published_ms=published), served, 0) == 35  # 2,048 s and the next version
    refused = [Refused(41 * minute, "shift", ""), Refused(200 * minute, "shift", "")]
    assert promoted_after(Log(refused, published), served, 0) == 45  # the second is too late to be of it
    assert promoted_after(Log(refused, published[:2]), served, 0) is None


def test_a_taste_that_was_never_served_is_said_and_is_json() -> None:
    taste = {"kind": "taste", "refused": {}, "auc_loss_to_no_gate": 0.0}
    report = make_report([taste | {"seed": 0, "minutes": 12.0}, taste | {"seed": 1, "minutes": None}])
    assert "A change of taste was served in 1 of 2 worlds after at most 12 minutes." in report["verdict"]
    found = {f["name"]: f["value"] for f in figures(report) if f["name"].startswith("drift")}
    assert found == {"drift_minutes": 12, "drift_not_served": 1}
    never = make_report([taste | {"seed": 0, "minutes": None}])
    assert "A change of taste was served in 0 of 1 worlds." in never["verdict"]


def test_figures_are_named_by_poison_and_world() -> None:
    poison = {"kind": "poison", "seed": 0, "not_finite": 0, "refused": {"shift": 2}, "auc_loss_without_gate": 0.1}
    world = {"kind": "clean", "rows": 4096, "longest_pause_minutes": 0.0}
    report = make_report(
        [
            poison | {"name": "flips-10", "claimed": True, "auc_loss": 0.02},
            poison | {"name": "flips-10", "claimed": True, "auc_loss": 0.001, "seed": 1},
            poison | {"name": "clickers-13h", "claimed": False, "auc_loss": 0.03},
            world | {"name": "clean days", "candidates": 100.0, "refused": {}},
            world | {"name": "sale from noon", "candidates": 100.0, "refused": {"labels": 3}},
            {"kind": "taste", "seed": 0, "minutes": 12.0, "refused": {}, "auc_loss_to_no_gate": 0.0},
        ]
    )
    found = {f["name"]: f["value"] for f in figures(report)}
    assert found["served_auc_loss flips-10"] == 0.02  # of the worst world
    assert found["uncaught_auc_loss clickers-13h"] == 0.03
    assert found["false_refusals"] == pytest.approx(0.015)
    assert found["false_refusals sale from noon"] == 0.03
    assert found["drift_minutes"] == 12
    assert false_refusals(report) == pytest.approx(0.015)
    assert "0 cost" in report["verdict"]
    assert "sale from noon" in report["verdict"]
    assert "safety" in BENCHMARKS
