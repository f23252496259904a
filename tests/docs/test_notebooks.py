"""The notebooks of the tutorials: each runs from its first cell to its last in an empty folder, in a fresh kernel, and
says what it promises. They are kept without outputs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from benchmarks import peers
from tests.architecture import ROOT
from tests.scenes.demo_process import PATIENT
from tests.scenes.waiting import LONG

NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))}
FIGURE = r"([+-]?\d*\.\d+)"


def of_worth_it(said: list[str]) -> None:
    found = re.search(rf"{FIGURE} ± {FIGURE} AUC and {FIGURE}% log loss", said[-1])
    assert found, said[-1]
    gain, half = float(found[1]), float(found[2])
    assert half > 0
    verdict = "gains" if gain > half else "loses" if gain < -half else "cannot tell"
    assert verdict in said[-1]
    assert "labels are taken as known" in said[-1]


def of_ten_lines(said: list[str]) -> None:
    (compared,) = [text for text in said if "largest difference" in text]
    found = re.search(r"difference of a score (\S+)", compared)
    assert found, compared
    assert float(found[1]) < 1e-6, "pages of a replay's micro-batches are scored in products of another size"
    assert "[ True]" in said, "a saved model goes on"
    assert said[-1].strip() == "5 items for ann, the first was clicked; 0 events refused"


def of_against_others(said: list[str]) -> None:
    last = said[-1].splitlines()
    assert last[0] == "mr.replay gives the same scores: True"
    found = re.findall(rf"(.+?) +AUC {FIGURE}, log loss {FIGURE}, [\d,]+ rows/s", said[-1])
    figures = {name.strip(): float(auc) for name, auc, _ in found}
    assert set(figures) == set(peers.CONTESTANTS)
    assert min(figures.values()) > 0.55, figures
    best = max(figures, key=lambda name: figures[name])
    assert last[-1].startswith(f"the best AUC has {best}: ")
    assert any(text.startswith("class VowpalWabbit:") for text in said), "the notebook shows each contestant's code"


OWN: dict[str, Callable[[list[str]], None]] = {
    "against-others": of_against_others,
    "ten-lines": of_ten_lines,
    "worth-it": of_worth_it,
}
"""What holds for the texts that a notebook prints, in order."""


def test_every_notebook_is_run_and_none_holds_what_a_run_left() -> None:
    assert set(NOTEBOOKS) == set(OWN)
    for path in NOTEBOOKS.values():
        notebook = nbformat.read(path, 4)  # type: ignore[no-untyped-call]
        nbformat.validate(notebook)
        for cell in notebook.cells:
            assert not cell.get("outputs"), path.name
            assert cell.get("execution_count") is None, path.name
            assert not cell.metadata, path.name


@pytest.mark.slow
@pytest.mark.services
@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_says_what_it_promises(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell that raises ends it with CellExecutionError."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for variable, value in PATIENT.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(NOTEBOOKS[name], 4)  # type: ignore[no-untyped-call]
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=LONG, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.output_type == "error"]
    OWN[name]([output.text.rstrip("\n") for output in outputs if output.output_type == "stream"])
