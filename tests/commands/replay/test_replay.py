"""Replay: the same to the bit whatever the log's form, and blind to everything that was not known yet."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from learner.ranker.model import OnlineModel
from millrace.basics.errors import SettingError
from millrace.basics.ranking_metrics import auc, within
from millrace.commands.cli import cli
from millrace.commands.replay.grouped import GroupedRows
from millrace.commands.replay.logfeatures import LogRows
from millrace.commands.replay.logsamples import LabelSettings
from millrace.commands.replay.replayreport import make_report
from millrace.commands.replay.replayrun import replay, run_log
from millrace.commands.replay.stretches import Stretches
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.schema import Schema, parse_schema
from millrace.logs import local_days, read_log
from tests.architecture import ROOT
from tests.scenes.waiting import LONG

SCHEMA = """
name = "t"
fields = [{name = "user", of = "user"}, {name = "item", of = "item"},
          {name = "price", of = "item", kind = "numeric"}, {name = "hour", of = "context"},
          {name = "position", of = "context", bias = true}]
[windows]
days = [1, 3]
actions = ["exposure", "click", "cart"]
keys = [{columns = ["user"]}, {columns = ["user", "item"], parent = ["user"]}]
[log]
time = "at"
user = "user"
item = "item"
label = "click"
position = "slot"
"""
ACTION_TIMES = 'action_times = { click = "click_at", cart = "cart_at" }\nattribution_minutes = 30\n'
WAIT = LabelSettings("wait", 0)
HOUR = 3_600_000
START = 1_650_812_400_000
MINUTE = 60_000


def make_rows(n: int = 300, seed: int = 1) -> list[dict[str, Any]]:
    """Few users and items, ties in time, clicks that the user and the item explain, some of them late."""
    rng = np.random.default_rng(seed)
    at = START + np.sort(rng.integers(0, 4 * 24 * 60, n)) // 20 * 20 * MINUTE
    rows = []
    for i in range(n):
        user, item = int(rng.integers(6)), int(rng.integers(5))
        click = int(rng.random() < (0.8 if (user + item) % 2 else 0.1))
        delay = int(rng.choice([0, 5, 29, 30, 45, 300])) * MINUTE + int(rng.integers(1000))
        rows.append(
            {
                "at": int(at[i]),
                "user": user,
                "item": f"i{item}",
                "price": float(item) if item else None,
                "slot": i % 4,
                "click": click,
                "click_at": int(at[i]) + delay if click else None,
                "cart_at": int(at[i]) + delay + HOUR if click and user == 1 else None,
            }
        )
    return rows


def write(folder: Path, form: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"log.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif form == "csv":
        pacsv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def schema_file(tmp_path: Path) -> Path:
    path = tmp_path / "schema.toml"
    path.write_text(SCHEMA)
    return path


SMALL = {"width": 4, "hidden": [8], "blocks": 1}


def run(log: Path, schema: Path, out: Path, **more: Any) -> bytes:
    replay(log, schema, out, spec=SMALL, batch_rows=64, progress=False, **more)
    return (out / "report.json").read_bytes()


def test_each_form_and_each_run_gives_the_same_report_and_another_seed_another(
    tmp_path: Path, schema_file: Path
) -> None:
    rows = make_rows()
    reports = [run(write(tmp_path, f, rows), schema_file, tmp_path / f) for f in ("csv", "parquet", "jsonl")]
    again = run(tmp_path / "log.csv", schema_file, tmp_path / "again")
    assert reports[0] == reports[1] == reports[2] == again
    assert run(tmp_path / "log.csv", schema_file, tmp_path / "other", seed=1) != again


def test_the_report_has_its_keys_and_counts(tmp_path: Path, schema_file: Path) -> None:
    rows = make_rows()
    copies = tmp_path / "copies.toml"
    copies.write_text(schema_file.read_text() + 'identity = ["at", "user", "item"]\n')
    run(write(tmp_path, "csv", [*rows, rows[3], rows[7]]), copies, tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    distinct = {(r["at"], r["user"], r["item"]) for r in rows}
    assert set(report) == {"verdict", "rows", "duplicates", "days", "total"}
    assert report["rows"] == len(distinct)
    assert report["duplicates"] == len(rows) + 2 - len(distinct)
    figures = {"rows", "positives", "auc", "grouped_auc", "log_loss", "calibration"}
    assert set(report["total"]) == figures, "no baseline: the schema counts no item's clicks over all users"
    assert all(set(d) == figures | {"day"} for d in report["days"])
    assert [d["day"] for d in report["days"]] == [f"2022-04-2{i}" for i in (4, 5, 6, 7, 8)]
    assert sum(d["rows"] for d in report["days"]) == report["total"]["rows"] == report["rows"]
    assert sum(d["positives"] for d in report["days"]) == report["total"]["positives"]
    details = json.loads((tmp_path / "out/run.json").read_text())
    assert details["seed"] == 0
    assert details["spec"]["width"] == 4
    page = (tmp_path / "out/report.html").read_text()
    assert "2022-04-26" in page
    assert page.count("data:image/png;base64,") == 2
    assert "http" not in page
    for plot in ("auc.png", "calibration.png"):
        assert (tmp_path / "out" / plot).read_bytes().startswith(b"\x89PNG")


def test_a_day_of_one_class_has_no_auc(tmp_path: Path, schema_file: Path) -> None:
    rows = [r | {"click": 0} for r in make_rows(40)]
    run(write(tmp_path, "csv", rows), schema_file, tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["total"]["auc"] is None
    assert report["total"]["calibration"] is None
    assert report["total"]["log_loss"] > 0


def test_it_learns_what_there_is_to_learn(tmp_path: Path, schema_file: Path) -> None:
    run(write(tmp_path, "parquet", make_rows(3000)), schema_file, tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["days"][-1]["auc"] > 0.75  # the best possible is near 0.85


# -- what is known when ------------------------------------------------------------------------------------------


class Spy:
    """A model that predicts nothing and remembers what it was given, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def score(self, cat: np.ndarray, num: np.ndarray) -> np.ndarray:
        self.calls.append(("score", (cat.copy(), num.copy())))
        return np.full(len(cat), 0.5, np.float32)

    def learn(self, batch: SampleBatch) -> None:
        self.calls.append(("learn", batch))


