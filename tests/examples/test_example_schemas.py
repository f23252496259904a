"""Each schema of ``examples/`` runs as it is on a made sample of its log's form, and has a page that says the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from learner.role.model_factory import model_of
from millrace.commands.replay.replayrun import run_log
from millrace.contracts.schema import DERIVED, Schema, load_schema, shop_schema
from millrace.logs import TS, LogTable, read_log
from simulator.daylog import write_days
from tests.architecture import ROOT
from tests.scenes.examples_samples import ROWS, SAMPLES

EXAMPLES = ROOT / "examples"
SMALL = {"model": "logistic"}


def _sample(name: str, folder: Path) -> tuple[Schema, LogTable, int]:
    schema, write = SAMPLES[name]
    plan = load_schema(EXAMPLES / schema)
    path = write(folder, np.random.default_rng(3))
    return plan, read_log(path, plan), ROWS


@pytest.mark.parametrize("name", list(SAMPLES))
def test_the_schema_replays_a_sample_of_its_form(name: str, tmp_path: Path) -> None:
    plan, log, rows = _sample(name, tmp_path)
    assert log.table.num_rows > 0.8 * rows
    label = log.table[log.label].to_numpy()
    assert 0 < label.mean() < 0.9
    p = run_log(log, plan, model_of(plan, SMALL, seed=0), 256, lambda rows: None)
    assert p.shape == label.shape
    assert np.isfinite(p).all()
    assert ((p > 0) & (p < 1)).all()
    # Every field reads something: none is missing in all rows for a misspelt name or a join that finds nobody.
    for field in plan.fields:
        if field.name not in DERIVED:
            assert log.table[field.name].null_count < log.table.num_rows, field.name


def _made(name: str, tmp_path: Path) -> LogTable:
    return _sample(name, tmp_path)[1]


def test_avazus_hours_are_of_2014_and_no_row_is_lost_to_ids_beyond_64_bits(tmp_path: Path) -> None:
    log = _made("avazu", tmp_path)
    assert log.table.num_rows == ROWS
    first = np.datetime64(int(log.table[TS][0].as_py()), "ms")
    assert str(first)[:10] == "2014-10-21"


def test_minds_pairs_become_the_rows_of_a_page(tmp_path: Path) -> None:
    log = _made("mind", tmp_path)
    lines = (tmp_path / "behaviors.tsv").read_text().splitlines()
    pairs = [pair for line in lines for pair in line.split("\t")[4].split()]
    assert log.table.num_rows == len(pairs)
    assert log.table["click"].to_numpy().sum() == sum(pair.endswith("-1") for pair in pairs)
    assert str(np.datetime64(int(log.table[TS][0].as_py()), "ms"))[:7] == "2019-11"
    assert log.table["subcategory"].null_count == 0, "each article is found, those with one quote in the title too"
    assert not any("news.tsv" in note for note in log.notes)


def test_ebnerds_clicked_articles_are_the_labels(tmp_path: Path) -> None:
    log = _made("ebnerd", tmp_path)
    assert log.table["clicked"].to_numpy().sum() == ROWS // 6  # one a page


def test_movielens_ratings_of_four_and_five_are_the_label(tmp_path: Path) -> None:
    log = _made("movielens-100k", tmp_path)
    stars = [int(line.split("\t")[2]) for line in (tmp_path / "u.data").read_text().splitlines()]
    assert log.table[log.label].to_numpy().sum() == sum(star >= 4 for star in stars)


def test_criteos_sales_come_later_than_their_clicks(tmp_path: Path) -> None:
    log = _made("criteo-conversion", tmp_path)
    sold = log.table["sale_time"].is_valid().to_numpy(zero_copy_only=False)
    assert (log.table[log.label].to_numpy() == sold).all()
    late = log.table["sale_time"].drop_null().to_numpy() - log.table[TS].to_numpy()[sold]
    assert (late >= 0).all()
    assert late.max() > 3_600_000


def test_criteos_rows_without_times_keep_their_order(tmp_path: Path) -> None:
    log = _made("criteo-display", tmp_path)
    assert log.table.num_rows == ROWS
    labels = [int(line.split("\t")[0]) for line in (tmp_path / "train.txt").read_text().splitlines()]
    assert log.table[log.label].to_pylist() == labels


def test_the_shops_example_is_the_shops_own_schema(tmp_path: Path) -> None:
    plan = load_schema(EXAMPLES / "shop" / "schema.toml")
    (path,) = write_days(tmp_path, days=1, seed=1, users=20)
    log = read_log(path, plan)
    p = run_log(log, plan, model_of(plan, SMALL, seed=0), 256, lambda rows: None)
    assert len(p) == log.table.num_rows > 100
    assert plan.id == shop_schema().id


@pytest.mark.parametrize("page", sorted({schema.split("/")[0] for schema, _ in SAMPLES.values()} | {"shop"}))
def test_a_page_says_where_the_data_is_had_under_which_licence_and_what_to_run(page: str) -> None:
    text = (EXAMPLES / page / "README.md").read_text()
    for heading in ("## Where it is had", "## What to run", "## What came out"):
        assert heading in text, heading
    assert "icence" in text
    assert "millrace log replay" in text
    assert "millrace log freshness" in text
    assert f"examples/{page}/schema.toml" in text
    assert f"examples/{page}" in (ROOT / "docs" / "how-to" / "read-a-log.md").read_text()
