"""``millrace dev bench safety``, small: worlds and poisons are what they say, and a gate is told from none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from benchmarks.runner import BENCHMARKS
from benchmarks.safety import figures
from experiments.experiment_safety import Plan, clean, make_report, world_at
from experiments.safety.poisons import POISONS, Window, user_side
from experiments.safety.safetyrun import Life, Served, live, loss
from experiments.safety.safetyworld import Change, Moment, Shop, clients, traffic, write_shop
from learner.promotion.gatecommands import GateCommands
from learner.ranker.repeats import exposure_ids
from millrace.basics.durations import DAY_MS, HOUR_MS, MINUTE_MS
from millrace.contracts.events import NOT_READ, PROFILE_MISSING, WINDOWS_MISSING
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import shop_schema
from millrace.logs import read_log

SCHEMA = shop_schema()
SHOP = Shop(seed=3, days=1, users=60)
NOON_MS = SHOP.day_ms(0) + 12 * HOUR_MS
ROWS = {poison.name: poison for poison in POISONS}


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> list[Moment]:
    folder = write_shop(SHOP, tmp_path_factory.mktemp("shop"))
    return list(traffic(read_log(folder, SCHEMA), SCHEMA))


@pytest.fixture(scope="module")
def batch(moments: list[Moment]) -> SampleBatch:
    return SampleBatch.concat([m.batch for m in moments if m.batch is not None])


def _whole_day(batch: SampleBatch) -> Window:
    return Window.of([batch], SCHEMA, SHOP.day_ms(0), 24 * 60)


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
    morning = tables[0]["ts_ms"].to_numpy() < NOON_MS
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
    window = Window.of([batch], SCHEMA, NOON_MS, 60)
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
    first.snapshot()
    twin, again = (live(Life(SCHEMA, tmp_path / name, first.folder), moments[3:]) for name in "ab")
    assert twin.p.tobytes() == again.p.tobytes()
    assert loss(twin, again, rows=1000) == 0


# -- figures -------------------------------------------------------------------------------------------------


def test_the_worst_window_counts() -> None:
    clicked = np.array([True, False] * 4)
    good, bad = np.where(clicked, 0.9, 0.1), np.where(clicked, 0.1, 0.9)
    twin = Served(good.astype(np.float32), clicked)
    other = Served(np.concatenate([good[:4], bad[4:]]).astype(np.float32), clicked)
    assert loss(twin, other, rows=4) == 1.0
    assert loss(twin, twin, rows=4) == 0.0


def test_figures_are_named_by_poison_and_world() -> None:
    poison = {"kind": "poison", "seed": 0, "not_finite": 0, "refused": {"shift": 2}, "auc_loss_without_gate": 0.1}
    world = {"kind": "clean", "rows": 4096, "days": 15.0, "held_mb": {}}
    report = make_report(
        [
            poison | {"name": "flips-10", "claimed": True, "auc_loss": 0.02},
            poison | {"name": "flips-10", "claimed": True, "auc_loss": 0.001, "seed": 1},
            poison | {"name": "clickers-13h", "claimed": False, "auc_loss": 0.03},
            world | {"name": "1 rows/s", "refused": {}},
            world | {"name": "1 rows/s", "refused": {"labels": 2, "shift": 1}},
            world | {"name": "10 rows/s", "refused": {}},
        ]
    )
    found = {f["name"]: f["value"] for f in figures(report)}
    assert found["served_auc_loss flips-10"] == 0.02  # of the worst world
    assert found["uncaught_auc_loss clickers-13h"] == 0.03
    assert found["false_refusals 1 rows/s"] == 3
    assert found["false_refusals 10 rows/s"] == 0
    assert "0 cost" in report["verdict"]
    assert "3 refusals of what is clean in 30 days, 1 rows/s." in report["verdict"]
    assert "safety" in BENCHMARKS


def test_memory_is_told_while_a_person_holds(tmp_path: Path) -> None:
    own = GateCommands.hold, GateCommands.promote
    with (
        patch.object(GateCommands, "hold", autospec=True, side_effect=own[0]) as hold,
        patch.object(GateCommands, "promote", autospec=True, side_effect=own[1]) as promote,
    ):
        (row,) = clean("a shop", replace(SHOP, hours=(9, 15)), 32, SCHEMA, tmp_path, range(1, 3))
    assert (hold.call_count, promote.call_count) == (1, 1)
    assert [*row["held_mb"]] == [1, 2]
    assert all(mb > 0 for mb in row["held_mb"].values())
    assert "a shop. Held for 2 hours: " in make_report([row])["verdict"]


def test_a_slice_of_a_plan_is_one_world() -> None:
    (call,) = Plan(only=("clean",), rates=(10,), worlds=1, seed=4, days=3).calls()
    assert call[1][2:] == world_at(10, 4, 3)
    (short,) = Plan(only=("clean",), short=True).calls()
    assert short[1][3].days == 2


@pytest.mark.parametrize(("rate", "seconds"), [(1, DAY_MS // 1000), (1000, 4 * 3600)])
def test_a_world_has_as_many_rows_a_second_as_it_says(rate: int, seconds: int, tmp_path: Path) -> None:
    _, shop, _ = world_at(rate, seed=1, days=1)
    few = replace(shop, users=shop.users // 50, change="nothing") if rate == 1000 else replace(shop, change="nothing")
    rows = read_log(write_shop(few, tmp_path), SCHEMA).table.num_rows * shop.users / few.users
    assert rows / seconds == pytest.approx(rate, rel=0.25)


def test_in_a_world_of_all_changes_each_has_its_day(tmp_path: Path) -> None:
    shop = Shop(seed=3, days=20, users=40, change="all")
    table = read_log(write_shop(shop, tmp_path), SCHEMA).table
    ts_ms, item, user = (table[name].to_numpy() for name in ("ts_ms", "item_id", "user_id"))
    new = item >= 1 << 40
    assert (new == (ts_ms >= shop.day_ms(10) + 11 * HOUR_MS)).all()
    assert float(table["age_days"].to_numpy()[new].max()) < 11
    came = ts_ms[user >= 1 << 40]
    noon_ms = shop.day_ms(13) + 12 * HOUR_MS
    assert noon_ms <= came.min() < came.max() < noon_ms + 2 * HOUR_MS
    assert shop.day_of("sale") == 7
    assert shop.day_of("taste") is None


def test_clients_of_a_world_of_all_changes(moments: list[Moment], batch: SampleBatch) -> None:
    shop = replace(SHOP, change="all")
    sent = clients(shop, SCHEMA)(batch)
    unread = (batch.ts_ms >= NOON_MS + HOUR_MS) & (batch.ts_ms < NOON_MS + 2 * HOUR_MS)
    assert ((sent.user_missing & NOT_READ > 0) == unread).all()
    guests = (sent.user_missing == PROFILE_MISSING | WINDOWS_MISSING) & ~unread
    cat, _ = user_side(SCHEMA)
    assert not sent.cat[np.ix_(guests | unread, cat)].any()
    assert set(np.unique(sent.ts_ms - batch.ts_ms)) <= {0, 59 * MINUTE_MS}
    many = replace(
        batch.take(np.zeros(40_000, np.intp)),
        user=np.random.default_rng(1).integers(1, 1 << 63, 40_000).astype(np.uint64),
    )
    sent = clients(shop, SCHEMA)(many)
    assert (sent.user_missing > 0).mean() == pytest.approx(0.03, abs=0.005)
    assert (sent.ts_ms > many.ts_ms).mean() == pytest.approx(0.005, abs=0.002)
    usual = clients(SHOP, SCHEMA)(batch)
    assert _bytes(usual) == _bytes(batch)
