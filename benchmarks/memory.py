# shell
"""How much memory a process and its children take that no file stands behind (Linux)."""

from __future__ import annotations

import subprocess
from pathlib import Path

_EVERY_S = 0.1


def peak_anonymous_mb(process: subprocess.Popen[str]) -> float:
    """Waits for a process to end; the greatest sum of its own and its children's anonymous memory, in MB.

    It is looked at ten times a second. Pages of mapped files do not count: the system takes them back at will.
    """
    peak = 0.0
    while True:
        peak = max(peak, sum(anonymous_mb(pid) for pid in _family(process.pid)))
        try:
            process.wait(_EVERY_S)
        except subprocess.TimeoutExpired:
            continue
        return peak


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for one in found:  # grows while it is gone through
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text(encoding="utf-8").split()]
            except OSError:  # ended meanwhile
                continue
    return found


def anonymous_mb(pid: int) -> float:
    """A process's own anonymous memory, in MB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:")), 0.0)
