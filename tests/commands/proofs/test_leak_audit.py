"""The leak audit: planted leaks are found by name, and a clean run has none."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import millrace as mr
from millrace.basics.errors import LeakError
from millrace.commands.cli.cli import app
from millrace.commands.proofs.auditreport import report_of, verdict_of
from millrace.commands.proofs.leak_audit import Audit, Witness, audit, unlike_rows
from millrace.commands.replay import logfeatures, sidebyside
from millrace.commands.replay.logsamples import LabelSettings, ReplayModel, ReplayObserver
from millrace.commands.replay.replayrun import run_log
from millrace.contracts.schema import Schema, parse_schema
from millrace.logs import TS, LogTable, log_joins, read_log
from millrace.windows.features import FeatureBuilder
from millrace.windows.lastactions import Acted
from tests.scenes.exploring import examples

MINUTE, HOUR = 60_000, 3_600_000
T0 = 20_000 * 24 * HOUR
TEXT = """
name = "audited"
fields = [{name = "user_id", of = "user"}, {name = "item_id", of = "item"}, {name = "kind", of = "item"},
          {name = "price", of = "item", kind = "numeric"}]
[windows]
days = [1, 7]
actions = ["exposure", "click"]
keys = [{columns = ["item_id"]}, {columns = ["kind"]}]
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
    model: Callable[[], ReplayModel] = Rate,
    policy: str | None = "wait",
    seed: int = 1,
) -> Audit:
    how = LabelSettings(policy, 10_000)

    def run(table: LogTable, one: ReplayModel, observer: ReplayObserver) -> object:
        return run_log(table, schema, one, 16, lambda _: None, None, how, observer)

    return audit(log, schema, model, run, seed=seed)


def names(found: Audit) -> set[str]:
    return {leak.name for leak in found.leaks}


@examples(6)
@given(seed=st.integers(0, 2**31), policy=st.sampled_from(["wait", "prompt", "es-dfm"]), timed=st.booleans())
def test_a_clean_run_has_no_leak(tmp_path_factory: Any, seed: int, policy: str | None, timed: bool) -> None:
    schema = SCHEMA if timed else parse_schema(TEXT)
    found = audited(log_of(tmp_path_factory.mktemp("clean"), seed, schema, 200), schema, policy=policy, seed=seed)
    assert found.leaks == []
    assert len(found.cuts) == 3
    assert all(cut["exposures"] > 0 for cut in found.cuts)


def test_what_is_compared_is_most_of_what_is_before_the_cuts(tmp_path: Path) -> None:
    cuts = audited(log_of(tmp_path)).cuts
    assert len(cuts) == 3
    for cut in cuts:
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


LAST = """{name = "last_clicks", of = "user", slots = 4}, {name = "last_clicks_age", of = "user", slots = 4}]
[windows]"""


@pytest.mark.parametrize("timed", [True, False])
def test_last_clicks_that_a_page_could_not_know_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: bool
) -> None:
    """Without the leak there is none; with it a page sees the clicks of the next two hours."""
    schema = parse_schema(TEXT.replace("]\n[windows]", f",\n{LAST}") + (TIMED if timed else ""))
    log = log_of(tmp_path, schema=schema)
    assert audited(log, schema).leaks == []
    before = Acted.before

    def ahead(self: Acted, user: Any, ts_ms: Any) -> Any:
        items, ms = before(self, user, ts_ms + 2 * HOUR)
        return items, ms - 2 * HOUR

    monkeypatch.setattr(Acted, "before", ahead)
    assert (
        {"last_clicks", "last_clicks_age"}
        <= names(audited(log, schema))
        <= {
            "last_clicks",
            "last_clicks_age",
            "prediction",
        }
    )


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
    found = audited(log_of(tmp_path), policy=None)
    assert names(found) >= {"label"}
    (said,) = [row for row in report_of(found)["leaks"] if row["name"] == "label"]
    assert said["as_it_is"].split(",")[0] in ("negative", "positive")
    assert said["as_it_is"] != said["with_another_future"]


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


def audit_file(log: Path, **how: Any) -> Any:
    out = log.parent / "out"
    return mr.audit(log, log.parent / "schema.toml", out, label_policy="wait", progress=False, **how)


def test_the_command_reads_side_tables_with_another_future(tmp_path: Path) -> None:
    found = audit_file(joined(tmp_path))
    assert (found["leaks"], found.error) == ([], None)
    assert "No leak: nothing that was known at 3 random times" in (tmp_path / "out" / "report.html").read_text()


