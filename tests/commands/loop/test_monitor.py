"""What the monitor makes of the roles' figures: counters over restarts, roles that are silent, bounded history."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from http.client import HTTPConnection
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from rich.console import Console

from millrace.basics.errors import PortError
from millrace.commands.demo.demorun import ROLES
from millrace.commands.loop.host import Host
from millrace.commands.loop.monitor import SCORER_ERRORS, Monitor, RoleMetrics
from millrace.commands.loop.page import PageServer
from millrace.commands.loop.page.page_server import FIRST_PORT
from millrace.commands.loop.series import COLUMNS, Series
from millrace.commands.loop.status import RunStatus, State, sparkline, stands, state_of
from millrace.commands.loop.view import View, line_of, table_of
from millrace.contracts.clock import EventClock
from millrace.contracts.events import ARMS
from millrace.contracts.settings import Settings
from millrace.processes.resident_memory import resident, resident_bytes
from millrace.processes.supervisor import Supervisor
from tests.scenes.waiting import PATIENCE


def exposition(started: float, sent: float, auc: str = "NaN") -> str:
    return (
        "# TYPE process_start_time_seconds gauge\n"
        f"process_start_time_seconds {started}\n"
        "# TYPE millrace_ready gauge\nmillrace_ready 1\n"
        "# TYPE millrace_exposures_sent_total counter\n"
        f"millrace_exposures_sent_total {sent}\n"
        "# TYPE millrace_dead_letters_total counter\n"
        f'millrace_dead_letters_total{{reason="malformed"}} {sent / 10}\n'
        f'millrace_dead_letters_total{{reason="oversized"}} 1\n'
        "# TYPE millrace_pending_exposures gauge\n"
        'millrace_pending_exposures{partition="0"} 3\nmillrace_pending_exposures{partition="1"} 4\n'
        "# TYPE millrace_rolling_auc gauge\n"
        f'millrace_rolling_auc{{arm="model"}} {auc}\n'
    )


def test_counters_go_on_over_a_restart_even_when_the_new_life_has_counted_further() -> None:
    figures = RoleMetrics()
    for started, sent in ((1.0, 10), (1.0, 30), (2.0, 5), (2.0, 50), (3.0, 60)):
        figures.update(exposition(started, sent))
    assert figures.total("millrace_exposures_sent_total") == 30 + 50 + 60
    assert figures.lives == 3
    assert figures.by_label("millrace_dead_letters_total", "reason") == {"malformed": 3 + 5 + 6, "oversized": 3}


def test_an_answer_that_does_not_say_when_its_process_began_is_no_new_life() -> None:
    figures = RoleMetrics()
    figures.update(exposition(1000.25, 40))
    figures.update("\n".join(line for line in exposition(0.0, 50).splitlines() if "process_start" not in line) + "\n")
    assert (figures.total("millrace_exposures_sent_total"), figures.lives) == (50, 1)
    figures.update(exposition(1000.26, 60))
    assert (figures.total("millrace_exposures_sent_total"), figures.lives) == (60, 1)
    figures.update(exposition(1001.0, 5))
    assert (figures.total("millrace_exposures_sent_total"), figures.lives) == (65, 2)


def test_gauges_sum_over_partitions_and_are_unknown_until_a_number() -> None:
    figures = RoleMetrics()
    figures.update(exposition(1.0, 10))
    assert figures.gauge("millrace_pending_exposures") == 7
    assert figures.gauge("millrace_pending_exposures", partition="1") == 4
    assert figures.gauge("millrace_rolling_auc") is None
    assert figures.gauge("millrace_no_such_thing") is None
    figures.update(exposition(1.0, 10, "0.75"))
    assert figures.gauge("millrace_rolling_auc") == 0.75


SERVED = {"p50": 900.0, "p99": 2000.0, "count": 12, "recent": {"p50": 800.0, "p99": 1500.0, "count": 10}}


class Network:
    def __init__(self) -> None:
        self.answers: dict[str, str] = {}

    def get(self, url: str) -> str:
        if url not in self.answers:
            raise ConnectionRefusedError(url)
        return self.answers[url]


@pytest.fixture
def network() -> Network:
    made = Network()
    for name in ("simulate", "stream", "learn", "serve"):
        made.answers[f"http://{name}/metrics"] = exposition(1.0, 20)
    made.answers["http://serve/model"] = json.dumps({"version": 4, "versions_served": 4, "click_to_served_ms": SERVED})
    return made


def monitor_of(network: Network, memory: Callable[[], Mapping[str, int]] = dict) -> Monitor:
    targets = {n: f"http://{n}/metrics" for n in ("simulate", "stream", "learn", "serve")}
    return Monitor(targets, "http://serve", EventClock(), network.get, memory)


def staged(started: float, stage: str, below: int, count: int, seconds: float) -> str:
    name = "millrace_click_stage_seconds"
    return exposition(started, 10) + (
        f"# TYPE {name} histogram\n"
        f'{name}_bucket{{stage="{stage}",le="0.1"}} {below}\n{name}_bucket{{stage="{stage}",le="0.2"}} {count}\n'
        f'{name}_bucket{{stage="{stage}",le="+Inf"}} {count}\n'
        f'{name}_count{{stage="{stage}"}} {count}\n{name}_sum{{stage="{stage}"}} {seconds}\n'
    )


def test_stages_are_of_all_clicks_over_restarts(network: Network) -> None:
    monitor = monitor_of(network)
    network.answers["http://stream/metrics"] = staged(1.0, "joined", 0, 10, 1.5)
    monitor.look()
    network.answers["http://stream/metrics"] = staged(2.0, "joined", 30, 30, 1.5)
    picture = monitor.look()
    stages = {stage: times.figures() for stage, times in monitor.stages().items()}
    assert list(stages) == ["joined", "learnt", "published", "applied", "served"]
    assert stages["joined"] == {
        "mean": 75.0,
        "p50": pytest.approx(1000 * 0.1 * 20 / 30),
        "p99": pytest.approx(196),
        "count": 40,
    }
    assert stages["applied"] == {"mean": None, "p50": None, "p99": None, "count": 0}
    assert picture.figures["click_stage_ms_joined"] == 50.0, "of the newest 30 clicks, and 75 of all"
    assert picture.figures["click_stage_ms_learnt"] is None
    assert monitor.look().figures["click_stage_ms_joined"] == 50.0, "while no other click comes"


def test_users_who_were_not_read_and_those_who_do_not_exist_are_distinguished(network: Network, tmp_path: Path) -> None:
    """As shares of all requests, over restarts of the scorer."""
    monitor = monitor_of(network)
    figures = monitor.look().figures
    assert (figures["unread_share"], figures["unknown_share"]) == (None, None), "nobody has asked"
    for started, counts in ((2.0, (90, 3, 5, 2)), (3.0, (100, 0, 0, 0))):
        reads = zip(("store", "cache", "unknown", "nothing"), counts, strict=True)
        network.answers["http://serve/metrics"] = exposition(started, 10) + (
            "# TYPE millrace_user_reads_total counter\n"
            + "".join(f'millrace_user_reads_total{{found="{found}"}} {n}\n' for found, n in reads)
        )
        figures = monitor.look().figures
    assert (figures["unread_share"], figures["unknown_share"]) == (2 / 200, 5 / 200)
    state = state_of("running", 1, 1.0, monitor, Supervisor(tmp_path), [], RunStatus(("serve",)))
    assert state["roles"][0]["says"].endswith("users not read 1.00%, unknown 2.50%")


def test_a_stream_that_reads_its_state_says_so_until_it_is_ready(network: Network) -> None:
    running: Any = SimpleNamespace(roles={"stream": SimpleNamespace(state="running", pid=1, restarts=0)})
    monitor, begun = monitor_of(network), exposition(1.0, 10)

    def stream(awaited: int) -> Any:
        monitor.look()
        awaiting = f"# TYPE millrace_partitions_awaited gauge\nmillrace_partitions_awaited {awaited}\n"
        ready = begun if not awaited else begun.replace("millrace_ready 1", "millrace_ready 0")
        network.answers["http://stream/metrics"] = ready + awaiting
        monitor.look()
        state = state_of("running", 1, 1.0, monitor, running, [], RunStatus(("stream",)))
        return state["roles"][0] | {"line": line_of(state)}

    role = stream(3)
    assert (role["state"], role["awaits"]) == ("starting", "reads the states of its partitions, 3 to go")
    assert role["says"] == role["awaits"]
    assert "stream starting (reads the states of its partitions, 3 to go)" in role["line"]
    role = stream(0)
    assert (role["state"], role["awaits"]) == ("running", "")
    assert "dead letters" in role["says"]


def test_a_silent_role_is_not_ready_and_keeps_its_figures(network: Network) -> None:
    monitor = monitor_of(network)
    network.answers["http://stream/metrics"] += "# TYPE millrace_exposures_total counter\nmillrace_exposures_total 25\n"
    assert all(monitor.look().ready.values())
    del network.answers["http://simulate/metrics"], network.answers["http://serve/metrics"]
    picture = monitor.look()
    assert picture.ready == {"simulate": False, "stream": True, "learn": True, "serve": False}
    assert (picture.figures["exposures"], picture.figures["taken_in"]) == (20, 25), "not all came from the simulator"
    assert picture.model["version"] == 4
    assert picture.figures["click_to_served_p99_ms"] == 1500.0, "the chart shows the newest clicks"
    assert picture.figures["click_to_served_all_p99_ms"] == 2000.0, "the report all of them"
    network.answers["http://serve/metrics"] = exposition(2.0, 0)
    network.answers["http://serve/model"] = json.dumps({"click_to_served_ms": {"p50": None, "p99": None, "count": 0}})
    assert monitor.look().figures["click_to_served_all_p99_ms"] == 2000.0


@pytest.mark.parametrize(("left", "sent"), [(exposition(1.0, 25), 25), (None, 20)])
def test_a_role_that_was_stopped_is_not_asked_again(network: Network, left: str | None, sent: int) -> None:
    """Another run's simulator may get its port."""
    monitor = monitor_of(network)
    monitor.look()
    monitor.ended("simulate", left)
    network.answers["http://simulate/metrics"] = exposition(7.0, 4000)
    picture = monitor.look()
    assert picture.figures["exposures"] == sent
    assert picture.ready == {"simulate": False, "stream": True, "learn": True, "serve": True}


