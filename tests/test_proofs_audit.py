"""The leak audit: planted leaks are found by name, and a clean run has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millrace.contracts.errors import LeakError
from millrace.contracts.schema import Schema, parse_schema
from millrace.logs import LogTable, joins, read_log
from millrace.proofs.audit import Audit, Witness, audit
from millrace.proofs.auditrun import audit_log
from millrace.replay import logfeatures
from millrace.replay.known import LabelSettings, Model, Observer
from millrace.replay.run import run_log

MINUTE, HOUR = 60_000, 3_600_000
T0 = 20_000 * 24 * HOUR
TEXT = """
name = "audited"
[[fields]]
name = "user_id"
of = "user"
[[fields]]
name = "item_id"
of = "item"
[[fields]]
name = "kind"
of = "item"
[[fields]]
name = "price"
of = "item"
kind = "numeric"
[windows]
days = [1, 7]
actions = ["exposure", "click"]
[[windows.keys]]
columns = ["item_id"]
[[windows.keys]]
columns = ["kind"]
[log]
time = "at"
user = "user_id"
item = "item_id"
label = "label"
"""
TIMED = 'action_times = { click = "click_at" }\nattribution_minutes = 30\n'
SCHEMA = parse_schema(TEXT + TIMED)


class Rate:
    """A model whose scores depend on all it was given, features and labels."""

    def __init__(self) -> None:
        self.seen = self.clicked = 1.0

    def score(self, cat: Any, num: Any) -> Any:
        mixed = (cat % 1009).sum(axis=1) / 1e6 + num.sum(axis=1) / 1e6
        return (self.clicked / self.seen + mixed).astype(np.float32)

    def learn(self, batch: Any) -> object:
        self.seen += len(batch)
        self.clicked += float((batch.kind > 0).sum())
        return None


def rows_of(seed: int, n: int = 400) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    at = T0 + np.cumsum(rng.choice([0, MINUTE, 7 * MINUTE, 3 * HOUR], n, p=[0.2, 0.4, 0.35, 0.05]))
    item = rng.integers(0, 9, n)
    click = np.where(rng.random(n) < 0.3, at + rng.integers(1, 29 * MINUTE, n), 0)
    return [
        {
            "at": int(at[i]),
            "user_id": f"u{rng.integers(0, 40)}-{i}",  # each exposure is another one
            "item_id": f"i{item[i]}",
            "kind": f"k{item[i] % 3}",
            "price": float(rng.integers(1, 900)) / 7,
            "label": int(click[i] > 0),
            "click_at": int(click[i]) or None,
        }
        for i in range(n)
    ]


def log_of(folder: Path, seed: int = 3, schema: Schema = SCHEMA, n: int = 400) -> LogTable:
    path = folder / f"log-{seed}.parquet"
    pq.write_table(pa.Table.from_pylist(rows_of(seed, n)), path)
    return read_log(path, schema)


def audited(
    log: LogTable,
    schema: Schema = SCHEMA,
    model: Callable[[], Model] = Rate,
    policy: str | None = "wait",
    seed: int = 1,
) -> Audit:
    how = LabelSettings(policy, 10_000)

    def run(table: LogTable, one: Model, observer: Observer) -> object:
        return run_log(table, schema, one, 16, lambda _: None, None, how, observer)

    return audit(log, schema, model, run, seed=seed)


def names(found: Audit) -> set[str]:
    return {leak.name for leak in found.leaks}


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31), policy=st.sampled_from(["wait", "prompt", "es-dfm"]), timed=st.booleans())
def test_a_clean_run_has_no_leak(tmp_path_factory: Any, seed: int, policy: str | None, timed: bool) -> None:
    schema = SCHEMA if timed else parse_schema(TEXT)
    found = audited(log_of(tmp_path_factory.mktemp("clean"), seed, schema, 200), schema, policy=policy, seed=seed)
    assert found.leaks == []
    assert len(found.cuts) == 3
    assert all(cut["exposures"] > 0 for cut in found.cuts)


def test_what_is_compared_is_most_of_what_is_before_the_cuts(tmp_path: Path) -> None:
    for cut in audited(log_of(tmp_path)).cuts:
        assert cut["predictions"] > cut["exposures"] - 32
        assert cut["labels"] > cut["exposures"] - 40


def test_a_window_that_counts_too_early_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clicks count two hours before they happen."""
    log = log_of(tmp_path)
    plain = logfeatures.Labels.__init__

    def early(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        moved = np.where(self.event_action > 0, self.event_ms - 2 * HOUR, self.event_ms)
        order = np.argsort(moved, kind="stable")
        self.event_row, self.event_action = self.event_row[order], self.event_action[order]
        self.event_ms = moved[order]

    monkeypatch.setattr(logfeatures.Labels, "__init__", early)
    found = audited(log)
    assert any(name.endswith((".click.1d", ".click.7d")) for name in names(found))
    assert not any(".exposure." in name for name in names(found))
    assert not names(found) & {"price", "kind", "user_id", "label"}


def test_a_column_computed_over_the_whole_log_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(tmp_path)
    plain = logfeatures.LogRows.__init__

    def scaled(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        self._plain["price"] = self._plain["price"] - self._plain["price"].mean()

    monkeypatch.setattr(logfeatures.LogRows, "__init__", scaled)
    found = audited(log)
    assert names(found) >= {"price", "prediction"}
    assert names(found) <= {"price", "prediction"}
    (leak,) = [leak for leak in found.leaks if leak.name == "price"]
    assert leak.ts_ms < leak.cut_ms
    assert leak.value != leak.altered


def test_a_label_that_is_known_too_early_is_named(tmp_path: Path) -> None:
    """Without a policy each label is learnt at its exposure, though its click comes later."""
    assert names(audited(log_of(tmp_path), policy=None)) >= {"label"}


def test_without_action_times_a_label_at_its_exposure_is_no_leak(tmp_path: Path) -> None:
    schema = parse_schema(TEXT)
    assert audited(log_of(tmp_path, schema=schema), schema, policy=None).leaks == []


def test_a_model_that_peeks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds the labels of the whole log where the engine has them."""
    peeked: list[float] = []
    plain = logfeatures.Labels.__init__

    def open_(self: Any, log: LogTable, *args: Any, **kwargs: Any) -> None:
        plain(self, log, *args, **kwargs)
        peeked.append(float(self.clicked.mean()))

    class Peeks(Rate):
        def score(self, cat: Any, num: Any) -> Any:
            return super().score(cat, num) + np.float32(peeked[-1])

    monkeypatch.setattr(logfeatures.Labels, "__init__", open_)
    found = audited(log_of(tmp_path), model=Peeks)
    assert names(found) == {"prediction"}
    assert found.leaks[0].count > 100


JOINED = (
    TEXT.replace('name = "price"', 'name = "cost"')
    + TIMED
    + '[[join]]\nfile = "costs.csv"\non = "item_id"\nat = "from"\n'
)


def joined(folder: Path) -> Path:
    """A log whose prices stand in a side table, and change every eight hours."""
    rows = [{k: v for k, v in row.items() if k != "price"} for row in rows_of(5)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "log.parquet")
    lines = [f"i{i},{T0 + k * 8 * HOUR},{10 * i + k}" for k in range(12) for i in range(9)]
    (folder / "costs.csv").write_text("\n".join(["item_id,from,cost", *lines]) + "\n")
    (folder / "schema.toml").write_text(JOINED)
    return folder / "log.parquet"


def audit_file(log: Path) -> Audit:
    how = LabelSettings("wait", 10_000)
    return audit_log(log, log.parent / "schema.toml", log.parent / "out", spec={}, labels=how, progress=False)


def test_the_command_reads_side_tables_with_another_future(tmp_path: Path) -> None:
    assert audit_file(joined(tmp_path)).leaks == []


def test_a_join_that_takes_a_later_row_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = joins._AsOf.rows

    def later(self: Any, left: Any, ts_ms: Any) -> Any:
        return plain(self, left, pa.array(np.asarray(ts_ms) + 12 * HOUR))

    monkeypatch.setattr(joins._AsOf, "rows", later)
    with pytest.raises(LeakError, match="'cost'"):
        audit_file(joined(tmp_path))
    assert '"name": "cost"' in (tmp_path / "out" / "audit.json").read_text()


def test_a_third_run_names_only_what_differs() -> None:
    """A hash of a row sees each single bit."""
    rng = np.random.default_rng(0)
    witness, cat, num = Witness(1, 5, 0), rng.integers(0, 1 << 62, (1, 2)), rng.random((1, 3)).astype(np.float32)
    hashes = {int(witness._hashed(cat, num)[0])}
    for bit in range(63):
        hashes.add(int(witness._hashed(cat ^ np.array([[0, 1 << bit]]), num)[0]))
    for bit in range(32):
        flipped = num.copy()
        flipped.view(np.uint32)[0, 1] ^= np.uint32(1 << bit)
        hashes.add(int(witness._hashed(cat, flipped)[0]))
    assert len(hashes) == 1 + 63 + 32
