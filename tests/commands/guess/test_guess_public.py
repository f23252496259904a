"""A schema is guessed from logs as they are published: folders, unnamed ids, lists of times, titles with quotes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learner.role.model_factory import model_of
from millrace.commands.guess import guess_schema
from millrace.commands.replay.grouped import page_codes
from millrace.commands.replay.replayrun import run_log
from millrace.contracts.schema import BLANK, Schema, parse_schema
from millrace.logs import LogTable, read_log
from tests.scenes.examples_samples import ROWS, SAMPLES
from tests.scenes.guessed_logs import Form, log_of, write

HOUR = 3_600_000


def sample(name: str, folder: Path) -> Path:
    return SAMPLES[name][1](folder, np.random.default_rng(3))


def comment(text: str, name: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f'name = "{name}"')]
    return line.partition("# ")[2]


def replays(path: Path, schema: Schema) -> LogTable:
    log = read_log(path, schema)
    p = run_log(log, schema, model_of(schema, {"model": "logistic"}, 0), 256, lambda rows: None)
    assert np.isfinite(p).all()
    return log


# -- a folder -----------------------------------------------------------------------------------------------------


def test_a_folders_log_is_the_file_with_the_roles_and_it_is_said_which_and_why(tmp_path: Path) -> None:
    path = sample("ebnerd", tmp_path)
    assert (tmp_path / "history.parquet").stat().st_size > path.stat().st_size, "the larger file is not the log"
    guess = guess_schema(tmp_path)
    assert guess.open == {}
    assert guess.findings.sample.files == (path,)
    said = "behaviors.parquet is the log in this folder, since it has time, user, item and label"
    assert guess.summary()[0] == said
    assert f"# {said}." in guess.text
    schema = parse_schema(guess.text)
    assert [join.file for join in schema.join] == ["history.parquet"]
    assert replays(tmp_path, schema).rows_read == ROWS // 6


def test_a_file_of_the_folder_that_is_neither_the_log_nor_joined_is_named(tmp_path: Path) -> None:
    path = sample("mind", tmp_path)
    with (tmp_path / "news.tsv").open("a") as news:
        news.write("".join(f"N{n}\tnews\tsub\ta long title without much in it\t\t\t[]\t[]\n" for n in range(2000)))
    guess = guess_schema(tmp_path)
    assert guess.findings.sample.files == (path,)
    assert "news.tsv has no time" in guess.summary()[0]
    assert "label. Replay it, not the folder" in guess.summary()[0]


# -- MIND ---------------------------------------------------------------------------------------------------------


def test_minds_user_is_recognised_by_its_values_and_its_request_is_written(tmp_path: Path) -> None:
    """Few users come twice in a sample of so large a log, and no column has a name."""
    path = sample("mind", tmp_path)
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    for n, row in enumerate(rows):
        row[1] = f"U{81_994 + n // 2 if n < 10 else 10_000 + n}"
        row[3] = " ".join(f"N{n * k}" for k in range(1, 1 + n % 40))
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    guess = guess_schema(path)
    assert guess.open == {}
    schema = parse_schema(guess.text)
    assert schema.log is not None
    assert (schema.log.user, schema.log.request) == ("column_2", "column_1")
    assert schema.log.identity == ("column_1", "item_id")
    log = replays(path, schema)
    pages = page_codes(log, schema)
    assert pages is not None
    assert pages.max() + 1 == len(rows)


# -- lists --------------------------------------------------------------------------------------------------------


def test_a_list_of_times_is_no_category_and_what_is_left_out_of_a_long_list_is_said(tmp_path: Path) -> None:
    path = sample("ebnerd", tmp_path)
    guess = guess_schema(path)
    assert guess.findings.unused["impression_time_fixed"].startswith("lists of times")
    sizes = [len(v) for v in pq.read_table(tmp_path / "history.parquet")["article_id_fixed"].to_pylist()]
    said = comment(guess.text, "article_id_fixed")
    assert f"the first 16 are used: half of the rows have {np.median(sizes):.0f} or more" in said
    assert "at most" not in said


def test_unix_times_in_a_list_are_times_by_their_name_and_ids_alike_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table, _ = log_of(Form())
    lists = pa.array([rng.integers(1_700_000_000, 1_710_000_000, 4).tolist() for _ in range(table.num_rows)])
    table = table.append_column("seen_ts", lists).append_column("friends", lists)
    guess = guess_schema(write(table, tmp_path, ".parquet"))
    assert "seen_ts" in guess.findings.unused
    assert "95% of rows have at most 4" in comment(guess.text, "friends")


# -- Avazu --------------------------------------------------------------------------------------------------------


def avazu(folder: Path) -> tuple[str, Path]:
    path = sample("avazu", folder)
    guess = guess_schema(path)
    assert set(guess.open) == {"user", "item"}
    assert len(guess.open["user"]) == 8
    filled = guess.text.replace(f'user = "{BLANK}"', 'user = "device_ip"').replace(f'item = "{BLANK}"', 'item = "C14"')
    return filled, path


def test_candidates_for_the_user_are_fields_too(tmp_path: Path) -> None:
    text, path = avazu(tmp_path)
    schema = parse_schema(text)
    names = {field.name for field in schema.fields}
    assert names >= {"device_ip", "device_model", "C14", "site_id", "site_domain", "site_category", "app_id"}
    assert 'it could be the user (then: of = "user") or the item (then: of = "item")' in comment(text, "device_model")
    replays(path, schema)


def test_rows_of_one_hour_user_and_item_are_distinguished_by_their_id(tmp_path: Path) -> None:
    """The ids are beyond 64 bits: as numbers, all of this sample would be one."""
    text, path = avazu(tmp_path)
    schema = parse_schema(text)
    assert schema.log is not None
    assert (schema.log.identity, schema.log.texts) == (("id",), ("id",))
    log = read_log(path, schema)
    assert (log.table.num_rows, log.duplicates) == (ROWS, 0)
    assert "id" not in guess_schema(path).findings.unused


def test_rows_without_an_id_that_look_alike_are_kept_and_reported(tmp_path: Path) -> None:
    _, path = avazu(tmp_path)
    lines = [line.partition(",")[2] for line in path.read_text().splitlines()]
    alike = tmp_path / "alike"
    alike.mkdir()
    (alike / "train.csv").write_text("\n".join([*lines, *lines[1:73]]) + "\n")  # 72 rows are in it twice
    schema = parse_schema(guess_schema(alike / "train.csv").text.replace(f'"{BLANK}"', '"device_ip"', 1).replace(
        f'"{BLANK}"', '"C14"', 1))  # fmt: skip
    assert schema.log is not None
    assert schema.log.identity == ()
    log = read_log(alike / "train.csv", schema)
    assert (log.table.num_rows, log.duplicates) == (ROWS + 72, 0)
    (reported,) = [d for d in log.decisions if "of a row before" in d.what]
    assert reported.rows >= 72


@pytest.mark.parametrize(
    ("time", "differs", "copies"),
    [("ms", False, True), ("ms", True, False), ("hours", False, False), ("fine", True, True)],
)
def test_rows_are_taken_for_copies_where_all_is_equal_to_the_second(
    time: str, differs: bool, copies: bool, tmp_path: Path
) -> None:
    table, truth = log_of(Form(time=time.replace("fine", "ms")))
    if time == "fine":
        table = table.set_column(0, "timestamp", pa.array(truth["ms"] + np.arange(table.num_rows) % 1000))
    again = table.slice(0, 40)
    if differs:
        again = again.set_column(again.column_names.index("device"), "device", pa.array(["watch"] * 40))
    guess = guess_schema(write(pa.concat_tables([table, again]), tmp_path, ".parquet"))
    schema = parse_schema(guess.text)
    assert schema.log is not None
    assert schema.log.identity == (("timestamp", "user_id", "item_id") if copies else ())
    (note,) = [note for note in guess.findings.notes if "time, user and item of a row before" in note]
    assert ("they are taken for copies" in note) == copies
    assert ("none is taken for a copy" in note) != copies


# -- windows, quotes, and the same answer twice ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("life_hours", "days", "lengths"), [(6, 7, ("1h", "6h", "1d", "3d")), (6, 2, ("1h", "6h", "1d"))]
)
def test_windows_for_items_that_are_soon_old_are_hours(
    life_hours: int, days: int, lengths: tuple[str, ...], tmp_path: Path
) -> None:
    """News: each article is shown for some hours after it came out."""
    rng = np.random.default_rng(1)
    start = 1_700_000_000_000 + np.sort(rng.integers(0, days * 24 * HOUR, 80))
    item = rng.integers(0, 80, 4000)
    at = start[item] + (rng.exponential(life_hours / 2, 4000) * HOUR).astype(np.int64)
    order = np.argsort(at)
    table = pa.table({
        "timestamp": at[order], "user_id": rng.integers(0, 90, 4000), "article_id": item[order],
        "click": (rng.random(4000) < 0.2).astype(np.int64),
    })  # fmt: skip
    guess = guess_schema(write(table, tmp_path, ".parquet"))
    windows = parse_schema(guess.text).windows
    assert windows.lengths == lengths
    assert windows.half_lives == (0.25,)
    assert "items are soon old" in guess.text


def test_windows_for_items_that_last_are_days(tmp_path: Path) -> None:
    table, _ = log_of(Form(days=7))
    windows = parse_schema(guess_schema(write(table, tmp_path, ".parquet")).text).windows
    assert (windows.days, windows.half_lives) == ((1, 7), ())


@pytest.mark.parametrize("opened", ["one", "two"])
def test_quotes_that_are_never_closed_switch_quoting_off(opened: str, tmp_path: Path) -> None:
    """One open quote takes in the rest of the file, two the lines between them: neither is a row then."""
    table, _ = log_of(Form())
    rows = [[str(v) for v in row.values()] for row in table.to_pylist()]
    titles = [f"title {n % 50}" for n in range(len(rows))]
    titles[10] = '"Never closed'
    if opened == "two":
        titles[14] = '"Nor this'
    lines = ["\t".join([titles[n], *row]) for n, row in enumerate(rows)]
    path = tmp_path / "log.tsv"
    path.write_text("\n".join(["\t".join(["title", *table.column_names]), *lines]) + "\n")
    guess = guess_schema(path)
    assert guess.findings.sample.table.num_rows == len(rows)
    schema = parse_schema(guess.text)
    assert schema.log is not None
    assert not schema.log.quoting
    assert read_log(path, schema).table.num_rows == len(rows)


def test_quotes_that_enclose_separators_and_line_breaks_stay_quotes(tmp_path: Path) -> None:
    table, _ = log_of(Form())
    notes = pa.array([f"a, b\n{n % 9}" for n in range(table.num_rows)])
    schema = parse_schema(guess_schema(write(table.append_column("notes", notes), tmp_path, ".csv")).text)
    assert schema.log is not None
    assert schema.log.quoting


@pytest.mark.slow
@pytest.mark.parametrize("name", ["avazu", "ebnerd"])
def test_the_guess_is_the_same_at_each_run(name: str, tmp_path: Path) -> None:
    path = sample(name, tmp_path)
    code = "from pathlib import Path; from millrace.commands.guess import guess_schema;"
    code += f"print(guess_schema(Path({str(path)!r})).text)"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(texts) == 1
