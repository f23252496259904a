"""What the README promises is there: its folders, its files, its length; and its commands do what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from commands.loop.monitor import fetch
from tests.architecture import ROOT
from tests.docs.walk import Walker, blocks
from tests.scenes.running_prometheus import PROGRAM, Prometheus
from tests.scenes.waiting import LONG, until

README = (ROOT / "README.md").read_text()
SHOWN = re.findall(r"^```(?:text|json)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
"""What the README says that its commands print."""


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


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(LONG)
def test_its_commands_print_what_it_shows_and_a_click_is_learnt(tmp_path: Path) -> None:
    """In an empty folder, in order, as they stand but for the ports. The block that installs is left out: this
    environment stands for it; ``make demo`` and ``make test`` have tests of their own."""
    folder = tmp_path / "empty"
    folder.mkdir()
    install, logs, up, calls, watch = blocks(README)
    assert [block.where for block in (install, up, watch)] == ["install", "terminal=1", "terminal=2"]
    walker = Walker(tmp_path, cwd=folder, data=folder / "millrace-data")
    try:
        for block in (logs, up, calls):
            walker.do(block)
        for shown, printed in zip(SHOWN, walker.printed, strict=True):
            assert re.search(pattern(shown), squeezed(printed)), f"{shown}\nis not in\n{printed}"
        scorer = walker.where["scorer"]
        until(lambda: json.loads(fetch(f"{scorer}/model"))["trained"] > 0, "the click is learnt", more=walker.said)
        if PROGRAM:
            walker.do(watch)
            asks = Prometheus(f"http://127.0.0.1:{walker.prometheus_port}", tmp_path / "terminal=2.out")
            until(lambda: set(asks.up().values()) == {"up"}, "each role is scraped", more=walker.said)
    finally:
        walker.kill()


def squeezed(text: str) -> str:
    """Without spaces and line ends, since a terminal breaks lines where it likes."""
    return re.sub(r"\s", "", text)


def pattern(shown: str) -> str:
    """What is shown, as an expression: fractions and times differ from machine to machine, all else is equal."""
    return re.sub(r"\d*\\\.\d+|\d{13}", lambda _: r"(\d*\.\d+|\d{13})", re.escape(squeezed(shown)))


def test_what_is_shown_is_compared_by_its_words() -> None:
    shown = 'gains .0823 ± .0159\nat 1796186384260: {"kept":1}'
    assert re.search(pattern(shown), squeezed('It gains .1 ±\n .02 at 1111111111111: {"kept":1}.'))
    assert not re.search(pattern(shown), squeezed('It gains .1 ±\n .02 at 1111111111111: {"kept":0}.'))
    assert not re.search(pattern(shown), squeezed('It loses .1 ±\n .02 at 1111111111111: {"kept":1}.'))
