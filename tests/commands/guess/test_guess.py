"""A schema is guessed from logs of many forms, and what is guessed is what was written; replay runs it as it is."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from learner.role.model_factory import model_of
from millrace.basics.errors import LogError, SchemaError
from millrace.commands.guess import Guess, guess_schema
from millrace.commands.guess.outcomes import only_with_label
from millrace.commands.guess.samplecolumns import Column
from millrace.commands.replay.replayrun import run_log
from millrace.contracts.schema import Schema, parse_schema, shop_schema
from millrace.logs import TS, LogFaults, read_log
from simulator.daylog import write_days
from tests.scenes.exploring import examples
from tests.scenes.guessed_logs import ROWS, TIMES, Form, _at, log_of, write


def guessed(form: Form, folder: Path) -> tuple[Guess, Schema, Path, dict[str, np.ndarray]]:
    table, truth = log_of(form)
    path = write(table, folder, form.ending)
    guess = guess_schema(path)
    return guess, parse_schema(guess.text), path, truth


forms = st.builds(
    Form,
    ending=st.sampled_from([".parquet", ".csv", ".tsv", ".csv.gz", ".jsonl", ".jsonl.gz", "/"]),
    time=st.sampled_from([*TIMES]),
    user=st.sampled_from(["user_id", "uid", "userId", "visitor_id", "customer"]),
    item=st.sampled_from(["item_id", "video_id", "articleId", "sku", "product_id"]),
    label=st.sampled_from(["click", "is_click", "clicked", "label"]),
    stamp=st.sampled_from(["timestamp", "time_ms", "ts", "event_time"]),
    text_ids=st.booleans(),
    pages=st.booleans(),
    days=st.sampled_from([1, 4, 30]),
    seed=st.integers(0, 5),
)


@examples(40)
@given(form=forms)
def test_roles_times_and_sides_are_what_was_written(form: Form) -> None:
    with TemporaryDirectory() as folder:
        guess, schema, path, truth = guessed(form, Path(folder))
        assert not guess.open
        log = schema.log
        assert log is not None
        assert (log.time, log.user, log.item, log.label) == (form.stamp, form.user, form.item, form.label)
        assert (log.request, log.position) == (("request_id", "position") if form.pages else (None, None))
        assert not guess.outcomes  # nothing honest is accused
        of = {f.name: (f.of, f.kind) for f in schema.fields}
        assert of["city"] == ("user", "categorical")
        assert of["brand"] == ("item", "categorical")
        assert of["price"] == ("item", "numeric")
        assert of["device"] == ("context", "categorical")
        assert of["temperature"] == ("context", "numeric")
        read = read_log(path, schema)
        if form.time != "hours" or form.pages:  # rows of an hour with one user and item are copies of one another
            grain = 3_600_000 if form.time == "hours" else 1
            assert (np.sort(read.table[TS].to_numpy()) == np.sort(truth["ms"] // grain * grain)).all()
            assert read.table[read.label].to_numpy().sum() == truth["click"].sum()


@examples(24)
@given(
    lists=st.sampled_from(["labels", "clicked", "pairs"]),
    time=st.sampled_from(["ms", "s", "iso", "american", "typed"]),
    text_ids=st.booleans(),
    seed=st.integers(0, 5),
    jsonl=st.booleans(),
)
def test_lists_of_candidates_are_taken_apart(lists: str, time: str, text_ids: bool, seed: int, jsonl: bool) -> None:
    ending = ".jsonl" if jsonl else ".tsv" if lists == "pairs" else ".parquet"
    with TemporaryDirectory() as folder:
        form = Form(ending=ending, time=time, lists=lists, text_ids=text_ids, seed=seed)
        guess, schema, path, truth = guessed(form, Path(folder))
        assert not guess.open
        assert not guess.outcomes
        assert guess.findings.rate == truth["click"].mean()
        read = read_log(path, schema)
        assert read.table.num_rows == ROWS
        assert read.table[read.label].to_numpy().sum() == truth["click"].sum()


def _with(form: Form, folder: Path, **columns: object) -> Guess:
    table, truth = log_of(form)
    for name, make in columns.items():
        table = table.append_column(name, pa.array(make(truth, np.random.default_rng(form.seed + 1))))  # type: ignore[operator]
    return guess_schema(write(table, folder, ".parquet"))


PLANTED = {
    "engagement": lambda t, rng: np.where(t["click"] == 1, rng.integers(1, 500, ROWS), 0),
    "landing": lambda t, rng: [f"page {rng.integers(9)}" if c else None for c in t["click"]],
    "thanked": lambda t, rng: (t["click"] == 1) & (rng.random(ROWS) < 0.2),
    "seconds": lambda t, rng: rng.exponential(1 + 12 * t["click"]),
    "closed_by": lambda t, rng: [f"x{rng.integers(4)}" if not c and rng.random() < 0.5 else "none" for c in t["click"]],
}
"""Outcomes whose names do not say so: filled only with a click (a number, a text, a rare flag), larger with one, filled
only without one."""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", list(PLANTED))
def test_a_planted_outcome_is_named_with_its_figures_and_is_no_field(name: str, seed: int, tmp_path: Path) -> None:
    guess = _with(Form(seed=seed), tmp_path, **{name: PLANTED[name]})
    assert set(guess.outcomes) == {name}
    verdict = guess.outcomes[name]
    assert verdict.kind == ("beyond" if name == "seconds" else "only-with-label")
    assert any(ch.isdigit() for ch in verdict.why)
    assert f"#   {name}: {verdict.why}" in guess.text
    assert name not in {f.name for f in parse_schema(guess.text).fields}


HONEST = {
    "surface": lambda t, rng: rng.choice(["home", "search"], ROWS),
    "rare": lambda t, rng: (rng.random(ROWS) < 0.01).astype(int),
    "sparse": lambda t, rng: [int(rng.integers(5)) if rng.random() < 0.03 else None for _ in range(ROWS)],
    "predictor": lambda t, rng: t["click"] * 0.6 + rng.normal(0, 1, ROWS),  # AUC about .66
    "stock": lambda t, rng: t["item"] % 7 * 100 + 3,
}
"""Columns that are known before, some rare, some missing nearly always, one that predicts well."""


@pytest.mark.parametrize("seed", range(4))
def test_honest_columns_are_not_accused(seed: int, tmp_path: Path) -> None:
    guess = _with(Form(seed=seed), tmp_path, **HONEST)
    assert not guess.outcomes
    assert set(HONEST) <= {f.name for f in parse_schema(guess.text).fields}


def test_a_name_alone_is_no_proof_and_is_said_to_be_none(tmp_path: Path) -> None:
    guess = _with(Form(), tmp_path, play_time=lambda t, rng: rng.random(ROWS))
    assert guess.outcomes["play_time"].kind == "name"
    assert "nothing in the rows proves it" in guess.text


def test_open_roles_are_named_with_their_candidates_and_leave_a_line(tmp_path: Path) -> None:
    table, _ = log_of(Form())
    path = write(table.rename_columns(["when", "a", "b", "x", *table.column_names[4:]]), tmp_path, ".parquet")
    guess = guess_schema(path)
    assert set(guess.open) == {"user", "item"}
    assert set(guess.open["user"][:2]) == {"a", "b"}  # and 'brand', which has fewer values
    assert 'user = "?"  # TO BE FILLED IN: it could be' in guess.text
    with pytest.raises(SchemaError, match=r"user and item under \[log\] still to be filled in .*; write the columns"):
        parse_schema(guess.text)
    filled = guess.text.replace('user = "?"', 'user = "a"').replace('item = "?"', 'item = "b"')
    assert read_log(path, parse_schema(filled)).table.num_rows == ROWS


def test_two_labels_alike_are_both_named(tmp_path: Path) -> None:
    table, truth = log_of(Form(label="one"))
    path = write(table.append_column("two", pa.array(1 - truth["click"])), tmp_path, ".parquet")
    assert set(guess_schema(path).open["label"]) == {"one", "two"}


def test_two_times_alike_are_both_named(tmp_path: Path) -> None:
    guess = _with(Form(), tmp_path, server_time=lambda t, rng: np.sort(t["ms"] + rng.integers(0, 7_200, ROWS) * 1000))
    assert set(guess.open["time"]) == {"timestamp", "server_time"}


def test_a_few_users_who_click_everything_are_no_proof() -> None:
    label, speaks = np.zeros(400, bool), np.zeros(400, int)
    label[:150], speaks[:40] = True, 1
    column = Column("vip", pa.chunked_array([pa.array(speaks)]))
    many, few = np.arange(400), np.arange(400) // 10
    assert only_with_label(column, label, [many, many]) is not None
    assert only_with_label(column, label, [few, many]) is None  # four users
    mostly = np.ones(400, bool)
    mostly[350:] = False
    assert only_with_label(column, mostly, [many, many]) is None  # nearly all are clicks anyway: chance does it


def test_action_times_and_their_sign_for_never_are_found(tmp_path: Path) -> None:
    def order_time(t: dict[str, np.ndarray], rng: np.random.Generator) -> NDArray[np.int64]:
        return np.where((t["click"] == 1) & (rng.random(ROWS) < 0.3), t["ms"] + 90_000, -1)

    def click_ms(t: dict[str, np.ndarray], rng: np.random.Generator) -> pa.Array:
        return pa.array(t["ms"] + 30_000, mask=t["click"] == 0)

    guess = _with(Form(), tmp_path, click_ms=click_ms, order_time=order_time)
    log = parse_schema(guess.text).log
    assert log is not None
    assert log.action_times == {"click": "click_ms", "purchase": "order_time"}
    assert list(log.never) == [-1]
    assert log.attribution_minutes == 1
    assert not guess.outcomes


def test_a_purchase_time_by_its_past_form_and_a_label_of_words(tmp_path: Path) -> None:
    """As a bookshop's own export has them: ``purchased_at``, ``ja`` and ``nein``."""
    table, truth = log_of(Form())
    rng = np.random.default_rng(1)
    at = np.where((truth["click"] == 1) & (rng.random(ROWS) < 0.3), truth["ms"] + 90_000, 0)
    words = np.where(truth["click"] == 1, "ja", "Nein").tolist()
    table = table.drop_columns(["click"]).append_column("clicked", pa.array(words))
    table = table.append_column("purchased_at", pa.array(at, mask=at == 0))
    path = write(table, tmp_path, ".csv")
    guess = guess_schema(path)
    assert guess.open == {}
    schema = parse_schema(guess.text)
    assert schema.log is not None
    assert (schema.log.label, schema.log.action_times) == ("clicked", {"purchase": "purchased_at"})
    assert read_log([path], schema).table["clicked"].to_pylist() == truth["click"].tolist()


