# core
"""Resident memory of processes, as the system counts it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from millrace.basics.errors import MillraceError


def resident_bytes(process: int | str = "self", name: str = "VmRSS:") -> int | None:
    """Resident memory of a process, in bytes. None: it is gone, or this system has no ``/proc``. Each process counts
    shared pages too, so a sum is too high rather than too low."""
    try:
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def measured_bytes(process: int | str = "self", peak: bool = False) -> int:
    """As :func:`resident_bytes`, but raises MillraceError instead of None; ``peak``: the highest value so far."""
    held = resident_bytes(process, "VmHWM:" if peak else "VmRSS:")
    if held is None:
        raise MillraceError(f"no resident memory in /proc/{process}/status", "measure a living process, on Linux")
    return held


def resident(processes: Mapping[str, int | None]) -> dict[str, int]:
    found = {name: resident_bytes(process) for name, process in processes.items() if process is not None}
    return {name: held for name, held in found.items() if held is not None}
