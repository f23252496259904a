"""What is shown: the page's server, the state behind it, the terminal's table and lines, from nothing to a full run."""

from __future__ import annotations

import io
import json
import math
import re
import signal
import threading
from http.client import HTTPConnection
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from commands.demo.demorun import ROLES
from commands.loop.monitor import Monitor
from commands.loop.page import PageServer
from commands.loop.page.page_server import FIRST_PORT
from commands.loop.series import COLUMNS
from commands.loop.status import RunStatus, State, sparkline, state_of
from commands.loop.view import View, line_of, table_of
from millrace.basics.errors import PortError
from millrace.contracts.clock import EventClock
from millrace.contracts.events import ARMS
from millrace.processes.supervisor import Supervisor
from tests.scenes.waiting import PATIENCE


def exposition(n: float) -> str:
    return (
        "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 1\n"
        "# TYPE millrace_ready gauge\nmillrace_ready 1\n"
        f"# TYPE millrace_exposures_sent_total counter\nmillrace_exposures_sent_total {100 * n}\n"
        f"# TYPE millrace_samples_trained_total counter\nmillrace_samples_trained_total {90 * n}\n"
        f'# TYPE millrace_rolling_auc gauge\nmillrace_rolling_auc{{arm="model"}} {0.5 + n / 100}\n'
        f'millrace_rolling_auc{{arm="control"}} {0.7 + n / 100}\n'
        "# TYPE millrace_page_exposures_total counter\n"
        f'millrace_page_exposures_total{{arm="model"}} {90 * n}\n'
        f'millrace_page_exposures_total{{arm="control"}} {10 * n}\n'
        "# TYPE millrace_page_clicks_total counter\n"
        f'millrace_page_clicks_total{{arm="model"}} {9 * n}\nmillrace_page_clicks_total{{arm="control"}} {n / 2}\n'
        f'# TYPE millrace_outcome_rows gauge\nmillrace_outcome_rows{{outcome="order"}} {n}\n'
        f'# TYPE millrace_outcome_auc gauge\nmillrace_outcome_auc{{outcome="order"}} {0.5 + n / 100}\n'
    )


@pytest.fixture
def nothing(tmp_path: Path) -> State:
    return state_of("starting", 0, 240.0, None, Supervisor(tmp_path), [], RunStatus(ROLES))


@pytest.fixture
def running(tmp_path: Path) -> State:
    looks = iter(range(1, 100))
    step = 0

    def get(url: str) -> str:
        nonlocal step
        if url.endswith("/model"):
            return json.dumps(
                {
                    "version": 7,
                    "trained": 5,
                    "click_to_served_ms": {"p50": 900.0, "p99": 1800.0, "recent": {"p50": 900.0, "p99": 1800.0}},
                }
            )
        if url.startswith("http://simulate"):
            step = next(looks)
        return exposition(step)

    monitor = Monitor({n: f"http://{n}/metrics" for n in ROLES}, "http://serve", EventClock(0, 0, 240.0), get)
    for _ in range(12):
        monitor.look()
    return state_of(
        "running", 1, 240.0, monitor, Supervisor(tmp_path), [f"note {i}" for i in range(20)], RunStatus(ROLES)
    )


def get(url: str, path: str) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port or 0, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_the_state_is_whole_from_the_first_moment(nothing: State, running: State) -> None:
    for state in (nothing, running):
        assert [r["name"] for r in state["roles"]] == list(ROLES)
        assert set(state["series"]) == set(COLUMNS)
        assert json.loads(json.dumps(state)) == state
    assert running["figures"]["ctr_model"] == pytest.approx(0.1)
    assert running["figures"]["ctr_control"] == pytest.approx(0.05)
    assert running["figures"]["click_to_served_p50_ms"] == 900.0
    assert running["series"]["auc"][-1] == pytest.approx(0.62)
    assert nothing["outcomes"] == []
    order = {"outcome": "order", "rows": 12.0, "auc": pytest.approx(0.62), "log_loss": None, "calibration": None}
    assert running["outcomes"] == [order]
    assert running["notes"] == [f"note {i}" for i in range(12, 20)]


def test_the_page_serves_its_files_and_the_state_and_nothing_else(running: State) -> None:
    page = PageServer(lambda: running, 0)
    try:
        status, headers, body = get(page.url, "/state.json")
        assert (status, json.loads(body)) == (200, running)
        assert headers["cache-control"] == "no-store"
        status, headers, body = get(page.url, "/")
        assert status == 200
        assert headers["content-security-policy"].startswith("default-src 'none'")
        for name in re.findall(r'(?:src|href)="([^":]+)"', body.decode()):
            status, headers, _ = get(page.url, f"/{name}")
            assert status == 200
            assert headers["x-content-type-options"] == "nosniff"
        for elsewhere in ("/../server.py", "/server.py", "/etc/passwd", "/%2e%2e/server.py"):
            assert get(page.url, elsewhere)[0] == 404
    finally:
        page.stop()


def test_the_server_leaves_signals_alone_and_ends_although_a_browser_stays_connected(running: State) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    page = PageServer(lambda: running, 0)
    parts = urlsplit(page.url)
    browser = HTTPConnection(parts.hostname or "", parts.port or 0, timeout=PATIENCE)
    try:
        browser.request("GET", "/state.json")
        assert browser.getresponse().read()
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
        page.stop()
        assert not [t for t in threading.enumerate() if t.name == "page"]
        assert browser.sock.recv(1) == b""  # the server has closed it
    finally:
        browser.close()
        page.stop()


