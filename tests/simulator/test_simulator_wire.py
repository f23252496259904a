"""Troubles are told, at growing intervals."""

from __future__ import annotations

import structlog

from simulator.wire import ThrottledWarning


def told(times: list[float]) -> list[tuple[float, int]]:
    """(when it was told, how often it had been left unsaid) for a trouble that is met at these times."""
    now = 0.0
    warn = ThrottledWarning(lambda: now)
    out = []
    for at in times:
        now = at
        with structlog.testing.capture_logs() as lines:
            warn("trouble")
        out += [(at, int(line.get("as_often_since", 0))) for line in lines]
    return out


def test_a_lasting_trouble_is_told_ever_less_often() -> None:
    lines = told([k / 2 for k in range(400)])  # 200 s
    assert [at for at, _ in lines] == [0, 1, 3, 7, 15, 31, 61, 91, 121, 151, 181]
    assert sum(1 + unsaid for _, unsaid in lines) <= 400
    assert lines[1] == (1, 1)


def test_a_new_trouble_is_told_at_once() -> None:
    assert [at for at, _ in told([0.0, 0.5, 1.0, 1.5, 100.0, 101.0])] == [0.0, 1.0, 100.0, 101.0]