def test_what_a_role_has_not_measured_is_unknown_and_a_measured_0_is_a_figure(network: Network) -> None:
    gauges = {
        "simulate": {"oracle_auc": "millrace_oracle_auc"},
        "learn": {
            "auc": 'millrace_rolling_auc{arm="model"}',
            "baseline_auc": 'millrace_baseline_auc{arm="model"}',
            "log_loss": 'millrace_rolling_log_loss{arm="model"}',
            "calibration": 'millrace_calibration{arm="model"}',
            "auc_control": 'millrace_rolling_auc{arm="control"}',
            "learner_version": "millrace_model_version",
        },
        "serve": {"freshness_s": "millrace_freshness_seconds", "served_version": "millrace_served_version"},
    }
    network.answers["http://serve/model"] = json.dumps({"version": 4, "trained": 100})
    for said, known in (("NaN", None), ("0.0", 0.0)):
        for role, named in gauges.items():
            text = "".join(f"{metric} {said}\n" for metric in named.values())  # without a type: as gauges
            network.answers[f"http://{role}/metrics"] = (
                exposition(1.0, 20).split("# TYPE millrace_rolling_auc")[0] + text
            )
        figures = monitor_of(network).look().figures
        assert {n: figures[n] for named in gauges.values() for n in named} == dict.fromkeys(
            [n for named in gauges.values() for n in named], known
        )


