"""Outcomes in a replay: when each is told, what is refused, what the report says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.network.dense import threads
from learner.ranker.model import OnlineModel
from millrace.basics.errors import LogError, SchemaError
from millrace.basics.hashing import combine
from millrace.basics.ranking_metrics import auc, calibration, log_loss
from millrace.commands.proofs.leak_audit import audit
from millrace.commands.replay import logfeatures
from millrace.commands.replay.grouped import GroupedRows
from millrace.commands.replay.logfeatures import Labels, LogRows
from millrace.commands.replay.logsamples import KnownSamples, LabelSettings, ReplayModel, ReplayObserver
from millrace.commands.replay.outcomefigures import OutcomeScores
from millrace.commands.replay.replayrun import replay, run_log
from millrace.contracts.samples import CORRECTION, NEGATIVE, OUTCOME, POSITIVE
from millrace.contracts.samples import POLICIES as POLICIES_BY_CODE
from millrace.contracts.schema import Schema, parse_schema
from millrace.logs import TS, LogTable, read_log
from stream.archive.schemafile import schema_text
from tests.commands.replay.plain_replay import run_plain
from tests.scenes.exploring import examples
from tests.scenes.replayed_logs import (
    BY_PAGE,
    MINUTE,
    PAGES,
    POLICIES,
    SCHEMA,
    SMALL,
    Recorder,
    beside,
    make_log,
    same,
)

OUTCOMES = """
[[outcome]]
name = "liked"
column = "liked"
[[outcome]]
name = "kept"
column = "kept"
on = "click"
within = "3h"
[[outcome]]
name = "bought"
event = "cart"
on = "click"
within = "2h"
[[outcome]]
name = "cart_of_page"
event = "cart"
within = "1d"
"""
HOUR = 60 * MINUTE
BY_AGE = """
[[outcome]]
name = "bought_early"
event = "cart"
on = "click"
within = "9h"
policy = "es-dfm"
[[outcome]]
name = "cart_of_page_early"
event = "cart"
within = "2d"
policy = "fake-negative-weighted"
"""


def with_outcomes(log: LogTable, seed: int) -> LogTable:
    """Two columns with outcomes: 0, 1 and not known."""
    rng, table = np.random.default_rng(seed), log.table
    for name in ("liked", "kept"):
        value = rng.integers(-1, 2, table.num_rows).astype(np.int8)
        table = table.append_column(name, pa.array(value, mask=value < 0))
    return LogTable(table, log.user, log.item, log.label, log.rows_read, 0)


def turn_at(base_ms: int, page: str | None, slot: int | None) -> int:
    """By the page and the slot, as live; where the log does not name them, by the time."""
    if page is None:
        high = (int(combine(logfeatures._TURN, np.array([base_ms], np.uint64))[0]) >> 32) * 0x9E3779B1 % 2**32
    else:
        high = crc32(f"{page}\0{slot}".encode()) * 0x9E3779B1 % 2**32
    return next(number for number in range(1, 7) if number == 6 or high >> (32 - number) & 1)


def told(samples: KnownSamples) -> dict[tuple[int, int], list[tuple[int, float, int]]]:
    """(time, value, kind) of each telling, by row and outcome."""
    found: dict[tuple[int, int], list[tuple[int, float, int]]] = {}
    for s, k in zip(*np.nonzero(np.isfinite(samples.outcomes)), strict=True):
        key = int(samples.row[s]), int(k)
        found.setdefault(key, []).append(
            (int(samples.known_ms[s]), float(samples.outcomes[s, k]), int(samples.kind[s]))
        )
    return found


@given(
    n=st.integers(1, 60),
    seed=st.integers(0, 1000),
    how=st.sampled_from(POLICIES),
    text=st.sampled_from([SCHEMA, PAGES]),
)
@examples(25)
def test_each_outcome_is_told_one_time_when_it_is_known(n: int, seed: int, how: LabelSettings, text: str) -> None:
    """Against the rule, row by row, in plain Python."""
    schema = parse_schema(text + OUTCOMES + BY_AGE)
    log = with_outcomes(make_log(schema, n, seed), seed)
    rows = LogRows(log, schema)
    samples = KnownSamples.of(rows.ts_ms, Labels(log, schema, rows), how.named, how.observation_ms)
    aged = samples.take(samples.telling > 0)
    samples = samples.take(samples.telling == 0)
    first = {
        int(r): int(t) for r, t, k in zip(samples.row, samples.known_ms, samples.kind, strict=True) if k < CORRECTION
    }
    clicked_ms = {
        int(r): int(t)
        for r, t, k in zip(samples.row, samples.known_ms, samples.kind, strict=True)
        if k in (POSITIVE, CORRECTION)
    }
    ends, expected, by_age = int(rows.ts_ms[-1]), {}, []
    for i, row in enumerate(log.table.to_pylist()):
        own = (row["page"], row["slot"]) if text == PAGES else (None, None)
        click_ms = max(row["click_ms"], row[TS]) if row["click"] else None
        cart_ms = None if row["cart_ms"] is None else max(row["cart_ms"], row[TS])
        rule = [(row[TS], None), (click_ms, 3 * HOUR), (click_ms, 2 * HOUR), (row[TS], 24 * HOUR)]
        for k, since, window in ((4, click_ms, 9 * HOUR), (5, row[TS], 48 * HOUR)):
            if how.policy is None:
                rule.append((since, window))
            if since is None or how.policy is None:
                continue
            said: list[float] = []
            for number in range(1, 7):
                due_at = since + window * 2**number // 64
                came = cart_ms is not None and cart_ms < due_at
                if due_at <= ends and not came and not said and turn_at(since, *own) <= number:
                    said.append(0.0)
                    by_age.append((i, k, number, due_at, 0.0))
                elif due_at <= ends and came and said in ([], [0.0]):
                    by_age.append((i, k, number, due_at, 2.0 if said else 1.0))
                    said.append(1.0)
        for k, (base, within) in enumerate(rule):
            due = 0 if within is None or base is None else base + within
            value = row[("liked", "kept")[k]] if k < 2 else int(cart_ms is not None and cart_ms < due)
            if base is not None and value is not None and due <= ends:
                carrier = clicked_ms[i] if k in (1, 2, 4) else first[i]
                expected[i, k] = max(carrier, 0 if how.policy is None else due), float(value)
    found = told(samples)
    assert {key: [(t, v) for t, v, _ in tellings] for key, tellings in found.items()} == {
        key: [one] for key, one in expected.items()
    }
    which, of = np.nonzero(np.isfinite(aged.outcomes))
    assert (which == np.arange(len(aged.row))).all()
    columns = (aged.row, of, aged.telling, aged.known_ms, aged.outcomes[which, of])
    assert sorted(zip(*(c.tolist() for c in columns), strict=True)) == sorted(by_age)
    codes = [POLICIES_BY_CODE.index(schema.outcome[one].policy) for one in of.tolist()]
    assert (aged.kind == OUTCOME).all()
    assert aged.policy.tolist() == codes
    again = samples.kind == OUTCOME
    assert np.isfinite(samples.outcomes[again]).any(axis=1).all()
    pairs = np.stack([samples.row[again], samples.known_ms[again]])
    assert np.unique(pairs, axis=1).shape == pairs.shape
    assert (np.diff(samples.known_ms) >= 0).all()


@given(
    n=st.integers(1, 60), seed=st.integers(0, 1000), at_once=st.integers(1, 40), how=st.sampled_from(POLICIES + BY_PAGE)
)
@examples(25)
def test_the_engine_tells_what_the_plain_path_tells(n: int, seed: int, at_once: int, how: LabelSettings) -> None:
    schema = parse_schema(PAGES + OUTCOMES + BY_AGE)
    log = with_outcomes(make_log(schema, n, seed), seed)
    plain, engine = Recorder(), Recorder()
    groups, own = GroupedRows(log, schema), GroupedRows(log, schema)
    expected = run_plain(log, schema, plain, 16, lambda _: None, groups, how)
    assert np.array_equal(expected, beside(log, schema, engine, own, how, at_once))
    for one, other in zip(plain.batches, engine.batches, strict=True):
        same(one, other)
        assert one.outcomes.tobytes() == other.outcomes.tobytes()
        assert one.telling.tobytes() == other.telling.tobytes()


def test_heads_predict_what_they_do_without_threads_and_the_click_hardly_moves() -> None:
    """All outcomes of this schema come with the label, so the samples are those of a schema without outcomes."""
    plain = parse_schema(PAGES)
    schema = parse_schema(PAGES + '[[outcome]]\nname = "liked"\ncolumn = "liked"\n')
    log = with_outcomes(make_log(schema, 400, 3), 3)
    with threads(1):
        model, one_thread = OnlineModel(schema, SMALL, 0), OnlineModel(schema, SMALL, 0)
        scores, alone = OutcomeScores(schema, 400), []

        class Slowly:
            """The same model, that cannot be read while it learns."""

            def score(self, cat: np.ndarray, num: np.ndarray) -> np.ndarray:
                alone.append(one_thread.predict(cat, num))
                return alone[-1][:, 0]

            def learn(self, batch: Any) -> object:
                return one_thread.learn(batch)

        p = run_log(log, schema, model, 16, lambda _: None, None, POLICIES[1], outcomes=scores)
        slow = run_log(log, schema, Slowly(), 16, lambda _: None, None, POLICIES[1])
        click = run_log(log, plain, OnlineModel(plain, SMALL, 0), 16, lambda _: None, None, POLICIES[1])
    assert np.array_equal(p, slow)
    assert np.array_equal(scores.q, np.concatenate(alone)[:, 1:])
    assert np.abs(p - click).max() < 1e-4
    known = log.table["liked"].to_pylist()
    assert [None if v != v else int(v) for v in scores.y[:, 0].tolist()] == known


# -- logs ----------------------------------------------------------------------------------------------------------

FILE = """
name = "f"
[[fields]]
name = "user_id"
of = "user"
[[fields]]
name = "item_id"
of = "item"
[windows]
days = [1]
actions = ["exposure", "click"]
[[windows.keys]]
columns = ["item_id"]
[log]
time = "at"
user = "user_id"
item = "item_id"
label = "click"
identity = ["at", "user_id", "item_id"]
"""
LIKED = '[[outcome]]\nname = "liked"\ncolumn = "liked"\n'


def written(folder: Path, **columns: list[Any]) -> Path:
    n = len(next(iter(columns.values())))
    base = {"at": [1_700_000_000_000 + i for i in range(n)], "user_id": list(range(n)), "item_id": [1] * n}
    pq.write_table(pa.table(base | {"click": [i % 2 for i in range(n)]} | columns), folder / "log.parquet")
    return folder / "log.parquet"


def test_an_outcome_may_be_missing_and_copies_of_a_row_share_it(tmp_path: Path) -> None:
    at = [1_700_000_000_000 + i // 2 for i in range(6)]
    path = written(tmp_path, liked=["1", None, "no", "yes", None, None], at=at, user_id=[1, 2, 3, 3, 4, 4])
    log = read_log(path, parse_schema(FILE + LIKED))
    assert log.table["liked"].to_pylist() == [1, None, 1, None]


@pytest.mark.parametrize(
    ("text", "error", "problem"),
    [
        (FILE + LIKED.replace('column = "liked"', 'column = "lyked"'), SchemaError, "lyked"),
        (FILE + LIKED.replace('column = "liked"', 'column = "count"'), LogError, "'count' has the value 7, not 0 or 1"),
        (FILE + LIKED.replace('column = "liked"', 'column = "click"'), SchemaError, "role in [log]"),
        (
            FILE.replace("[windows]", '[[fields]]\nname = "liked"\nof = "context"\n[windows]') + LIKED,
            SchemaError,
            "feeds",
        ),
        (
            FILE + '[[outcome]]\nname = "b"\nevent = "cart"\nwithin = "1d"\n',
            SchemaError,
            "of which the log has no time",
        ),
    ],
)
def test_a_column_that_is_no_outcome_is_named(tmp_path: Path, text: str, error: type[Exception], problem: str) -> None:
    path = written(tmp_path, liked=[0, 1, 0, 1], count=[7, 1, 0, 1])
    with pytest.raises(error) as caught:
        read_log(path, parse_schema(text))
    assert problem in str(caught.value)


def test_an_archive_has_events_and_no_columns_of_another_log(tmp_path: Path) -> None:
    """Its schema is the loop's; what only another log knows is not known."""
    schema = parse_schema(PAGES + OUTCOMES)
    made = parse_schema(schema_text(schema, 30))
    assert made.id == schema.id
    assert [(one.event, one.column) for one in made.outcome] == [(None, ""), (None, ""), ("cart", None), ("cart", None)]
    log = make_log(schema, 60, 3)
    own = parse_schema(PAGES + OUTCOMES.replace('"liked"\n[', '""\n[').replace('column = "kept"', 'column = ""'))
    rows = LogRows(log, own)
    found = Labels(log, own, rows).outcomes
    assert np.isnan(found[:, :2]).all()
    assert np.isfinite(found[:, 2:]).any()