def test_a_day_column_tells_the_offset_of_local_time(tmp_path: Path) -> None:
    local = lambda t, rng: [int(f"{_at(ms + 9 * 3_600_000):%Y%m%d}") for ms in t["ms"]]  # noqa: E731
    schema = parse_schema(_with(Form(), tmp_path, date=local).text)
    assert schema.log is not None
    assert (schema.log.day, schema.utc_offset) == ("date", "+09:00")


def test_a_file_without_header_and_with_another_separator(tmp_path: Path) -> None:
    table, _ = log_of(Form())
    rows = zip(*table.select(["timestamp", "user_id", "item_id", "click"]).to_pydict().values(), strict=True)
    (tmp_path / "log.data").write_text("\n".join("::".join(map(str, row)) for row in rows) + "\n")
    guess = guess_schema(tmp_path / "log.data")
    assert set(guess.open) == {"user", "item"}
    filled = guess.text.replace('user = "?"', 'user = "column_2"').replace('item = "?"', 'item = "column_3"')
    schema = parse_schema(filled)
    assert schema.log is not None
    assert (schema.log.separator, schema.log.label) == ("::", "column_4")
    assert read_log(tmp_path / "log.data", schema).table.num_rows == ROWS


def test_a_large_text_is_sampled_from_its_beginning_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from millrace.commands.guess import sample

    monkeypatch.setattr(sample, "HEAD_ROWS", 200)
    monkeypatch.setattr(sample, "SPREAD_ROWS", 50)
    for ending in (".csv", ".parquet"):
        table, truth = log_of(Form(ending=ending))
        guess = guess_schema(write(table, tmp_path, ending))
        assert not guess.findings.sample.whole
        assert 400 <= guess.findings.sample.table.num_rows <= 700
        times = guess.findings.times["timestamp"].ms
        assert (times.min(), times.max()) == (truth["ms"].min(), truth["ms"].max())
        assert len(np.unique(times)) == len(times)  # no stretch is read twice


