"""When a run is over: nothing waits to be read, no figure moves, and the roles that say so are awake."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from millrace.demo.settle import Drained
from millrace.loop.monitor import Picture

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