def test_the_scorers_errors_are_counted_by_kind(network: Network) -> None:
    kinds = "".join(f'millrace_errors_total{{what="{what}"}} {n}\n' for what, n in (("redis", 2), ("feed", 1)))
    network.answers["http://serve/metrics"] += f"# TYPE millrace_errors_total counter\n{kinds}"
    figures = monitor_of(network).look().figures
    assert figures["scorer_errors"] == 3
    assert {n: v for n, v in figures.items() if n.startswith(SCORER_ERRORS)} == {
        f"{SCORER_ERRORS}redis": 2,
        f"{SCORER_ERRORS}feed": 1,
    }


@pytest.mark.parametrize(
    ("model", "logged", "shown"),
    [
        (("0.6", 9), ("0.8", 9), 0.6),
        (("NaN", 9), ("0.8", 9), None),
        (("NaN", 0), ("0.8", 9), 0.8),
        (("NaN", 0),) * 2 + (None,),
    ],
)
def test_the_headline_is_the_models_and_a_logs_where_the_model_made_no_page(
    network: Network, model: tuple[str, int], logged: tuple[str, int], shown: float | None
) -> None:
    text = exposition(1.0, 20).split("# TYPE millrace_rolling_auc")[0]
    for arm, (auc, rows) in (("model", model), ("logged", logged), ("control", ("0.9", 9))):
        text += f'millrace_rolling_auc{{arm="{arm}"}} {auc}\nmillrace_served_rows{{arm="{arm}"}} {rows}\n'
    network.answers["http://learn/metrics"] = text
    figures = monitor_of(network).look().figures
    assert figures["auc"] == shown
    assert figures["auc_control"] == 0.9


def test_a_loop_that_never_began_a_round_has_no_time_of_it(network: Network) -> None:
    assert monitor_of(network).look().figures["stream_loop_s"] is None
    for said, known in ((0.0, None), (1.8e9, 1.8e9)):
        text = f"# TYPE millrace_loop_timestamp_seconds gauge\nmillrace_loop_timestamp_seconds {said}\n"
        network.answers["http://stream/metrics"] = exposition(1.0, 20) + text
        assert monitor_of(network).look().figures["stream_loop_s"] == known