def test_side_tables_beside_the_log_are_joined(tmp_path: Path) -> None:
    table, _ = log_of(Form())
    (tmp_path / "people.csv").write_text(
        "user_id,age\n" + "\n".join(f"{u},{20 + u % 60}" for u in range(1000, 1090)) + "\n"
    )
    (tmp_path / "strangers.csv").write_text("user_id,shoe\n1,40\n2,41\n")
    schema = parse_schema(guess_schema(write(table, tmp_path, ".parquet")).text)
    assert [(j.file, j.on) for j in schema.join] == [("people.csv", "user_id")]
    assert {f.name: f.of for f in schema.fields}["age"] == "user"


def test_the_simulators_logs_are_reported_whole_and_only_the_true_probability_is_left_out(tmp_path: Path) -> None:
    write_days(tmp_path / "days", days=2, seed=3, users=200)
    guess = guess_schema(tmp_path / "days")
    schema, shop = parse_schema(guess.text), shop_schema()
    assert not guess.open
    assert set(guess.outcomes) == {"p_true"}
    assert guess.outcomes["p_true"].kind == "beyond"
    assert schema.log is not None
    assert shop.log is not None
    for role in ("time", "user", "item", "label", "request", "position", "identity", "action_times"):
        assert getattr(schema.log, role) == getattr(shop.log, role), role
    of = {f.name: f.of for f in shop.fields if f.name != "weekday"}  # two days tell nothing of weekdays
    assert {f.name: f.of for f in schema.fields} == of
    assert len(read_log(tmp_path / "days", schema).table) > 500


