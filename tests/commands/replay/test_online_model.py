"""A model with its windows, rows at a time: its scores and state are those of a replay with immediate labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from river import evaluate, metrics

import millrace as mr
from millrace.contracts.schema import parse_schema

SCHEMA = parse_schema("""
name = "tiny"
fields = [{name = "user", of = "user"}, {name = "last_clicks", of = "user", slots = 3},
          {name = "item", of = "item"}]
[log]
time = "at"
user = "user"
item = "item"
label = "click"
time_unit = "ms"
[windows]
lengths = ["1h", "1d"]
half_lives = [0.5]
actions = ["exposure", "click"]
keys = [{columns = ["item"]}, {columns = ["user"]}]
""")
BARE = parse_schema('name = "bare"\n[[fields]]\nname = "item"\nof = "item"\n')
SMALL: dict[str, Any] = {"width": 4, "hidden": [8], "blocks": 1}
N = 160


def log() -> pa.Table:
    """Rows in order; several have one time, also where a micro-batch ends."""
    rng = np.random.default_rng(3)
    at = np.sort(rng.integers(0, 90, N)) * 600_000
    at[30:50] = at[30]
    return pa.table(
        {
            "at": 1_650_758_400_000 + np.sort(at),
            "user": rng.integers(1, 9, N),
            "item": [f"i{k}" for k in rng.integers(0, 12, N)],
            "click": (rng.random(N) < 0.4).astype(np.int8),
        }
    )


def made(batch_rows: int = 16) -> mr.Model:
    return mr.Model(SCHEMA, spec=SMALL, batch_rows=batch_rows)


def replayed(batch_rows: int) -> NDArray[np.float32]:
    options: dict[str, Any] = {"spec": SMALL, "batch_rows": batch_rows, "progress": False}
    found = mr.replay(log(), SCHEMA, label_policy="immediate", **options)
    scores: NDArray[np.float32] = pa.table(found.scores)["score"].to_numpy()
    return scores


def state(model: mr.Model) -> dict[str, bytes]:
    image, training = model.flush().learner.snapshot()
    return {name: array.tobytes() for name, array in (image.tensors() | training).items()}


def unlabelled(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "click"}


@pytest.mark.parametrize("batch_rows", [1, 16])
def test_a_whole_log_is_scored_as_a_replay_scores_it(batch_rows: int) -> None:
    assert made(batch_rows).predict_then_learn(log()).tobytes() == replayed(batch_rows).tobytes()


FEEDS: dict[str, Callable[[pa.Table], list[Any]]] = {
    "frames": lambda t: [t.slice(at, 23).to_pandas() for at in range(0, N, 23)],
    "Polars": lambda t: [pl.DataFrame(t.slice(at, 7)) for at in range(0, N, 7)],
    "rows": lambda t: t.to_pylist(),
    "lists of rows": lambda t: [t.to_pylist()[at : at + 9] for at in range(0, N, 9)],
}


@pytest.mark.parametrize("batch_rows", [1, 16])
@pytest.mark.parametrize("feed", FEEDS)
def test_how_rows_are_cut_into_calls_changes_nothing(feed: str, batch_rows: int) -> None:
    whole, parts = made(batch_rows), made(batch_rows)
    p = whole.predict_then_learn(log())
    q = np.concatenate([parts.predict_then_learn(part) for part in FEEDS[feed](log())])
    np.testing.assert_allclose(q, p, rtol=2e-6)  # sums of products may differ in the last bit with a call's size
    assert state(parts) == state(whole)


def test_a_loop_of_ones_own_predicts_what_the_model_knows_and_learns_nothing_by_it() -> None:
    whole, loop = made(), made()
    p = whole.predict_then_learn(log())
    q = []
    for row in log().to_pylist():
        q.append(loop.predict(unlabelled(row))[0])
        assert loop.predict(unlabelled(row))[0] == q[-1]
        loop.learn(row)
    np.testing.assert_allclose(q, p, rtol=2e-6)
    assert state(loop) == state(whole)


def test_a_loaded_model_goes_on_bit_for_bit(tmp_path: Path) -> None:
    model = made().learn(log().slice(0, 90))
    model.save(tmp_path / "model.npz")
    again = mr.Model.load(tmp_path / "model.npz")
    rest = log().slice(90)
    assert again.predict_then_learn(rest).tobytes() == model.predict_then_learn(rest).tobytes()
    assert state(again) == state(model)
    made().save(tmp_path / "empty.npz")
    assert mr.Model.load(tmp_path / "empty.npz").predict_then_learn(log()).tobytes() == replayed(16).tobytes()


SHOP = parse_schema("""
name = "shop"
fields = [{name = "user", of = "user"}, {name = "kind", of = "item"},
          {name = "price", of = "item", kind = "numeric"}, {name = "slot", of = "context", bias = true}]
