"""What a compiled function takes from other modules is part of what its code on disk is found by."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import ROOT
from tests.scenes.waiting import LONG

INNER = "from numba import njit\nSTEP = {step}\n@njit(inline='always')\ndef inner(x):\n    return x * {factor}\n"
MIDDLE = "from numba import njit\nfrom inner import inner\n@njit\ndef middle(x):\n    return inner(x) + 1\n"
OUTER = """
from inner import STEP
from middle import middle
from millrace.basics.compiled import compiled
@compiled
def outer(x):
    return middle(x) + STEP
print(outer(3), sum(outer.stats.cache_hits.values()))
"""

NAMED = """
from typing import NamedTuple
from millrace.basics.compiled import compiled
class {name}(NamedTuple):
    step: int
@compiled
def outer(x):
    return x.step
print(outer({name}(3)), sum(outer.stats.cache_hits.values()))
"""


def outer(folder: Path) -> list[int]:
    """What ``outer(3)`` is in a fresh process, and whether its code came from disk."""
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", "import outer"], env=environment, capture_output=True, text=True, check=True
    )
    return list(map(int, done.stdout.split()))


@pytest.mark.timeout(LONG)
def test_a_change_in_another_module_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "inner.py").write_text(INNER.format(step=10, factor=2))
    (tmp_path / "middle.py").write_text(MIDDLE)
    (tmp_path / "outer.py").write_text(OUTER)
    assert [outer(tmp_path), outer(tmp_path)] == [[17, 0], [17, 1]]
    (tmp_path / "inner.py").write_text(INNER.format(step=10, factor=5))
    assert outer(tmp_path) == [26, 0], "a function two modules away"
    (tmp_path / "inner.py").write_text(INNER.format(step=20, factor=5))
    assert [outer(tmp_path), outer(tmp_path)] == [[36, 0], [36, 1]], "a constant"


@pytest.mark.timeout(LONG)
def test_code_for_a_class_that_has_another_name_by_now_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "outer.py").write_text(NAMED.format(name="Before"))
    assert [outer(tmp_path), outer(tmp_path)] == [[3, 0], [3, 1]]
    (tmp_path / "outer.py").write_text(NAMED.format(name="After"))
    assert [outer(tmp_path), outer(tmp_path)] == [[3, 0], [3, 1]]
