"""Where a role's metrics are: at a port of its own, which it names."""

from __future__ import annotations

import socket

import pytest
from structlog.testing import capture_logs

from commands.loop.monitor import fetch
from millrace.basics.errors import PortError
from millrace.contracts.settings import Settings, load_settings
from millrace.processes import metrics
from millrace.processes.role import ROLES
from millrace.processes.services import free_port


def test_each_role_has_a_port_of_its_own() -> None:
    assert metrics.PORTS.keys() == set(ROLES)
    ports = [*metrics.PORTS.values(), Settings().port]
    assert len(set(ports)) == len(ports)


def test_the_default_port_is_taken_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setitem(metrics.PORTS, "stream", port)
    with capture_logs() as said:
        assert metrics.serve_metrics("stream", Settings().metrics_port) == port
    assert [line["url"] for line in said] == [f"http://127.0.0.1:{port}/metrics"]
    assert "millrace_ready" in fetch(said[0]["url"], 60.0)


def test_a_second_worker_on_a_machine_takes_another_port_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        first.listen()
        taken = first.getsockname()[1]
        monkeypatch.setitem(metrics.PORTS, "stream", taken)
        with capture_logs() as said:
            port = metrics.serve_metrics("stream", None)
        assert port != taken
        assert said[0]["log_level"] == "warning"
        assert said[0]["taken"] == taken
        assert said[1]["url"] == f"http://127.0.0.1:{port}/metrics"
        with pytest.raises(PortError, match=str(taken)):
            metrics.serve_metrics("stream", taken)


def test_any_free_port_is_named_too() -> None:
    with capture_logs() as said:
        port = metrics.serve_metrics("learn", 0)
    assert f":{port}/" in said[0]["url"]


def test_zero_is_not_the_default() -> None:
    assert load_settings({}, Settings(metrics_port=0).environment()).metrics_port == 0
    assert load_settings({}, {}).metrics_port is None