def test_the_first_auc_is_timed(network: Network) -> None:
    monitor = monitor_of(network)
    monitor.look()
    assert monitor.first_auc_wall_ms is None
    network.answers["http://learn/metrics"] = exposition(1.0, 20, "0.6")
    first = monitor.look()
    monitor.look()
    assert monitor.first_auc_wall_ms == first.wall_ms


def test_the_history_is_bounded_and_spans_the_whole_run() -> None:
    series = Series(limit=50)
    for second in range(10_000):
        series.add(second * 1000, second * 60_000, {"exposures": second * 7.0})
    assert 25 <= len(series.points) <= 50
    walls = [w for w in series.column("wall_ms") if w is not None]
    assert walls == sorted(walls)
    assert walls[0] < 1_000_000
    assert walls[-1] > 9_000_000
    assert series.rate("exposures") == pytest.approx(7.0)
    assert set(series.columns()) == set(COLUMNS)


def drawn(points: int, limit: int = 600) -> Series:
    series = Series(limit)
    for second in range(points):
        series.add(1000 * (second + 1), 60_000 * second, {"auc": 0.5 + second / 1000, "click_rate_model": None})
    return series


def test_the_charts_go_on_after_a_restart_with_a_gap() -> None:
    before, after = drawn(10), Series()
    after.resume(before.encoded(), 8500)
    assert after.points[:8] == before.points[:8], "without what is said to come: the clock was put back"
    assert after.column("wall_ms")[8:] == [8001]
    assert after.column("auc")[8:] == [None]
    after.add(9000, 600_000, {"auc": 0.7})
    assert after.column("auc")[-2:] == [None, 0.7]
    assert after.last("auc", "wall_ms") == (9000, (0.7, 9000))
    empty = Series()
    empty.resume(Series().encoded(), 1)
    assert empty.points == []


def test_a_history_stays_bounded_over_restarts() -> None:
    series = drawn(75, 50)
    for now_ms in range(80_000, 400_000, 10_000):
        again = Series(50)
        again.resume(series.encoded(), now_ms)
        for second in range(5):
            again.add(now_ms + 1000 * second, now_ms + second, {"auc": 0.5})
        series = again
        assert 25 <= len(series.points) <= 50


def test_the_charts_of_another_version_lack_what_it_did_not_draw() -> None:
    kept = {"columns": ["event_ms", "auc", "of_old", "wall_ms"], "every": 2, "points": [[5.0, 0.7, 1.0, 6.0]]}
    series = Series()
    series.resume(json.dumps(kept).encode(), 10_000)
    assert series.points[0][:3] == (6.0, 5.0, 0.7)
    assert set(series.points[0][3:]) == {None}


