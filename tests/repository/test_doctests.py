"""The examples in docstrings are true. They are found by themselves: every module that has one is run."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

from tests.architecture import ROOT

PACKAGES = ("millrace", "stream", "learner", "scorer", "simulator")
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text()
)
OWED = ("millrace.windows.tiles:TileStore", "stream.partition.partition:Partition", "learner.ranker.model:OnlineModel")
"""Classes that a reader meets first. Each shows how it is used, or its module does."""


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_are_true(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    failed, tried = doctest.testmod(import_module(name))
    assert failed == 0, capsys.readouterr().out
    assert tried > 0, f"{name} has '>>> ' outside of docstrings"


@pytest.mark.parametrize("name", OWED)
def test_what_a_reader_meets_first_has_an_example(name: str) -> None:
    path, _, owner = name.partition(":")
    module, finder = import_module(path), doctest.DocTestFinder(recurse=False)
    found = [*finder.find(getattr(module, owner), owner), *finder.find(module, path)]
    assert any(f"{owner}(" in one.source for test in found for one in test.examples), f"{owner} has no example"
