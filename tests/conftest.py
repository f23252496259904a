"""What holds for all tests."""

from __future__ import annotations

import asyncio
import inspect
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


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test that is a coroutine, on an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


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


def _of(test: str, why: str, *cases: str) -> dict[str, str]:
    return {f"{test}[{case}]": why for case in cases}


_SILENT = ["guard", "buckets", "repeats", "trainer", "delays", "slots", "join", "outcomes", "owners", "turn"]
_SILENT += ["quarantine"]
_TOLD = ["dense", "table", "model wide_deep", "model wide_resnet_bn", "model in slices", "model with a retrieval head"]
_TOLD += ["model with an outcome", "the same in slices"]
_PARTS = ("trainer", "join", "outcomes", "owners", "turn")
_CONTRACT = "test_state_contract.py::"
MAY_SKIP = {
    **_of(f"{_CONTRACT}test_changes_are_given_once", "nobody is told its changes", *_SILENT),
    **_of(f"{_CONTRACT}test_changes_are_given_once", "a step moves every tensor", "dense"),
    **_of(f"{_CONTRACT}test_changes_are_absolute", "nobody is told its changes", *_SILENT),
    **_of(f"{_CONTRACT}test_changes_are_absolute", "what goes for want of room is not told", "co-clicks without room"),
    **_of(f"{_CONTRACT}test_a_damaged_state_is_a_named_error", "what it is a part of is checked", *_PARTS),
    **_of(
        f"{_CONTRACT}test_round_trip", "a start publishes the whole", *(f"{case}-not yet published" for case in _TOLD)
    ),
}
"""Names of the cases (without folders) that may skip where ``MILLRACE_TEST_ALL`` is set, and why. Any other that skips
fails there: something that it needs is not installed. CI sets it."""

MAY_BE_ABSENT = {
    "MILLRACE_TEST_KAFKA_HOME": (
        "test_bad_messages_live.py::test_bad_messages_through_a_running_loop_cost_it_nothing",
        "test_broker_live.py::test_a_group_of_kafka_python_goes_on_where_it_committed",
        "test_broker_live.py::test_a_topic_that_cannot_be_is_refused",
        "test_broker_live.py::test_a_topic_that_is_created_again_has_another_id_and_no_old_records",
        "test_broker_live.py::test_a_waiting_consumer_is_woken_by_a_producer",
        "test_broker_live.py::test_both_idempotent_producers_write_each_record_once_through_broken_connections",
        "test_broker_live.py::test_ends_and_beginnings_are_exact",
        "test_broker_live.py::test_what_is_sent_is_read_by_both_clients_in_order",
        "test_broker_live.py::test_workers_of_a_group_share_the_partitions_through_coming_leaving_and_dying",
        "test_demo_kafka.py::test_two_demos_one_after_the_other_on_one_kafka",
        "test_demo_secured.py::test_a_demo_on_a_kafka_and_a_redis_as_one_rents_them",
        "test_intake_killed.py::test_what_was_acknowledged_is_there_once[kafka]",
        "test_kafka_live.py::test_a_certificate_that_is_renewed_is_taken_at_the_next_connection",
        "test_kafka_live.py::test_a_changed_password_is_waited_for_and_taken_without_a_restart",
        "test_kafka_live.py::test_a_refusal_at_the_start_ends_it_with_cause_and_remedy",
        "test_kafka_live.py::test_a_role_that_is_refused_at_its_start_ends_in_one_line",
        "test_kafka_live.py::test_each_way_in_is_open_to_both_clients",
        "test_kafka_live.py::test_what_acls_forbid_is_named",
        "test_kafka_live.py::test_where_no_tls_is_spoken_it_is_named_as_what_may_be_wrong",
        "test_leader_change.py::test_a_leader_that_is_killed_costs_no_message",
        "test_worker_loop.py::test_whatever_becomes_of_workers_and_redis_the_answer_is_the_cores[kafka]",
    ),
    "MILLRACE_TEST_LOG": (
        "test_guess.py::test_kuairand_is_recognised_by_its_file_and_replayed_as_guessed",
        "test_model_serving.py::test_no_arithmetic_costs_auc_on_kuairand",
        "test_replay.py::test_kuairand_twice_the_same_and_as_good_as_promised",
    ),
}
"""By the variable of a folder that nobody can install: the tests, or cases, that may skip where it is not set."""


def unexpected_skip(name: str, reason: str) -> bool:
    """Whether a skip says that something is missing here that should be there."""
    path, separator, test = name.partition("::")
    case = path.rpartition("/")[2] + separator + test
    return case not in MAY_SKIP and not any(
        variable in reason and variable not in os.environ and {case, case.partition("[")[0]} & set(tests)
        for variable, tests in MAY_BE_ABSENT.items()
    )


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
