"""Reports that people can read: no figure is cut off at 1,300 pixels, and a figure has one name everywhere."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from millrace.basics.ranking_metrics import FIGURES
from millrace.reports import NAMES, name_of, say, show, write_all
from millrace.reports.names import MEANS, meanings, weight
from millrace.reports.tables import WIDTH, cell, column_width, keys_of, pieces, table_of
from tests.architecture import ROOT
from tests.scenes.exploring import examples

WIDTHS = st.dictionaries(st.text("abcdefgh_", min_size=1, max_size=6), st.integers(30, 400), min_size=1, max_size=20)


@examples(100)
@given(WIDTHS, st.integers(1, 3))
def test_each_column_stands_once_and_each_table_fits_with_what_names_its_rows(
    widths: dict[str, float], first: int
) -> None:
    columns = list(widths)
    keys = columns[:first]
    found = pieces(columns, widths, keys)
    figures = [c for piece in found for c in piece if c not in keys]
    assert sorted(figures) == sorted(columns[first:])
    if sum(widths.values()) <= WIDTH:
        assert found == [columns]
        return
    room = WIDTH - sum(widths[k] for k in keys)
    for piece in found:
        assert piece[: len(keys)] == keys
        own = piece[len(keys) :]
        assert sum(widths[c] for c in own) <= room or len(own) == 1, "only what is too wide for any page"


def test_what_decides_comes_first_when_a_table_is_cut() -> None:
    rows = [
        {"model": "deep", "inputs": "raw", "settings": "original", "rows": 12_345_678}
        | {f"{measure}_{part}": 0.123456 for measure in ("auc", "log_loss") for part in ("first", "middle", "last")}
        | {"seconds": 1.0, "train_auc": 0.7, "auc_over_frozen": 0.0123, "auc_over_frozen_ci": 0.001}
    ]
    page = table_of("ways", rows)
    tables = re.findall(r"<table>.*?</table>", page)
    assert len(tables) > 1
    assert "0.0123 ± 0.0010" in tables[0]
    for table in tables:
        assert all(f'<td class="text">{word}</td>' in table for word in ("deep", "raw", "original"))
    assert keys_of(["model", "inputs", "auc", "way"], {"model", "inputs", "way"}) == ["model", "inputs"]


def test_headings_wrap_and_cells_do_not_widen_a_column_beyond_their_text() -> None:
    narrow = column_width("AUC over frozen within pages", ["0.1234"])
    assert narrow < column_width("AUCoverfrozenwithinpages", ["0.1234"])
    assert column_width("x", ["a" * 200]) == column_width("x", ["a" * 34]), "long texts wrap"


def test_the_page_says_its_verdict_first_and_what_its_figures_mean(tmp_path: Path) -> None:
    report = {"verdict": "A <gains> .01.", "rows": 5, "days": [{"day": "1", "grouped_auc": 0.5}]}
    write_all(tmp_path, report, {}, [], "Report")
    page = (tmp_path / "report.html").read_text()
    assert '<h1>Report</h1><p class="verdict">A &lt;gains&gt; .01.</p>' in page
    assert page.count("gains") == 1
    assert "5 exposures" in page
    assert "AUC within pages" in page
    assert MEANS["grouped_auc"][:40] in page
    assert MEANS["log_loss"][:40] not in page


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("grouped_auc", "AUC within pages"),
        ("auc_over_frozen", "AUC over frozen"),
        ("train_auc", "training AUC"),
        ("late_auc_over_bound", "late AUC over bound"),
        ("last_day_over_start_percent", "last day over start, %"),
        ("grouped_auc_over_present", "AUC within pages over present"),
        ("way", "way"),
    ],
)
def test_keys_are_named_whole_or_by_their_parts(key: str, name: str) -> None:
    assert name_of(key) == name


def test_each_name_is_one_figures_and_those_that_are_explained_have_one() -> None:
    assert len(set(NAMES.values())) == len(NAMES)
    assert set(MEANS) <= set(NAMES)
    assert set(meanings(["grouped_auc", "auc_over_frozen"])) == {"AUC", "AUC within pages"}
    assert set(meanings(["baseline_grouped_auc"])) == set(), "no part of another figure's name"
    assert [weight(k) for k in ("auc_over_frozen", "auc", "seconds")] == [0, 1, 2]


def test_the_glossary_has_the_same_words() -> None:
    glossary = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    for key in (*FIGURES, "completeness"):
        assert f"| **{NAMES[key]}** |" in glossary, key


def test_the_terminal_cuts_no_figure_off_at_eighty_columns() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80)
    row = {"day": "2026-03-02", "rows": 1_234_567, "positives": 99_999}
    row |= dict.fromkeys(("auc", "grouped_auc", "baseline_auc", "log_loss", "calibration"), 0.1234)
    show("A title", [row], list(row), console)
    lines = out.getvalue().splitlines()
    assert [line for line in lines if line][-1].split() == [cell(value) for value in row.values()]
    assert all(len(line) <= 80 for line in lines)
    for word in ("within", "pages", "baseline's", "calibration"):
        assert word in out.getvalue()


def test_a_verdict_is_printed_as_it_is() -> None:
    out = io.StringIO()
    say("AUC [bold] gains 0.01 " * 8, Console(file=out, width=60))
    assert " ".join(out.getvalue().split()) == " ".join(("AUC [bold] gains 0.01 " * 8).split())
    say("", Console(file=out))
