"""What the README promises is there: its folders, its files, its length."""

from __future__ import annotations

import re

from tests.architecture import ROOT

README = (ROOT / "README.md").read_text()


def test_it_has_a_line_for_each_folder() -> None:
    rows = re.findall(r"^\| ((?:`\w+/` ?)+)\|", README, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)/`", row)}
    code = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("[a-z]*/**/*.py")} - {"build", "dist", "out"}
    assert named == code | {"docs", "deploy"}


def test_each_place_that_it_names_is_there() -> None:
    places = re.findall(r"`([a-z_]+/[\w/.]*)`", README)
    assert len(places) > 15
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_it_is_short() -> None:
    assert len(README.split()) <= 900
