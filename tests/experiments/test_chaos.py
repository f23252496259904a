"""Chaos: what is struck when, who is meant, what the report says; and a short run, after which the books balance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.chaos import END, VICTIMS, Plan, experiment_chaos, make_report, port_of, strikes, victim
from experiments.taken import Process
from millrace.basics.errors import SettingError
from tests.scenes.waiting import LONG


def argv(*words: str) -> tuple[str, ...]:
    return ("/usr/bin/python", "-P", "-m", *words)


LOOP = {
    1: Process(0, 1, argv("millrace", "demo")),
    2: Process(1, 2, argv("millrace", "stream")),
    3: Process(1, 3, argv("millrace", "serve")),
    4: Process(3, 3, argv("scorer.worker.template", "7")),
    5: Process(4, 3, argv("scorer.worker.template", "7")),
    6: Process(0, 3, argv("scorer.worker.template", "7")),  # a worker whose template was killed
    7: Process(1, 7, argv("millrace.broker", "--port", "20001")),
    8: Process(1, 8, ("/usr/bin/redis-server 127.0.0.1:20002",)),
}


def test_the_seed_draws_what_is_struck_and_each_has_its_turn() -> None:
    plan = Plan(kills=16, emptied=3, seconds=100.0)
    drawn = strikes(plan, 7)
    assert drawn == strikes(plan, 7) != strikes(plan, 8)
    assert [s.second for s in drawn] == sorted(s.second for s in drawn)
    kills = [s.what for s in drawn if s.what in VICTIMS]
    assert sorted(kills[:8]) == sorted(kills[8:]) == sorted(VICTIMS)
    assert [s.second for s in drawn if s.what == END] == [100.0]
    assert sum(s.what == "emptied" for s in drawn) == 3
    assert strikes(Plan(kills=0, emptied=0), 7) == [(200.0, END)], "without kills the demo as it is"


def test_who_is_meant_is_found_among_the_processes() -> None:
    expected = {"stream": 2, "serve": 3, "template": 4, "worker": 6, "broker": 7, "redis": 8, "learn": 0}
    assert {what: victim(what, LOOP) for what in expected} == expected
    assert victim("worker", {n: p for n, p in LOOP.items() if n != 6}) == 5
    assert victim("worker", {n: p for n, p in LOOP.items() if n != 3}) == 0, "its scorer is about to be started again"


def test_the_port_of_redis_is_read_from_its_title_or_its_command_line() -> None:
    assert port_of(LOOP) == 20002
    command = Process(1, 8, ("/usr/bin/redis-server", "--bind", "127.0.0.1", "--port", "20003"))
    assert port_of(LOOP | {8: command}) == 20003
    assert port_of({1: LOOP[1]}) == 0


def test_the_report_counts_kills_refusals_and_books() -> None:
    done = [{"second": 1.0, "what": "stream", "hit": True}, {"second": 2.0, "what": "worker", "hit": False}]
    done += [{"second": 3.0, "what": "emptied", "hit": True}, {"second": 9.0, "what": END, "hit": True}]
    row: dict[str, Any] = {"seed": 1, "strikes": done, "conserved": True, "status": 0, "exposures_sent": 10}
    row |= {"quarantined": 0, "refused": {}}
    broken = row | {"conserved": False, "status": 1, "exposures_sent": None, "refused": {"shift": 2}}
    report = make_report([row, broken])
    assert report["struck"] == {"emptied": 2, "stream": 2}
    assert (report["demos"], report["balanced"], report["failed"], report["exposures"]) == (2, 1, 1, 10)
    assert report["refused"] == {"shift": 2}
    assert report["verdict"].startswith("2 demos, 2 kills, Redis emptied 2 times: the books of 1 balance")


@pytest.mark.parametrize("plan", [Plan(seeds=0), Plan(seconds=0), Plan(kills=-1)])
def test_a_plan_of_nothing_is_refused(tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(SettingError, match="no number below 0"):
        experiment_chaos(tmp_path / "out", plan)
    assert not (tmp_path / "out").exists()


@pytest.mark.services
@pytest.mark.timeout(LONG)
@pytest.mark.slow
def test_after_some_kills_every_exposure_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILLRACE_TEST_KAFKA_HOME", raising=False)  # the embedded broker, which the demo starts again
    said: list[str] = []
    report = experiment_chaos(tmp_path, Plan(seeds=1, seed=3, seconds=25.0, kills=5, emptied=1), say=said.append)
    (row,) = report["runs"]
    assert row["conserved"] is True, row
    accounted = sum(row[name] for name in ("positives", "negatives", "pending", "exposures_in_dead_letters"))
    assert row["exposures_sent"] == accounted > 0
    assert row["broker"] == "embedded"
    assert report["struck"], "whatever runs when it is struck: something did"
    assert [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == [row]
    assert "every exposure is accounted for" in (tmp_path / "demo-3" / "demo.log").read_text()
    assert len(said) == len(row["strikes"]) + 1
