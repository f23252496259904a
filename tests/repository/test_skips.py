"""Where everything is installed, a test that skips fails: something that should be there is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import ROOT
from tests.conftest import MAY_SKIP, unexpected_skip

TESTS = """
import pytest

@pytest.fixture
def library():
    pytest.skip("nonesuch is not installed")

def test_fixture(library): ...

def test_inside():
    pytest.importorskip("nonesuch")

@pytest.mark.skipif(True, reason="no Chromium")
def test_mark(): ...

def test_the_log():
    pytest.skip("MILLRACE_TEST_LOG names no folder with the KuaiRand log")

@pytest.mark.xfail
def test_known():
    assert False

def test_well(): ...
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"skipped": 4, "xfailed": 1, "passed": 1}),
        ({"MILLRACE_TEST_ALL": "1"}, {"failed": 1, "errors": 2, "skipped": 1, "xfailed": 1, "passed": 1}),
        (
            {"MILLRACE_TEST_ALL": "1", "MILLRACE_TEST_LOG": "nowhere"},
            {"failed": 2, "errors": 2, "xfailed": 1, "passed": 1},
        ),
    ],
)
def test_a_skip_is_a_failure_where_everything_is_there(
    tmp_path: Path, environment: dict[str, str], expected: dict[str, int]
) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    clean = {n: v for n, v in os.environ.items() if not n.startswith(("MILLRACE_", "PYTEST_"))}
    plain = ["-p", "tests.conftest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c", os.devnull]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plain, str(tmp_path)],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stdout.splitlines()[-1]
    found = {name: int(count) for count, name in re.findall(r"(\d+) ([a-z]+)", last.partition(" in ")[0])}
    assert found == expected, done.stdout


def test_the_list_names_tests_that_there_are() -> None:
    for beginning in MAY_SKIP:
        file, _, name = beginning.partition("::")
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {name.partition('[')[0]}" in path.read_text()
    assert unexpected_skip("tests/docs/test_walk.py::test_it", "no Chromium")
    assert not unexpected_skip("tests/repository/test_state_contract.py::test_round_trip[x]", "by design")