[log]
time = "at"
user = "user"
item = "item"
label = "click"
time_unit = "ms"
[windows]
days = [1]
actions = ["exposure", "click"]
prior_rate = 0.5
""")


QUICK = SMALL | {"dense_rate": 0.02}


def shop(by: str) -> list[dict[str, Any]]:
    """Rows whose label the kind or the price decides."""
    rng = np.random.default_rng(5)
    made: list[dict[str, Any]] = [
        {
            "at": 1_650_758_400_000 + 1000 * n,
            "user": int(rng.integers(1, 9)),
            "item": int(rng.integers(1, 20)),
            "kind": ["cake", "tea"][int(rng.integers(2))],
            "price": float(rng.integers(1, 10)),
            "slot": int(rng.integers(1, 4)),
        }
        for n in range(3000)
    ]
    return [row | {"click": int(row["kind"] == "cake" if by == "kind" else row["price"] > 5)} for row in made]


@pytest.mark.parametrize(("by", "yes", "no"), [("kind", "cake", "tea"), ("price", 9.0, 1.0)])
def test_what_decides_the_label_is_the_first_reason_of_a_single_row_too(
    by: str, yes: Any, no: Any, tmp_path: Path
) -> None:
    rows = shop(by)
    model = mr.Model(SHOP, spec=QUICK, batch_rows=16).learn(rows[:-1])
    for value, sign in ((yes, 1), (no, -1)):
        found = pa.table(model.explain(unlabelled({**rows[-1], by: value}), most=2)).to_pylist()
        assert [line["row"] for line in found] == [0] * len(found)
        assert 1 <= len(found) <= 2
        assert found[0]["input"] == by
        assert sign * found[0]["effect"] > 1
    model.save(tmp_path / "model.npz")
    last = unlabelled(rows[-1])
    assert mr.Model.load(tmp_path / "model.npz").explain(last).table == model.explain(last).table


def test_reasons_are_effects_on_the_score_that_predict_gives() -> None:
    """Against rows of which the input was taken by hand."""
    rows = [unlabelled(row) for row in shop("kind")]
    model = mr.Model(SHOP, spec=QUICK, batch_rows=16).learn(shop("kind")[:2000])
    some = rows[2100:2103]
    found = pa.table(model.explain(some, most=9)).to_pylist()
    logit = [np.log(p / (1 - p)) for p in model.predict(some)]
    usual = float(np.mean([row["price"] for row in rows[:2000]]))
    for name, value in (("kind", None), ("price", usual)):
        without = [np.log(p / (1 - p)) for p in model.predict([{**row, name: value} for row in some])]
        effects = [line["effect"] for line in found if line["input"] == name]
        np.testing.assert_allclose(effects, np.subtract(logit, without), atol=1e-4)
    assert "slot" not in {line["input"] for line in found}, "scores do not depend on it"
    other = pa.table(model.explain([{**row, "slot": 9} for row in some], most=9))
    assert other.to_pylist() == found


def test_explaining_changes_no_later_bit() -> None:
    plain, asked = made(), made()
    for n, row in enumerate(log().to_pylist()):
        if n % 7 == 0:
            asked.explain(unlabelled(row))
        assert asked.predict_then_learn(row).tobytes() == plain.predict_then_learn(row).tobytes()
    assert state(asked) == state(plain)


def test_before_anything_is_learnt_rows_are_compared_with_each_other() -> None:
    rows = [unlabelled(row) for row in shop("price")[:40]]
    model = mr.Model(SHOP, spec=SMALL)
    assert "price" in pa.table(model.explain(rows))["input"].to_pylist()
    alone = model.explain(rows[0])
    assert "price" not in pa.table(alone)["input"].to_pylist()
    assert alone.table.column_names == ["row", "input", "effect"]


def test_river_evaluates_it_at_once_and_with_delayed_labels() -> None:
    pairs: list[Any] = [(unlabelled(row), bool(row["click"])) for row in log().to_pylist()]
    p = made(1).predict_then_learn(log())
    log_loss: Any = metrics.LogLoss
    expected = log_loss()
    for one, (_, y) in zip(p.tolist(), pairs, strict=True):
        expected.update(y, one)
    found: Any = evaluate.progressive_val_score(pairs, made(1).river(), log_loss())
    assert found.get() == pytest.approx(expected.get(), rel=1e-6)
    model = made(1)
    late: Any = evaluate.progressive_val_score(pairs, model.river(), log_loss(), moment="at", delay=3_600_000)
    assert late.get() != found.get(), "the model knew less"
    assert state(model) == state(made(1).learn(log()))