WHOLE = {"columns": ["wall_ms", "event_ms"], "every": 1, "points": [[1.0, 1.0], [2.0, 2.0]]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        drawn(5).encoded()[:-9],
        b"[" * 100_000,
        *(
            json.dumps(WHOLE | change).encode()
            for change in (
                {"every": 0},
                {"columns": ["wall_ms", "auc"]},
                {"points": [[1.0, 1.0], [2.0]]},
                {"points": [[1.0, 1.0], [None, 2.0]]},
                {"points": [[2.0, 1.0], [1.0, 2.0]]},
                {"points": [[1.0 + n, 1.0] for n in range(601)]},
            )
        ),
    ],
)
def test_damaged_charts_are_told_and_begun_anew(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    host = Host(Settings(), tmp_path, threading.Event(), RunStatus(ROLES))
    (tmp_path / "series.json").write_bytes(raw)
    series = Series()
    host.resume_series(series)
    assert series.points == []
    assert len(host.notes) == 1
    assert host.notes[0].startswith(f"the charts begin anew: '{tmp_path / 'series.json'}' is damaged (")


def test_a_run_keeps_its_charts_and_the_next_goes_on_with_them(network: Network, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    seen: list[Any] = []
    for _ in range(2):
        host = Host(Settings(), tmp_path, threading.Event(), RunStatus(ROLES))
        host.keeps_series = True
        host.monitor = monitor_of(network)
        host.resume_series(host.monitor.series)
        seen.append(host.monitor.series.column("wall_ms")[:1])
        host.monitor.look()
        host.stop_watching()
        first = host.monitor.series.column("wall_ms")[:1]
    assert seen == [[], first]
    assert host.notes == []
    (tmp_path / "series.json").unlink()
    (tmp_path / "series.json").mkdir()
    for _ in range(2):
        host.keep_series()
    assert len(host.notes) == 1
    assert "cannot be written" in host.notes[0]


def test_click_rates_are_recent_and_by_arm() -> None:
    series = Series(ctr_seconds=10)
    clicks = 0.0
    for second in range(100):
        clicks += 2.0 if second >= 50 else 0.0
        series.add(
            second * 1000,
            second,
            {"page_exposures_model": second * 10.0, "page_clicks_model": clicks, "page_exposures_control": 0.0},
        )
    assert series.click_rate("model") == pytest.approx(0.2)
    assert series.click_rate("control") is None


def test_memory_is_of_every_process_that_lives_and_of_all_together(network: Network) -> None:
    held = {"stream": 300, "broker": 100}
    monitor = monitor_of(network, lambda: held)
    assert monitor.look().figures["memory_total"] == 400
    del held["broker"]
    figures = monitor.look().figures
    assert (figures["memory_stream"], figures["memory_broker"], figures["memory_total"]) == (300, None, 300)
    assert monitor.series.column("memory_total") == [400, 300]
    assert monitor_of(network).look().figures["memory_total"] is None


GROWS = """
import sys
sys.stdin.readline()
block = b"1" * int(sys.argv[1])
print("grown", flush=True)
sys.stdin.readline()
"""


def test_memory_is_read_from_the_system() -> None:
    own = resident({"this": os.getpid(), "never": None, "gone": 2**22 + 12345})
    if not Path("/proc/self/status").exists():
        assert own == {}
        return
    assert list(own) == ["this"]
    size = 64 << 20
    # In a process of its own: this one lets go of what other tests have left at any moment.
    with subprocess.Popen(
        [sys.executable, "-S", "-c", GROWS, str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        before = resident_bytes(child.pid)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "grown\n"
        after = resident_bytes(child.pid)
        child.stdin.close()
    assert before is not None
    assert after is not None
    assert after - before > 0.8 * size


# -- What is shown -----------------------------------------------------------------------------------------------------
# The page's server, the state behind it, the terminal's table and lines, from nothing to a full run.


def exposition_of(n: float) -> str:
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
        return exposition_of(step)

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


def test_one_sentence_says_that_all_is_well_or_the_worst_that_is_not(running: State) -> None:
    """Worse and worse: each says itself although all before it still holds."""
    state = running | {"roles": [r | {"state": "running"} for r in running["roles"]]}
    assert stands(state) == {"mood": "good", "says": "All is well: all 4 roles work."}
    state["gate"] = {"state": "promoting", "says": "every version was promoted"}
    assert stands(state)["says"] == "All is well: all 4 roles work and the gate lets new versions serve."
    roles = state["roles"]
    roles[1] |= {"state": "starting", "awaits": "reads the states of its partitions, 3 to go"}
    said = "Not ready yet: stream (reads the states of its partitions, 3 to go)."
    assert stands(state) == {"mood": "", "says": said}
    roles[3] |= {"state": "starting", "restarts": 1}
    assert stands(state)["says"].endswith("3 to go), serve (it ended and was started again).")
    state["awaits"] = "waiting for items."
    assert stands(state) == {"mood": "", "says": "waiting for items."}
    state["gate"] = {"state": "held", "says": "version 7 serves: a person holds what is served"}
    assert stands(state) == {"mood": "", "says": "The gate: version 7 serves: a person holds what is served."}
    state["gate"] = {"state": "blocked", "says": "refused: AUC 0.41"}
    assert stands(state) == {"mood": "bad", "says": "The gate: refused: AUC 0.41."}
    state["figures"] = state["figures"] | {"not_finite": 1234.0}
    assert stands(state)["says"].startswith("1,234 predictions of the learner are no finite numbers")
    roles[2] |= {"state": "waiting", "restarts": 2}
    assert stands(state) == {"mood": "bad", "says": "learn is down, restart 3; see its log. The others go on."}
    state["phase"] = "draining"
    assert stands(state) == {"mood": "", "says": "The run is draining."}, "roles end one by one then"
    roles[0]["state"] = "gave up"
    assert stands(state)["says"] == "simulate ended too often and is not started again; see its log."
    state |= {"phase": "failed", "notes": ["a", "no room on the disk"]}
    assert stands(state) == {"mood": "bad", "says": "The run failed. no room on the disk"}


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
    folder = resources.files("millrace.commands.loop.page")
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
    monkeypatch.setattr("millrace.commands.loop.view.LINE_SECONDS", math.inf)  # however long fifty ticks take here
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