KUAIRAND_OUTCOMES = {
    "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "play_time_ms", "like",
    "profile_stay_time",
    "comment_stay_time", "is_profile_enter", "watch_ratio", "finish", "long_watch", "is_positive",
}  # fmt: skip


@pytest.mark.slow
def test_kuairand_is_recognised_by_its_file_and_replayed_as_guessed(tmp_path: Path) -> None:
    folder = os.environ.get("MILLRACE_TEST_LOG")
    if not folder:
        pytest.skip("MILLRACE_TEST_LOG names no folder with the KuaiRand log")
    path = next(Path(folder).glob("log*.parquet"))
    guess = guess_schema(path)
    schema = parse_schema(guess.text)
    assert not guess.open
    assert schema.log is not None
    log = schema.log
    assert (log.time, log.user, log.item, log.label) == ("time_ms", "user_id", "video_id", "is_click")
    assert (log.day, schema.utc_offset, len(schema.join)) == ("date", "+08:00", 2)
    assert set(guess.outcomes) == KUAIRAND_OUTCOMES  # all of them, and nothing honest
    assert len(schema.fields) > 35
    head = read_log(path, schema)
    few = replace(head, table=head.table.slice(0, 3000))
    p = run_log(few, schema, model_of(schema, {"model": "logistic"}, seed=0), 512, lambda rows: None)
    assert np.isfinite(p).all()
    assert p.shape == (3000,)


# -- bad cells ---------------------------------------------------------------------------------------------------


def _dirty(lines: list[str], how: str) -> bytes:
    """The lines of a CSV with a fault in the middle, or before them."""
    head, middle = lines[0].replace('"', "").split(","), len(lines) // 2
    if how == "bom":
        return b"\xef\xbb\xbf" + "\n".join(lines).encode()
    if how == "stray header":
        lines = [*lines[:middle], lines[0], *lines[middle:]]
    else:
        name, cell = how.split("=")
        cells = lines[middle].split(",")
        cells[head.index(name)] = cell
        lines = [*lines[:middle], ",".join(cells), *lines[middle + 1 :]]
    return ("\n".join(lines) + "\n").encode()


@pytest.mark.parametrize(
    ("time", "how"),
    [("iso", "timestamp=oops"), ("iso", "stray header")]
    + [("ms", how) for how in ("bom", "stray header", "timestamp=N/A", "timestamp=", "user_id=oops", "item_id=")]
    + [("ms", how) for how in ("item_id=oops", "click=N/A", "click=oops", "price=oops", "price=")],
)
def test_one_bad_cell_costs_no_column_its_role(time: str, how: str, tmp_path: Path) -> None:
    table, _ = log_of(Form(time=time))
    plain = guess_schema(write(table, tmp_path, ".csv"))
    (tmp_path / "bad").mkdir()
    path = tmp_path / "bad" / "log.csv"
    path.write_bytes(_dirty((tmp_path / "log.csv").read_text().splitlines(), how))
    guess = guess_schema(path)
    assert not guess.open
    schema, clean = parse_schema(guess.text), parse_schema(plain.text)
    assert schema.log == clean.log
    assert [(f.name, f.of, f.kind, f.transform) for f in schema.fields] == [
        (f.name, f.of, f.kind, f.transform) for f in clean.fields
    ]
    assert not guess.outcomes
    rows = read_log(path, schema, skip_bad=True)
    assert rows.table.num_rows == ROWS - (how not in ("bom", "stray header", "user_id=oops", "item_id=oops", "price="))
    with nullcontext() if not rows.skipped else pytest.raises(LogFaults):
        read_log(path, schema)
    assert ("--skip-bad" in guess.text) == (rows.skipped > 0), "the guess says what replay does"
    assert ("no row is lost for it" in guess.text) == (how in ("stray header", "user_id=oops", "item_id=oops"))


