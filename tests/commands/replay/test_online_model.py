"""A model with its windows, rows at a time: its scores and state are those of a replay with immediate labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from river import evaluate, metrics

import millrace as mr
from millrace.basics.errors import LogError, MillraceError, SchemaError, SettingError, SnapshotError
from millrace.contracts.schema import parse_schema

SCHEMA = parse_schema("""
name = "tiny"
[log]
time = "at"
user = "user"
item = "item"
label = "click"
time_unit = "ms"
[[fields]]
name = "user"
of = "user"
[[fields]]
name = "last_clicks"
of = "user"
slots = 3
[[fields]]
name = "item"
of = "item"
[windows]
lengths = ["1h", "1d"]
half_lives = [0.5]
actions = ["exposure", "click"]
[[windows.keys]]
columns = ["item"]
[[windows.keys]]
columns = ["user"]
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


def rows(**columns: Any) -> pd.DataFrame:
    return log().to_pandas().assign(**columns)


MISUSES: list[tuple[str, Callable[[mr.Model, Path], Any], type[MillraceError], str]] = [
    ("unsorted", lambda m, d: m.learn(rows()[::-1]), LogError, "not in the order of time; sort them by 'at'"),
    ("back in time", lambda m, d: m.learn(log()).learn(log()), LogError, r"a row of .* comes after one of .*; sort"),
    ("predict the past", lambda m, d: m.learn(log()).predict(rows().head(1)), LogError, "comes after one of"),
    ("no label", lambda m, d: m.learn(rows().drop(columns="click")), SchemaError, "lack the column 'click'"),
    ("no user", lambda m, d: m.predict({"at": 1_650_758_400_000, "item": "i1"}), SchemaError, "lack the column 'user'"),
    ("texts as labels", lambda m, d: m.learn(rows(click="maybe")), LogError, "label 'click' has the value maybe"),
    ("a path", lambda m, d: m.learn(cast(Any, "log.parquet")), LogError, "a log is no str; give"),
    ("no rows", lambda m, d: m.predict([]), LogError, "has no rows"),
    ("mixed rows", lambda m, d: m.predict([{"at": 1}, {"at": "x"}]), LogError, "'at' has values of several kinds"),
    ("a bad time", lambda m, d: m.predict(unlabelled({**log().to_pylist()[0], "at": 5})), LogError, "before 1990"),
    ("no [log]", lambda m, d: mr.Model(BARE), SchemaError, r"no \[log\] section"),
    ("an unknown model", lambda m, d: mr.Model(SCHEMA, model="gpt"), SettingError, "'gpt'"),
    ("an unknown value", lambda m, d: mr.Model(SCHEMA, spec={"wdith": 4}), SettingError, "wdith"),
    ("batches of none", lambda m, d: mr.Model(SCHEMA, batch_rows=0), SettingError, "batch_rows 0"),
    ("no such file", lambda m, d: mr.Model.load(d / "no.npz"), SnapshotError, "is no saved model"),
    ("another file", lambda m, d: mr.Model.load(Path(__file__)), SnapshotError, "is no saved model"),
    ("a folder to save", lambda m, d: m.save(d), SettingError, "cannot be written"),
]


@pytest.mark.parametrize(("misuse", "kind", "words"), [case[1:] for case in MISUSES], ids=[case[0] for case in MISUSES])
def test_a_misuse_is_one_line_with_a_remedy(
    misuse: Callable[[mr.Model, Path], Any], kind: type[MillraceError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words) as raised:
        misuse(made(), tmp_path)
    assert "\n" not in str(raised.value)
    assert raised.value.remedy
