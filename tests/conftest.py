"""What holds for all tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.scenes.exploring import QUICK, examples

# How long an example takes says nothing on a machine where other things run. Property tests draw the same examples each
# time, so that a run fails for what was changed and for nothing else; ``make explore`` draws new ones.
EXPLORES = "MILLRACE_EXPLORE" in os.environ
settings.register_profile(
    "millrace",
    examples(100),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not EXPLORES,
    print_blob=EXPLORES,
)
settings.load_profile("millrace")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch computes in one thread: other tests run beside this one, and sums do not depend on the machine's cores.

    A test that has not imported PyTorch does not pay for its import.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MAY_SKIP = {
    "test_state_contract.py::": "a check that does not hold for a class by design; its case says why",
    "test_own_models.py::test_determinism[river]": "River's linear models draw nothing",
    "test_own_models.py::test_a_batch_that_would_break_it_leaves_no_trace[river]": "no batch breaks River's",
    "test_own_models.py::test_a_snapshot_of_another_model_is_refused": "a model is no other than itself",
}
"""Beginnings of the names of tests (without folders) that may skip where ``MILLRACE_TEST_ALL`` is set, and why. Any
other test that skips fails there: something that it needs is not installed. CI sets it."""

MAY_BE_ABSENT = ("MILLRACE_TEST_KAFKA_HOME", "MILLRACE_TEST_LOG")
"""Folders that nobody can install: where the variable is not set, tests that name it may skip."""


def unexpected_skip(name: str, reason: str) -> bool:
    """Whether a skip says that something is missing here that should be there."""
    absent = any(variable in reason and variable not in os.environ for variable in MAY_BE_ABSENT)
    path, separator, test = name.partition("::")
    return not absent and not (path.rpartition("/")[2] + separator + test).startswith(tuple(MAY_SKIP))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and "MILLRACE_TEST_ALL" in os.environ:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if unexpected_skip(item.nodeid, reason):
            report.outcome = "failed"
            report.longrepr = f"{reason}; MILLRACE_TEST_ALL is set, so install it, or name the test in MAY_SKIP"
    return report


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In the quick tier, slow tests are left out.

    Slow tests come first, and those that start processes second: begun last, one of them alone would prolong the run.

    pytest-xdist gives each of its workers one stretch of the list, all of about the same length, and takes from the
    ends of long ones for who has nothing left. So every second stretch has its share of such tests at its head: not
    every one, since several whole loops at a time would only wait for the processor. Tests of one module stay
    together, for the services that they share.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    chosen = set(slow)
    if QUICK:
        items[:] = [item for item in items if item not in chosen]
        config.hook.pytest_deselected(items=slow)
        slow = []
    modules: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("services") and item not in chosen:
            modules.setdefault(item.path, []).append(item)
            chosen.add(item)
    rest = [item for item in items if item not in chosen]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    heads = (workers + 1) // 2
    dealt: list[pytest.Item] = []
    for worker in range(workers):
        head: list[pytest.Item] = []
        if worker % 2 == 0:
            turn = worker // 2
            head = slow[turn::heads] + [item for each in list(modules.values())[turn::heads] for item in each]
        size = (len(items) - len(dealt)) // (workers - worker)
        dealt += head + rest[: size - len(head)]
        del rest[: size - len(head)]
    items[:] = dealt