@pytest.mark.parametrize("cell", ["oops", ""])
def test_one_bad_day_costs_neither_the_role_nor_the_offset(cell: str, tmp_path: Path) -> None:
    table, truth = log_of(Form())
    days = [f"{_at(ms + 9 * 3_600_000):%Y%m%d}" for ms in truth["ms"]]
    days[ROWS // 2] = cell
    path = write(table.append_column("date", pa.array(days)), tmp_path, ".csv")
    guess = guess_schema(path)
    schema = parse_schema(guess.text)
    assert schema.log is not None
    assert (schema.log.day, schema.utc_offset) == ("date", "+09:00")
    assert read_log(path, schema, skip_bad=True).skipped == 1
    assert "--skip-bad" in guess.text


def test_a_word_among_numbers_of_json_lines_is_reported(tmp_path: Path) -> None:
    table, _ = log_of(Form())
    rows = table.to_pylist()
    rows[700]["price"] = "N/A"
    rows[800]["timestamp"] = "oops"
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    guess = guess_schema(tmp_path / "log.jsonl")
    assert not guess.open
    assert f"'price': 1 of {ROWS:,} cells hold no number, such as 'N/A'" in guess.text
    assert {f.name: f.kind for f in parse_schema(guess.text).fields}["price"] == "numeric"


@pytest.mark.parametrize("quoted", [False, True])
def test_an_id_of_json_lines_is_said_to_be_lost_only_where_the_others_are_numbers(quoted: bool, tmp_path: Path) -> None:
    table, _ = log_of(Form())
    rows = table.to_pylist()
    for row in rows:
        row["user_id"] = str(row["user_id"]) if quoted else row["user_id"]
    rows[700]["user_id"] = "oops"
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    guess = guess_schema(path)
    read = read_log(path, parse_schema(guess.text), skip_bad=True)
    assert read.skipped == (not quoted)
    assert ("--skip-bad" in guess.text) == (not quoted)


def test_a_stray_column_that_is_not_used_is_not_said_to_cost_rows(tmp_path: Path) -> None:
    table, truth = log_of(Form())
    engagement = [str(5 * c) for c in truth["click"]]
    engagement[700] = "oops"
    path = write(table.append_column("engagement", pa.array(engagement)), tmp_path, ".csv")
    guess = guess_schema(path)
    assert set(guess.outcomes) == {"engagement"}
    assert "such as 'oops': taken as missing in the sample; the column is not used" in guess.text
    assert read_log(path, parse_schema(guess.text)).table.num_rows == ROWS


def test_a_line_that_is_no_row_is_said_and_the_others_are_guessed_from(tmp_path: Path) -> None:
    table, _ = log_of(Form())
    path = write(table, tmp_path, ".csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:700], "1,2,3", *lines[700:]]) + "\n")
    guess = guess_schema(path)
    assert not guess.open
    assert "1 lines of the sample are no rows, such as '1,2,3': replay refuses such rows" in guess.text
    assert read_log(path, parse_schema(guess.text), skip_bad=True).table.num_rows == ROWS


def test_a_text_of_another_encoding_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("ts,user_id\n1,2\n", encoding="utf-16")
    with pytest.raises(LogError, match=r"log.csv' is UTF-16 text; save it as UTF-8"):
        guess_schema(tmp_path / "log.csv")


def test_a_databases_table_and_a_select_are_logs_too(tmp_path: Path) -> None:
    table, _ = log_of(Form())
    with duckdb.connect(str(tmp_path / "log.duckdb")) as sql:
        sql.register("rows", table)
        sql.execute("CREATE TABLE shown AS SELECT * FROM rows")
    write(table, tmp_path, ".parquet").rename(tmp_path / "rows.pq")
    (tmp_path / "log.sql").write_text("SELECT * FROM read_parquet('rows.pq')")
    for name in ("log.duckdb", "log.sql"):
        guess = guess_schema(tmp_path / name)
        assert not guess.open
        assert read_log(tmp_path / name, parse_schema(guess.text)).table.num_rows == ROWS


def test_signed_numbers_and_numbers_beyond_64_bits_are_read(tmp_path: Path) -> None:
    table, _ = log_of(Form())
    strange = ["+5"] * ROWS
    strange[700] = "oops"
    guess = guess_schema(write(table.append_column("signed", pa.array(strange)), tmp_path, ".csv"))
    assert not guess.open
    rows = table.to_pylist()
    for row in rows:
        row["signed"] = 5
    rows[700] |= {"signed": 2**70, "price": "oops"}
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert not guess_schema(tmp_path / "log.jsonl").open


@pytest.mark.parametrize(
    ("some", "other", "user"),
    [("user_id", "visitor_id", "visitor_id"), ("user_id", "session_id", None)]
    + [(one, "shelf", one) for one in ("user_id", "app_user_id")],
)
def test_an_id_that_some_rows_lack_yields_to_one_that_all_have(
    some: str, other: str, user: str | None, tmp_path: Path
) -> None:
    table, _ = log_of(Form())
    ids = table["user_id"].to_pylist()
    most = pa.array([None if row % 7 == 0 else one for row, one in enumerate(ids)])
    path = write(table.set_column(1, some, most).append_column(other, pa.array(ids)), tmp_path, ".parquet")
    guess = guess_schema(path)
    assert guess.findings.roles.user.name == user
    if user is None:
        assert set(guess.open["user"]) == {some, other}


def test_a_candidate_that_is_the_pages_own_is_not_the_item(tmp_path: Path) -> None:
    table, truth = log_of(Form(pages=True, item="ad_id"))
    path = write(table.append_column("document_id", pa.array(truth["page"] % 37 + 5)), tmp_path, ".parquet")
    schema = parse_schema(guess_schema(path).text)
    assert schema.log is not None
    assert schema.log.item == "ad_id"


def test_a_column_of_actions_is_no_feature_and_a_label_to_be_made(tmp_path: Path) -> None:
    table, truth = log_of(Form())
    acted = np.where(truth["click"] == 1, "buy", np.where(truth["item"] % 2 == 0, "view", "cart")).tolist()
    path = write(table.drop_columns(["click"]).append_column("what", pa.array(acted)), tmp_path, ".csv")
    guess = guess_schema(path)
    assert guess.open == {"label": ("what",)}
    assert "it could be 'what' (it names what happened: a label is 0 or 1" in guess.text
    assert "what" not in {f.name for f in guess.findings.fields}


@pytest.mark.parametrize(("column", "is_id"), [("displayed_item", True), ("item_age", False), ("item_price", False)])
def test_a_name_that_ends_in_the_word_is_an_id_and_one_that_begins_with_it_is_not(
    column: str, is_id: bool, tmp_path: Path
) -> None:
    table, truth = log_of(Form())
    names = ["timestamp", "user_id", column, *table.column_names[3:]]
    other = pa.array(truth["item"] * 3 + truth["page"] % 3)
    path = write(table.rename_columns(names).append_column("thing", other), tmp_path, ".parquet")
    assert (guess_schema(path).findings.item == column) == is_id


# -- as a site would write it ----------------------------------------------------------------------------------------


def _born(truth: dict[str, np.ndarray]) -> NDArray[np.int64]:
    """Each item came some minutes before its first exposure."""
    first = np.full(60, truth["ms"].max())
    np.minimum.at(first, truth["item"], truth["ms"])
    born: NDArray[np.int64] = first[truth["item"]] - 60_000 * (1 + truth["item"])
    return born


@pytest.mark.parametrize("time", ["ms", "s", "iso", "american"])
def test_a_time_of_each_item_before_its_exposures_is_when_it_was_born(time: str, tmp_path: Path) -> None:
    table, truth = log_of(Form(time=time))
    table = table.append_column("published_at", pa.array(TIMES[time](_born(truth))))
    joined = pa.array(TIMES[time](truth["ms"].min() - 86_400_000 * (1 + truth["user"])))
    path = write(table.append_column("joined", joined), tmp_path, ".csv")
    guess = guess_schema(path)
    schema = parse_schema(guess.text)
    assert schema.log is not None
    assert schema.log.born == "published_at"
    assert {f.name: (f.of, f.kind) for f in schema.fields}["age_days"] == ("item", "numeric")
    assert "joined" in guess.findings.unused, "a user's time"
    read = read_log(path, schema).table
    assert np.allclose(read["age_days"].to_numpy(), (truth["ms"] - _born(truth)) / 86_400_000, atol=1e-4)


@pytest.mark.parametrize("why", ["after", "another form"])
def test_a_time_of_the_item_that_cannot_be_born_is_not(why: str, tmp_path: Path) -> None:
    table, truth = log_of(Form())
    at = _born(truth) + 86_400_000 if why == "after" else _born(truth) // 1000
    guess = guess_schema(write(table.append_column("published_at", pa.array(at)), tmp_path, ".parquet"))
    schema = parse_schema(guess.text)
    assert schema.log is not None
    assert schema.log.born is None
    assert "published_at" not in {f.name for f in schema.fields}
    assert ("could be log.born" in guess.findings.unused["published_at"]) == (why == "another form")


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
@pytest.mark.parametrize("days", [7, 60])
def test_a_few_days_of_an_item_are_categories_and_many_are_times(days: int, ending: str, tmp_path: Path) -> None:
    table, truth = log_of(Form())
    texts = [f"{_at(1_600_000_000_000 + 86_400_000 * (i % days)):%Y-%m-%d}" for i in truth["item"]]
    guess = guess_schema(write(table.append_column("uploaded", pa.array(texts)), tmp_path, ending))
    assert ("uploaded" in {f.name for f in parse_schema(guess.text).fields}) == (days == 7)
    assert ("uploaded" in guess.findings.unused) == (days == 60)


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("zones", [(1,), (1, 2)])
def test_the_offset_that_each_row_writes_is_the_schemas(zones: tuple[int, ...], ending: str, tmp_path: Path) -> None:
    table, truth = log_of(Form())
    hours = np.where(np.arange(ROWS) < ROWS // 3, zones[-1], zones[0])
    texts = [f"{_at(ms + 3_600_000 * h):%Y-%m-%dT%H:%M:%S}+0{h}:00" for ms, h in zip(truth["ms"], hours, strict=True)]
    path = write(table.set_column(0, "timestamp", pa.array(texts)), tmp_path, ending)
    guess = guess_schema(path)
    schema = parse_schema(guess.text)
    assert schema.utc_offset == "+01:00"
    assert ("'timestamp' has +01:00, +02:00" in guess.text) == (len(zones) == 2)
    assert (read_log(path, schema).table[TS].to_numpy() == np.sort(truth["ms"])).all()


@pytest.mark.parametrize("names", [("user_id", "item_id"), ("a", "b")])
def test_rows_of_one_user_and_time_are_proposed_as_pages(names: tuple[str, str], tmp_path: Path) -> None:
    """Pages tell user and item apart too: a page has one user and several items."""
    table, truth = log_of(Form(pages=True))
    table = table.drop_columns(["request_id", "position"])
    path = write(table.rename_columns(["timestamp", *names, *table.column_names[3:]]), tmp_path, ".csv")
    guess = guess_schema(path)
    schema = parse_schema(guess.text)
    assert schema.log is not None
    assert (schema.log.user, schema.log.item) == names
    assert schema.log.combine == {"page": (names[0], "timestamp")}
    read = read_log(path, schema)
    assert len(set(read.table["page"].to_pylist())) == len(set(truth["page"].tolist()))


def test_pages_of_a_user_who_is_open_are_said(tmp_path: Path) -> None:
    table, truth = log_of(Form(pages=True))
    table = table.drop_columns(["request_id", "position"])
    table = table.rename_columns(["timestamp", "a", "b", *table.column_names[3:]])
    visits = pa.array((truth["user"] * 1000 + truth["ms"] // 86_400_000 % 1000).tolist())
    guess = guess_schema(write(table.append_column("c", visits), tmp_path, ".parquet"))
    assert guess.open == {"user": ("c", "a")}
    assert 'if \'a\' is the user, add combine = { page = ["a", "timestamp"] } and request = "page"' in guess.text


@pytest.mark.parametrize("guests_only", [False, True])
def test_a_user_whose_gaps_another_id_fills_is_the_first_that_is_there(guests_only: bool, tmp_path: Path) -> None:
    table, truth = log_of(Form(user="visitor"))
    accounts = [None if row % 3 else int(u) + 70_000 for row, u in enumerate(truth["user"])]
    if guests_only:
        visitors = [None if a else v for a, v in zip(accounts, table["visitor"].to_pylist(), strict=True)]
        table = table.set_column(1, "visitor", pa.array(visitors))
    guess = guess_schema(write(table.append_column("account", pa.array(accounts)), tmp_path, ".csv"))
    assert not guess.open
    assert "--skip-bad" not in guess.text
    schema = parse_schema(guess.text)
    assert schema.log is not None
    assert set(schema.log.users) == {"account", "visitor"}
    assert guests_only or schema.log.users == ("account", "visitor")
    assert not {"account", "visitor"} - {schema.log.user} & {f.name for f in schema.fields}
    wanted = [str(a or v) for a, v in zip(accounts, table["visitor"].to_pylist(), strict=True)]
    assert read_log(tmp_path / "log.csv", schema).table[schema.log.user].to_pylist() == wanted


def test_an_attribute_that_some_users_lack_is_no_account(tmp_path: Path) -> None:
    def town(t: dict[str, np.ndarray], rng: np.random.Generator) -> list[int | None]:
        return [None if u % 4 == 0 else 10_000 + int(u) * 7 // 8 for u in t["user"]]

    guess = _with(Form(), tmp_path, town=town)
    schema = parse_schema(guess.text)
    assert schema.log is not None
    assert schema.log.users == ()
    assert {f.name: f.of for f in schema.fields}["town"] == "user"


@pytest.mark.parametrize("first", [0, 1])
def test_slots_that_begin_at_1_are_said(first: int, tmp_path: Path) -> None:
    table, _ = log_of(Form(pages=True))
    for name in ("position", "b9"):
        slots = pa.array(np.arange(ROWS) % 5 + first)
        there = table.drop_columns(["position"]).append_column(name, slots)
        guess = guess_schema(write(there, tmp_path, ".parquet"))
        assert guess.findings.roles.position.name == name
        assert ("it begins at 1, where a live page's begins at 0" in guess.text) == (first == 1)


def test_an_amount_after_the_click_is_offered_as_an_outcome_with_a_threshold(tmp_path: Path) -> None:
    def read_seconds(t: dict[str, np.ndarray], rng: np.random.Generator) -> pa.Array:
        return pa.array(np.round(rng.lognormal(3.4, 0.9, ROWS), 1), mask=t["click"] == 0)

    guess = _with(Form(), tmp_path, read_seconds=read_seconds)
    assert "could be an outcome: read_seconds >= 30" in guess.summary()
    begin = guess.text.index("# [[outcome]]")
    taken = guess.text[:begin] + guess.text[begin:].replace("\n# ", "\n").removeprefix("# ")
    schema = parse_schema(taken)
    (outcome,) = schema.outcome
    assert (outcome.column, outcome.at_least, outcome.on) == ("read_seconds", 30, "click")
    long = read_log(tmp_path / "log.parquet", schema).table["read_seconds"].to_pylist()
    assert {1, 0, None} == set(long)
    assert 'event = "collect"' in guess.text
    live = taken.replace('column = "read_seconds"', 'event = "collect"').replace("at_least = 30", 'within = "30min"')
    assert parse_schema(live.replace("[log]", '[log]\naction_times = { collect = "at" }')).outcome[0].event == "collect"


def test_a_day_and_a_time_of_day_are_one_time(tmp_path: Path) -> None:
    table, truth = log_of(Form())
    table = table.drop_columns(["timestamp"])
    table = table.append_column("on", pa.array([f"{_at(ms):%d.%m.%Y}" for ms in truth["ms"]]))
    path = write(table.append_column("when", pa.array([f"{_at(ms):%H:%M:%S}" for ms in truth["ms"]])), tmp_path, ".csv")
    schema = parse_schema(guess_schema(path).text)
    assert schema.log is not None
    assert schema.log.combine == {"time": ("on", "when")}
    assert (read_log(path, schema).table[TS].to_numpy() == truth["ms"]).all()


def test_a_date_that_could_be_read_in_two_ways_is_said(tmp_path: Path) -> None:
    for days, both in ((4, True), (30, False)):
        table, truth = log_of(Form(days=days))
        texts = pa.array([f"{_at(ms):%d/%m/%Y %H:%M}" for ms in truth["ms"]])
        guess = guess_schema(write(table.set_column(0, "timestamp", texts), tmp_path, ".csv"))
        assert ("could also be %d/%m/%Y %H:%M" in guess.text) == both
        assert ('time_format = "%d/%m/%Y %H:%M"' in guess.text) == (not both)


@pytest.mark.parametrize("separator", [",", "|"])
def test_lists_in_texts_are_a_page_and_an_items_tags_are_none(separator: str, tmp_path: Path) -> None:
    table, truth = log_of(Form(lists="clicked"))
    texts = {n: [separator.join(map(str, v)) for v in table[n].to_pylist()] for n in ("shown", "chosen")}
    kept = table.drop_columns(["shown", "chosen"])
    path = write(pa.table({**{n: kept[n] for n in kept.column_names}, **texts}), tmp_path, ".csv")
    schema = parse_schema(guess_schema(path).text)
    assert schema.log is not None
    assert (schema.log.items, schema.log.clicked, schema.log.list_separator) == ("shown", "chosen", separator)
    assert read_log(path, schema).table[schema.log.label].to_numpy().sum() == truth["click"].sum()
    rows, truth = log_of(Form())
    tags = pa.array([separator.join(f"t{k}{i // 3**k % 3}" for k in range(3)) for i in truth["item"]])
    rows = rows.append_column("tags", tags).append_column("tag", pa.array([f"t0{i % 3}" for i in truth["item"]]))
    guess = guess_schema(write(rows, tmp_path, ".csv"))
    assert not guess.open
    assert {f.name: (f.of, f.slots) for f in parse_schema(guess.text).fields}["tags"] == ("item", 3)


def test_what_a_label_of_two_words_would_explain_is_left_out_and_a_clock_is_no_feature(tmp_path: Path) -> None:
    table, truth = log_of(Form())
    words = np.where(truth["click"] == 1, "tapped", "seen").tolist()
    table = table.drop_columns(["click"]).append_column("state", pa.array(words))
    table = table.append_column("token", pa.array([f"k{n}" if c else None for n, c in enumerate(truth["click"])]))
    minutes = pa.array((truth["ms"] - truth["ms"].min()) // 600_000)
    guess = guess_schema(write(table.append_column("since", minutes), tmp_path, ".parquet"))
    assert guess.open == {"label": ("state",)}
    assert "'state' could be the label" in guess.outcomes["token"].why
    assert "grows with the time" in guess.findings.unused["since"]
    assert not {"state", "token", "since"} & {f.name for f in guess.findings.fields}
