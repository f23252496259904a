"""The picture that a demo draws beside its report, and the figures of a run's beginning and end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from commands.demo.curves import draw, thirds
from commands.loop.series import COLUMNS


def report(points: int = 90) -> dict[str, Any]:
    page: dict[str, list[float | None]] = {name: [None] * points for name in COLUMNS}
    page["wall_ms"] = [1000.0 * i for i in range(points)]
    page["memory_total"] = [float(i << 20) for i in range(points)]
    page["memory_stream"] = [None, *(float(i << 19) for i in range(1, points))]
    page["click_to_served_p50_ms"] = ([None] * 10 + [800.0] * 40 + [900.0] * points)[:points]
    return {"page": page, "began_wall_ms": 0, "ended_wall_ms": 1000 * points}


def test_a_run_is_drawn_with_what_was_never_measured_left_out(tmp_path: Path) -> None:
    draw(report(), tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    draw(report(0), tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_the_first_and_the_last_third_are_distinguished() -> None:
    assert thirds(report(), "click_to_served_p50_ms") == (800.0, 900.0)
    assert thirds(report(), "auc") == (None, None)