def test_a_join_that_takes_a_later_row_is_named_by_function_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = log_joins._AsOf.rows

    def later(self: Any, left: Any, ts_ms: Any) -> Any:
        return plain(self, left, pa.array(np.asarray(ts_ms) + 12 * HOUR))

    monkeypatch.setattr(log_joins._AsOf, "rows", later)
    found = audit_file(joined(tmp_path))
    assert "cost" in pa.table(found.leaks)["name"].to_pylist()
    assert "Leak: &amp;#x27;cost&amp;#x27;" in found._repr_html_()
    assert found.plot("leaks").get_xlabel() == "differing values, all times together"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Leak: &#x27;cost&#x27;" in page
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"run.json", "leaks.png", "times.png"}
    words = ["log", "audit", str(tmp_path / "log.parquet"), "--schema", str(tmp_path / "schema.toml"), "--json"]
    with pytest.raises(LeakError, match="'cost'") as raised:
        app([*words, "--label-policy", "wait", "--out", str(tmp_path / "command")], result_action="return_value")
    assert str(raised.value) == str(found.error)
    assert json.loads(capsys.readouterr().out) == found.report
    one, other = (tmp_path / name / "report.json" for name in ("out", "command"))
    assert one.read_bytes() == other.read_bytes()


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


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=12), st.lists(st.tuples(*[st.integers(0, 3)] * 3)))
def test_samples_of_one_run_only_are_found_in_any_order(
    one: list[tuple[int, int, int]], more: list[tuple[int, int, int]]
) -> None:
    for other in (one + more, more, one[::-1]):
        columns = [np.array(run, np.int64).reshape(-1, 3).T for run in (one, other)]
        assert unlike_rows(*columns).tolist() == sorted({row for row, *_ in set(one) ^ set(other)})


def test_a_leak_as_learnt_is_named_beside_one_as_scored(tmp_path: Path) -> None:
    """And the log as it is is run once without a model, for all times."""
    log, runs = log_of(tmp_path), []

    class Planted:
        def __init__(self, observer: ReplayObserver, table: LogTable) -> None:
            self.observer, self.ts = observer, table.table[TS].to_numpy()
            self.mean = np.float32(np.mean(table.table["price"].to_numpy()))

        def scored(self, rows: Any, cat: Any, num: Any, p: Any) -> None:
            planted = num.copy()
            planted[:, 1] += self.mean
            self.observer.scored(rows, cat, planted, p)

        def learnt(self, samples: Any, part: slice, batch: Any) -> None:
            planted = batch.num.copy()
            planted[:, 1] += self.mean
            planted[:, 0] += np.searchsorted(self.ts, samples.known_ms[part])
            self.observer.learnt(samples, part, dataclasses.replace(batch, num=planted))

    def run(table: LogTable, one: ReplayModel, observer: ReplayObserver) -> object:
        runs.append(table is log)
        watch: Any = Planted(observer, table)
        return run_log(table, SCHEMA, one, 16, lambda _: None, None, LabelSettings("wait", 10_000), watch)

    found = audit(log, SCHEMA, Rate, run, seed=1)
    first, second = SCHEMA.layout.num_names[:2]
    assert names(found) == {first, second}
    assert (runs.count(True), runs.count(False)) == (1 + 1, 3 + 3)
    # A row that differs as scored and as learnt counts once.
    assert {leak.count for leak in found.leaks if leak.name == second} == {
        sum(min(256, c["exposures"]) for c in found.cuts)
    }


# ---------------------------------------------------------------------- at the time itself, and in the last micro-batch


UNTIMED = parse_schema(TEXT)


def paged(folder: Path, n: int = 320, schema: Schema = UNTIMED) -> LogTable:
    """Pages of four exposures, each page a time."""
    rows = rows_of(11, n)
    for i, row in enumerate(rows):
        row["at"] = T0 + i // 4 * 7 * MINUTE
    path = folder / "paged.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return read_log(path, schema)


