"""The whole loop, as a person runs it: it learns, accounts for every exposure, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from millrace.commands.demo.demorun import ROLES
from millrace.commands.loop.monitor import fetch
from millrace.connections.learner_call import post
from millrace.contracts.samples import CORRECTION, NEGATIVE, POSITIVE, SampleBatch
from millrace.contracts.settings import Settings
from millrace.contracts.topics import SAMPLES
from millrace.processes.kafka import read_all
from millrace.processes.services import EmbeddedBroker
from tests.scenes.demo_process import FETCH_SECONDS, DemoProcess, demo_process, descendants, is_page
from tests.scenes.demo_report import assert_undisturbed
from tests.scenes.deployed import FIRST, dashboards
from tests.scenes.exposed_metrics import exposed
from tests.scenes.running_prometheus import PROGRAM, Prometheus
from tests.scenes.waiting import LONG, until

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.timeout(LONG)]


def click(demo: DemoProcess) -> tuple[str, int]:
    """A person clicks an item of a shopper's page, as the live page does: the page's id, and the item's position."""
    url, clicked = demo.url, list[dict[str, Any]]()

    def ask(path: str, body: Mapping[str, object]) -> tuple[int, Any]:
        status, said = post(url, path, json.dumps(body).encode(), "")
        return status, json.loads(said)

    def done() -> bool:
        for user in json.loads(fetch(f"{url}users.json", FETCH_SECONDS)):
            status, page = ask("/recommend", {"user_id": user, "size": 10})
            if status != 200 or page["arm"] != "model":
                continue
            items = [one["item_id"] for one in page["items"]]
            body = {"request_id": page["request_id"], "user_id": user, "ts_ms": page["ts_ms"], "items": items}
            assert ask("/click", body | {"position": len(items)})[0] == 400
            if ask("/click", body | {"position": 3})[0] == 200:
                assert ask("/click", body | {"position": 4})[0] == 409, "a page is clicked one time"
                clicked.append(body)
                return True
        return False

    demo.until(done, "a page is clicked")
    return str(clicked[0]["request_id"]), 3


def labels(folder: Path, request: str) -> dict[int, set[int]]:
    """Kinds of the samples of a page by position, as the demo left them."""
    found = defaultdict[int, set[int]](set)

    def visit(record: Any) -> None:
        batch = SampleBatch.from_bytes(record.value)
        for (name, position), kind in zip(batch.ids(), batch.kind.tolist(), strict=True):
            if name == request:
                found[position].add(kind)

    with EmbeddedBroker(folder / "broker") as broker:
        read_all(Settings(kafka=broker.address), SAMPLES, visit)
    return found


def test_a_demo_ends_by_itself_with_every_exposure_accounted_for_and_a_whole_report(tmp_path: Path) -> None:
    with demo_process(tmp_path, "--seconds", "20", "--twin") as demo:
        assert is_page(demo.url)
        request, position = click(demo)
        assert demo.wait() == 0, demo.text()
        assert len(demo.seen) >= 6  # broker, Redis, four roles
        report = demo.report()
        assert_undisturbed(report)
        newest = report["auc"][-1]["auc"]  # of the newest rows, from the topics
        assert abs(report["shown_auc"] - newest) <= 0.01, "what the page showed"
        assert 0 < report["twin_auc"] < 1
        said = demo.text()
        assert "every exposure is accounted for" in said
        assert len(said.splitlines()) < 40  # calm
        demo.until_nothing_left()
    kinds = labels(tmp_path / "data", request)
    assert kinds.pop(position) & {POSITIVE, CORRECTION}, "the person's click is a label"
    assert (len(kinds), set().union(*kinds.values()) & {NEGATIVE, POSITIVE, CORRECTION}) == (9, {NEGATIVE})
    # What tests/deploy/test_deploy.py holds the dashboard against is what running roles expose.
    families = {name if not name.endswith("_total") else name[:-6] for name in exposed(ROLES).values()}
    assert set(report["metrics"]) == families


@pytest.mark.skipif(PROGRAM is None, reason="prometheus (Debian: prometheus) is not installed")
def test_prometheus_beside_a_demo_has_every_series_of_the_first_row_of_the_dashboard(tmp_path: Path) -> None:
    shown = [panel for _, panels in dashboards() for panel in panels if panel["title"] in FIRST]
    asked = {t["expr"].replace("$__rate_interval", "1m") for panel in shown for t in panel["targets"]}
    assert len(asked) > 10
    with demo_process(tmp_path, "--prometheus") as demo:
        demo.until(lambda: demo.state()["phase"] == "running", "it runs")
        (address,) = re.findall(r"^Prometheus: (http\S+)", demo.text(), re.M)
        asks, empty = Prometheus(address, tmp_path / "data" / "prometheus" / "prometheus.log"), set[str]()

        def answered() -> bool:
            empty.clear()
            empty.update(expr for expr in asked if not asks.values(expr))
            return not empty

        until(answered, "each query yields a value", every=1.0, more=lambda: f"{empty}\n{asks.up()}\n{demo.text()}")
        assert asks.up() == dict.fromkeys(ROLES, "up")
        (well,) = {t["expr"] for panel in shown if panel["title"] == "All well" for t in panel["targets"]}
        assert set(asks.values(well)) <= {0.0, 1.0}
        assert "Grafana: docker run" in demo.text()
        assert demo.end(signal.SIGTERM) == 128 + signal.SIGTERM, demo.text()
        demo.until_nothing_left()


def test_kill_9_of_the_demo_leaves_no_process(tmp_path: Path) -> None:
    with demo_process(tmp_path, "--page-port", "0") as demo:
        demo.until(lambda: demo.state()["phase"] == "running", "it runs")
        below = descendants(demo.process.pid)
        assert len(below) >= 5
        assert demo.end(signal.SIGKILL) == -signal.SIGKILL
        demo.until_nothing_left()


def test_sigterm_ends_it_at_once_and_cleanly_even_while_it_starts(tmp_path: Path) -> None:
    with demo_process(tmp_path) as demo:
        demo.until(lambda: len(descendants(demo.process.pid)) >= 4, "roles are started")
        assert demo.end(signal.SIGTERM) == 128 + signal.SIGTERM, demo.text()
        demo.until_nothing_left()
        assert "Traceback" not in demo.text()
        assert demo.text().splitlines()[-1].startswith("everything has stopped; its data lie in")


def test_a_taken_page_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with demo_process(tmp_path, "--page-port", str(port)) as demo:
            assert demo.wait() == 1
            assert demo.text().splitlines() == [
                f"millrace: the live page's address 127.0.0.1:{port} cannot be bound (Address already in use);"
                " set --page-port to a free port, or 0"
            ]


@pytest.mark.parametrize("name", ["MILLRACE_KAFKA", "MILLRACE_REDIS"])
def test_a_service_that_is_named_and_absent_is_one_line(tmp_path: Path, name: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        env = {name: address}
        if (
            name == "MILLRACE_KAFKA"
        ):  # Redis is asked after the demo's own broker, which a busy machine may keep waiting
            env["MILLRACE_PATIENCE_SECONDS"] = "0.2"
        with demo_process(tmp_path, env=env) as demo:
            assert demo.wait() == 1
            errors = [line for line in demo.text().splitlines() if line.startswith("millrace: ")]
            assert len(errors) == 1
            assert address in errors[0]
            assert "Traceback" not in demo.text()
            demo.until_nothing_left()