def spied(folder: Path, rows: list[dict[str, Any]], text: str, batch_rows: int = 32) -> tuple[Spy, Schema]:
    schema = parse_schema(text)
    spy = Spy()
    log = read_log(write(folder, "jsonl", rows), schema)
    run_log(log, schema, spy, batch_rows, lambda done: None, how=WAIT)
    return spy, schema


def unique(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for r in rows:
        seen.setdefault((r["at"], r["user"], r["item"]), r)
    return list(seen.values())


@pytest.mark.parametrize("text", [SCHEMA, SCHEMA + ACTION_TIMES], ids=["at the exposure", "action times"])
def test_nothing_is_scored_by_a_model_that_learnt_what_was_known_only_later(tmp_path: Path, text: str) -> None:
    rows = unique(make_rows())
    spy, _ = spied(tmp_path, rows, text)
    known_at: dict[tuple[str, int], int] = {}
    for i, r in enumerate(rows):
        if text is SCHEMA:
            known_at[str(i), POSITIVE if r["click"] else NEGATIVE] = r["at"]
        elif r["click"] and r["click_at"] <= r["at"] + 30 * MINUTE:
            known_at[str(i), POSITIVE] = r["click_at"]
        else:
            known_at[str(i), NEGATIVE] = r["at"] + 30 * MINUTE
            if r["click"]:
                known_at[str(i), CORRECTION] = r["click_at"]
    learnt: list[int] = []
    met: list[tuple[str, int]] = []
    scored = 0
    for what, given in spy.calls:
        if what == "score":
            for r in rows[scored : scored + len(given[0])]:
                assert not learnt or max(learnt) < r["at"]
            scored += len(given[0])
        else:
            ids = [(given.request[p], k) for p, k in zip(given.page.tolist(), given.kind.tolist(), strict=True)]
            learnt += [known_at[i] for i in ids]
            met += ids
            for (name, kind), label, position in zip(ids, given.label.tolist(), given.position.tolist(), strict=True):
                assert label == (kind != NEGATIVE)
                assert position == rows[int(name)]["slot"]
    assert scored == len(rows)
    assert learnt == sorted(learnt)
    assert sorted(met) == sorted(known_at)  # each once
    assert any(kind == CORRECTION for _, kind in met) == (text is not SCHEMA)


@pytest.mark.parametrize("text", [SCHEMA, SCHEMA + ACTION_TIMES], ids=["at the exposure", "action times"])
@pytest.mark.parametrize("chunk", [7, 16_384])
def test_windows_equal_a_recount_of_what_happened_strictly_before(tmp_path: Path, text: str, chunk: int) -> None:
    rows = unique(make_rows())
    rows[40]["click"], rows[40]["click_at"] = 1, rows[40]["at"] - HOUR  # a clock that is wrong: never before itself
    schema = parse_schema(text)
    log = read_log(write(tmp_path, "jsonl", rows), schema)
    _, num = Stretches(log, schema, rows_at_once=chunk).of(np.arange(len(rows)))
    at = {name: i for i, name in enumerate(schema.layout.num_names)}

    events: list[tuple[int, dict[str, Any], str]] = [(r["at"], r, "exposure") for r in rows]
    for r in rows:
        if text is SCHEMA:
            events += [(r["at"], r, "click")] * r["click"]
        else:
            events += [(max(r[f"{a}_at"], r["at"]), r, a) for a in ("click", "cart") if r[f"{a}_at"]]
    for i, r in enumerate(rows):
        for key, same in (("user", ("user",)), ("user*item", ("user", "item"))):
            for days, grain in ((1, HOUR), (3, 6 * HOUR)):
                # exact head, tail aligned to the tile that holds ts - W
                tail = (r["at"] - days * 24 * HOUR) // grain * grain
                for action in schema.windows.actions:
                    expected = sum(
                        tail <= t < r["at"] and a == action and all(e[c] == r[c] for c in same) for t, e, a in events
                    )
                    assert num[i, at[f"{key}.{action}.{days}d"]] == expected, (i, key, action, days)


def test_an_exposure_never_sees_its_own_click(tmp_path: Path) -> None:
    rows = [{"at": START + HOUR * i, "user": i, "item": "x", "price": 1, "slot": 0, "click": 1} for i in range(50)]
    spy, schema = spied(tmp_path, rows, SCHEMA)
    clicks = [i for i, n in enumerate(schema.layout.num_names) if n.startswith("user.click.")]
    num = np.concatenate([given[1] for what, given in spy.calls if what == "score"])
    assert not num[:, clicks].any()


def test_the_position_is_learnt_from_but_hidden_from_scoring(tmp_path: Path) -> None:
    spy, schema = spied(tmp_path, make_rows(), SCHEMA)
    position = schema.layout.cat_names.index("position")
    assert {what for what, _ in spy.calls} == {"score", "learn"}
    for what, given in spy.calls:
        if what == "score":
            assert not given[0][:, position].any()
            assert given[0][:, : position - 1].all()
        else:
            assert given.cat[:, position].all()


# -- grouped AUC: rows that were scored in one state -------------------------------------------------------------


def blind_rows(n: int, users: int, seed: int) -> list[dict[str, Any]]:
    """Six days; a label is drawn at its user's own rate, and nothing tells anything about it but whose it is."""
    rng = np.random.default_rng(seed)
    rate = rng.beta(2, 2, users)
    at = START + np.sort(rng.choice(6 * 24 * HOUR, n, replace=False))
    user, item, label = rng.integers(users, size=n), rng.integers(20, size=n), rng.random(n)
    names = ("at", "user", "item", "price", "slot", "click")
    click = (label < rate[user]).astype(int)
    return [
        dict(zip(names, row, strict=True))
        for row in zip(*(v.tolist() for v in (at, user, item, np.zeros(n), np.zeros(n, int), click)), strict=True)
    ]


@pytest.mark.slow
def test_labels_that_only_their_users_rate_explains_are_not_distinguished_within_users(tmp_path: Path) -> None:
    """The truth is .5. Scores from different times are below it: who was unlucky so far is scored too low."""
    schema = parse_schema(SCHEMA.replace("days = [1, 3]", "days = [30]"))
    table = read_log(write(tmp_path, "parquet", blind_rows(10_000, 1000, seed=4)), schema)
    quick = SMALL | {"dense_rate": 0.02, "ftrl_alpha": 0.5}
    groups = GroupedRows(table, schema)
    p = run_log(table, schema, OnlineModel(schema, quick, 0), 64, lambda done: None, groups)
    total = make_report(table, schema, p, groups)["total"]
    q, group = groups.compared(p)
    y, user = table.table["click"].to_numpy(), table.table["user"].to_numpy()
    assert total["grouped_auc"] == pytest.approx(within(q, y, group)["grouped_auc"], abs=1e-6)
    assert total["auc"] == pytest.approx(auc(p, y), abs=1e-6)

    def by_chance(scores: np.ndarray, group: np.ndarray, draws: int = 200) -> tuple[float, float]:
        """Mean and deviation of the figure when labels are dealt again within the groups."""
        rng = np.random.default_rng(0)
        inside = np.argsort(group, kind="stable")
        found = []
        for _ in range(draws):
            dealt = np.empty_like(y)
            dealt[inside] = y[np.lexsort((rng.random(len(y)), group))]
            found.append(within(scores, dealt, group)["grouped_auc"])
        return float(np.mean(found)), float(np.std(found))

    mean, deviation = by_chance(q, group)
    assert abs(total["grouped_auc"] - mean) < 4 * deviation
    mean, deviation = by_chance(p, user)
    was = within(p, y, user)["grouped_auc"]  # what the figure was: a definition that fails this test
    assert was < mean - 10 * deviation


@pytest.mark.parametrize("text", [SCHEMA, SCHEMA + ACTION_TIMES], ids=["at the exposure", "action times"])
def test_a_frozen_score_knows_nothing_of_its_day(tmp_path: Path, text: str) -> None:
    rows = unique(make_rows())
    schema = parse_schema(text)
    table = read_log(write(tmp_path, "jsonl", rows), schema)
    days = local_days(table, schema)
    spy, groups = Spy(), GroupedRows(table, schema)
    run_log(table, schema, spy, 32, lambda done: None, groups, WAIT)
    at = {name: i for i, name in enumerate(schema.layout.num_names)}
    position = schema.layout.cat_names.index("position")
    counted = [(r["at"], r["user"], "exposure") for r in rows]
    counted += [(r["at"] if text is SCHEMA else r["click_at"], r["user"], "click") for r in rows if r["click"]]
    learnt, left, frozen = [0], sorted(set(days)), []
    for what, given in spy.calls:
        if what == "learn":
            click = {str(i): rows[i]["at"] if text is SCHEMA else rows[i]["click_at"] for i in range(len(rows))}
            wait = 0 if text is SCHEMA else 30 * MINUTE
            for name, kind, ts in zip(given.page.tolist(), given.kind.tolist(), given.ts_ms.tolist(), strict=True):
                learnt.append(ts + wait if kind == NEGATIVE else click[given.request[name]])
            continue
        day = [i for i, d in enumerate(days) if left and d == left[0]]
        if len(given[0]) != len(day) or not day or max(learnt) >= rows[day[0]]["at"]:
            continue
        left.pop(0)
        frozen.append(len(day))
        start = rows[day[0]]["at"]
        assert not given[0][:, position].any()
        for row, i in enumerate(day):
            for action in ("exposure", "click"):
                tail = (start - 3 * 24 * HOUR) // (6 * HOUR) * 6 * HOUR
                known = sum(tail <= t < start and u == rows[i]["user"] and a == action for t, u, a in counted)
                assert given[1][row, at[f"user.{action}.3d"]] == known
    assert not left
    assert sum(frozen) == len(rows)


def test_the_frozen_pass_changes_no_progressive_score(tmp_path: Path) -> None:
    schema = parse_schema(SCHEMA + ACTION_TIMES)
    table = read_log(write(tmp_path, "jsonl", make_rows(600)), schema)
    found = [
        run_log(table, schema, OnlineModel(schema, SMALL, 0), 64, lambda done: None, groups)
        for groups in (None, GroupedRows(table, schema))
    ]
    assert np.array_equal(found[0], found[1])


def paged(rows: list[dict[str, Any]], size: int, apart_ms: int) -> list[dict[str, Any]]:
    """Pages of ``size`` rows; a page's rows come ``apart_ms`` after one another."""
    first = [rows[i // size * size] for i in range(len(rows))]
    return [
        r | {"at": a["at"] + i % size * apart_ms, "user": a["user"], "item": f"i{i % size}", "page": f"p{i // size}"}
        for i, (r, a) in enumerate(zip(rows, first, strict=True))
    ]


@pytest.mark.parametrize("apart_ms", [0, 1000], ids=["one time a page", "several"])
def test_a_log_with_pages_is_compared_within_them(tmp_path: Path, apart_ms: int) -> None:
    schema = parse_schema(SCHEMA + 'request = "page"\nidentity = ["page", "item"]\n')
    rows = paged(make_rows(400), 4, apart_ms)
    table = read_log(write(tmp_path, "jsonl", rows), schema)
    groups = GroupedRows(table, schema)
    p = run_log(table, schema, OnlineModel(schema, SMALL, 0), 32, lambda done: None, groups)
    q, group = groups.compared(p)
    page, ts_ms = np.array(table.table["page"].to_pylist()), table.table["ts_ms"].to_numpy()
    for g in np.unique(group):
        assert len(set(page[group == g])) == 1
    if apart_ms:
        assert "frozen" in groups.how
        assert len(np.unique(group)) == len(set(zip(page, local_days(table, schema), strict=True)))
        assert not np.array_equal(p, q)
    else:
        assert "frozen" not in groups.how
        assert len(np.unique(group)) == len(set(zip(page, ts_ms, strict=True)))
        assert np.array_equal(p, q)


def test_windows_are_not_read_at_a_row_that_is_behind_or_no_cut(tmp_path: Path) -> None:
    schema = parse_schema(SCHEMA)
    table = read_log(write(tmp_path, "jsonl", make_rows()), schema)
    rows = LogRows(table, schema)
    cut = int(np.searchsorted(rows.ts_ms, rows.ts_ms[100], side="left"))
    made = Stretches(table, schema, cuts=(cut,))
    made.make(0)
    with pytest.raises(ValueError, match=f"row {cut + 1}"):
        made.frozen(cut + 1, np.array([cut + 1]))
    made.frozen(cut, np.array([cut]))
    made.make(1)
    with pytest.raises(ValueError, match=f"row {cut} "):
        made.frozen(cut, np.array([cut]))


# -- what a person sees ------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *arguments: Path | str) -> int:
    monkeypatch.setattr(sys, "argv", ["millrace", "log", "replay", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked")  # main() reads sys.argv, which is the point
def test_the_command_prints_a_table_and_succeeds(
    tmp_path: Path, schema_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write(tmp_path, "parquet", make_rows())
    assert command(monkeypatch, log, "--schema", schema_file, "--seed", "3", "--out", tmp_path / "deep" / "out") == 0
    shown = capsys.readouterr().out
    assert "2022-04-26" in shown
    assert "all days" in shown
    assert json.loads((tmp_path / "deep/out/run.json").read_text())["seed"] == 3


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked")  # main() reads sys.argv, which is the point
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["log.parquet", "--schema", "bad.toml", "--out", "out"], "'user_id'"),
        (["absent.parquet", "--schema", "schema.toml", "--out", "out"], "absent.parquet"),
        (["log.parquet", "--schema", "absent.toml", "--out", "out"], "absent.toml"),
        (["log.parquet", "--schema", "schema.toml", "--out", "schema.toml"], "--out"),
        (["log.parquet", "--schema", "schema.toml", "--out", "out", "--model", "gpt"], "'gpt'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_1(
    tmp_path: Path,
    schema_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    write(tmp_path, "parquet", make_rows(20))
    (tmp_path / "bad.toml").write_text(SCHEMA.replace('"user"\n', '"user_id"\n', 1).replace('["user"', '["user_id"'))
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, *arguments) == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked")  # main() reads sys.argv, which is the point
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",slot,", ",user,", ["'user' stands 2 times", "rename or drop"]),
        (",", ";", ["separated by semicolons", "write it with commas"]),
        ("i3", "caf\xe9", ["'item', row", r"b'caf\xe9'", "UTF-8"]),
        (",0,", ",first,", ["'slot' has 'first'", "log.position"]),
    ],
    ids=["a column twice", "semicolons", "latin-1", "a position in words"],
)
def test_a_log_that_cannot_be_read_is_one_line_and_status_1(
    tmp_path: Path,
    schema_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    words: list[str],
) -> None:
    names = ("at", "user", "item", "price", "slot", "click")
    rows = [{name: row[name] for name in names} for row in make_rows(60)]
    lines = [",".join(names), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
    text = "\n".join(lines) + "\n"
    assert old in text
    (tmp_path / "log.csv").write_text(text.replace(old, new), encoding="latin-1")
    assert command(monkeypatch, tmp_path / "log.csv", "--schema", schema_file, "--out", tmp_path / "out") == 1
    said = capsys.readouterr().err
    for word in ("log.csv", *words):
        assert word in said
    assert said.count("\n") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "stored",
    [
        lambda table: table.set_column(2, "item", table["item"].cast(pa.binary())),
        lambda table: table.set_column(2, "item", table["item"].dictionary_encode()),
        lambda table: table.set_column(2, "item", table["item"].cast(pa.string_view())),
        lambda table: table.set_column(4, "slot", table["slot"].cast(pa.string())),
        lambda table: table.set_column(4, "slot", table["slot"].cast(pa.float64())),
        lambda table: table.set_column(1, "user", table["user"].cast(pa.decimal128(38, 0))),
    ],
    ids=["bytes", "a dictionary", "views", "positions as text", "positions as floats", "decimals"],
)
def test_the_report_does_not_depend_on_how_values_are_stored(
    tmp_path: Path, schema_file: Path, stored: Callable[[pa.Table], pa.Table]
) -> None:
    plain = write(tmp_path, "parquet", make_rows())
    report = run(plain, schema_file, tmp_path / "plain")
    pq.write_table(stored(pq.read_table(plain)), tmp_path / "other.parquet")
    assert run(tmp_path / "other.parquet", schema_file, tmp_path / "other") == report


def test_the_time_may_name_the_page_and_the_day_too(tmp_path: Path, schema_file: Path) -> None:
    rows = [r | {"at": datetime.fromtimestamp(r["at"] / 1000, UTC)} for r in make_rows(60)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    schema_file.write_text(SCHEMA + 'request = "at"\nday = "at"\n')
    run(tmp_path / "log.parquet", schema_file, tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [d["day"] for d in report["days"]] == [f"2022-04-2{i}" for i in (4, 5, 6, 7, 8)]


def test_an_unknown_setting_of_the_model_is_refused(tmp_path: Path, schema_file: Path) -> None:
    with pytest.raises(SettingError, match="wdith"):
        replay(write(tmp_path, "csv", make_rows(20)), schema_file, tmp_path / "o", spec={"wdith": 4}, progress=False)


@pytest.mark.log
@pytest.mark.timeout(LONG)
@pytest.mark.slow
def test_kuairand_twice_the_same_and_as_good_as_promised(tmp_path: Path) -> None:
    folder = os.environ.get("MILLRACE_TEST_LOG")
    if not folder:
        pytest.skip("MILLRACE_TEST_LOG names no folder with the KuaiRand log")
    log = Path(folder) / "log_2022-04-24_to_04-30.parquet"
    schema = ROOT / "examples/kuairand/schema.toml"
    reports = []
    for name in ("a", "b"):
        replay(log, schema, tmp_path / name, seed=0, progress=False)
        reports.append((tmp_path / name / "report.json").read_bytes())
    assert reports[0] == reports[1]
    report = json.loads(reports[0])
    assert (report["rows"], report["duplicates"]) == (91_805, 2_979)
    last = report["days"][-2:]
    assert [d["day"] for d in last] == ["2022-04-29", "2022-04-30"]
    assert sum(d["auc"] * d["rows"] for d in last) / sum(d["rows"] for d in last) >= 0.72
