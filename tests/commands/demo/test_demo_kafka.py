"""The same loop on Apache Kafka and a Redis of one's own: nothing else is started, and one may come again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from millrace.commands.demo.demorun import ROLES
from tests.scenes.demo_kafka import apache_kafka, command_lines, own_redis
from tests.scenes.demo_process import DemoProcess, demo_process, descendants
from tests.scenes.demo_report import assert_all_accounted_for, assert_no_errors, assert_undisturbed
from tests.scenes.waiting import LONG

pytestmark = [pytest.mark.services, pytest.mark.kafka, pytest.mark.timeout(LONG)]


def roles(demo: DemoProcess) -> list[str]:
    """The command lines of what runs below the demo, once its four roles are among them."""
    lines: list[str] = []

    def four() -> bool:
        lines[:] = command_lines(descendants(demo.process.pid))
        # A role may have children of its own name: a feeder forks the template of its workers.
        return all(any(f" -m millrace run {name} " in line for line in lines) for name in ROLES)

    demo.until(four, "four roles run, each under its own name")
    return lines


@pytest.mark.slow
def test_two_demos_one_after_the_other_on_one_kafka(tmp_path: Path) -> None:
    with apache_kafka(tmp_path / "kafka") as kafka, own_redis(tmp_path / "redis") as redis:
        first = 0
        # Of the usual ports of metrics one was taken by somebody else, once in some ten runs of all tests.
        env = {"MILLRACE_KAFKA": kafka, "MILLRACE_REDIS": redis, "MILLRACE_METRICS_PORT": "0"}
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            with demo_process(folder, env=env) as demo:
                demo.until(lambda: demo.role("simulate")["pid"] is not None, "every role was started")
                assert not [line for line in roles(demo) if "redis-server" in line or "millrace.broker" in line]
                assert demo.environment("simulate")["MILLRACE_KAFKA"] == kafka
                demo.until_learning(3000)  # so many that pages of both arms are among them
                assert demo.end(signal.SIGINT) == 0, demo.text()
                assert ("events of earlier runs" in demo.text()) == (number == 1)
                report = demo.report()
                if number == 0:
                    assert_undisturbed(report)
                    first = report["exposures_sent"]
                    assert report["earlier_exposures"] == 0
                else:
                    assert_all_accounted_for(report)
                    assert report["earlier_exposures"] == first
                    assert_no_errors(report)
                demo.until_nothing_left()