def taste_log(folder: Path, n: int = 6000) -> Path:
    """Even items are clicked, items of the first half are liked, and of clicked ones each third user keeps them."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 60, n), rng.integers(0, 20, n)
    click = rng.random(n) < np.where(item % 2, 0.1, 0.6)
    liked = rng.random(n) < np.where(item < 10, 0.4, 0.02)
    kept = rng.random(n) < np.where(user % 3, 0.05, 0.8)
    at = 1_700_000_000_000 + np.arange(n) * 20_000
    columns = {"at": at, "user_id": user, "item_id": item, "click": click.astype(int), "liked": liked.astype(int)}
    pq.write_table(pa.table(columns | {"kept": pa.array(kept.astype(int), mask=~click)}), folder / "log.parquet")
    return folder / "log.parquet"


def test_the_report_has_each_outcomes_own_figures(tmp_path: Path) -> None:
    schema = tmp_path / "schema.toml"
    schema.write_text(FILE + LIKED + '[[outcome]]\nname = "kept"\ncolumn = "kept"\non = "click"\nwithin = "1h"\n')
    report = replay(taste_log(tmp_path), schema, tmp_path / "out", spec=SMALL, progress=False)
    liked, given, both = report["outcomes"]
    assert [line["outcome"] for line in (liked, given, both)] == ["liked", "kept given a click", "click and kept"]
    table = pq.read_table(tmp_path / "log.parquet")
    clicks = int(np.sum(table["click"].to_numpy()))
    assert (liked["rows"], liked["positives"]) == (6000, int(np.sum(table["liked"].to_numpy())))
    late = table["at"].to_numpy() > table["at"].to_numpy()[-1] - HOUR
    unknown = int((late & (table["click"].to_numpy() == 1)).sum())
    assert unknown > 0
    assert given["rows"] == clicks - unknown  # what is due after the log ends is not judged
    assert both["rows"] == 6000 - unknown
    # The click's order says nothing of these tastes, and the heads learn most of them.
    true = np.where(table["item_id"].to_numpy() < 10, 0.4, 0.02)
    assert liked["auc"] - 0.5 > 0.7 * (auc(true, table["liked"].to_numpy()) - 0.5)
    assert liked["auc_over_click"] > 3 * liked["auc_over_click_ci"] > 0
    assert given["auc_over_click"] > given["auc_over_click_ci"] > 0
    assert all(0.8 < line["calibration"] < 1.25 for line in (liked, given)), report["outcomes"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert "AUC over click" in (tmp_path / "out" / "report.html").read_text()


def test_what_is_told_by_age_is_judged_by_its_final_label() -> None:
    schema, waits = (parse_schema(PAGES + OUTCOMES + text) for text in (BY_AGE, BY_AGE.replace("policy", "#")))
    log = with_outcomes(make_log(schema, 400, 3), 3)
    found = []
    for one in (schema, waits):
        found.append(OutcomeScores(one, 400))
        run_log(log, one, OnlineModel(one, SMALL, 0), 64, lambda _: None, None, POLICIES[0], outcomes=found[-1])
        found[-1].settle(log)
    assert np.array_equal(found[0].y, found[1].y, equal_nan=True)
    assert 0 < np.nanmean(found[0].y[:, 4]) < 1


def test_figures_are_those_of_the_predictions(tmp_path: Path) -> None:
    schema = parse_schema(FILE + LIKED)
    log = read_log(taste_log(tmp_path, 600), schema)
    scores = OutcomeScores(schema, 600)
    with threads(1):
        p = run_log(log, schema, OnlineModel(schema, SMALL, 0), 64, lambda _: None, outcomes=scores)
    y = log.table["liked"].to_numpy()
    (line,) = scores.figures(p, log.table["click"].to_numpy(), np.arange(600))
    q = scores.q[:, 0]
    for key, figure in (("auc", auc), ("log_loss", log_loss), ("calibration", calibration)):
        assert line[key] == pytest.approx(figure(q, y), abs=1e-6)
    assert line["auc_over_click"] == pytest.approx(auc(q, y) - auc(p, y), abs=2e-6)


def test_a_schema_without_outcomes_has_no_trace_of_them(tmp_path: Path) -> None:
    schema = parse_schema(FILE)
    log = read_log(taste_log(tmp_path, 600), schema)
    assert "liked" not in log.table.column_names
    recorder = Recorder()
    run_log(log, schema, recorder, 64, lambda _: None)
    assert {batch.outcomes.shape[1] for batch in recorder.batches} == {0}
    assert {int(kind) for batch in recorder.batches for kind in batch.kind} == {NEGATIVE, POSITIVE}
    image, training = OnlineModel(schema, SMALL, 0).snapshot()
    assert not [name for name in (*image.dense, *image.tables, *training) if "outcome" in name or ":" in name]
    assert OutcomeScores.of(schema, OnlineModel(schema, SMALL, 0), 600) is None


# -- leaks ---------------------------------------------------------------------------------------------------------


def audited(schema: Schema, log: LogTable, policy: str | None = "wait") -> set[str]:
    how = LabelSettings(policy, 10_000)

    def run(table: LogTable, one: ReplayModel, observer: ReplayObserver) -> object:
        outcomes = getattr(observer, "outcomes", None)
        return run_log(table, schema, one, 16, lambda _: None, None, how, observer, outcomes=outcomes)

    with threads(1):
        found = audit(log, schema, lambda: OnlineModel(schema, SMALL, 0), run, seed=1)
    assert all(cut["labels"] > 20 for cut in found.cuts)
    return {leak.name for leak in found.leaks}


@pytest.mark.parametrize("policy", ["wait", "prompt"])
def test_outcomes_do_not_leak(policy: str) -> None:
    schema = parse_schema(SCHEMA + OUTCOMES + BY_AGE)
    assert audited(schema, with_outcomes(make_log(schema, 200, 5), 5), policy) == set()


def test_an_outcome_that_is_told_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = parse_schema(SCHEMA + OUTCOMES)
    log = with_outcomes(make_log(schema, 200, 5), 5)
    plain = logfeatures.Labels.__init__

    def early(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        self.outcome_ms = self.outcome_ms - 20 * HOUR

    monkeypatch.setattr(logfeatures.Labels, "__init__", early)
    assert "label" in audited(schema, log)


def test_a_prediction_that_knows_the_outcome_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that has learnt a batch before its rows are predicted."""
    schema = parse_schema(SCHEMA + OUTCOMES)
    log = with_outcomes(make_log(schema, 200, 5), 5)
    known = OutcomeScores.hear

    def cheat(self: OutcomeScores, samples: KnownSamples) -> None:
        known(self, samples)
        row, k = np.nonzero(np.isfinite(samples.outcomes))
        self.q[samples.row[row], k] = samples.outcomes[row, k]

    monkeypatch.setattr(OutcomeScores, "hear", cheat)
    assert audited(schema, log) == {"prediction"}