def moved_events(monkeypatch: pytest.MonkeyPatch, which: Callable[[Any, Any], Any]) -> None:
    """Some events count a millisecond before they happen."""
    plain = logfeatures.Labels.__init__

    def early(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        moved = self.event_ms - which(self.event_action, self.event_row)
        order = np.argsort(moved, kind="stable")
        self.event_row, self.event_action = self.event_row[order], self.event_action[order]
        self.event_ms = moved[order]

    monkeypatch.setattr(logfeatures.Labels, "__init__", early)


def test_a_window_that_counts_an_exposures_own_click_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(tmp_path, schema=UNTIMED)
    moved_events(monkeypatch, lambda action, row: action > 0)
    found = names(audited(log, UNTIMED))
    assert any(".click." in name for name in found)
    assert not any(".exposure." in name for name in found)


def test_a_field_made_of_the_rows_own_label_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(tmp_path, schema=UNTIMED)
    plain = logfeatures.LogRows.__init__

    def reported(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        self._plain["price"] = self._plain["price"] + self.label

    monkeypatch.setattr(logfeatures.LogRows, "__init__", reported)
    assert "price" in names(audited(log, UNTIMED))


def test_exposures_of_a_page_that_count_each_other_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = paged(tmp_path)
    assert audited(log, UNTIMED).leaks == []
    moved_events(monkeypatch, lambda action, row: (action == 0) & (row % 2 == 0))
    found = names(audited(log, UNTIMED))
    assert any(".exposure." in name for name in found)


def test_learning_a_micro_batch_before_it_is_scored_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of(tmp_path, schema=UNTIMED)

    def eager(self: Any, steps: Any) -> Any:
        for step in steps:
            if step.batch is not None:
                self.model.learn(step.batch)
            self._score(step, self.model)
            self._observe(step)
            yield step.scored

    monkeypatch.setattr(sidebyside.Runner, "run", eager)
    assert names(audited(log, UNTIMED)) == {"prediction"}


def test_features_made_when_the_label_comes_are_named(tmp_path: Path) -> None:
    """What is learnt of an exposure must be what it was scored with, though its label comes after the time."""
    log = log_of(tmp_path)

    class AtLabel:
        def __init__(self, observer: ReplayObserver, table: LogTable) -> None:
            self.observer, self.ts = observer, table.table[TS].to_numpy()
            self.scored = observer.scored

        def learnt(self, samples: Any, part: slice, batch: Any) -> None:
            num = batch.num.copy()
            num[:, 0] += np.searchsorted(self.ts, samples.known_ms[part])
            self.observer.learnt(samples, part, dataclasses.replace(batch, num=num))

    def run(table: LogTable, one: ReplayModel, observer: ReplayObserver) -> object:
        watch: Any = AtLabel(observer, table)
        return run_log(table, SCHEMA, one, 16, lambda _: None, None, LabelSettings("wait", 10_000), watch)

    assert names(audit(log, SCHEMA, Rate, run, seed=1)) == {"price"}


def test_a_column_over_the_greatest_of_all_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The greatest of the log comes first, so no value of the log that is drawn again changes it."""
    rows = rows_of(3)
    rows[0]["price"] = 1000.0
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    log = read_log(tmp_path / "log.parquet", SCHEMA)
    plain = logfeatures.LogRows.__init__

    def scaled(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        self._plain["price"] = self._plain["price"] / self._plain["price"].max()

    monkeypatch.setattr(logfeatures.LogRows, "__init__", scaled)
    assert "price" in names(audited(log))


# ---------------------------------------------------------------------- numbers among candidates


AMONG = parse_schema(
    TEXT + TIMED + 'request = "page"\n[[among]]\nnumber = "item_id.click_rate.1d"\n[[among]]\nnumber = "price"\n'
)


def compared(folder: Path, n: int = 400, apart_ms: int = 0) -> LogTable:
    """Pages of four exposures, of which two may be ``apart_ms`` later than the others; two pages at a time."""
    rows = rows_of(11, n)
    for i, row in enumerate(rows):
        row["page"], at = i // 4, row["at"]
        row["at"] = T0 + i // 8 * 7 * MINUTE + (apart_ms if i % 4 > 1 else 0)
        if row["click_at"] is not None:
            row["click_at"] += row["at"] - at
    path = folder / "compared.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return read_log(path, AMONG)


def only_among(found: Audit) -> bool:
    first = AMONG.layout.among_start
    return bool(names(found)) and names(found) - {"prediction"} <= set(AMONG.layout.num_names[first:])


@pytest.mark.parametrize("apart_ms", [0, MINUTE])
def test_candidates_of_a_page_may_see_each_other(tmp_path: Path, apart_ms: int) -> None:
    found = audited(compared(tmp_path, apart_ms=apart_ms), AMONG)
    assert found.leaks == []
    assert len(found.cuts) == 3


def test_a_comparison_by_the_candidates_own_labels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, plain = compared(tmp_path), logfeatures.LogRows.__init__

    def split(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        self.page = 2 * self.page + self.label
        self._requests = np.repeat(self._requests, 2)

    monkeypatch.setattr(logfeatures.LogRows, "__init__", split)
    assert only_among(audited(log, AMONG))


def test_a_comparison_with_later_exposures_of_the_page_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, plain = compared(tmp_path, apart_ms=MINUTE), FeatureBuilder.compare
    monkeypatch.setattr(FeatureBuilder, "compare", lambda self, num, page, ts_ms: plain(self, num, page))
    assert only_among(audited(log, AMONG))


# ---------------------------------------------------------------------- edges


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize(("n", "times"), [(1, 1), (2, 1), (40, 1), (2, 2), (40, 2), (40, 3)])
def test_logs_of_few_times_are_compared_as_far_as_they_go(tmp_path: Path, n: int, times: int, timed: bool) -> None:
    schema = SCHEMA if timed else UNTIMED
    rows = rows_of(2, n)
    for i, row in enumerate(rows):
        row["at"] = T0 + i * times // n * HOUR
        row["click_at"] = row["at"] + MINUTE if row["label"] else None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    found = audited(read_log(tmp_path / "log.parquet", schema), schema)
    assert found.leaks == []
    assert all(cut["exposures"] > 0 for cut in found.cuts)
    said = verdict_of(found)
    assert ("No label was known" in said) == (times == 1)
    assert f"{len(found.cuts)} random time" in said


def test_a_log_out_of_order_has_no_leak_of_its_own(tmp_path: Path) -> None:
    log = joined(tmp_path)
    table = pq.read_table(log)
    late = pa.concat_tables([table.slice(0, 5), table.slice(6), table.slice(5, 1)])
    pq.write_table(late, log, row_group_size=50)
    found = audit_file(log, skip_bad=True)
    assert found["rows"] == table.num_rows
    assert found["leaks"] == []
    assert [path.name for path in tmp_path.glob(".log-*")] == []
