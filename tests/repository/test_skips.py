"""Where everything is installed, a test that skips fails: something that should be there is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import ROOT
from tests.conftest import MAY_BE_ABSENT, MAY_SKIP, unexpected_skip

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

def test_no_arithmetic_costs_auc_on_kuairand():
    pytest.skip("MILLRACE_TEST_LOG names no folder with the KuaiRand log")

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
        ({}, {"skipped": 5, "xfailed": 1, "passed": 1}),
        ({"MILLRACE_TEST_ALL": "1"}, {"failed": 2, "errors": 2, "skipped": 1, "xfailed": 1, "passed": 1}),
        (
            {"MILLRACE_TEST_ALL": "1", "MILLRACE_TEST_LOG": "nowhere"},
            {"failed": 3, "errors": 2, "xfailed": 1, "passed": 1},
        ),
    ],
)
def test_a_skip_is_a_failure_where_everything_is_there(
    tmp_path: Path, environment: dict[str, str], expected: dict[str, int]
) -> None:
    (tmp_path / "test_model_serving.py").write_text(TESTS)
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
    for name in (*MAY_SKIP, *(test for tests in MAY_BE_ABSENT.values() for test in tests)):
        file, _, test = name.partition("::")
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {test.partition('[')[0]}(" in path.read_text(), name
    assert unexpected_skip("tests/docs/test_walk.py::test_it", "no Chromium")
    contract = "tests/repository/test_state_contract.py::test_changes_are_given_once"
    assert not unexpected_skip(f"{contract}[guard]", "by design")
    assert unexpected_skip(f"{contract}[table]", "by design")
