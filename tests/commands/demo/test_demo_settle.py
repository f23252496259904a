"""When a run is over: nothing waits to be read, no figure moves, and the roles that say so are awake. And what happens
when something dies while the topics are read.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from commands.demo import settle as module
from commands.demo.conservation import Ledger
from commands.demo.settle import Drained, settle
from commands.loop import host as hosts
from commands.loop.host import READS, Host, made
from commands.loop.monitor import Picture
from commands.loop.status import RunStatus
from millrace.basics.errors import BrokerError
from millrace.contracts.settings import Settings

T0_MS = 1_800_000_000_000


def picture(after_s: float, stood_still_s: float = 0.0, **figures: float) -> Picture:
    wall_ms = T0_MS + round(after_s * 1000)
    known: dict[str, float | None] = {
        "stream_lag": 0.0, "learner_lag": 0.0, "pending": 0.0, "trained": 5.0,
        "stream_loop_s": wall_ms / 1000 - 0.1, "learn_loop_s": wall_ms / 1000 - stood_still_s,
        **figures,
    }  # fmt: skip
    ready = {"stream": True, "learn": True}
    return Picture(wall_ms, known, ready, ready, {}, {})


def read_after(*pictures: Picture) -> bool:
    monitor: Any = SimpleNamespace(picture=pictures[0])
    dry = Drained(monitor, idle_seconds=5.0)
    answer = False
    for monitor.picture in pictures:
        answer = dry.read()
    return answer


def drained_after(*pictures: Picture, roles: tuple[str, ...] = ("stream", "learn")) -> tuple[bool, str]:
    monitor: Any = SimpleNamespace(picture=pictures[0])
    dry = Drained(monitor, 5.0, roles)
    answer = False
    for monitor.picture in pictures:
        answer = dry()
    return answer, dry.why


def test_a_loop_in_which_nothing_moves_has_drained() -> None:
    assert drained_after(picture(0.0), picture(9.0))[0]
    assert drained_after(picture(0.0, pending=2.0), picture(9.0, pending=2.0))[0]
    assert not drained_after(picture(0.0), picture(9.0, trained=6.0))[0]
    assert not drained_after(picture(0.0), picture(9.0, learner_lag=1.0))[0]


def test_a_partition_that_falls_silent_is_waited_for() -> None:
    assert not drained_after(picture(0.0), picture(5.0))[0]
    assert not drained_after(picture(0.0, pending=2.0), picture(5.0, pending=2.0))[0]


def test_by_a_slow_clock_all_is_read_while_labels_still_come() -> None:
    looks = [picture(float(s), trained=float(s)) for s in range(4)]
    assert not drained_after(*looks)[0]
    assert read_after(*looks)
    assert not read_after(*looks[:2])
    assert not read_after(*looks[:3], picture(3.0, stream_lag=1.0))
    assert not read_after(*looks[:3], picture(3.0, stood_still_s=3.0))


def test_a_role_that_was_stopped_is_not_waited_for() -> None:
    ended = [Picture(p.wall_ms, p.figures, {}, {"learn": True}, {}, {}) for p in (picture(0.0), picture(9.0))]
    assert not drained_after(*ended)[0]
    assert drained_after(*ended, roles=("learn",))[0]


def test_a_role_that_stands_still_has_not_drained_though_its_last_figures_say_so() -> None:
    answer, why = drained_after(*(picture(s, stood_still_s=s) for s in (0.0, 3.0, 30.0)))
    assert not answer
    assert why == "learn silent"


# -- what dies while the topics are read --------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(Settings(data=str(tmp_path)), made(tmp_path), threading.Event(), RunStatus(()))


def test_a_broker_that_dies_while_it_is_read_from_is_started_again_meanwhile(host: Host) -> None:
    started = threading.Event()
    dead = SimpleNamespace(poll=lambda: -9, returncode=-9)
    service: Any = SimpleNamespace(name="broker", process=dead, pid=None)

    def again() -> None:
        service.process = None
        started.set()

    service.again = again
    host.services.append(service)
    assert host.read(lambda: started.wait(60.0)), "the reader would have waited for ever"


def test_what_a_broker_has_is_read_again_when_it_went_away_and_is_back(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(hosts, "wait_for_broker", lambda settings, seconds: seen.append("waited"))

    def work() -> int:
        seen.append("read")
        if len(seen) < 4:
            raise BrokerError("no consumer", "start Kafka")
        return len(seen)

    assert host.read(work) == 5
    assert seen == ["read", "waited", "read", "waited", "read"]
    seen.clear()

    def never() -> None:
        seen.append("read")
        raise BrokerError("no consumer", "start Kafka")

    with pytest.raises(BrokerError, match="no consumer"):
        host.read(never)
    assert seen.count("read") == READS


def test_the_books_are_read_again_until_the_loop_is_dry_and_nothing_moves(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time a role had died: its last figures stand still, and say nothing. The second time they move."""
    figures = iter([1.0, 1.0, 2.0, 3.0, 4.0, 4.0])
    dry = iter([False, True, True])
    reads: list[Ledger] = []
    roles = {"learn": SimpleNamespace(lives=1, total=lambda name: 0.0)}

    def look() -> Picture:
        return Picture(T0_MS, {"pending": next(figures), "trained": 0.0}, {}, {}, {}, {})

    def read(settings: Settings, since: Any) -> Ledger:
        reads.append(Ledger())
        return reads[-1]

    monkeypatch.setattr(module, "read_ledger", read)
    monkeypatch.setattr(module, "forgotten", lambda settings, since: "")
    monkeypatch.setattr(host, "wait", lambda until, seconds, **_: next(dry) if until is drained else True)
    monkeypatch.setattr(host, "read", lambda work: work())
    host.monitor = SimpleNamespace(look=look, roles=roles)  # type: ignore[assignment]
    drained: Any = SimpleNamespace(why="stream silent")
    ledger, found = settle(host, drained)
    assert ledger is reads[2]
    assert len(reads) == 3
    assert found.picture.figures["pending"] == 4.0
    assert found.problem is not None
    assert "the stream holds 4 pending" in str(found.problem)
    assert host.notes == ["not drained after 60 s: stream silent"]