def test_only_get_is_served_and_only_on_loopback(running: State) -> None:
    page = PageServer(lambda: running, 0)
    parts = urlsplit(page.url)
    browser = HTTPConnection(parts.hostname or "", parts.port or 0, timeout=PATIENCE)
    try:
        assert parts.hostname == "127.0.0.1"
        browser.request("POST", "/state.json", b"{}")
        answer = browser.getresponse()
        assert answer.status == 405
        assert answer.getheader("content-security-policy", "").startswith("default-src 'none'")
        answer.read()
    finally:
        browser.close()
        page.stop()


def test_the_page_needs_nothing_from_elsewhere_and_no_inline_code() -> None:
    folder = resources.files("commands.loop.page")
    html, css = (folder.joinpath(n).read_text() for n in ("index.html", "page.css"))
    script = folder.joinpath("page.js").read_text() + folder.joinpath("chart.js").read_text()
    assert "://" not in html
    assert "url(" not in css
    assert re.findall(r"https?://[^\"]+", script) == ["http://www.w3.org/2000/svg"]  # a name space, not an address
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", html)  # the content security policy would refuse them
    used = set(re.findall(r'byId\("([\w-]+)"\)', script)) | set(re.findall(r'put\("([\w-]+)"', script))
    assert used == set(re.findall(r'\bid="([\w-]+)"', html)) & used
    assert len(used) > 20
    keys = set(re.findall(r'key: "(\w+)"', script)) - {"p50_s", "p99_s"}
    assert keys <= set(COLUMNS)


def test_a_taken_port_is_named_and_none_given_means_the_next_free_one(running: State) -> None:
    first, second = PageServer(lambda: running), PageServer(lambda: running)
    try:
        ports = [urlsplit(p.url).port or 0 for p in (first, second)]
        assert ports[0] != ports[1]
        assert min(ports) >= FIRST_PORT
        with pytest.raises(PortError, match=rf"address 127\.0\.0\.1:{ports[0]} cannot be bound"):
            PageServer(lambda: running, ports[0])
    finally:
        first.stop()
        second.stop()


def test_the_terminal_shows_key_figures_and_dashes_for_what_is_unknown(nothing: State, running: State) -> None:
    def text(state: State) -> str:
        console = Console(file=io.StringIO(), width=120, record=True)
        console.print(table_of(state, "http://127.0.0.1:8710/"))
        return console.export_text()

    assert "not started" in text(nothing)
    assert "–" in text(nothing)
    shown = text(running)
    for figure in ("0.6200", "random pages 0.820", "10.00%", "5.00%", "1,200 exposures", "0.90 / 1.80 s"):
        assert figure.replace("0.6200", "0.620") in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_what_no_role_has_measured_is_null_for_the_page_and_a_dash_in_the_terminal(tmp_path: Path) -> None:
    names = ("oracle_auc", "freshness_seconds", "served_version", "model_version")
    said = "".join(f"# TYPE millrace_{name} gauge\nmillrace_{name} NaN\n" for name in names)
    for name in ("rolling_auc", "rolling_log_loss", "calibration"):
        said += "".join(f'millrace_{name}{{arm="{arm}"}} NaN\n' for arm in ARMS)
    model = json.dumps({"version": 0, "trained": 0})
    targets = {n: f"http://{n}/metrics" for n in ROLES}
    monitor = Monitor(targets, "http://serve", EventClock(), lambda url: model if url.endswith("/model") else said)
    for _ in range(3):
        monitor.look()
    state = state_of("running", 1, 240.0, monitor, Supervisor(tmp_path), [], RunStatus(ROLES))
    assert json.loads(json.dumps(state, allow_nan=False)) == state
    for name in ("auc", "oracle_auc", "log_loss", "freshness_s", "served_version", "learner_version"):
        assert state["figures"][name] is None
    assert "AUC served – oracle – baseline – " in line_of(state)
    assert "version – " in line_of(state)
    assert state["series"]["freshness_s"] == [None] * 3


def test_a_pipe_gets_a_line_now_and_then(running: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("commands.loop.view.LINE_SECONDS", math.inf)  # however long fifty ticks take here
    out = io.StringIO()
    with View(lambda: running, Console(file=out, highlight=False, soft_wrap=True)) as view:
        for _ in range(50):
            view.tick()
        view.say("a note")
    assert out.getvalue().splitlines() == [line_of(running), "a note"]


def test_sparklines_span_the_run() -> None:
    assert sparkline([None, 0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([]) == ""
    assert len(sparkline([float(i) for i in range(1000)], 40)) == 40
    assert sparkline([float(i) for i in range(1000)], 40)[-1] == "█"
    assert sparkline([0.5, 0.5]) == "▁▁"


def test_predictions_that_are_no_numbers_are_reported_where_the_learner_is_shown(tmp_path: Path) -> None:
    def says(broken: int) -> str:
        said = f"# TYPE millrace_predictions_not_finite_total counter\nmillrace_predictions_not_finite_total {broken}\n"
        targets = {n: f"http://{n}/metrics" for n in ROLES}
        monitor = Monitor(targets, "http://serve", EventClock(), lambda url: "{}" if url.endswith("/model") else said)
        monitor.look()
        state = state_of("running", 1, 240.0, monitor, Supervisor(tmp_path), [], RunStatus(ROLES))
        return str(next(role["says"] for role in state["roles"] if role["name"] == "learn"))

    assert says(7).endswith(", 7 PREDICTIONS NOT FINITE")
    assert "NOT FINITE" not in says(0)
