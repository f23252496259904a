"""What the README promises is there: its folders, its files, its length; and its commands do what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from millrace.commands.loop.monitor import fetch
from tests.architecture import ROOT
from tests.docs.walk import Walker, blocks
from tests.scenes.running_prometheus import PROGRAM, Prometheus
from tests.scenes.waiting import LONG, until

README = (ROOT / "README.md").read_text()
SHOWN = re.findall(r"^```(?:text|json)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
"""What the README says that its demo, its commands on a log, and its calls print."""


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
    assert len(README.split()) <= 700


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(LONG)
def test_its_commands_print_what_it_shows_and_a_click_is_learnt(tmp_path: Path) -> None:
    """In an empty folder, in order, as they stand but for the ports, and for the address of the clone, which is this
    checkout. This environment stands for the one that ``make`` would install."""
    folder = tmp_path / "empty"
    folder.mkdir()
    demo, logs, up, calls, why = blocks(README)
    assert [block.where for block in (demo, logs, up, calls, why)] == ["demo", "", "terminal=1", "", ""]
    of_demo, *shown = SHOWN
    walker = Walker(tmp_path, cwd=folder, data=folder / "millrace-data")
    try:
        walker.do(demo)
        until(
            lambda: re.search(r"CTR model \d.*control \d", walker.said()) is not None,
            "shoppers click",
            more=walker.said,
        )
        walker.stop("demo")
        printed = (tmp_path / "demo.out").read_text()
        assert re.search(pattern(of_demo, whole=True), squeezed(printed)), f"{of_demo}\nis not in\n{printed}"
        for block in (logs, up, calls):
            walker.do(block)
        for text, printed in zip(shown, walker.printed, strict=True):
            assert re.search(pattern(text), squeezed(printed)), f"{text}\nis not in\n{printed}"
        walker.do(why)
        assert "Page 'p1' of user 'ann': model, model version 0" in walker.printed[-1]
        assert "boots" in walker.printed[-1]
        assert "Reasonsarebyversion0" in squeezed(walker.printed[-1])
        scorer = walker.where["scorer"]
        until(lambda: json.loads(fetch(f"{scorer}/model"))["trained"] > 0, "the click is learnt", more=walker.said)
        if PROGRAM:
            (watch,) = (one for one in blocks((ROOT / "deploy" / "README.md").read_text()) if one.where == "terminal=2")
            walker.do(watch)
            asks = Prometheus(f"http://127.0.0.1:{walker.prometheus_port}", tmp_path / "terminal=2.out")
            until(lambda: set(asks.up().values()) == {"up"}, "each role is scraped", more=walker.said)
    finally:
        walker.kill()


def squeezed(text: str) -> str:
    """Without spaces and line ends, since a terminal breaks lines where it likes."""
    return re.sub(r"\s", "", text)


def pattern(shown: str, whole: bool = False) -> str:
    """What is shown, as an expression: fractions and times differ from machine to machine, with ``whole`` also other
    numbers; for … stands anything. All else is equal."""
    number = r"[\d.,]*\d" if whole else r"(\d*\.\d+|\d{13})"
    differs = r"\d(?:[\d,]|\\\.(?=\d))*" if whole else r"\d*\\\.\d+|\d{13}"
    return re.sub(differs, lambda _: number, re.escape(squeezed(shown))).replace("…", ".*")


def test_what_is_shown_is_compared_by_its_words() -> None:
    shown = 'gains .0823 ± .0159\nat 1796186384260: {"kept":1}'
    assert re.search(pattern(shown), squeezed('It gains .1 ±\n .02 at 1111111111111: {"kept":1}.'))
    assert not re.search(pattern(shown), squeezed('It gains .1 ±\n .02 at 1111111111111: {"kept":0}.'))
    ended = pattern("3,144 positive …: every one\nrate 0.2 or", whole=True)
    assert re.search(ended, squeezed("12 positive, 4 negative: every one\nrate 0.31 or"))
    assert not re.search(ended, squeezed("12 positive, 4 negative: not one\nrate 0.31 or"))
    assert not re.search(pattern(shown), squeezed('It loses .1 ±\n .02 at 1111111111111: {"kept":1}.'))
