"""The README's tree names every module."""

from __future__ import annotations

import re

from tests.architecture import ROOT

ROOMS = ("millrace", "commands", "simulator", "stream", "learner", "scorer")


def test_the_tree_names_every_module() -> None:
    text = (ROOT / "README.md").read_text().partition("## Where things are")[2].partition("Start reading at")[0]
    words = set(re.findall(r"\w+", text))
    modules = {path.stem for room in ROOMS for path in (ROOT / room).rglob("*.py")} - {"__init__", "__main__"}
    assert modules <= words, f"not in the README's tree: {sorted(modules - words)}"
